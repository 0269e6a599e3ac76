"""Everything that the public, or a reader with a scope, can get of a ledger with releases.

None of it holds an id, value, noise, seed, salt or key, or a guessable hash of one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.cli.privacy_command import privacy
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.subjects import erase_subject, find_subject
from rlhf_audit_trail.privacy.covered_values import Of, covered, statistic_cells
from rlhf_audit_trail.privacy.errors import PrivacyError
from rlhf_audit_trail.privacy.slots import NoiseSlots
from rlhf_audit_trail.privacy.stated import statistic_of
from tests.privacy_ledger.runs import NONCE, anchored, annotate, auditor
from tests.privacy_ledger.test_report import WORDS

sys.path.insert(0, str(Path(__file__).parents[1] / "privacy_noise"))
from leaks import Secrets, leaks

REWARDS = [0.8371, 0.1234567, 0.62951413, 0.40000007]
IDS = [f"annotator-{number}@example.org" for number in (0, 7, 24)]
SLOTS, SECRET = 4, hashlib.sha256(b"the secret of a round").digest()


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """What everybody may read of two runs, by name; and what must not be in it."""
    from rlhf_audit_trail.ledger.log import Ledger

    handler, lines = logging.Handler(logging.DEBUG), []
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    folder = tmp_path_factory.mktemp("public")
    directory, found = folder / "ledger", {}
    Ledger.create(directory, organisation="acme.example").close()
    patched = pytest.MonkeyPatch()  # else noise of four digits would now and then be a number
    patched.setattr(NoiseSlots, "draw", classmethod(lambda cls, count: cls(SECRET, count)))
    config = {"epsilon": 1.0, "epsilon_per_round": 0.6, "beacon": "auditor"}
    with auditor(directory, **config) as audit:
        with audit.track_training("a") as run:
            annotate(run, people=25, reward=REWARDS)
            run.privacy.open_round(slots=SLOTS)
            _refused(found, "early", lambda: run.privacy.coin(value=NONCE))
            anchored(audit.ledger, run.log)
            run.privacy.coin(value=NONCE)
            run.privacy.release_mean()
            run.privacy.release_histogram(levels=2)
            _refused(found, "exhausted", lambda: run.privacy.release_histogram(levels=3))
            _refused(found, "skip", lambda: run.privacy.skip("", count=9))
            run.log.record_many([])
            run.log.publish()
            secrets = _secrets(audit.ledger, run.log)
        with audit.track_training("b") as run:
            annotate(run, people=25, reward=REWARDS)
            run.privacy.open_round(slots=SLOTS)
            run.privacy.coin(source="local")
            _refused(found, "crossing", run.privacy.release_mean)
            run.log.publish()
        erase_subject(audit.ledger, IDS[1], basis="request")
        for name in ("a", "b"):
            report = audit.get_privacy_report(name)
            found[f"report {name}"] = json.dumps(report.to_dict()) + repr(report)
            found[f"scope {name}"] = json.dumps(report.for_scope("releases").to_dict())
        found["registry entry"] = audit.get_privacy_report("a").to_registry_yaml(**WORDS)
        found |= _read(audit.ledger, folder)
    for words in (["a"], ["a", "--json", "--audit"], ["recompute", "a", "--json"], ["b"]):
        shown = CliRunner().invoke(privacy, [*words, "--ledger", str(directory)])
        found[f"privacy {' '.join(words)}"] = shown.output
        assert shown.exit_code == 0, shown.output
    patched.undo()
    logging.getLogger().removeHandler(handler)
    logging.getLogger().setLevel(level)
    found["log messages"] = "\n".join(lines)
    return found, secrets


def _refused(found, name, call):
    with pytest.raises(PrivacyError) as refused:
        call()
    error = refused.value
    found[f"exception {name}"] = f"{error} {error!r} {error.next_step} {error.__cause__!r}"


def _secrets(ledger, log):
    """Ids, values, raw sums, noise; the round's secret, seeds, salts, accounts, tags and keys."""
    numbers, keys = list(REWARDS), []
    (root,) = log.entries(kind="dp.noise_root")
    secret = bytes.fromhex(log.opened(root.leaf_index)["secret"])
    assert secret == SECRET
    slots = NoiseSlots(secret, SLOTS)
    keys += [secret, *(slots.open(slot).seed for slot in range(SLOTS))]
    for release in log.entries(kind="dp.release"):
        spend = log.read(release.event["spend_ref"]).event
        of = Of.said(spend["of"])
        taken = covered(log, spend["first_index"], spend["end_index"], of)
        raw = statistic_cells(statistic_of(spend["statistic"]), of, taken.values)
        numbers += [int(x) - y for x, y in zip(release.event["value"], raw, strict=True)]
        numbers += raw
    opened = log.opened(next(iter(log.entries(kind="dp.spend"))).leaf_index)
    keys += [bytes.fromhex(x) for x in opened["accounts"][:3]]
    for name in IDS:
        subject = find_subject(ledger, name)
        keys += [subject.tag, bytes.fromhex(subject.runs[0].pseudonym)]
        keys += [x.salt for x in log.openings(subject.runs[0].indices[0])]
        with ledger.vault.keys.connect() as stored:
            query = "SELECT secret FROM subject_key WHERE subject = ?"
            keys.append(bytes(stored.exec_driver_sql(query, (subject.tag,)).scalar()))
    return Secrets(ids=IDS, numbers=numbers, keys=keys)


