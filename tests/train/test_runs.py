"""A run begins, ends, fails, goes on, and stays apart from others, whatever threads and processes do."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF, NotTracking
from rlhf_audit_trail.ledger.log import Ledger, Log, RunClosed
from tests.train.running import ROWS, events, kinds, record_run


def test_calls_outside_a_run_say_where_they_belong(auditor: AuditableRLHF) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = [
        lambda: auditor.log_annotations(**ROWS),
        lambda: auditor.track_policy_update(model=model, optimizer=optimizer),
        lambda: auditor.checkpoint(epoch=0),
        lambda: auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_1"),
    ]
    for call in calls:
        with pytest.raises(NotTracking):
            call()
    assert auditor.ledger.runs() == []


def test_an_exception_is_recorded_by_type_and_raised_again(auditor: AuditableRLHF) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        auditor.track_training(experiment_name="run-1") as run,
    ):
        raise ZeroDivisionError("prompt of anna")
    ((public, _),) = events(run.log, "run.finished")
    assert (public["outcome"], public["error"]) == ("failed", "ZeroDivisionError")
    assert run.log.published() is not None


def test_the_training_error_comes_before_the_recorders_own(auditor: AuditableRLHF) -> None:
    def fail() -> None:
        with auditor.track_training(experiment_name="run-1") as run:
            run.log.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert "could not be recorded" in caught.value.__notes__[0]


def test_the_same_name_resumes_and_counters_go_on(ledger: Ledger) -> None:
    log = record_run(AuditableRLHF("tiny", ledger=ledger, source="simulated"))
    size = log.size
    record_run(AuditableRLHF("tiny", ledger=ledger, source="simulated"))
    assert kinds(log)[size] == "run.resumed"
    assert next(log.entries(size, size + 1)).event["tree_size"] == size
    assert [public["policy_step"] for public, _ in events(log, "policy.update")] == [*range(1, 7)]
    assert {public["batch"] for public, _ in events(log, "annotation.recorded")} == {1, 2}


def test_a_closed_run_cannot_be_resumed(auditor: AuditableRLHF) -> None:
    record_run(auditor).close()
    with pytest.raises(RunClosed), auditor.track_training(experiment_name="run-1"):
        pass


def test_nested_runs_stay_separate(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="outer") as outer:
        with auditor.track_training(experiment_name="inner") as inner:
            auditor.checkpoint(epoch=7)
        auditor.checkpoint(epoch=1)
    assert [public["epoch"] for public, _ in events(inner.log, "checkpoint.saved")] == [7]
    assert [public["epoch"] for public, _ in events(outer.log, "checkpoint.saved")] == [1]


def test_runs_in_threads_stay_separate_and_measure_their_own_optimizer(
    auditor: AuditableRLHF,
) -> None:
    ready = threading.Barrier(2)
    logs: dict[str, Log] = {}

    def train(name: str, rate: float) -> None:
        model = torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        with auditor.track_training(experiment_name=name) as run:
            logs[name] = run.log
            ready.wait(30)
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                auditor.track_policy_update(model=model, optimizer=optimizer)
            ready.wait(30)

    threads = [threading.Thread(target=train, args=("a", 0.1)) for _ in range(1)]
    threads.append(threading.Thread(target=train, args=("b", 0.01)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, rate in (("a", 0.1), ("b", 0.01)):
        updates = events(logs[name], "policy.update")
        assert [public["updates"] for public, _ in updates] == [1] * 5
        for public, sealed in updates:
            assert public["learning_rate"] == rate
            assert sealed["parameter_delta_norm"] == pytest.approx(rate * math.sqrt(2), rel=1e-5)


def test_a_worker_thread_records_into_the_one_run(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        thread = threading.Thread(target=auditor.log_annotations, kwargs=ROWS)
        thread.start()
        thread.join()
    assert len(events(run.log, "annotation.recorded")) == 3


FORK = """
import os, sys
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
with Ledger.create(sys.argv[1], organisation="acme.example") as ledger:
    auditor = AuditableRLHF("t", ledger=ledger, source="simulated", watch_optimizers=False)
    with auditor.track_training(experiment_name="run-1"):
        child = os.fork()
        if child == 0:
            auditor.checkpoint(epoch=0).receipt.result()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        auditor.checkpoint(epoch=1)
    log = ledger.find("run-1")
    saved = list(log.entries(kind="checkpoint.saved"))
    writers = len({entry.writer_id for entry in saved})
    print(os.waitstatus_to_exitcode(status), log.size, writers)
"""


def test_a_forked_child_records_as_a_writer_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path / "ledger")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "6", "2"]


TRAIN_FOR_EVER = """
import sys
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.demo import bandit
from rlhf_audit_trail.ledger.log import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    auditor = AuditableRLHF("t", ledger=ledger, source="simulated", watch_optimizers=False)
    def durable():
        log = auditor.run().log
        log.flush()
        print(log.size, log.root_at(log.size).hex(), flush=True)
    while True:
        bandit.train(auditor, "run-1", durable, steps=4)
"""


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_a_killed_training_keeps_what_was_durable_and_resumes(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "ledger"
    Ledger.create(path, organisation="acme.example").close()
    command = [sys.executable, "-c", TRAIN_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(lines)]
        process.kill()
    with AuditableRLHF("t", ledger=path, source="simulated") as auditor:
        log = auditor.ledger.find("run-1")
        size = log.size
        for text_size, root in said:
            assert log.root_at(int(text_size)).hex() == root
        record_run(auditor)
        # before it perhaps a gap: what the killed process had handed over last
        kinds = [entry.event["kind"] for entry in log.entries(size, size + 2)]
        assert "run.resumed" in kinds[: 1 + (kinds[0] == "gap")]
        steps = [entry.event["policy_step"] for entry in log.entries(kind="policy.update")]
        assert steps == [*range(1, len(steps) + 1)]
        assert auditor.verify_provenance(start_checkpoint="epoch_1", end_checkpoint="epoch_3")


def test_an_auditor_opens_and_closes_its_own_ledger(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "l", organisation="acme.example").close()
    with AuditableRLHF("tiny", ledger=tmp_path / "l", source="simulated") as auditor:
        record_run(auditor)
    with AuditableRLHF("tiny", ledger=str(tmp_path / "l"), source="simulated") as again:
        found = again.verify_provenance(
            start_checkpoint="epoch_0", end_checkpoint="epoch_3", experiment_name="run-1"
        )
    assert found
