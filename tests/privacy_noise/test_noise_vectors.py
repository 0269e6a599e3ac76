"""The vectors of noise slots end as they say: by the package, and by another language."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf_audit_trail.ledger.chain.contract.build import node_on_path
from rlhf_audit_trail.privacy.audit_sample import chosen_events
from rlhf_audit_trail.privacy.errors import PrivacyError
from rlhf_audit_trail.privacy.redraw import (
    CoinOrder,
    Noised,
    check_coin,
    check_release,
    check_slots,
)
from rlhf_audit_trail.privacy.slots import NoiseSlots, SlotOpening

FOLDER = Path(__file__).parents[1] / "vectors" / "noise"
VECTORS: list[dict[str, Any]] = json.loads((FOLDER / "noise_slots.json").read_text("utf-8"))

ERRORS = {
    "EarlyCoin", "InvalidParameter", "NoiseProtocolError", "ReleaseDiffers", "SlotReused",
    "SlotSkipped", "TamperedParameters", "WrongSlotOpening",
}  # fmt: skip


def check(vector: dict[str, Any]) -> dict[str, Any]:
    """Run one vector; return what it shows beyond "ok"."""
    given = dict(vector["input"])
    for name in {"secret", "root", "coin", "seed"} & given.keys():
        given[name] = bytes.fromhex(given[name])
    match vector["kind"]:
        case "tree":
            return {"root": NoiseSlots(**given).root.hex()}
        case "opening":
            opening = SlotOpening.from_json(given["opening"])
            opening.check(given["root"], given["count"])
            stream = opening.bits(given["coin"])
            return {"words": [f"{stream.word():016x}" for _ in range(5)]}
        case "coin":
            check_coin(CoinOrder(**given))
        case "slots":
            return {"next": check_slots(given.pop("used"), **given)}
        case "release":
            opening, raw = SlotOpening.from_json(given.pop("opening")), given.pop("raw")
            check_release(Noised(**given), raw, opening)
        case "sample":
            return {"chosen": list(chosen_events(given.pop("seed"), given.pop("root"), **given))}
        case other:
            pytest.fail(f"a vector of unknown kind {other}")
    return {}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["about"])
def test_vector(vector: dict[str, Any]) -> None:
    try:
        found = {"expect": "ok"} | check(vector)
    except PrivacyError as error:
        found = {"expect": type(error).__name__}
    assert found == {key: vector[key] for key in found}


def test_most_must_fail_and_every_error_does() -> None:
    expected = Counter(vector["expect"] for vector in VECTORS)
    assert expected["ok"] * 2 < len(VECTORS)
    assert expected.keys() == ERRORS | {"ok"}


def test_generating_again_gives_the_same_bytes() -> None:
    command = [sys.executable, str(FOLDER / "generate.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_another_language_agrees() -> None:
    """Node shares no code with the package, only the text of FORMAT.md."""
    with node_on_path():
        node = str(shutil.which("node"))
    script = Path(__file__).parent / "check_slots.mjs"
    done = subprocess.run(
        [node, str(script), str(FOLDER / "noise_slots.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(VECTORS)
