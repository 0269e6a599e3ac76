"""Checkpoints that are stored: real trainings, rebuilt bit for bit, while the training goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import file_digest
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.object_stores import InvalidPlace
from rlhf_audit_trail.ledger.proof.errors import Inconsistent
from rlhf_audit_trail.ledger.proof.merkle import root_hash
from rlhf_audit_trail.ledger.weights.binding import HeadBinding, InvalidBinding
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.manifest import parse_manifest
from rlhf_audit_trail.ledger.weights.scratch import Scratch
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
from rlhf_audit_trail.weights.model_weights import digest_model, named_tensors, tensor_bytes
from rlhf_audit_trail.weights.snapshot import LiveCopy, WeightsMoved, layout_of


class Tied(torch.nn.Module):
    """Two layers with one weight, a scalar, an empty tensor, half precision and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(6, 6)
        self.two = torch.nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.narrow = torch.nn.Parameter(torch.randn(7, 3).bfloat16())
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("nothing", torch.empty(0, 4))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.two(self.one(x)).sum() * self.scale + self.narrow.float().square().sum()


def plain(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: bytes(tensor_bytes(x)) for name, x in named_tensors(model).tensors.items()}


def storing(ledger: Ledger) -> AuditableRLHF:
    return AuditableRLHF("tiny", ledger=ledger, source="simulated", seed=1, storage_backend="local")


def restored(store: CheckpointStore, stored: Any) -> dict[str, bytes]:
    reader = store.reader(stored)
    found = {tensor.name: bytearray(tensor.size_bytes) for tensor in reader.layout.tensors}

    def write(chunk: Any, data: Any) -> None:
        room = found[reader.layout.tensors[chunk.tensor].name]
        room[chunk.start : chunk.start + chunk.size_bytes] = data

    reader.restore(write)
    return {name: bytes(data) for name, data in found.items()}


def test_every_checkpoint_of_a_training_is_rebuilt_bit_for_bit(ledger: Ledger) -> None:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    wanted, digests = [], []
    with storing(ledger).track_training("run-1") as run:
        for epoch in range(19):
            wanted.append(plain(model))
            record = run.checkpoint(epoch=epoch, model=model)
            digests.append(record)
            optimizer.zero_grad()
            model(torch.ones(2, 6)).backward()
            optimizer.step()
    log = ledger.find("run-1")
    for arithmetic in (NUMPY, None):
        made = {} if arithmetic is None else {"arithmetic": arithmetic}
        store = CheckpointStore(ledger.engine, ledger.blobs, **made)
        stored = store.stored(log.number)
        assert [x.name for x in stored] == [f"epoch_{n}" for n in range(19)]
        # bytes as small as these: a header outweighs them, so chains end by size or by count
        assert stored[0].base is None
        assert all(x.chain_length <= 2 for x in stored)
        assert [restored(store, x) for x in stored] == wanted
    entries = [x.event for x in log.entries(kind="checkpoint.saved")]
    assert [x["weights_digest"] for x in entries] == [x.weights_digest for x in stored]
    assert [x.weights_digest for x in digests] == [x.weights_digest for x in stored]
    manifest = parse_manifest(
        ledger.blobs.get(entries[5]["manifest_digest"]), entries[5]["weights_digest"]
    )
    assert manifest.aliases == {"two.weight": "one.weight"}
    assert manifest.storage is not None
    assert manifest.storage.header == stored[5].header_digest


def test_checkpoints_stand_before_the_update_that_follows_them(ledger: Ledger) -> None:
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with storing(ledger).track_training("run-1") as run:
        for epoch in range(3):
            run.checkpoint(epoch=epoch, model=model)
            optimizer.zero_grad()
            model(torch.ones(1, 64)).sum().backward()
            before = digest_model(model).digest.hex()
            optimizer.step()
            assert digest_model(model).digest.hex() != before
            # what was copied is what stood there before the step
            assert (
                run.checkpoint(epoch=100 + epoch, model=model, wait=True).weights_digest != before
            )


def test_an_optimizer_waits_for_the_copy_and_for_nothing_else() -> None:
    model = torch.nn.Linear(4, 4)
    named = named_tensors(model)
    scratch = Scratch(layout_of(named))
    copy = LiveCopy(named, scratch)
    copy.hold_optimizers()
    before = bytes(tensor_bytes(model.weight))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.ones(1, 4)).sum().backward()
    stepped = threading.Event()
    thread = threading.Thread(target=lambda: (optimizer.step(), stepped.set()))
    thread.start()
    assert not stepped.wait(0.2)
    copy.take()
    assert stepped.wait(10)
    thread.join()
    assert bytes(scratch.tensor(scratch.layout.number["weight"])) == before
    optimizer.step()  # nothing holds it any more


