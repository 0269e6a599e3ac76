"""Stored weights by command: listed, restored, compared, replayed, recognised, discarded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.delta import read_delta

pytestmark = pytest.mark.train
SIZE = 200  # a segment too large to lie in the database


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Six checkpoints of a model that moves a little: one whole, the rest differences."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, 3)).bfloat16()
    place = tmp_path / "ledger"
    with Ledger.create(place, organisation="acme.example") as ledger:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated", storage_backend="local")
        with auditor.track_training("run-1") as run:
            for epoch in range(6):
                run.checkpoint(epoch=epoch, model=model)
                if epoch == 5:
                    save_file(model.state_dict(), tmp_path / "model.safetensors")
                with torch.no_grad():
                    run.checkpoint(epoch=epoch, metrics={"n": 1})  # waits for the one before
                    model[0].weight.mul_(1 + 2**-8)
    return place


def said(directory: Path, *arguments: str, code: int = 0) -> Result:
    environment = {"RLHF_AUDIT_LEDGER": str(directory), "NO_COLOR": "1"}
    done = CliRunner(env=environment).invoke(main, list(arguments))
    assert done.exit_code == code, done.output
    return done


def listed(directory: Path) -> list[dict[str, object]]:
    found = json.loads(said(directory, "checkpoint", "list", "run-1", "--json").stdout)
    return [x for x in found["checkpoints"] if x["weights_digest"]]


def test_weights_from_list_to_restored_file(directory: Path, tmp_path: Path) -> None:
    rows = listed(directory)
    assert [x["chain_length"] for x in rows] == [0, 1, 1, 1, 1, 2]
    assert all(x["stored_bytes"] < x["size_bytes"] for x in rows[1:])
    text = said(directory, "checkpoint", "list", "run-1").stdout
    assert "whole" in text
    assert "difference 2" in text
    assert "not stored" in text  # those without weights
    target = tmp_path / "restored.safetensors"
    said(directory, "checkpoint", "restore", "run-1", "epoch_5", "-o", str(target))
    wanted, found = load_file(tmp_path / "model.safetensors"), load_file(target)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[x], found[x]) for x in wanted)
    said(directory, "checkpoint", "restore", "run-1", "epoch_99", code=3)


def test_a_stored_difference_is_a_file_of_its_format(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "epoch_5.delta"
    said(directory, "checkpoint", "restore", "run-1", "epoch_5", "--as", "delta", "-o", str(target))
    rows = listed(directory)
    with target.open("rb") as file:
        header, segments = read_delta(file)
        assert len(list(segments)) == len(header.layout.segments)
    assert header.base is not None
    assert header.base.hex() == rows[4]["weights_digest"]
    assert header.result.hex() == rows[5]["weights_digest"]


def test_what_changed_between_two(directory: Path) -> None:
    found = said(directory, "checkpoint", "diff", "run-1", "epoch_0", "epoch_5", "--json")
    (row,) = json.loads(found.stdout)["changed"]
    assert row["tensor"] == "0.weight"
    assert 0 < row["bits"] < 16 * SIZE * SIZE
    same = said(directory, "checkpoint", "diff", "run-1", "epoch_1", "epoch_1")
    assert same.stdout == "0 of 4 tensors differ\n"


def test_replaying_a_run(directory: Path) -> None:
    done = said(directory, "replay", "run-1")
    assert "VERIFIED  6 of 6 checkpoints rebuilt" in done.stdout
    assert "; signed" in done.stdout
    key = str(directory / "keys" / "run-1.vkey")
    assert "; signed" in said(directory, "replay", "run-1", "--key", key).stdout
    other = str(directory / "keys" / "registry.vkey")
    said(directory, "replay", "run-1", "--key", other, code=1)
    steps = json.loads(said(directory, "replay", "run-1", "--json").stdout)["steps"]
    assert [x["how"] for x in steps] == ["whole", *(f"from epoch_{n}" for n in (0, 0, 0, 0, 4))]


def test_a_replay_finds_what_is_damaged_or_exchanged(directory: Path) -> None:
    with Ledger.open(directory) as ledger, ledger.engine.begin() as connection:
        # the segment of another checkpoint in the place of its own: sound bytes, other weights
        connection.exec_driver_sql(
            "UPDATE weight_segment SET blob_digest = (SELECT blob_digest FROM weight_segment "
            "WHERE checkpoint_id = 2) WHERE checkpoint_id = 5"
        )
    steps = json.loads(said(directory, "replay", "run-1", "--json", code=1).stdout)["steps"]
    assert [x["state"] for x in steps] == ["proved"] * 4 + ["failed"] * 2
    assert "not what its entry committed to" in steps[4]["finding"]
    assert "are not those of its digest: 0.weight" in steps[5]["finding"]
    said(directory, "checkpoint", "restore", "run-1", "epoch_4", code=1)


def test_a_model_is_recognised_and_its_entry_proven(directory: Path, tmp_path: Path) -> None:
    model, proof = tmp_path / "model.safetensors", tmp_path / "proof.bundle"
    done = said(directory, "verify-model", str(model), "--proof", str(proof))
    assert "passed     checkpoint epoch_5 of acme.example/rlhf/run-1" in done.stdout
    assert "anchor: none" in done.stdout
    key = directory / "keys" / "run-1.vkey"
    assert CliRunner().invoke(main, ["verify", str(proof), "--key", str(key)]).exit_code == 0
    said(directory, "verify-model", str(model), "--checkpoint", "epoch_5")
    other = said(directory, "verify-model", str(model), "--checkpoint", "epoch_0", code=1)
    assert "3 of 4 tensors equal epoch_0" in other.stdout
    said(directory, "verify-model", str(model), "--checkpoint", "epoch_77", code=3)
    said(directory, "verify-model", str(directory / "ledger.db"), code=4)
    said(directory, "verify-model", str(tmp_path / "nothing.safetensors"), code=5)
    save_file({"x": torch.ones(3)}, tmp_path / "foreign.safetensors")
    foreign = said(directory, "verify-model", str(tmp_path / "foreign.safetensors"), code=3)
    assert "in no log searched" in foreign.stdout


def test_discarding_keeps_what_is_needed_and_says_what_went(directory: Path) -> None:
    shown = said(directory, "checkpoint", "gc", "run-1", "--keep-last", "0", "--keep", "epoch_5",
                 "--dry-run", "--json")  # fmt: skip
    assert json.loads(shown.stdout)["discarded"] == ["epoch_1", "epoch_2", "epoch_3"]
    assert len(listed(directory)) == 6
    said(directory, "checkpoint", "gc", "run-1", "--keep-last", "0", "--keep", "epoch_9", code=3)
    done = said(directory, "checkpoint", "gc", "run-1", "--keep-last", "0", "--keep", "epoch_5")
    assert "discarded 3 checkpoints" in done.stdout
    assert [x["stored_bytes"] is None for x in listed(directory)] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    replayed = said(directory, "replay", "run-1", code=3)
    assert "INCONCLUSIVE  3 of 6" in replayed.stdout
    with Ledger.open(directory) as ledger:
        (entry,) = ledger.registry.entries(kind="checkpoint.discarded")
        assert entry.event["names"] == ["epoch_1", "epoch_2", "epoch_3"]
    said(directory, "checkpoint", "gc", "run-1", "--keep-last", "0", "--unfinished")
    assert list((directory / "blobs").iterdir()) == []
    with open_damaged(directory) as storage:
        assert list(fsck(storage)) == []
