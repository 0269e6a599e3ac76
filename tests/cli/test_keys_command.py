"""`rlhf-audit keys` as operators and auditors run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.tree_head import log_id
from rlhf_audit_trail.ledger.trust import read_keys


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments])


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with one run; the keys of before stand in `old/`."""
    monkeypatch.chdir(tmp_path)
    with Ledger.create("audit", organisation="acme.example") as ledger:
        step = {"step": 1}
        ledger.open_run("run").record(Event("metrics.logged", step, {"metrics": {"loss": 0.5}}))
        ledger.open_run("run").publish()
        ledger.registry.publish()
    Path("old").mkdir()
    for path in Path("audit/keys").iterdir():
        (Path("old") / path.name).write_bytes(path.read_bytes())
    return Path("audit")


def export(log: str, target: str) -> None:
    with Ledger.open("audit") as ledger:
        export_log(ledger.find(log), Path(target))


def test_rotate_retire_and_trace(audit: Path) -> None:
    done = run("keys", "rotate", "--ledger", audit)
    assert done.exit_code == 0, done.output
    assert "generation 2 signs beside generation 1; logs changed: 2" in done.output
    assert "operator-2.key" in done.output
    again = run("keys", "rotate", "--ledger", audit)
    assert (again.exit_code, "it had been done before" in again.output) == (0, True)
    assert run("prove", "run", "0", "--ledger", audit).exit_code == 0
    for key in ("old/run.vkey", "audit/keys/run.vkey"):
        assert run("verify", "run.bundle", "--key", key).exit_code == 0

    done = run("keys", "retire", "--ledger", audit, "--json")
    assert json.loads(done.output) == {
        "generation": 2,
        "overlapping": False,
        "changed": ["run", "registry"],
        "key_files": ["audit/keys/registry.vkey", "audit/keys/run.vkey"],
    }
    assert run("prove", "run", "0", "--ledger", audit, "-o", "new.bundle").exit_code == 0
    assert run("verify", "new.bundle", "--key", "audit/keys/run.vkey").exit_code == 0
    assert run("verify", "new.bundle", "--key", "old/run.vkey").exit_code == 1

    export("registry", "public")
    done = run("keys", "trace", "public", "--key", "old/registry.vkey", "-o", "found")
    assert done.exit_code == 0, done.output
    assert "rotations between the keys you gave and those that sign now: 1" in done.output
    assert run("verify", "new.bundle", "--key", "found/run.vkey").exit_code == 0
    for path in Path("audit/keys").iterdir():
        assert (Path("found") / path.name).read_bytes() == path.read_bytes()


def test_show_tells_keys_and_the_id_that_stays(audit: Path) -> None:
    old = read_keys("old/run.vkey")
    for wanted in ([1], [1, 2], [2]):
        shown = json.loads(run("keys", "show", "--ledger", audit, "--json").output)["logs"][1]
        assert shown["generations"] == wanted
        assert shown["log_id"] == log_id(old[0]).hex()
        assert shown["keys"] == Path("audit", shown["file"]).read_text().splitlines()
        run("keys", "rotate" if wanted == [1] else "retire", "--ledger", audit)
    text = run("keys", "show", "--ledger", audit).output
    assert "acme.example/rlhf/run   generation 2" in text
    assert "ML-DSA-44" in text


def test_trace_of_a_run_by_its_own_log(audit: Path) -> None:
    run("keys", "rotate", "--ledger", audit)
    run("keys", "retire", "--ledger", audit)
    export("run", "public")
    found = run("keys", "trace", "public", "--key", "old/run.vkey", "--json")
    (log,) = json.loads(found.output)["logs"]
    assert log["keys"] == Path("audit/keys/run.vkey").read_text().splitlines()
    assert log["file"] is None


def test_refusals(audit: Path) -> None:
    done = run("keys", "retire", "--ledger", audit)
    assert (done.exit_code, "keys rotate" in done.output) == (2, True)
    export("registry", "public")
    trace = ("keys", "trace", "public", "--key")
    assert run(*trace, "old/registry.vkey").exit_code == 0
    assert run(*trace, "old/run.vkey").exit_code == 3  # no key of this log
    with Ledger.create("other", organisation="acme.example") as other:
        stranger = other.key_file("registry")
    assert run(*trace, stranger).exit_code == 1
    assert run(*trace, "missing.vkey").exit_code == 4
    assert run("keys", "trace", "nowhere", "--key", "old/registry.vkey").exit_code == 5
    tile = (
        Path("public/tile/entries/000.p")
        / next(iter(Path("public/tile/entries/000.p").iterdir())).name
    )
    tile.write_bytes(tile.read_bytes().replace(b"acme", b"evil"))
    assert run(*trace, "old/registry.vkey").exit_code == 1


def test_a_machine_without_the_new_secret_is_told_what_to_copy(audit: Path) -> None:
    run("keys", "rotate", "--ledger", audit)
    (audit / "operator-2.key").rename("elsewhere")
    done = run("keys", "show", "--ledger", audit)
    assert done.exit_code == 4
    assert "operator-2.key is not on this machine" in done.output
    assert "copy it from the machine that rotated them" in done.output


def test_a_trust_policy_names_the_log_by_its_first_key(audit: Path) -> None:
    run("keys", "rotate", "--ledger", audit)
    run("keys", "retire", "--ledger", audit)
    run("prove", "run", "0", "--ledger", audit)
    anchor = {"chain_id": 1, "contract": "0x" + "1" * 40, "publisher": "0x" + "2" * 40}
    keys = Path("audit/keys/run.vkey").read_text().splitlines()
    policy = {"schema": "rlhf-audit/trust-policy/v1", "keys": keys}
    verify = ("verify", "run.bundle", "--trust-policy", "policy.json")
    for log_name, code in ((log_id(read_keys("old/run.vkey")[0]).hex(), 0), ("ab", 4)):
        Path("policy.json").write_text(
            json.dumps(policy | {"anchor": anchor | {"log_id": log_name}})
        )
        assert run(*verify, "--accept-unanchored").exit_code == code
    assert run(*verify[:2], "--key", "audit/keys/run.vkey", "--log-id", "ab" * 32).exit_code == 2