def test_a_write_beside_the_optimizer_is_noticed(ledger: Ledger) -> None:
    model = torch.nn.Linear(4, 4)
    named = named_tensors(model)
    copy = LiveCopy(named, Scratch(layout_of(named)))
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(WeightsMoved, match="1 tensors"):
        copy.take()
    del ledger


def test_without_storing_it_may_still_go_on_at_once(auditor: AuditableRLHF) -> None:
    model = torch.nn.Linear(4, 4)
    with auditor.track_training("run-1") as run:
        record = run.checkpoint(epoch=0, model=model, wait=False)
        assert record.weights_digest == digest_model(model).digest.hex()
        assert record.receipt.result() >= 0
    assert isinstance(auditor.ledger, Ledger)
    log = auditor.ledger.find("run-1")
    assert CheckpointStore(auditor.ledger.engine, auditor.ledger.blobs).stored(log.number) == []


def test_files_are_digested_after_the_trainer_removed_them(ledger: Ledger, tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    folder = tmp_path / "checkpoint-1"
    (folder / "more").mkdir(parents=True)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "more" / "config.json").write_text("{}")
    wanted = file_digest(folder)
    with storing(ledger).track_training("run-1") as run:
        record = run.checkpoint(epoch=0, model=model, path=folder)
        (folder / "model.pt").unlink()
        (folder / "more" / "config.json").unlink()
        record.receipt.result()
    entry = next(iter(ledger.find("run-1").entries(kind="checkpoint.saved"))).event
    assert entry["path_digest"] == wanted
    manifest = parse_manifest(ledger.blobs.get(entry["manifest_digest"]), entry["weights_digest"])
    assert [x.path for x in manifest.files] == ["model.pt", "more/config.json"]


def test_a_full_disk_loses_the_weights_and_not_the_checkpoint(ledger: Ledger) -> None:
    """The blobs' directory becomes a file, which even root cannot write below."""
    model = torch.nn.Linear(200, 200)  # more than a blob that lies in the database
    with storing(ledger).track_training("run-1") as run:
        run.checkpoint(epoch=0, model=model).receipt.result()
        blobs = ledger.directory / "blobs"
        blobs.rename(ledger.directory / "away")
        blobs.touch()
        with torch.no_grad():
            model.weight.normal_()
        lost = run.checkpoint(epoch=1, model=model)
        assert lost.weights_digest == digest_model(model).digest.hex()
        blobs.unlink()
        (ledger.directory / "away").rename(blobs)
        run.checkpoint(epoch=2, model=model).receipt.result()
    log = ledger.find("run-1")
    alerts = [x.event["detail"] for x in log.entries(kind="alert.raised")]
    assert alerts == ["the weights of epoch_1 were not stored: ObjectStoreFailed"]
    store = CheckpointStore(ledger.engine, ledger.blobs)
    stored = store.stored(log.number)
    assert [(x.name, x.base) for x in stored] == [("epoch_0", None), ("epoch_2", None)]
    assert restored(store, stored[-1]) == plain(model)
    assert len(store.unfinished()) == 1
    store.discard(store.unfinished())
    assert store.unfinished() == []


def test_where_weights_go_is_checked_before_anything_begins(ledger: Ledger) -> None:
    for backend in ("s3", "floppy", "ftp://host/x", "s3://", "s3://key:secret@bucket/x",
                    "s3://bucket?token=secret"):  # fmt: skip
        with pytest.raises(InvalidPlace) as found:
            AuditableRLHF("tiny", ledger=ledger, storage_backend=backend)
        assert "secret" not in str(found.value)
    assert ledger.runs() == []


def test_a_saved_state_is_bound_to_its_log(ledger: Ledger, auditor: AuditableRLHF) -> None:
    with auditor.track_training("run-1") as run:
        run.metrics(1, {"loss": 1.0})
        run.sign()
        state = json.loads(json.dumps(HeadBinding.of(run.tree_head).to_dict()))
    log = ledger.find("run-1")
    HeadBinding.parse(state).check(log)
    HeadBinding.of(f"{log.origin}\n0\n").check(log)
    with pytest.raises(Inconsistent, match="another log"):
        HeadBinding.parse(state).check(ledger.registry)
    with pytest.raises(Inconsistent, match="larger tree"):
        HeadBinding.parse(state | {"tree_size": 10**6}).check(log)
    with pytest.raises(Inconsistent, match="not this log's"):
        HeadBinding.parse(state | {"root": root_hash([]).hex()}).check(log)
    with pytest.raises(InvalidBinding):
        HeadBinding.parse({"origin": log.origin})
