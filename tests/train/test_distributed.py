"""Trainings of two real processes: one record, of all ranks, also when one of them is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_audit_trail.capture import file_digest
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.movement.optimizer_watch import coordinates
from rlhf_audit_trail.weights.ledger_weights import LedgerWeights
from rlhf_audit_trail.weights.model_check import check_model
from rlhf_audit_trail.weights.model_files import read_model
from tests.train import rank_script
from tests.train.two_processes import SCRIPT, counts, launch_two, of, record, run_two

pytestmark = pytest.mark.train


SCENARIOS = "ddp,uneven,documented,fsdp,fsdp_first,fsdp_stored,dcp_async,late,alone,failing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both processes run every scenario once, in turn; rank 1 fails in the last one."""
    made = tmp_path_factory.mktemp("ranks")
    first, second = run_two(SCENARIOS, made)
    assert first.returncode == 0, first.stdout
    assert (second.returncode, "LookupError" in second.stdout) == (1, True), second.stdout
    return made


def consumed(entries: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Return the rows that each rank reported, in its order."""
    found: dict[int, list[int]] = {}
    for entry in of(entries, "batch.consumed"):
        found.setdefault(entry.get("rank", 0), []).extend(entry["sealed"]["rows"])
    return found


def reference(steps: int = 3) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """Train in one process and float64 on the same batches: per step, norms by layer."""
    net = rank_script.model().double()
    layers = {"first": list(net[0].parameters()), "last": list(net[2].parameters())}
    found = []
    for step in range(steps):
        losses = [
            rank_script.loss_of(net(rank_script.rows()[rank_script.share(rank)[step]].double()))
            for rank in range(2)
        ]
        net.zero_grad()
        (sum(losses) / 2).backward()  # type: ignore[union-attr]
        norms = {
            name: math.sqrt(sum(x.grad.square().sum().item() for x in layer))  # type: ignore[union-attr]
            for name, layer in layers.items()
        }
        found.append(norms | {"all": math.hypot(*norms.values())})
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(rank_script.RATE * parameter.grad)  # type: ignore[operator]
    return found, net


def moved(net: torch.nn.Module, layer: int) -> list[torch.Tensor]:
    pairs = zip(net[layer].parameters(), rank_script.model()[layer].parameters(), strict=True)  # type: ignore[index]
    return [new.detach().double() - old.detach().double() for new, old in pairs]


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(x.square().sum().item() for x in tensors))


# --- DDP ------------------------------------------------------------------------------------


def test_two_processes_make_one_record(folder: Path) -> None:
    entries = record(folder, "ddp")
    told = counts(folder, "ddp")
    assert [x["is_main"] for x in told] == [True, False]
    assert not (folder / "nowhere").exists()
    for kind in ("run.started", "run.finished", "model.registered", "checkpoint.saved"):
        assert len(of(entries, kind)) == 1, kind
    assert len(of(entries, "metrics.logged")) == 1
    assert of(entries, "run.config")[0]["config"]["processes"] == 2
    assert sum(x["rows"] for x in of(entries, "batch.consumed")) == sum(x["rows"] for x in told)
    assert consumed(entries) == {
        rank: [row for batch in rank_script.share(rank) for row in batch] for rank in range(2)
    }
    assert [x["updates"] for x in of(entries, "policy.update")] == [1] * told[0]["updates"]
    (gap,) = of(entries, "gap")
    assert (gap["count"], gap["reason"]) == (2, "rank 1: two rows were unreadable")
    assert (entries[-1]["kind"], entries[-1]["outcome"]) == ("run.finished", "completed")
    wanted, _ = reference()
    for entry, norms in zip(of(entries, "policy.update"), wanted, strict=True):
        sealed = entry["sealed"]
        assert sealed["grad_norm_applied"] == pytest.approx(norms["all"], rel=1e-6)
        delta = rank_script.RATE * norms["all"]
        assert sealed["parameter_delta_norm"] == pytest.approx(delta, rel=1e-6)
        assert sorted(sealed["statistics"]["tensor_norms"]) == [
            "0.bias", "0.weight", "2.bias", "2.weight",
        ]  # fmt: skip
    saved = read_model(folder / "ddp.safetensors").digest().hex()
    assert of(entries, "checkpoint.saved")[0]["weights_digest"] == saved


def test_what_the_operating_page_shows_makes_one_record(folder: Path) -> None:
    entries = record(folder, "documented")
    assert consumed(entries) == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9]}
    assert [x["updates"] for x in of(entries, "policy.update")] == [1] * 3
    assert len(of(entries, "checkpoint.saved")) == 1


def test_ranks_may_have_unequal_numbers_of_batches(folder: Path) -> None:
    entries = record(folder, "uneven")
    assert consumed(entries) == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3]}
    assert of(entries, "gap") == []
    assert sum(x["rows"] for x in counts(folder, "uneven")) == 8


def test_the_process_group_may_begin_inside_the_run(folder: Path) -> None:
    entries = record(folder, "late")
    assert consumed(entries) == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9]}
    assert of(entries, "gap") == of(entries, "alert.raised") == []


def test_a_rank_that_is_killed_is_a_gap_and_a_failed_run(tmp_path: Path) -> None:
    done = launch_two(SCRIPT, "killed", tmp_path)
    assert done.returncode != 0
    entries = record(tmp_path, "killed")
    (gap,) = of(entries, "gap")
    assert gap["count"] == 1
    assert "rank 1 of 2 ended without a word, after 2 batches" in gap["reason"]
    (alert,) = of(entries, "alert.raised")
    assert (alert["name"], alert["severity"]) == ("rank_lost", "critical")
    (end,) = of(entries, "run.finished")
    assert end["outcome"] == "failed"
    assert end["error"] in {"RuntimeError", "DistBackendError", "Terminated"}  # which is first
    assert consumed(entries)[1] == [1, 3, 5, 7]
    assert len(of(entries, "policy.update")) <= 2


def test_a_run_has_failed_if_one_of_its_ranks_did(folder: Path) -> None:
    entries = record(folder, "failing")
    assert (entries[-1]["outcome"], entries[-1]["error"]) == ("failed", "LookupError")
    assert consumed(entries) == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9]}


def test_processes_that_never_report_are_named(folder: Path) -> None:
    entries = record(folder, "alone")
    (alert,) = of(entries, "alert.raised")
    assert alert["name"] == "ranks_not_heard"
    assert alert["detail"] == "1 of 2 processes never reported: 1"


# --- FSDP2 ----------------------------------------------------------------------------------


def test_figures_of_weights_in_parts_are_those_of_the_whole(folder: Path) -> None:
    entries = record(folder, "fsdp")
    wanted, net = reference()
    exact, sampled = of(entries, "policy.update")
    assert (exact["updates"], exact["delta_norm_kind"]) == (3, "exact")
    assert (sampled["updates"], sampled["delta_norm_kind"]) == (3, "sampled")
    for entry, layer in ((exact, "first"), (sampled, "last")):
        norms = [step[layer] for step in wanted]
        sealed, statistics = entry["sealed"], entry["sealed"]["statistics"]
        assert sealed["grad_norm_applied"] == pytest.approx(sum(norms) / 3, rel=1e-6)
        assert statistics["grad_norm_applied_max"] == pytest.approx(max(norms), rel=1e-6)
        assert statistics["processes"] == 2
    deltas = moved(net, 0)
    assert exact["sealed"]["parameter_delta_norm"] == pytest.approx(norm(deltas), rel=1e-6)
    for name, parameter, delta in zip(
        ("0.weight", "0.bias"), net[0].parameters(), deltas, strict=True
    ):  # type: ignore[index]
        size = norm([parameter.detach()])
        statistics = exact["sealed"]["statistics"]
        assert statistics["tensor_norms"][name] == pytest.approx(size, rel=1e-6)
        relative = norm([delta]) / size
        assert statistics["relative_delta"][name] == pytest.approx(relative, rel=1e-5)
    # the sample holds each of the seven coordinates thousands of times: it is nearly exact
    assert sampled["sealed"]["parameter_delta_norm"] == pytest.approx(norm(moved(net, 2)), rel=2e-2)
    said = sampled["sealed"]["statistics"]["sample"]
    file = read_model(folder / "fsdp.safetensors")
    whole = torch.cat(
        [
            torch.frombuffer(bytearray(file.tensors[name].data), dtype=torch.float32)
            for name in ("2.weight", "2.bias")
        ]
    )
    drawn = coordinates(said["tree_head"], step=said["step"], size=7, count=said["count"])
    assert said["values"] == whole[list(drawn[:64])].tolist()
    gathered, stored = of(entries, "checkpoint.saved")
    digest = file.digest().hex()
    assert gathered["weights_digest"] == stored["weights_digest"] == digest
    assert read_model(folder / "dcp").digest().hex() == digest
    assert consumed(entries) == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9]}


def test_weights_in_parts_are_stored_whole(folder: Path) -> None:
    entries = record(folder, "fsdp_stored")
    (saved,) = of(entries, "checkpoint.saved")
    from rlhf_audit_trail.weights.model_weights import digest_model

    assert saved["weights_digest"] == digest_model(rank_script.model()).digest.hex()
    assert "manifest_digest" in saved
    assert of(entries, "alert.raised") == []


def test_shards_written_beside_the_training_are_recorded_when_complete(folder: Path) -> None:
    entries = record(folder, "dcp_async")
    saved = of(entries, "checkpoint.saved")
    assert [x["name"] for x in saved] == ["epoch_0", "epoch_1", "epoch_2"]
    for step, entry in enumerate(saved):
        place = folder / f"dcp-async-{step}"
        assert entry["weights_digest"] == read_model(place).digest().hex()
        assert entry["path_digest"] == file_digest(place)
    assert len({x["weights_digest"] for x in saved}) == 3
    (gap,) = of(entries, "gap")
    assert gap["reason"] == "checkpoint.saved could not be recorded: OSError"
    assert entries[-1]["kind"] == "run.finished"


def test_figures_of_one_part_are_absent_rather_than_wrong(folder: Path) -> None:
    entries = record(folder, "fsdp_first")
    updates = of(entries, "policy.update")
    assert [(x["updates"], x["delta_norm_kind"]) for x in updates] == [(1, "absent")] * 3
    assert not {"parameter_delta_norm", "grad_norm_applied"} & {
        n for x in updates for n in x["sealed"]
    }
    assert {x["detail"] for x in of(entries, "alert.raised")} == {
        "figures are missing: UnknownSharding"
    }
    assert of(entries, "model.registered") == []


# --- trainers -------------------------------------------------------------------------------


def test_trainers_in_two_processes_make_one_record_each(tmp_path: Path) -> None:
    script = SCRIPT.with_name("trainer_script.py")
    done = launch_two(script, "DPO,GRPO", tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in ("DPO", "GRPO"):
        entries, told = record(tmp_path, kind), counts(tmp_path, kind)
        rows = sum(x["rows"] for x in told)
        assert rows == {"DPO": 28, "GRPO": 32}[kind]  # 20 rows give an uneven last batch
        for name in ("batch.consumed", "policy.update"):
            assert sum(x["rows"] for x in of(entries, name)) == rows
        assert sum(x["unmatched"] for x in of(entries, "batch.consumed")) == 0
        updates = sum(x["updates"] for x in of(entries, "policy.update"))
        assert [updates] * 2 == [x["updates"] for x in told]
        assert [x["name"] for x in of(entries, "checkpoint.saved")] == ["checkpoint-4"]
        assert of(entries, "gap") == of(entries, "alert.raised") == []
        for name in ("run.started", "dataset.registered", "run.finished"):
            assert len(of(entries, name)) == 1
        assert entries[-1]["outcome"] == "completed"
        scored = of(entries, "rollout.scored")
        assert sum(x["completions"] for x in scored) == sum(x["scored"] for x in told)
    known = {entry["rows_root"]: entry["sealed"]["rows"] for entry in scored}
    for entry in of(entries, "batch.consumed"):
        links = entry["sealed"]["completions"]
        assert sorted(row for _, row in links) == list(range(8))
        assert {root for root, _ in links} <= known.keys()
    for row in (row for sealed in known.values() for row in sealed):
        words = len(set(row["completion"].split()))
        assert row["rewards"]["words"] == words
        assert len(row["tokens"]) == row["length"]


def test_a_trainer_that_shards_digests_its_weights(tmp_path: Path) -> None:
    done = launch_two(SCRIPT.with_name("fsdp_script.py"), "fsdp", tmp_path)
    assert done.returncode == 0, done.stderr
    entries = record(tmp_path, "fsdp")
    before, after = json.loads((tmp_path / "digests.json").read_text("utf-8"))
    models = {x["role"]: x["weights_digest"] for x in of(entries, "model.registered")}
    assert models == {"policy_init": before, "policy_final": after}
    saved = of(entries, "checkpoint.saved")
    assert [x["name"] for x in saved] == ["checkpoint-2", "checkpoint-3"]
    for entry in saved:
        folder = tmp_path / "out" / entry["name"] / "pytorch_model_fsdp_0"
        with Ledger.open(tmp_path / "ledger") as ledger:  # the folder holds the tied tensor twice
            found = check_model(LedgerWeights(ledger), read_model(folder))
        assert (found.state, found.digest) == ("recorded", entry["weights_digest"])
        assert entry["derived_from"] == [{"name": "policy_init", "weights_digest": before}]
        assert "trainer_state_digest" in entry
    assert saved[-1]["weights_digest"] == after
    assert of(entries, "gap") == of(entries, "alert.raised") == []
    assert sum(x["rows"] for x in of(entries, "batch.consumed")) == 6
