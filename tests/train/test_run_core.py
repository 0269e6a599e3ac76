"""The neutral core: datasets, scored completions, consumed rows, watched optimizers, gaps."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF, NotTracking
from rlhf_audit_trail.capture import InvalidColumn, UnequalLengths, WrongArgument
from rlhf_audit_trail.ledger.correcting import newest_values
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.commitment import commit, verify_opening
from rlhf_audit_trail.ledger.proof.errors import Inconsistent
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash
from rlhf_audit_trail.record.dataset_rows import rows_of
from rlhf_audit_trail.record.row_commitments import TableDamaged, TableKey, row_bytes
from tests.train.running import events, kinds

ROWS = [{"prompt": "p0", "chosen": "a"}, {"prompt": "p1", "chosen": "b"}]


# --- runs -----------------------------------------------------------------------------------


def test_a_run_begins_with_settings_and_a_sealed_seed_and_ends_with_its_block(
    auditor: AuditableRLHF,
) -> None:
    with auditor.run("run-1", {"rate": 0.5}, seed=7) as run:
        assert auditor.run() is run is auditor.current()
    assert kinds(run.log) == ["run.started", "run.config", "env.snapshot", "run.finished"]
    ((public, sealed),) = events(run.log, "run.config")
    assert public["config"]["rate"] == 0.5
    assert sealed == {"seed": 7}
    assert auditor.current() is None
    with pytest.raises(NotTracking):
        auditor.run()


def test_a_run_that_fails_says_so(auditor: AuditableRLHF) -> None:
    with pytest.raises(ZeroDivisionError), auditor.run("run-1") as run:
        raise ZeroDivisionError
    ((public, _),) = events(run.log, "run.finished")
    assert (public["outcome"], public["error"]) == ("failed", "ZeroDivisionError")


def test_a_correction_stands_beside_the_annotation(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        row = {"prompts": ["q"], "responses": ["a"], "rewards": [0.25], "annotator_ids": ["ann"]}
        index = run.log_annotations(**row)[0].result()
        run.correct_annotation(index, annotator_id="ann", reward=0.75, reason="a slip").result()
    ((public, sealed),) = events(run.log, "annotation.corrected")
    assert (public["supersedes"], public["reason"], sealed["reward"]) == (index, "a slip", 0.75)
    assert newest_values(run.log, index)["reward"] == 0.75
    assert run.log.opened(index)["reward"] == 0.25


def test_a_declared_gap_stands_before_the_next_entry(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        run.gap(3, "a rank was lost")
        run.alert("rank_lost", "rank 1")
    ((public, _),) = events(run.log, "gap")
    assert (public["count"], public["reason"]) == (3, "a rank was lost")
    assert kinds(run.log)[3:5] == ["gap", "alert.raised"]


# --- datasets -------------------------------------------------------------------------------


def test_each_row_of_a_dataset_can_be_opened_alone(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        found = run.dataset(ROWS, "train")
    ((public, sealed),) = events(run.log, "dataset.registered")
    assert (public["role"], public["rows"], public["root"]) == ("train", 2, found.root)
    key = TableKey(bytes.fromhex(sealed["rows_key"]))
    openings = [key.opening(row, row_bytes(value)) for row, value in enumerate(ROWS)]
    leaves = [leaf_hash(commit(opening)) for opening in openings]
    assert root_hash(leaves).hex() == public["root"]
    assert json.loads(verify_opening(commit(openings[1]), openings[1])) == ROWS[1]
    with pytest.raises(Inconsistent):
        verify_opening(commit(openings[0]), openings[1])


def test_equal_datasets_get_unequal_roots(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:  # else a guess could be checked against the root
        assert run.dataset(ROWS).root != run.dataset(ROWS).root


@pytest.mark.parametrize(
    "dataset",
    [
        ROWS,
        tuple(ROWS),
        {"prompt": ["p0", "p1"], "chosen": np.array(["a", "b"])},
        datasets.Dataset.from_list(ROWS),
    ],
)
def test_rows_come_from_any_library(dataset: Any) -> None:
    assert list(rows_of(dataset)) == ROWS


def test_a_stream_is_recorded_without_rows(auditor: AuditableRLHF) -> None:
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with auditor.run("run-1") as run:
        run.dataset(stream, "train")
    ((public, sealed),) = events(run.log, "dataset.registered")
    assert (public["rows"], public["root"], sealed) == (None, None, {})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, '"NaN"'),
        (np.float32(0.5), "0.5"),
        (torch.tensor([1, 2]), "[1,2]"),
        (b"x", '{"sha256":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}'),
        (np.datetime64("2026-01-02").item(), '"2026-01-02"'),
    ],
)
def test_a_rows_values_have_one_spelling(value: Any, text: str) -> None:
    assert row_bytes({"b": 1, "a": value}) == f'{{"a":{text},"b":1}}'.encode()


def test_what_has_no_bytes_is_refused(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        with pytest.raises(InvalidColumn):
            run.dataset([{"x": object()}])
        with pytest.raises(WrongArgument, match="audit_id"):
            run.dataset(ROWS, "train", "audit_id")
        with pytest.raises(WrongArgument, match="dataset"):
            run.dataset({1, 2})
    assert "dataset.registered" not in kinds(run.log)


# --- rollouts -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_completions_are_recorded_from_any_library(auditor: AuditableRLHF, make: Any) -> None:
    with auditor.run("run-1") as run:
        found = run.on_rollouts_scored(
            ["p", "p"], ["a", "b"], {"help": make([0.25, 0.75]), "form": [None, 1.0]},
            make([-1.0, 1.0]), token_ids=[make([5, 6]), make([7])], kl=make([0.5, 0.25]),
            weights={"form": 2.0},
        )  # fmt: skip
    ((public, sealed),) = events(run.log, "rollout.scored")
    assert (public["completions"], public["rows_root"]) == (2, found.rows_root)
    assert sealed["rows"][0] == {
        "prompt": "p", "completion": "a", "advantage": -1.0, "kl": 0.5, "tokens": [5, 6],
        "length": 2, "rewards": {"help": 0.25, "form": None},
    }  # fmt: skip
    assert (sealed["reward_mean"], sealed["reward_max"]) == (1.5, 2.75)
    assert (sealed["kl_mean"], sealed["length_mean"]) == (0.375, 1.5)
    assert sealed["figures"]["rewards"]["form"]["scored"] == 1
    key = TableKey(bytes.fromhex(sealed["rows_key"]))
    assert key.root([row_bytes_as_stored(row) for row in sealed["rows"]]).hex() == found.rows_root


def row_bytes_as_stored(row: Any) -> bytes:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()


def test_many_rows_go_encrypted_to_the_blob_store(ledger: Ledger) -> None:
    auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated")
    texts = [f"completion {row} " * 20 for row in range(500)]
    with auditor.run("run-1") as run:
        run.on_rollouts_scored(["p"] * 500, texts, {"r": [0.5] * 500})
    ((public, sealed),) = events(run.log, "rollout.scored")
    assert "rows" not in sealed
    blob = ledger.blobs.get(public["rows_digest"])
    assert b"completion" not in blob
    key = TableKey(bytes.fromhex(sealed["rows_key"]))
    rows = json.loads(key.decrypt(blob))
    assert [row["completion"] for row in rows] == texts
    assert key.root(map(row_bytes_as_stored, rows)).hex() == public["rows_root"]
    with pytest.raises(TableDamaged):
        TableKey().decrypt(blob)


def test_numbers_that_are_not_finite_are_text_and_an_alert(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        run.on_rollouts_scored(["p"] * 2, ["a"] * 2, {"r": [math.nan, 1.0]}, [math.inf, 0.0])
    ((_, sealed),) = events(run.log, "rollout.scored")
    assert [row["rewards"]["r"] for row in sealed["rows"]] == ["NaN", 1.0]
    assert sealed["rows"][0]["advantage"] == "Infinity"
    ((alert, _),) = events(run.log, "alert.raised")
    assert alert["name"] == "non_finite_value"


def test_columns_of_unequal_length_are_refused(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run, pytest.raises(UnequalLengths, match="rewards r 1"):
        run.on_rollouts_scored(["p"] * 2, ["a"] * 2, {"r": [1.0]})
    assert "rollout.scored" not in kinds(run.log)


def test_a_reward_function_records_what_it_returns(auditor: AuditableRLHF) -> None:
    @auditor.reward
    def length(prompts: list[str], completions: list[str]) -> list[int | None]:
        return [len(text) or None for text, _ in zip(completions, prompts, strict=True)]

    @auditor.reward
    async def later(prompts: list[str], completions: list[str]) -> torch.Tensor:
        return torch.tensor([0.5 for _ in zip(completions, prompts, strict=True)])

    with auditor.run("run-1") as run:
        assert length(["p", "q"], ["abc", ""]) == [3, None]
        assert asyncio.run(later(prompts=["p"], completions=["x"])).tolist() == [0.5]
    first, second = (sealed["rows"] for _, sealed in events(run.log, "rollout.scored"))
    assert [row["rewards"] for row in first] == [{"length": 3}, {"length": None}]
    assert (second[0]["prompt"], second[0]["rewards"]) == ("p", {"later": 0.5})
    assert asyncio.iscoroutinefunction(later)


# --- consumed rows --------------------------------------------------------------------------


def test_which_rows_were_consumed_is_sealed_and_linked(auditor: AuditableRLHF) -> None:
    with auditor.run("run-1") as run:
        receipts = run.log_annotations(prompts=["p1"], responses=["b"], rewards=[1.0])
        dataset = run.dataset(ROWS, "train")
        run.on_batch_consumed(3, [1, None, 0], dataset=dataset)
    ((public, sealed),) = events(run.log, "batch.consumed")
    assert (public["rows"], public["unmatched"], public["trainer_step"]) == (3, 1, 3)
    assert sealed["rows"] == [1, None, 0]
    assert sealed["annotations"] == [[receipts[0].result()], None, None]


# --- watched optimizers ---------------------------------------------------------------------


def stepped(auditor: AuditableRLHF, mode: str, *, every: int = 1) -> list[Any]:
    model = torch.nn.Linear(4, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with auditor.run(f"run-{mode}-{every}") as run:
        run.watch(model, optimizer, delta_norm=mode, every=every, algorithm="plain")
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    return events(run.log, "policy.update")


@pytest.mark.parametrize(("mode", "kind"), [("auto", "exact"), ("exact", "exact")])
def test_a_watched_optimizer_records_each_step_by_itself(
    auditor: AuditableRLHF, mode: str, kind: str
) -> None:
    found = stepped(auditor, mode)
    assert [public["updates"] for public, _ in found] == [1] * 4
    for public, sealed in found:
        assert (public["delta_norm_kind"], public["algorithm"]) == (kind, "plain")
        assert sealed["parameter_delta_norm"] == pytest.approx(0.5 * math.sqrt(8), rel=1e-6)
        assert sealed["grad_norm_applied"] == pytest.approx(math.sqrt(8), rel=1e-6)
        norm = sealed["statistics"]["tensor_norms"]["weight"]
        moved = norm * sealed["statistics"]["relative_delta"]["weight"]
        assert moved == pytest.approx(sealed["parameter_delta_norm"])


def test_a_sampled_step_begins_where_the_last_one_ended(auditor: AuditableRLHF) -> None:
    for public, sealed in stepped(auditor, "sampled"):
        assert public["delta_norm_kind"] == "sampled"
        # every coordinate of so small a model is drawn many times, and all move alike
        assert sealed["parameter_delta_norm"] == pytest.approx(0.5 * math.sqrt(8), rel=1e-5)


def test_steps_may_be_recorded_together_or_without_displacement(auditor: AuditableRLHF) -> None:
    assert [public["updates"] for public, _ in stepped(auditor, "exact", every=2)] == [2, 2]
    for public, sealed in stepped(auditor, "off"):
        assert public["delta_norm_kind"] == "absent"
        assert "parameter_delta_norm" not in sealed
        assert sealed["grad_norm_applied"] > 0


def test_what_cannot_be_watched_is_refused(auditor: AuditableRLHF, ledger: Ledger) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with auditor.run("run-1") as run:
        with pytest.raises(WrongArgument, match="guess"):
            run.watch(model, optimizer, delta_norm="guess")
        with pytest.raises(WrongArgument, match="Linear"):
            run.watch(model, model)
    blind = AuditableRLHF("t", ledger=ledger, source="simulated", watch_optimizers=False)
    with blind.run("run-2") as run, pytest.raises(WrongArgument, match="not watched"):
        run.watch(model, optimizer)


# --- what fails -----------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_counted_unless_the_ledger_is_strict(
    auditor: AuditableRLHF,
) -> None:
    with auditor.run("run-1") as run, run.kept_alive("rollout.scored"):
        run.on_rollouts_scored(["p"], ["a"], {"r": [object()]})
    assert "rollout.scored" not in kinds(run.log)
    ((public, _),) = events(run.log, "gap")
    assert (public["count"], public["reason"]) == (
        1, "rollout.scored could not be recorded: InvalidMetric",
    )  # fmt: skip
