"""Whose weights are these, asked by an outsider: an exported log or a bundle, and a pinned key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.derivation import MadeFrom
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.tiles import tile_path
from rlhf_audit_trail.weights.recorded_weights import recorded_of

pytestmark = pytest.mark.train
ORIGIN = "acme.example/rlhf/run-1"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an outsider has: two exports, keys, models, manifests, a bundle; no ledger."""
    folder = tmp_path_factory.mktemp("outside")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    with Ledger.create(folder / "ledger", organisation="acme.example") as ledger:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated")
        for name in ("run-1", "run-2"):
            with auditor.track_training(name) as run:
                if name == "run-1":
                    for step in range(300):  # the entries of weights lie in several tiles
                        run.metrics(step, {"loss": 1.0})
                    run.register_model(
                        model, "policy_init", derived_from="acme/base-7b", derivation="copy"
                    )
                for epoch in range(2):
                    saved = run.checkpoint(epoch=epoch, model=model)
                    save_file(model.state_dict(), folder / f"{name}-{epoch}.safetensors")
                    with torch.no_grad():
                        model[0].weight.mul_(1 + 2**-8)
                cast = {x: y.half() for x, y in model.state_dict().items()}
                run.checkpoint(
                    epoch=1, name="half", model=cast, derivation="cast",
                    derived_from=[saved, MadeFrom("notes", revision="abc")],
                )  # fmt: skip
                save_file(cast, folder / f"{name}-half.safetensors")
            export_log(ledger.find(name), folder / "exports" / name)
        found = list(ledger.find("run-1").entries(kind="checkpoint.saved"))
        (folder / "run.bundle").write_bytes(
            ledger.find("run-1").bundle([found[0].leaf_index, found[2].leaf_index])
        )
    said(folder, "checkpoint", "manifest", "run-1", "epoch_1", "-o",
         str(folder / "epoch_1.json"), "--ledger", str(folder / "ledger"))  # fmt: skip
    for name in ("run-1", "run-2"):
        shutil.copy(folder / "ledger" / "keys" / f"{name}.vkey", folder)
    shutil.rmtree(folder / "ledger")
    return folder


def said(folder: Path, *arguments: str, code: int = 0) -> Result:
    environment = {"RLHF_AUDIT_LEDGER": str(folder / "nowhere"), "NO_COLOR": "1"}
    done = CliRunner(env=environment).invoke(main, list(arguments))
    assert done.exit_code == code, done.output
    return done


def asked(folder: Path, model: str, *more: str, code: int = 0, run: str = "run-1") -> Result:
    log = str(folder / "exports" / run)
    key = str(folder / f"{run}.vkey")
    return said(folder, "verify-model", str(folder / model), "--log", log, "--key", key, *more, code=code)  # fmt: skip


