"""The facade on a real ledger: what is recorded, and what is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF, UnsupportedMode
from rlhf_audit_trail.capture import InvalidColumn, NonFiniteValue, UnequalLengths, WrongArgument
from rlhf_audit_trail.ledger.log import InvalidName, Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.privacy import PrivacyConfig
from rlhf_audit_trail.record.recorder import NoStepSeen
from rlhf_audit_trail.run_events import UnknownSource
from rlhf_audit_trail.weights.model_weights import NotWeights
from tests.train.running import ROWS, events, kinds, record_run


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
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(
    ledger: Ledger, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        AuditableRLHF("tiny", ledger=ledger, **settings)


@pytest.mark.parametrize("more", [{"annotator_privacy_mode": "strong"}, {"release_values": True}])
def test_labels_cannot_be_charged_on_another_machine(more: dict[str, Any]) -> None:
    config = PrivacyConfig(reward_bounds=(0, 1), **more)
    with pytest.raises(UnsupportedMode, match="another machine"):
        AuditableRLHF("tiny", ledger="https://audit.acme.example", privacy_config=config)


def test_the_judge_stands_in_every_entry_of_ai_feedback(ledger: Ledger) -> None:
    auditor = AuditableRLHF("tiny", ledger=ledger, source="ai_feedback", judge_model="judge@1")
    with auditor.track_training(experiment_name="run-1") as run:
        auditor.log_annotations(**ROWS)
    assert {p["judge_model"] for p, _ in events(run.log, "annotation.recorded")} == {"judge@1"}


def test_a_name_that_no_log_can_have_is_refused(auditor: AuditableRLHF) -> None:
    with pytest.raises(InvalidName), auditor.track_training(experiment_name="my run"):
        pass


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
