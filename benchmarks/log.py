"""How fast is the log, and how far from the floor of two SHA-256 calls an entry?

Everything durable goes through SQLite with full synchronous commits on the disk of the
temporary directory. The floor is measured in the same run.
"""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import Result
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.merkle import (
    leaf_hash,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

_ROOT_ENTRIES = 1_000_000
_LOG_ENTRIES = 100_000
_GROUP = 1_000
_ONE_BY_ONE = 200
_ANNOTATIONS = 256
_ROUNDS = 5
_PROOFS = 300
_OFFERED_PER_S = 20_000
_OFFERED_S = 2.0
_DETAIL = "x" * 105  # makes an entry of about 300 bytes


def run() -> Sequence[Result]:
    """Measure everything; takes about two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        results = [*_hashing()]
        with Ledger.create(Path(folder) / "audit", organisation="bench.example") as ledger:
            log = ledger.open_run("run")
            results += _append(log, Path(folder))
            results += _latency(log)
            results += _annotations(ledger.open_run("annotations"))
            results += _proofs(log)
            entries = sum(ledger.find(run_id).size for run_id in ledger.runs())
        began = time.perf_counter()
        with open_damaged(Path(folder) / "audit") as storage:
            findings = list(fsck(storage))
        if findings:
            raise RuntimeError(f"fsck: {findings[0]}")
        per_million_s = (time.perf_counter() - began) * 1e6 / entries
        results.append(Result("fsck, per 1,000,000 entries", round(per_million_s, 1), "s", goal=10))
    return results


def _event(number: int) -> Event:
    fields = {"name": "bench", "severity": "info", "step": number, "detail": _DETAIL}
    return Event("alert.raised", fields)


def _hashing() -> Sequence[Result]:
    """The root over a million entries of 300 bytes, beside two bare SHA-256 calls for each."""
    entries = [os.urandom(8) + bytes(292) for _ in range(_ROOT_ENTRIES)]

    def floor() -> None:
        for entry in entries:
            hashlib.sha256(entry).digest()
            hashlib.sha256(entry[:65]).digest()

    floor_s = _median_s(floor, 3)
    root_s = _median_s(lambda: root_hash([leaf_hash(entry) for entry in entries]), 3)
    rate, best = _ROOT_ENTRIES / root_s, _ROOT_ENTRIES / floor_s
    return [
        Result("two SHA-256 calls (floor)", round(best), "entries/s"),
        Result(
            "root of 1,000,000 entries, one core", round(rate), "entries/s",
            reference=round(best), goal=round(0.6 * best), lower_is_better=False,
        ),
    ]  # fmt: skip


def _append(log: Log, folder: Path) -> Sequence[Result]:
    events = [_event(number) for number in range(_GROUP)]
    log.record_many(events)
    log.flush()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def append() -> None:
        for _ in range(_LOG_ENTRIES // _ROUNDS // _GROUP):
            log.record_many(events)
        log.flush()

    rate = _LOG_ENTRIES / _ROUNDS / _median_s(append, _ROUNDS)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    single_s = _median_s(lambda: log.record(events[0]).result(), _ONE_BY_ONE)
    sync_s = _fsync_s(folder)
    return [
        Result("durable append, groups of 1,000", round(rate), "events/s", goal=100_000,
               lower_is_better=False),
        Result("durable append one at a time", round(1 / single_s), "events/s",
               reference=round(1 / sync_s), goal=round(0.8 / sync_s), lower_is_better=False),
        Result(f"memory grown over {_LOG_ENTRIES:,} entries", round(grown_mib, 1), "MiB"),
    ]  # fmt: skip


def _latency(log: Log) -> Sequence[Result]:
    """Acknowledgement at a steady offer; each ticket of 20 events is watched."""
    waiting, latencies = [], []
    count, began = 20, time.perf_counter()
    for number in range(int(_OFFERED_PER_S * _OFFERED_S / count)):
        due = began + number * count / _OFFERED_PER_S
        if (pause := due - time.perf_counter()) > 0:
            time.sleep(pause)
        waiting.append((time.perf_counter(), log.record_many(_event(x) for x in range(count))[-1]))
        while waiting and waiting[0][1].done():
            sent, _ = waiting.pop(0)
            latencies.append(1000 * (time.perf_counter() - sent))
    for sent, receipt in waiting:
        receipt.result()
        latencies.append(1000 * (time.perf_counter() - sent))
    latencies.sort()
    return [
        Result("acknowledged, p50 at 20,000 events/s offered",
               round(statistics.median(latencies), 2), "ms", goal=10),
        Result("acknowledged, p99 at 20,000 events/s offered",
               round(latencies[int(0.99 * len(latencies))], 2), "ms", goal=50),
    ]  # fmt: skip


def _annotations(log: Log) -> Sequence[Result]:
    def batch() -> list[Event]:
        return [
            Event(
                "annotation.recorded", {"source": "simulated", "batch": 1},
                {"prompt": "p" * 100, "response": "r" * 100, "annotator": f"a{x % 50}",
                 "reward": x / 7},
                subject=f"a{x % 50}",
            )
            for x in range(_ANNOTATIONS)
        ]  # fmt: skip

    log.record_many(batch())
    log.flush()
    calls, began = [], time.perf_counter()
    for _ in range(20):
        events = batch()
        called = time.perf_counter()
        log.record_many(events)
        calls.append(1000 * (time.perf_counter() - called))
    log.flush()
    rate = 20 * _ANNOTATIONS / (time.perf_counter() - began)
    return [
        Result("annotations with commitments, sealed", round(rate), "events/s", goal=50_000,
               lower_is_better=False),
        Result("caller's share of 256 annotations, p50", round(statistics.median(calls), 2), "ms",
               goal=1),
    ]  # fmt: skip


def _proofs(log: Log) -> Sequence[Result]:
    head = log.publish().head
    indices = [head.size * number // _PROOFS for number in range(_PROOFS)]
    made, checked, linked = [], [], []
    for index in indices:
        began = time.perf_counter()
        proof = log.prove_inclusion(index, head.size)
        made.append(1e6 * (time.perf_counter() - began))
        leaf = leaf_hash(log.read(index).data)
        began = time.perf_counter()
        verify_inclusion(leaf, index, head.size, proof, head.root)
        checked.append(1e6 * (time.perf_counter() - began))
        began = time.perf_counter()
        path = log.prove_consistency(index + 1, head.size)
        linked.append(1e6 * (time.perf_counter() - began))
        verify_consistency(index + 1, log.root_at(index + 1), head.size, head.root, path)
    size = f"{head.size:,} entries"
    return [
        Result(f"inclusion proof, {size}, p50", round(statistics.median(made), 1), "us", goal=100),
        Result(f"consistency proof, {size}, p50", round(statistics.median(linked), 1), "us",
               goal=100),
        Result("verify inclusion, p50", round(statistics.median(checked), 1), "us", goal=30),
    ]  # fmt: skip


def _fsync_s(folder: Path) -> float:
    """The disk's own rate: a small write and an fsync, over and over."""
    with (folder / "sync").open("wb") as file:

        def write() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        return _median_s(write, _ONE_BY_ONE)


def _median_s(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