def test_recorded_weights_are_told_with_their_proof(given: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof.bundle"
    done = asked(given, "run-1-1.safetensors", "--proof", str(proof))
    assert f"checkpoint epoch_1 of {ORIGIN}" in done.stdout
    assert "VERIFIED  these are recorded weights" in done.stdout
    assert f"searched {ORIGIN}" in done.stdout
    checked = said(given, "verify", str(proof), "--key", str(given / "run-1.vkey"))
    assert "VERIFIED" in checked.stdout
    found = json.loads(asked(given, "run-1-1.safetensors", "--json").stdout)
    (match,) = found["matches"]
    head = found["searched"][0]
    assert match["origin"] == head["origin"] == ORIGIN
    assert (match["signed_size"], match["signed_root"]) == (head["size"], head["root"])
    assert match["leaf_index"] > 256
    asked(given, "run-1-1.safetensors", "--checkpoint", "epoch_1")
    asked(given, "run-1-1.safetensors", "--checkpoint", "epoch_9", code=3)


def test_two_entries_of_the_same_weights_are_both_told(given: Path) -> None:
    found = json.loads(asked(given, "run-1-0.safetensors", "--json").stdout)
    assert [x["name"] for x in found["matches"]] == ["policy_init", "epoch_0"]
    assert found["matches"][0]["derived_from"] == [{"name": "acme/base-7b"}]


def test_what_weights_were_made_from_is_followed(given: Path) -> None:
    done = asked(given, "run-1-half.safetensors")
    assert "by its entry a cast of epoch_1 (" in done.stdout
    assert f"of {ORIGIN}" in done.stdout
    assert "by its entry a cast of notes@abc: in no log searched" in done.stdout
    found = json.loads(asked(given, "run-1-half.safetensors", "--json").stdout)
    assert found["sources"][0]["recorded"]["name"] == "epoch_1"
    assert found["sources"][1] == {"said": {"name": "notes", "revision": "abc"}, "recorded": None}


def test_unknown_weights_and_what_cannot_be_told(given: Path, tmp_path: Path) -> None:
    done = asked(given, "run-2-1.safetensors", code=3)
    assert "in no log searched" in done.stdout
    assert "which tensors differ from 4 of 4 recorded weights" in done.stdout
    assert "3 of these have a manifest that is not here" in done.stdout
    manifest = str(given / "epoch_1.json")
    near = asked(given, "run-2-1.safetensors", "--manifest", manifest, code=3)
    assert f"3 of 4 tensors equal epoch_1 of {ORIGIN}" in near.stdout
    assert "0.weight has other values" in near.stdout
    other = asked(given, "run-1-0.safetensors", "--checkpoint", "epoch_1", code=1)
    assert "whose tensors were not listed" in other.stdout
    (tmp_path / "m.json").write_bytes((given / "epoch_1.json").read_bytes() + b" ")
    stranger = asked(given, "run-2-1.safetensors", "--manifest", str(tmp_path / "m.json"), code=2)
    assert "belongs to no entry" in stranger.stderr


def test_one_flipped_bit_makes_weights_unknown(given: Path, tmp_path: Path) -> None:
    data = bytearray((given / "run-1-1.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    manifest = str(given / "epoch_1.json")
    done = asked(given, str(tmp_path / "flipped.safetensors"), "--manifest", manifest, code=3)
    assert "3 of 4 tensors equal epoch_1" in done.stdout
    asked(given, str(tmp_path / "flipped.safetensors"), "--checkpoint", "epoch_1", code=1)


def test_several_logs_each_under_its_own_key(given: Path) -> None:
    both = str(given / "exports")
    keys = [x for run in ("run-1", "run-2") for x in ("--key", str(given / f"{run}.vkey"))]
    model = str(given / "run-2-0.safetensors")
    done = said(given, "verify-model", model, "--log", both, *keys)
    assert "epoch_0 of acme.example/rlhf/run-2" in done.stdout
    alone = said(given, "verify-model", model, "--log", both, *keys[:2], code=3)
    assert "acme.example/rlhf/run-2 was not searched: you pinned no key of it" in alone.stdout
    said(given, "verify-model", model, "--log", both, *keys, "--run", "run-1", code=3)


def test_a_wrong_key_is_a_failure(given: Path, tmp_path: Path) -> None:
    model, log = str(given / "run-1-1.safetensors"), str(given / "exports" / "run-1")
    other = str(given / "run-2.vkey")
    done = said(given, "verify-model", model, "--log", log, "--key", other, code=1)
    assert "no pinned key is of any of these logs" in done.stderr
    forged = tmp_path / "forged.vkey"  # of the same name
    forged.write_text(
        "".join(f"{key}\n" for key in LogKeys.derive(bytes(32), ORIGIN).verifier_keys)
    )
    said(given, "verify-model", model, "--log", log, "--key", str(forged), code=1)
    said(
        given, "verify-model", model, "--bundle", str(given / "run.bundle"), "--key", other, code=1
    )


def test_nothing_is_believed_without_a_key(given: Path) -> None:
    model, log = str(given / "run-1-1.safetensors"), str(given / "exports" / "run-1")
    bundle, key = str(given / "run.bundle"), str(given / "run-1.vkey")
    said(given, "verify-model", model, "--log", log, code=2)
    said(given, "verify-model", model, "--bundle", bundle, code=2)
    said(given, "verify-model", model, "--key", key, code=2)
    said(given, "verify-model", model, "--log", log, "--bundle", bundle, "--key", key, code=2)


@pytest.fixture
def tampered(given: Path, tmp_path: Path) -> Path:
    shutil.copytree(given, tmp_path / "copy")
    return tmp_path / "copy"


def swap_digests(folder: Path, one: bytes, other: bytes) -> None:
    """Have the export say that one digest is the other, where both are of one length."""
    for path in sorted((folder / "exports/run-1/tile/entries").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data.replace(one, other))


def test_a_tampered_export_is_a_failure(tampered: Path) -> None:
    foreign = json.loads(asked(tampered, "run-2-1.safetensors", "--json", code=3).stdout)
    own = json.loads(asked(tampered, "run-1-1.safetensors", "--json").stdout)
    swap_digests(tampered, own["weights_digest"].encode(), foreign["weights_digest"].encode())
    done = asked(tampered, "run-2-1.safetensors", code=1)
    assert "does not lead to the signed root" in done.stderr


@pytest.mark.parametrize("name", ["checkpoint", "hashes", "edge", "missing"])
def test_other_damage_of_an_export(tampered: Path, name: str) -> None:
    log = tampered / "exports" / "run-1"
    size = json.loads(asked(tampered, "run-1-1.safetensors", "--json").stdout)["searched"][0][
        "size"
    ]
    path = {
        "checkpoint": log / "checkpoint",
        "hashes": log / tile_path(0, 0, 256),
        "edge": log / tile_path(0, 1, size - 256),
        "missing": log / tile_path("entries", 1, size - 256),
    }[name]
    if name == "missing":
        path.unlink()
        asked(tampered, "run-1-1.safetensors", code=3)
        return
    data = bytearray(path.read_bytes())
    if name == "checkpoint":  # another root, in the third line
        at = data.index(b"\n", len(ORIGIN) + 1) + 1
        data[at : at + 1] = b"B" if data[at : at + 1] != b"B" else b"C"
    else:
        data[-20] ^= 1
    path.write_bytes(data)
    asked(tampered, "run-1-1.safetensors", code=1)


def test_a_bundle_is_searched_and_is_its_own_proof(given: Path, tmp_path: Path) -> None:
    bundle, key = str(given / "run.bundle"), str(given / "run-1.vkey")
    proof = tmp_path / "again.bundle"
    done = said(given, "verify-model", str(given / "run-1-half.safetensors"), "--bundle", bundle,
                "--key", key, "--proof", str(proof))  # fmt: skip
    assert f"checkpoint half of {ORIGIN}" in done.stdout
    assert "a cast of epoch_1" in done.stdout
    assert "in no log searched" in done.stdout  # epoch_1 is not in the bundle
    assert proof.read_bytes() == (given / "run.bundle").read_bytes()
    said(given, "verify-model", str(given / "run-1-1.safetensors"), "--bundle", bundle, "--key", key, code=3)  # fmt: skip
    data = bytearray((given / "run.bundle").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.bundle").write_bytes(data)
    flipped = CliRunner().invoke(
        main, ["verify-model", str(given / "run-1-half.safetensors"), "--bundle",
               str(tmp_path / "flipped.bundle"), "--key", key],
    )  # fmt: skip
    assert flipped.exit_code in {1, 4}


def test_a_log_may_hold_what_it_likes() -> None:
    hostile = [
        3, [], {"kind": "checkpoint.saved"}, {"kind": ["x"]},
        {"kind": "checkpoint.saved", "weights_digest": 3, "tensors": 1, "name": "x"},
        {"kind": "checkpoint.saved", "weights_digest": "00", "tensors": True, "name": "x"},
        {"kind": "checkpoint.saved", "weights_digest": "00", "tensors": 1, "name": {}},
    ]  # fmt: skip
    for event in hostile:
        found = recorded_of(event, run="r", origin="o", leaf_index=0, manifest=lambda *_: None)
        assert found is None
