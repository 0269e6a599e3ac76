"""Checkpoints: what the training waits for, what goes on beside it, what it takes to store.

CHECKPOINT_PARTS names parts to measure (foreground, beside, restored), each of which takes less
than a minute; CHECKPOINT_PARAMETERS says how large the model is, and the results say it again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import Result
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.delta import EncodedSegment, encode_segment
from rlhf_audit_trail.ledger.weights.digest import weights_digest
from rlhf_audit_trail.ledger.weights.scratch import Scratch
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY
from rlhf_audit_trail.weights.model_files import read_model
from rlhf_audit_trail.weights.model_weights import named_tensors, tensor_bytes
from rlhf_audit_trail.weights.snapshot import layout_of

_PARAMETERS = int(os.environ.get("CHECKPOINT_PARAMETERS", "100_000_000"))
_PARTS = os.environ.get("CHECKPOINT_PARTS", "foreground beside restored").split()
_CHAIN = 51
_ROUNDS = 5
_THREADS = 2
_ROW = 4096
_STD = 0.02


def run() -> Sequence[Result]:
    """Measure on one model in each type."""
    with tempfile.TemporaryDirectory() as folder:
        parts = {"foreground": _foreground, "beside": _beside, "restored": _restored}
        return [result for name in _PARTS for result in parts[name](Path(folder))]


def _named(parameters: int) -> str:
    return f"{parameters / 1e6:.0f}M"


def _model(parameters: int, dtype: torch.dtype) -> torch.nn.Module:
    """A model of layers of four million weights, as large ones mostly are."""
    torch.manual_seed(0)
    count = max(1, parameters // (_ROW * 1024))
    layers = [torch.nn.Linear(_ROW, 1024, bias=False) for _ in range(count)]
    model = torch.nn.Sequential(*layers)
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=_STD)
    return model.to(dtype)


def _size(model: torch.nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in model.parameters())


def _median_s(
    work: Callable[[], object],
    rounds: int = _ROUNDS,
    *,
    before: Callable[[], object] = lambda: None,
) -> float:
    taken = []
    for _ in range(rounds):
        before()
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _forget(folder: Path) -> None:
    """Have the system drop what it holds of files in memory: they are read from the disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _foreground(folder: Path) -> Sequence[Result]:
    """How long `checkpoint()` keeps the training, and a step right after it, beside a bare save."""
    model = _model(_PARAMETERS, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = {name: x.detach() for name, x in model.state_dict().items()}
    save_s = _median_s(lambda: save_file(state, folder / "bare.safetensors"))
    step_s = _median_s(optimizer.step)
    called, waited = [], []
    with Ledger.create(folder / "foreground", organisation="bench.example") as ledger:
        auditor = AuditableRLHF(
            "bench", ledger=ledger, source="simulated", storage_backend="local",
            watch_optimizers=False,
        )  # fmt: skip
        with auditor.track_training("run") as run:
            for epoch in range(_ROUNDS):
                began = time.perf_counter()
                record = run.checkpoint(epoch=epoch, model=model)
                called.append(time.perf_counter() - began)
                optimizer.step()  # the worst case: nothing is computed in between
                waited.append(time.perf_counter() - began - step_s)
                record.receipt.result()
    return [
        Result(
            f"safetensors.save_file, {_named(_size(model) // 4)} fp32",
            round(1000 * save_s, 1), "ms",
        ),
        Result(
            "checkpoint() keeps the training, share of save_file",
            round(100 * statistics.median(called) / save_s, 2), "%", goal=5,
        ),
        Result(
            "and if a step follows at once, share of save_file",
            round(100 * statistics.median(waited) / save_s, 1), "%",
        ),
    ]  # fmt: skip


def _move(model: torch.nn.Module, masters: Sequence[torch.Tensor], std: float) -> None:
    """Move fp32 masters as training does, and round them to the model's type."""
    with torch.no_grad():
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.add_(torch.randn_like(master), alpha=std)
            parameter.copy_(master)


def _masters(model: torch.nn.Module) -> list[torch.Tensor]:
    return [x.detach().float() + torch.randn(x.shape) * 1e-4 for x in model.parameters()]


def _beside(folder: Path) -> Sequence[Result]:
    """Digest and delta, by themselves and with copying and storing, to durable rows."""
    model = _model(_PARAMETERS, torch.bfloat16)
    size, results = _size(model), []
    masters = _masters(model)
    for std, goal in ((1e-5, 0.15), (1e-6, 0.04)):
        _move(model, masters, 0.0)
        old = {name: x.clone() for name, x in model.state_dict().items()}
        _move(model, masters, std)
        told = f"{_named(size // 2)} bf16 moved by {std:g}"
        computed_s = _median_s(partial(_encode_all, old, model.state_dict()))
        with Ledger.create(folder / f"beside-{std}", organisation="bench.example") as ledger:
            auditor = AuditableRLHF(
                "bench", ledger=ledger, source="simulated", storage_backend="local",
                watch_optimizers=False,
            )  # fmt: skip
            taken, shares = [], []
            for number in range(_ROUNDS):
                with auditor.track_training(f"run-{number}") as run:
                    for epoch in range(2):  # from the third on, their room is there
                        run.checkpoint(epoch=epoch, model=old).receipt.result()
                    began = time.perf_counter()
                    run.checkpoint(epoch=2, model=model).receipt.result()
                    taken.append(time.perf_counter() - began)
                stored = CheckpointStore(ledger.engine, ledger.blobs).stored()[-1]
                shares.append(stored.stored_bytes / size)
        results += [
            Result(f"digest and delta on {_THREADS} threads, {told}",
                   round(size / computed_s / 1e9, 2), "GB/s", goal=1, lower_is_better=False),
            Result(f"with copying and storing, {told}",
                   round(size / statistics.median(taken) / 1e9, 2), "GB/s"),
            Result(f"delta, share of raw, {told}", round(statistics.median(shares), 4), "",
                   goal=goal),
        ]  # fmt: skip
    return results


def _encode_all(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> bytes:
    """Digest weights and write their difference, in memory."""
    layout = layout_of(named_tensors(new))
    before = [memoryview(tensor_bytes(old[x.name])) for x in layout.tensors]
    after = [memoryview(tensor_bytes(new[x.name])) for x in layout.tensors]

    def one(number: int) -> EncodedSegment:
        return encode_segment(
            layout, number,
            lambda chunk: after[chunk.tensor][chunk.start : chunk.start + chunk.size_bytes],
            lambda chunk: (
                before[chunk.tensor][chunk.start : chunk.start + chunk.size_bytes], b"",
            ),
            NUMPY,
        )  # fmt: skip

    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = [segment.hashes for segment in pool.map(one, range(len(layout.segments)))]
    return weights_digest(layout.records(hashes))


def _restored(folder: Path) -> Sequence[Result]:
    """Checkpoint 50 of a chain, and its deepest, beside reading a full copy of the weights."""
    model = _model(_PARAMETERS // 4, torch.bfloat16)
    masters = _masters(model)
    copy = folder / "copy.safetensors"
    with Ledger.create(folder / "chain", organisation="bench.example") as ledger:
        auditor = AuditableRLHF(
            "bench", ledger=ledger, source="simulated", storage_backend="local",
            watch_optimizers=False,
        )  # fmt: skip
        with auditor.track_training("run") as run:
            for epoch in range(_CHAIN):
                _move(model, masters, 1e-5)
                run.checkpoint(epoch=epoch, model=model).receipt.result()
        save_file(model.state_dict(), copy)
        store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
        stored = store.stored()
        room = Scratch(store.reader(stored[-1]).layout, folder)
        deepest = max(stored, key=lambda x: (x.chain_length, x.number))
        restored = [
            _median_s(lambda at=at: store.reader(at).restore(room=room.read), 2 * _ROUNDS)
            for at in (stored[-1], deepest)
        ]
        cold_s = _median_s(
            lambda: store.reader(stored[-1]).restore(room=room.read), 2 * _ROUNDS,
            before=partial(_forget, folder),
        )  # fmt: skip
        taking = sum(x.stored_bytes for x in stored) / sum(x.size_bytes for x in stored)
    copied_s = _median_s(copy.read_bytes, 2 * _ROUNDS)
    cold_copy_s = _median_s(copy.read_bytes, 2 * _ROUNDS, before=partial(_forget, folder))
    digest_s = _median_s(lambda: read_model(copy).digest(), 2 * _ROUNDS)
    told = f"{_named(_size(model) // 2)} bf16"
    return [
        Result(f"read a full copy from the disk, {told}", round(1000 * cold_copy_s, 1), "ms"),
        Result(f"restore checkpoint {_CHAIN - 1} from the disk, checked, times reading a full copy",
               round(cold_s / cold_copy_s, 2), "x", goal=3),
        Result("read a full copy and check its digest, files in memory",
               round(1000 * digest_s, 1), "ms"),
        Result("restore, checked, times reading a full copy and checking it, files in memory",
               round(restored[0] / digest_s, 2), "x", goal=3),
        Result(f"the one with most differences ({deepest.chain_length}), likewise",
               round(restored[1] / digest_s, 2), "x"),
        Result("restore, checked, times copying the file's pages unchecked, files in memory",
               round(restored[0] / copied_s, 2), "x"),
        Result(f"chain of {_CHAIN}, bf16 moved by 1e-05 each, share of raw", round(taking, 4), ""),
    ]  # fmt: skip
