"""`rlhf-audit prove` in every form, judged by those who check them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.cose import verify_inclusion_receipt
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import parse_bundle
from rlhf_audit_trail.ledger.tlog_policy import parse_policy
from rlhf_audit_trail.ledger.tlog_proof import verify_tlog_proof


def event(number):
    fields = {"name": "test", "severity": "low", "step": number, "detail": ""}
    return Event("alert.raised", fields)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Ledger.create("audit", organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(event(number) for number in range(300))
        log.publish()
        ledger.open_run("single").record(event(0))
        ledger.find("single").publish()
        keys, entry = log.verifier_keys, log.read(7).data

    def run(*arguments):
        done = CliRunner().invoke(main, ["prove", *arguments, "--ledger", "audit"])
        return done.exit_code, done.output

    run.keys, run.entry, run.folder = keys, entry, tmp_path
    return run


def test_a_cose_receipt_of_one_entry(run):
    code, said = run("run42", "7", "--as", "cose")
    assert code == 0, said
    data = (run.folder / "run42.7.cose").read_bytes()
    index, head = verify_inclusion_receipt(data, run.entry, run.keys[0])
    assert (index, head.size) == (7, 300)


def test_a_tlog_proof_of_one_entry(run):
    code, said = run("run42", "7", "--as", "tlog-proof", "-o", "seven.proof")
    assert code == 0, said
    data = (run.folder / "seven.proof").read_bytes()
    policy = parse_policy(f"log {run.keys[0]}\nquorum none\n".encode())
    index, found = verify_tlog_proof(data, run.entry, policy, pinned=run.keys)
    assert (index, found.signed.head.size) == (7, 300)


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(run):
    before = sorted(run.folder.iterdir())
    for indices in (["7"], ["7", "8"]):
        assert run("run42", *indices)[0] == 0
    assert sorted(run.folder.iterdir()) == sorted([*before, run.folder / "run42.bundle"])
    found = parse_bundle((run.folder / "run42.bundle").read_bytes())
    assert [item.index for item in found.entries] == [7, 8]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run42", "7", "8", "--as", "cose"], 2, "one INDEX"),
        (["run42", "7", "--as", "tlog-proof", "--open", "reward"], 2, "one INDEX"),
        (["run42", "7", "--as", "pdf"], 2, "--as"),
        (["single", "0", "--as", "cose"], 3, "one entry"),
        (["run42", "300", "--as", "cose"], 3, "no signed tree head"),
        (["run42", "7", "-o", "no/such/folder"], 5, "no/such/folder: No such"),
    ],
)
def test_what_cannot_be_proven_so(run, arguments, code, words):
    found, said = run(*arguments)
    assert (found, words in said) == (code, True), said
