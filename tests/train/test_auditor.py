"""The facade on a real ledger: what is recorded, what is refused, what verifies."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF, NotTracking, UnsupportedMode
from rlhf_audit_trail.capture import InvalidColumn, NonFiniteValue, UnequalLengths, WrongArgument
from rlhf_audit_trail.ledger.log import InvalidName, Ledger, Log, RunClosed
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.verify import OnChain
from rlhf_audit_trail.model_weights import NotWeights
from rlhf_audit_trail.privacy import PrivacyConfig
from rlhf_audit_trail.provenance import EmptyRange, UnknownCheckpoint
from rlhf_audit_trail.recorder import NoStepSeen
from rlhf_audit_trail.run_events import UnknownSource

ROWS: dict[str, Any] = {
    "prompts": ["p0", "p1", "p2"],
    "responses": ["r0", "r1", "r2"],
    "annotator_ids": ["anna", "ben", "anna"],
    "rewards": [0.25, 0.5, 1.0],
}


def kinds(log: Log) -> list[str]:
    return [entry.event["kind"] for entry in log.entries()]


def events(log: Log, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (public, sealed) of the entries of one kind."""
    return [(entry.event, log.opened(entry.leaf_index)) for entry in log.entries(kind=kind)]


def record_run(auditor: AuditableRLHF, name: str = "run-1") -> Log:
    """A short real run: two checkpoints around three steps of a real optimizer."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with auditor.track_training(experiment_name=name) as run:
        auditor.checkpoint(epoch=0, model=model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            auditor.track_policy_update(model=model, optimizer=optimizer, batch=torch.ones(4, 3))
        auditor.log_annotations(**ROWS)
        auditor.checkpoint(epoch=3, metrics={"reward": 0.5}, model=model)
    return run.log


def test_a_run_is_recorded_in_order_and_signed(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    assert kinds(log) == [
        "run.started",
        "run.config",
        "env.snapshot",
        "checkpoint.saved",
        "policy.update",
        "policy.update",
        "policy.update",
        "annotation.recorded",
        "annotation.recorded",
        "annotation.recorded",
        "checkpoint.saved",
        "run.finished",
    ]
    head = log.published()
    assert head is not None
    assert head.head.size == log.size == 12


def test_nothing_personal_stands_in_an_entry(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    for entry in log.entries(kind="annotation.recorded"):
        for secret in (b"anna", b"ben", b"p0", b"r0", b"0.25"):
            assert secret not in entry.data
    sealed = [opened for _, opened in events(log, "annotation.recorded")]
    assert [item["reward"] for item in sealed] == [0.25, 0.5, 1.0]
    assert [item["prompt"] for item in sealed] == ["p0", "p1", "p2"]
    first, second, third = (item["annotator"] for item in sealed)
    assert first == third != second


def test_the_seed_is_only_committed_to(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    ((public, sealed),) = events(log, "run.config")
    assert sealed == {"seed": 11}
    assert "seed" not in public["config"]
    assert public["config"]["privacy"]["total_epsilon"] == 3.0


def test_receipts_carry_the_leaf_index_of_their_row(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        receipts = auditor.log_annotations(**ROWS)
        indices = [receipt.result(10) for receipt in receipts]
        assert [run.log.opened(index)["prompt"] for index in indices] == ["p0", "p1", "p2"]


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple])
def test_rewards_come_from_any_library(auditor: AuditableRLHF, make: Any) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.log_annotations(**ROWS | {"rewards": make([0.25, 0.5, 1.0])})
    assert [s["reward"] for _, s in events(run.log, "annotation.recorded")] == [0.25, 0.5, 1.0]


def test_an_annotation_without_a_person_is_unattributed(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.log_annotations(**ROWS | {"annotator_ids": ["anna", None, "anna"]})
        rows = {name: ROWS[name] for name in ("prompts", "responses", "rewards")}
        auditor.log_annotations(**rows)
    found = events(run.log, "annotation.recorded")
    assert ["annotator" in sealed for _, sealed in found] == [True, False, True, *[False] * 3]
    assert [public["batch"] for public, _ in found] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "error", "finding"),
    [
        ({"rewards": [0.1, math.nan, math.inf]}, NonFiniteValue, "row 1, 2 "),
        ({"rewards": [0.1, 0.2]}, UnequalLengths, "row 2 is incomplete"),
        ({"prompts": ["p0"]}, UnequalLengths, "row 1 to 2 is incomplete"),
        ({"annotator_ids": ["anna"]}, UnequalLengths, "annotator_ids 1"),
        ({"responses": ["r0", None, "r2"]}, InvalidColumn, "row 1 "),
        ({"rewards": "0.5"}, InvalidColumn, "sequence"),
        ({"annotator_ids": "anna"}, InvalidColumn, "sequence"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_recorded(
    auditor: AuditableRLHF, change: dict[str, Any], error: type[Exception], finding: str
) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        with pytest.raises(error, match=finding):
            auditor.log_annotations(**ROWS | change)
        run.log.flush()
        assert "annotation.recorded" not in kinds(run.log)
        auditor.log_annotations(**ROWS)
    assert [public["batch"] for public, _ in events(run.log, "annotation.recorded")] == [1] * 3


def test_an_empty_batch_records_nothing(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        assert list(auditor.log_annotations(prompts=[], responses=[], rewards=[])) == []
    assert "annotation.recorded" not in kinds(run.log)


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


def test_metrics_that_are_not_finite_become_text_and_an_alert(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.checkpoint(epoch=0, metrics={"loss": np.float32("nan"), "kl": torch.tensor(0.5)})
        run.metrics(4, {"kl": [math.inf]})
    ((public, sealed),) = events(run.log, "checkpoint.saved")
    assert sealed["metrics"] == {"loss": "NaN", "kl": 0.5}
    assert public["weights_digest"] is None
    details = [public["detail"] for public, _ in events(run.log, "alert.raised")]
    assert details == [
        "values of checkpoint.saved that are not finite: 1 in metrics",
        "values of metrics.logged that are not finite: 1 in metrics",
    ]


@pytest.mark.parametrize("epoch", [-1, 1.5, True, "1"])
def test_an_epoch_is_a_whole_number(auditor: AuditableRLHF, epoch: Any) -> None:
    with (
        auditor.track_training(experiment_name="run-1"),
        pytest.raises(InvalidColumn, match="epoch"),
    ):
        auditor.checkpoint(epoch=epoch)


def test_a_checkpoint_names_the_file_it_was_saved_to_by_digest(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    with auditor.track_training(experiment_name="run-1") as run:
        found = auditor.checkpoint(epoch=2, model=model, path=path)
        with pytest.raises(FileNotFoundError):
            auditor.checkpoint(epoch=3, path=tmp_path / "absent")
    ((public, _),) = events(run.log, "checkpoint.saved")
    assert found.name == public["name"] == "epoch_2"
    assert found.weights_digest == public["weights_digest"]
    assert (public["tensors"], public["parameters"], public["size_bytes"]) == (2, 6, 24)
    assert len(public["path_digest"]) == 64


def test_no_step_seen_warns_once_and_says_so(auditor: AuditableRLHF) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with auditor.track_training(experiment_name="run-1") as run:
        with pytest.warns(NoStepSeen) as seen:
            update = auditor.track_policy_update(model=model, optimizer=optimizer)
        assert seen[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            auditor.track_policy_update(model=model, optimizer=optimizer)
    assert (update.updates, update.delta_norm_kind) == (0, "absent")
    assert update.parameter_delta_norm is None
    (public, sealed), _ = events(run.log, "policy.update")
    assert public["updates"] == 0
    assert sealed == {}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"source": "people"}, UnknownSource),
        ({"source": "ai_feedback"}, UnknownSource),
        (
            {
                "privacy_config": PrivacyConfig(
                    annotator_privacy_mode="strong", reward_bounds=(0, 1)
                )
            },
            UnsupportedMode,
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(
    ledger: Ledger, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        AuditableRLHF("tiny", ledger=ledger, **settings)


def test_the_judge_stands_in_every_entry_of_ai_feedback(ledger: Ledger) -> None:
    auditor = AuditableRLHF("tiny", ledger=ledger, source="ai_feedback", judge_model="judge@1")
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.log_annotations(**ROWS)
    assert {p["judge_model"] for p, _ in events(run.log, "annotation.recorded")} == {"judge@1"}


def test_a_name_that_no_log_can_have_is_refused(auditor: AuditableRLHF) -> None:
    with pytest.raises(InvalidName), auditor.track_training(experiment_name="my run"):
        pass


def test_an_auditor_opens_and_closes_its_own_ledger(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "l", organisation="acme.example").close()
    with AuditableRLHF("tiny", ledger=tmp_path / "l", source="simulated") as auditor:
        record_run(auditor)
    with AuditableRLHF("tiny", ledger=str(tmp_path / "l"), source="simulated") as again:
        found = again.verify_provenance(
            start_checkpoint="epoch_0", end_checkpoint="epoch_3", experiment_name="run-1"
        )
    assert found


# --- provenance ---------------------------------------------------------------------------


def test_provenance_of_an_honest_run(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert found.is_valid
    assert bool(found) is True
    assert found.failure == ""
    assert found.merkle_root == log.root_at(log.size).hex()
    assert (found.start_index, found.end_index, found.entries_checked) == (3, 10, 12)
    assert found.updates == 3
    assert found.chain_verification == "not checked"


def test_provenance_inside_the_block_signs_what_it_checks(auditor: AuditableRLHF) -> None:
    with auditor.track_training(experiment_name="run-1"):
        auditor.checkpoint(epoch=0)
        auditor.checkpoint(epoch=1)
        assert auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_1")
        auditor.checkpoint(epoch=2)
        found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_2")
    assert found.entries_checked == 6


def test_provenance_of_what_was_never_recorded_raises(auditor: AuditableRLHF) -> None:
    record_run(auditor)
    with pytest.raises(UnknownCheckpoint, match="epoch_9"):
        auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_9")
    with pytest.raises(EmptyRange):
        auditor.verify_provenance(start_checkpoint="epoch_3", end_checkpoint="epoch_0")


TAMPERING = {
    "an altered value": "UPDATE entry SET data = CAST(replace(CAST(data AS TEXT), "
    "'\"rows\":4', '\"rows\":5') AS BLOB) WHERE leaf_index = 5 AND kind = 'policy.update'",
    "a deleted entry": "DELETE FROM entry WHERE leaf_index = 6 AND kind = 'policy.update'",
    "another leaf hash": "UPDATE entry SET leaf_hash = zeroblob(32) WHERE leaf_index = 4 "
    "AND kind = 'policy.update'",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_with_the_database_is_found(auditor: AuditableRLHF, statement: str) -> None:
    log = record_run(auditor)
    with auditor.ledger.engine.begin() as connection:
        assert connection.exec_driver_sql(statement).rowcount == 1
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert not found
    assert found.failure
    assert log.size == 12


def test_the_altered_entry_is_named(auditor: AuditableRLHF) -> None:
    record_run(auditor)
    statement = TAMPERING["an altered value"]
    with auditor.ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_3")
    assert found.failure == "Inconsistent: entry 5 is not the one that was signed"


def test_what_the_chain_says_is_compared_with_the_recomputed_root(auditor: AuditableRLHF) -> None:
    log = record_run(auditor)
    names = {"start_checkpoint": "epoch_0", "end_checkpoint": "epoch_3"}
    said = OnChain(log.size, log.root_at(log.size), "block 7 of chain 31337, finalized")
    found = auditor.verify_provenance(**names, on_chain=[said])
    assert found.is_valid
    assert found.chain_verification == "on chain: block 7 of chain 31337, finalized"
    early = OnChain(5, log.root_at(5), "block 3")
    assert auditor.verify_provenance(**names, on_chain=[early]).chain_verification == "not checked"
    forked = OnChain(5, bytes(32), "block 3")
    found = auditor.verify_provenance(**names, on_chain=[forked])
    assert not found
    assert "size 5" in found.failure


@pytest.mark.parametrize(
    ("name", "config"),
    [("refused", {"big": "x" * 70_000}), ("refused", {"odd": {1, 2}}), (None, {}), (5, {})],
)
def test_a_run_that_is_refused_is_not_announced(ledger: Ledger, name: Any, config: Any) -> None:
    auditor = AuditableRLHF("model", ledger=ledger, source="simulated")
    before = ledger.registry.size
    with pytest.raises(AuditTrailError), auditor.track_training(name, config=config):
        pytest.fail("the block was entered")
    assert ledger.runs() == []
    assert ledger.registry.size == before


def test_arguments_that_have_nothing_to_record(auditor: AuditableRLHF) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(WrongArgument, match="privacy_config"):
        AuditableRLHF("t", ledger=auditor.ledger, privacy_config="strong")
    with auditor.track_training(experiment_name="run-1") as run:
        run.log.flush()
        size = run.log.size
        given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        wrong: list[dict[str, Any]] = [
            {"model": "gpt2"}, {"batch": torch.tensor(5)}, {"grad_norm_preclip": "1"},
        ]  # fmt: skip
        for changed in wrong:
            with pytest.raises(WrongArgument, match=next(iter(changed))):
                auditor.track_policy_update(**given | changed)
        for no_model in ("gpt2", 3):
            with pytest.raises(NotWeights):
                auditor.checkpoint(epoch=0, model=no_model)
        run.log.flush()
        assert run.log.size == size