def _read(ledger, folder):
    """Entries, exported files, bundles, and every answer of the service that reads."""
    found, runs = {}, [*ledger.runs(), "registry"]
    for name in runs:
        log = ledger.find(name) if name != "registry" else ledger.registry
        log.publish()
        found[f"entries {name}"] = "\n".join(x.data.decode() for x in log.entries())
        export_log(log, folder / f"export-{name}")
        for path in (folder / f"export-{name}").rglob("*"):
            if path.is_file():
                found[f"export {name} {path.name}"] = path.read_bytes()
        found[f"bundle {name}"] = log.bundle(range(log.published().head.size)).decode()
    with TestClient(create_app(ledger), raise_server_exceptions=False) as client:
        paths = client.app.openapi()["paths"]
        asked = [path for path, how in paths.items() if "get" in how]
        assert len(asked) >= 15
        size = ledger.find("a").published().head.size
        index = next(ledger.find("a").entries(kind="dp.spend")).leaf_index
        for path in asked:
            filled = path.replace("{run}", "a").replace("{index}", str(index))
            params = {"old": 1, "new": 2} if "consistency" in path else {}
            answer = client.get(filled.replace("{path}", f"entries/000.p/{size}"), params=params)
            assert answer.status_code == (401 if "progress" in path else 200), path
            found[f"GET {path}"] = answer.text + json.dumps(dict(answer.headers))
        page = client.get("/api/v1/logs/a/entries", params={"limit": 100})
        assert page.status_code == 200
        assert "dp.release" in found["GET /api/v1/logs/{run}/entries"] + page.text
        found["pages"] = page.text
        for body in ({"run": "a", "indices": [index]}, {"x": 1}):
            found[f"POST {sorted(body)}"] = client.post("/api/v1/bundles", json=body).text
        found["no such"] = client.get(f"/api/v1/logs/{'x' * 40}/entries").text
    return found


def test_nothing_public_tells_an_id_value_noise_seed_or_key(public):
    found, secrets = public
    assert len(found) > 30
    assert all(found.values())
    assert leaks(found, secrets) == []


def test_the_search_would_have_found_them(public):
    """Each kind of secret, put into what is public, is seen."""
    _, secrets = public
    noise = next(x for x in secrets.numbers[len(REWARDS) :] if abs(x) >= 1_000)
    planted = {
        "id": IDS[0], "value": str(REWARDS[0]), "noise": str(noise), "K": secrets.keys[0].hex(),
        "seed": secrets.keys[1].hex(), "salt": secrets.keys[-2].hex(),
    }  # fmt: skip
    seen = {leak.document for leak in leaks(planted, secrets, dictionary=())}
    assert seen == planted.keys()
