"""A training on one machine, the ledger on another: `rlhf-audit serve` in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import WrongArgument
from rlhf_audit_trail.ledger import remote, remote_ledger
from rlhf_audit_trail.ledger.append_call import InsecureAddress, NotAnswered
from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.refusals import BadToken, LogMissing, NotPermitted, RunClosed
from rlhf_audit_trail.ledger.remote_ledger import NotHere, RemoteLedger
from rlhf_audit_trail.ledger.tokens import WriterTokens
from rlhf_audit_trail.ledger.writer import AppendFailed, Overloaded
from tests.ledger.http_service import Network, Service, serving
from tests.train.running import ROWS, events, kinds, train

RUN = "run-1"


@pytest.fixture
def token(ledger: Ledger) -> str:
    return WriterTokens(ledger).grant("gpu-1", RUN)


@pytest.fixture
def service(ledger: Ledger, token: str) -> Iterator[Service]:
    assert token  # which made the run
    with serving(ledger.directory) as started:
        yield started


def remotely(service: Service, token: str, **options: Any) -> AuditableRLHF:
    where = RemoteLedger(service.url, token, **options) if options else service.url
    plain = {} if options else {"token": token}
    return AuditableRLHF("tiny", ledger=where, source="simulated", seed=11, **plain)


def test_a_training_is_recorded_as_on_the_ledgers_own_machine(
    ledger: Ledger, service: Service, token: str, tmp_path: Path
) -> None:
    here = train(AuditableRLHF("tiny", ledger=ledger, source="simulated", seed=11), "local").log
    blobs = set(ledger.blobs.digests())  # lists of the code's files, and of tensors
    with remotely(service, token) as auditor:
        run = train(auditor, RUN, path=tmp_path / "model.pt")
        assert auditor.ledger.runs() == [RUN]
    there = ledger.find(RUN)
    assert kinds(there) == kinds(here)
    signed = there.published()
    assert signed is not None
    assert signed.head.size == there.size
    for kind in ("annotation.recorded", "policy.update", "checkpoint.saved"):
        ours, theirs = events(here, kind), events(there, kind)
        assert [set(sealed) for _, sealed in theirs] == [set(sealed) for _, sealed in ours]
    found = [sealed for _, sealed in events(there, "annotation.recorded")]
    assert [item["prompt"] for item in found] == ROWS["prompts"]
    assert found[0]["annotator"] == found[2]["annotator"] != found[1]["annotator"]
    for entry in there.entries():
        for secret in (b"anna", b"ben", b'"p0"', token.encode()):
            assert secret not in entry.data
    saved = events(there, "checkpoint.saved")[-1][0]
    assert saved["weights_digest"]
    assert saved["path_digest"]
    assert set(ledger.blobs.digests()) == blobs  # digests travel, weights and files do not
    assert run.run_id == RUN
    assert list(fsck(ledger)) == []


def test_receipts_are_indices_and_the_token_may_come_from_the_environment(
    ledger: Ledger, service: Service, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    auditor = AuditableRLHF("tiny", ledger=service.url, source="simulated")
    assert token not in repr(auditor.ledger)
    with auditor, auditor.track_training(experiment_name=RUN):
        receipts = auditor.log_annotations(**ROWS)
        indices = [receipt.result(60) for receipt in receipts]
        assert auditor.log_annotations(**{name: [] for name in ROWS}) == []
    log = ledger.find(RUN)
    assert [log.opened(index)["prompt"] for index in indices] == ROWS["prompts"]


def test_the_same_name_resumes_and_counters_go_on(
    ledger: Ledger, service: Service, token: str
) -> None:
    for _ in range(2):
        with remotely(service, token) as auditor:
            train(auditor, RUN)
    log = ledger.find(RUN)
    assert [public["policy_step"] for public, _ in events(log, "policy.update")] == list(
        range(1, 7)
    )
    assert [public["batch"] for public, _ in events(log, "annotation.recorded")] == [1] * 3 + [
        2
    ] * 3
    (resumed,) = [public for public, _ in events(log, "run.resumed")]
    assert resumed["tree_size"] == log.size // 2
    assert len({entry.writer_id for entry in log.entries()}) == 2


def test_the_service_dies_in_the_middle_and_comes_back(
    ledger: Ledger, service: Service, token: str
) -> None:
    with closing(Network(service.port)) as network:
        auditor = AuditableRLHF("tiny", ledger=network.url, token=token, source="simulated")
        with auditor, auditor.track_training(experiment_name=RUN):
            for number in range(12):
                auditor.log_annotations(**ROWS)
                if number == 4:
                    network.lose(1, service.kill)  # durable, and nobody was told
                if number == 8:
                    service.process.wait(60)
                    service.start()
                    network.port = service.port
    log = ledger.find(RUN)
    batches = [public["batch"] for public, _ in events(log, "annotation.recorded")]
    assert batches == [number for number in range(1, 13) for _ in range(3)]
    assert list(fsck(ledger)) == []


def test_while_nobody_answers_a_training_goes_on_and_what_is_lost_is_counted(
    ledger: Ledger, service: Service, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "QUEUE_EVENTS_MAX", 10)
    with closing(Network(service.port)) as network:
        where = RemoteLedger(network.url, token, queue_wait_s=0.05)
        auditor = AuditableRLHF("tiny", ledger=where, source="simulated")
        with auditor.track_training(experiment_name=RUN) as run:
            auditor.log_annotations(**ROWS)[-1].result(60)
            service.kill()
            receipts = [auditor.log_annotations(**ROWS) for _ in range(10)]
            assert run.policy_step == 0
            service.start()
            network.port = service.port
            kept = [
                r.result(60)
                for rows in receipts
                for r in rows
                if not isinstance(_error(r), Overloaded)
            ]
            lost = sum(isinstance(_error(r), Overloaded) for rows in receipts for r in rows)
            assert kept
            assert lost
        auditor.ledger.close()
    log = ledger.find(RUN)
    gaps = [public for public, _ in events(log, "gap")]
    assert sum(gap["count"] for gap in gaps) == lost
    assert len(events(log, "annotation.recorded")) == 3 + len(kept)
    assert list(fsck(ledger)) == []  # the numbers left out are covered


def _error(receipt: Any) -> Exception | None:
    return receipt.ticket.error if receipt.ticket.done.is_set() else None


def test_under_the_strict_policy_the_call_itself_says_so(
    ledger: Ledger, service: Service, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "QUEUE_EVENTS_MAX", 5)
    auditor = remotely(service, token, on_loss="strict", queue_wait_s=0.05)

    def fill() -> None:
        service.kill()
        for _ in range(10):
            auditor.log_annotations(**ROWS)

    with pytest.raises(Overloaded), auditor.track_training(experiment_name=RUN):
        fill()
    for run in auditor.ledger._runs:
        with pytest.raises(AppendFailed):
            run._log.close(timeout_s=0.1)
    assert ledger.find(RUN).size <= 3


def test_a_training_ends_well_while_the_service_is_away(
    ledger: Ledger, service: Service, token: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(remote_ledger, "CLOSE_TIMEOUT_S", 0.2)
    auditor = remotely(service, token)
    with auditor.track_training(experiment_name=RUN):
        auditor.log_annotations(**ROWS)[-1].result(60)
        service.kill()
        auditor.log_annotations(**ROWS)
    assert "are not durable after" in caplog.text
    (run,) = auditor.ledger._runs
    run._log.close(timeout_s=0.1)
    assert "events were lost" in caplog.text
    assert ledger.find(RUN).size == 6


# --- refusals ----------------------------------------------------------------------------------


def test_what_is_not_there_or_not_allowed_is_said_before_the_first_step(
    ledger: Ledger, service: Service, token: str
) -> None:
    every = WriterTokens(ledger).grant("everywhere")
    closed = ledger.open_run("closed")
    closed.close()
    for name, used, error in (
        ("nowhere", every, LogMissing),
        ("closed", every, RunClosed),
        ("closed", token, NotPermitted),
        ("registry", every, NotPermitted),
        (RUN, "rlhfw_" + "x" * 43, BadToken),
        (RUN, "", BadToken),
    ):
        auditor = remotely(service, used)
        with pytest.raises(error) as caught, auditor.track_training(experiment_name=name):
            pytest.fail("begun")
        assert "rlhfw_" not in str(caught.value)
    WriterTokens(ledger).revoke("gpu-1")
    with pytest.raises(BadToken), remotely(service, token).track_training(experiment_name=RUN):
        pytest.fail("begun")
    assert ledger.find(RUN).size == 0


def test_what_needs_the_stored_entries_says_where_they_are(service: Service, token: str) -> None:
    with remotely(service, token) as auditor:
        run = train(auditor, RUN)
        with pytest.raises(NotHere, match="service's machine") as caught:
            auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
        assert "rlhf-audit monitor" in caught.value.next_step
        with pytest.raises(NotHere):
            auditor.verify_provenance(
                start_checkpoint="epoch_0", end_checkpoint="epoch_3", experiment_name=RUN
            )
        with pytest.raises(NotHere):
            _ = run.log


def test_addresses_and_tokens_that_are_refused_at_once(
    tmp_path: Path, service: Service, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_ledger, "_PAUSE_S", 0.0)
    with pytest.raises(WrongArgument, match="token"):
        AuditableRLHF("tiny", ledger=tmp_path, token=token)
    with pytest.raises(ValueError, match="on_loss"):
        RemoteLedger(service.url, token, on_loss="ignore")
    auditor = AuditableRLHF("tiny", ledger="http://audit.acme.example", token=token)
    with pytest.raises(InsecureAddress), auditor.track_training(experiment_name=RUN):
        pytest.fail("begun")
    service.kill()
    with pytest.raises(NotAnswered), remotely(service, token).track_training(experiment_name=RUN):
        pytest.fail("begun")
    service.start()


def test_a_process_of_its_own_trains_against_the_service(
    ledger: Ledger, service: Service, token: str
) -> None:
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_train_elsewhere, args=(service.url, token))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert kinds(ledger.find(RUN))[-1] == "run.finished"


def _train_elsewhere(url: str, token: str) -> None:
    torch.set_num_threads(1)
    with AuditableRLHF("tiny", ledger=url, token=token, source="simulated") as auditor:
        train(auditor, RUN)
