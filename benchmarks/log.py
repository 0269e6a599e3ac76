"""How fast is the log, and how far from what the machine could do at most?

Everything durable goes through SQLite with full synchronous commits on the disk of the
temporary directory. Floors are measured in the same run: two SHA-256 calls an entry, a bare
loop of encoder, hashes and database driver, and the disk's own fsync.

One log grows to ten million entries; on its way it is measured at the sizes the goals name.
Takes minutes and 8 GB of disk; `LOG_ENTRIES=2000000` makes it grow less far.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks import Result, postgres
from rlhf_audit_trail import AuditableRLHF
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.merkle import (
    leaf_hash,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

_ENTRIES_MAX = int(os.environ.get("LOG_ENTRIES", "10_000_000"))
_GROUP = 1_000
_EARLY, _MILLION = 100_000, 1_000_000
_STRETCH = 20_000  # entries over which a rate is taken, in each round
_ONE_BY_ONE, _TURNS = 600, 20
_UNTIL_STEADY = 1_500  # appends
_ANNOTATIONS = 256
_CALLS = 60
_OFFERED_CALLS = 200  # in each round
_ROUNDS = 5
_PROOFS = 1_000
_OFFERED_PER_S, _OFFERED_S, _OFFERED_AT_ONCE = 20_000, 3.0, 20
_PAYLOAD_BYTES = 105  # makes an entry of about 300 bytes


def run() -> Sequence[Result]:
    """Measure everything the goals name."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # the small first: a heap through which ten million events went makes all else dearer
        return [
            *_one_at_a_time(place),
            *_latency(place),
            *_annotations(place),
            *_roots(),
            *_growing(place),
            *postgres.run(),
        ]


def _event(number: int) -> Event:
    detail = f"{number:0{_PAYLOAD_BYTES}d}"
    return Event(
        "alert.raised", {"name": "bench", "severity": "info", "step": number, "detail": detail}
    )


# --- hashing ----------------------------------------------------------------------------


def _roots() -> Sequence[Result]:
    """The root over a million entries of 300 bytes, beside two bare SHA-256 calls for each."""
    entries = _random_entries(_MILLION)

    def floor() -> None:
        for entry in entries:
            hashlib.sha256(entry).digest()
            hashlib.sha256(entry[:65]).digest()

    floor_s = _median_s(floor, 3)
    root_s = _median_s(lambda: root_hash([leaf_hash(entry) for entry in entries]), 3)
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        alone_s = statistics.median(
            [pool.submit(_root_s, _MILLION // cores).result() for _ in range(3)]
        )
        parts = [max(pool.map(_root_s, [_MILLION // cores] * cores)) for _ in range(3)]
    rate, best = _MILLION / root_s, _MILLION / floor_s
    scaling = cores * alone_s / statistics.median(parts)
    return [
        Result("two SHA-256 calls (floor)", round(best), "entries/s"),
        Result(
            "root of 1,000,000 entries, one core", round(rate), "entries/s",
            reference=round(best), goal=round(0.6 * best), lower_is_better=False,
        ),
        Result(f"the same on {cores} cores, times one core", round(scaling, 2), "x",
               goal=round(0.8 * cores, 1), lower_is_better=False),
    ]  # fmt: skip


def _random_entries(count: int) -> list[bytes]:
    return [os.urandom(8) + bytes(292) for _ in range(count)]


def _root_s(count: int) -> float:
    entries = _random_entries(count)
    began = time.perf_counter()
    root_hash([leaf_hash(entry) for entry in entries])
    return time.perf_counter() - began


# --- a log that grows -------------------------------------------------------------------


def _growing(folder: Path) -> Sequence[Result]:
    loop_s = _bare_loop_s(folder / "loop.db")
    directory = folder / "grown"
    rates: dict[int, float] = {}
    results: list[Result] = []
    with Ledger.create(directory, organisation="bench.example") as ledger:
        log = ledger.open_run("run")
        for size in sorted({_EARLY, _MILLION, _ENTRIES_MAX}):
            before_mib = _resident_mib()
            _grow(log, size - _ROUNDS * _STRETCH)
            rates[size] = _rate(log)
            if size == _MILLION:
                grown = round(_resident_mib() - before_mib, 1)
                results.append(Result("memory grown to 1,000,000 entries", grown, "MiB", goal=100))
                _grow(log, size)
                results += _proofs(log)
                results += _checked(directory, log.size)
    slower = 100 * (rates[_EARLY] / rates[_ENTRIES_MAX] - 1)
    return [
        Result("bare loop of encoder, hashes and driver", round(1 / loop_s), "events/s"),
        Result("durable append, groups of 1,000", round(rates[_EARLY]), "events/s",
               reference=round(1 / loop_s), goal=100_000, lower_is_better=False),
        Result(f"cost of an event at {_ENTRIES_MAX:,} over {_EARLY:,}", round(slower, 1), "%",
               goal=20),
        *results,
    ]  # fmt: skip


def _grow(log: Log, size: int) -> None:
    """Append until the log has `size` entries, the last call perhaps a short one."""
    number = log.size
    while number < size:
        count = min(_GROUP, size - number)
        log.record_many([_event(number + x) for x in range(count)])
        number += count
    log.flush()


def _rate(log: Log) -> float:
    """Events a second, event object in, all of them durable at the end."""
    groups = range(0, _STRETCH, _GROUP)
    events = [[_event(begin + x) for x in range(_GROUP)] for begin in groups]

    def append() -> None:
        for group in events:
            log.record_many(group)
        log.flush()

    return _STRETCH / _median_s(append, _ROUNDS)


def _bare_loop_s(path: Path) -> float:
    """Seconds an event of the least that a durable log in Python must do."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE entry (leaf_index INTEGER PRIMARY KEY, data BLOB, leaf BLOB)")
    events = [dict(_event(number).fields) for number in range(_GROUP)]
    encode = json.JSONEncoder(separators=(",", ":")).encode
    size = 0

    def group() -> None:
        nonlocal size
        rows, nodes = [], []
        for number, event in enumerate(events, size):
            data = encode(
                {"kind": "alert.raised", "run_id": "run", "seq": number, **event}
            ).encode()
            leaf = leaf_hash(data)
            rows.append((number, data, leaf))
            nodes.append(leaf)
        root_hash(nodes)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO entry VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
        size += _GROUP

    try:
        return _median_s(group, 40) / _GROUP
    finally:
        connection.close()


def _proofs(log: Log) -> Sequence[Result]:
    """Proofs for entries all over the log, checked by whoever gets them."""
    head = log.publish().head
    chosen = random.Random(7)
    made, checked, linked = [], [], []
    for _ in range(_PROOFS):
        index = chosen.randrange(head.size)
        began = time.perf_counter()
        proof = log.prove_inclusion(index, head.size)
        made.append(1e6 * (time.perf_counter() - began))
        leaf = leaf_hash(log.read(index).data)
        began = time.perf_counter()
        verify_inclusion(leaf, index, head.size, proof, head.root)
        checked.append(1e6 * (time.perf_counter() - began))
        old = chosen.randrange(1, head.size)
        began = time.perf_counter()
        path = log.prove_consistency(old, head.size)
        linked.append(1e6 * (time.perf_counter() - began))
        verify_consistency(old, log.root_at(old), head.size, head.root, path)
    size = f"{head.size:,} entries"
    return [
        Result(f"inclusion proof, {size}, p50", round(statistics.median(made), 1), "us", goal=100),
        Result(f"consistency proof, {size}, p50", round(statistics.median(linked), 1), "us",
               goal=100),
        Result("verify inclusion, p50", round(statistics.median(checked), 1), "us", goal=30),
    ]  # fmt: skip


def _checked(directory: Path, size: int) -> Sequence[Result]:
    began = time.perf_counter()
    with open_damaged(directory) as storage:
        findings = list(fsck(storage))
    if findings:
        raise RuntimeError(f"fsck: {findings[0]}")
    taken_s = time.perf_counter() - began
    return [Result(f"fsck of {size:,} entries", round(taken_s, 1), "s", goal=10)]


# --- one at a time, and a steady offer --------------------------------------------------


def _one_at_a_time(folder: Path) -> Sequence[Result]:
    """Single durable appends by turns with the disk's own: its rate is another every second.

    Measured when the write-ahead file has grown to its size and is written anew from its
    beginning, as in any process that has appended some thousand entries.
    """
    single, bare = [], []
    with (
        Ledger.create(folder / "single", organisation="bench.example") as ledger,
        (folder / "sync").open("wb") as file,
    ):
        log, event = ledger.open_run("run"), _event(0)

        def write() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        os.sync()  # or the disk is still busy with what was measured before
        _times_s(lambda: log.record(event).result(), _UNTIL_STEADY)
        for turn in range(_TURNS + 1):
            times = [_times_s(lambda: log.record(event).result(), _ONE_BY_ONE // _TURNS)]
            times.append(_times_s(write, _ONE_BY_ONE // _TURNS))
            if turn:  # the first makes threads, files and statements
                single += times[0]
                bare += times[1]
    single_s, sync_s = statistics.median(single), statistics.median(bare)
    return [
        Result("durable append one at a time", round(1 / single_s), "events/s",
               reference=round(1 / sync_s), goal=round(0.8 / sync_s), lower_is_better=False),
    ]  # fmt: skip


def _latency(folder: Path) -> Sequence[Result]:
    """Acknowledgement at a steady offer; each ticket is watched by the time of its receipt."""
    latencies: list[float] = []
    with Ledger.create(folder / "steady", organisation="bench.example") as ledger:
        log = ledger.open_run("run")
        log.record(_event(0)).result()
        waiting, began = [], time.perf_counter()
        for number in range(int(_OFFERED_PER_S * _OFFERED_S / _OFFERED_AT_ONCE)):
            due = began + number * _OFFERED_AT_ONCE / _OFFERED_PER_S
            if (pause := due - time.perf_counter()) > 0:
                time.sleep(pause)
            handed_over = time.perf_counter()
            receipts = log.record_many([_event(x) for x in range(_OFFERED_AT_ONCE)])
            waiting.append((handed_over, receipts[-1]))
            while waiting and waiting[0][1].done():
                latencies.append(1000 * (time.perf_counter() - waiting.pop(0)[0]))
        for handed_over, receipt in waiting:
            receipt.result()
            latencies.append(1000 * (time.perf_counter() - handed_over))
    latencies.sort()
    return [
        Result("acknowledged, p50 at 20,000 events/s offered",
               round(statistics.median(latencies), 2), "ms", goal=10),
        Result("acknowledged, p99 at 20,000 events/s offered",
               round(latencies[int(0.99 * len(latencies))], 2), "ms", goal=50),
    ]  # fmt: skip


# --- annotations ------------------------------------------------------------------------


def _annotations(folder: Path) -> Sequence[Result]:
    """Preference values with commitments and sealed values, through the public call."""
    rows = {
        "prompts": [f"{x:0100d}" for x in range(_ANNOTATIONS)],
        "responses": [f"{x:0100d}" for x in range(_ANNOTATIONS)],
        "rewards": [x / 7 for x in range(_ANNOTATIONS)],
        "annotator_ids": [f"annotator-{x % 50}" for x in range(_ANNOTATIONS)],
    }
    with (
        Ledger.create(folder / "sealed", organisation="bench.example") as ledger,
        AuditableRLHF(
            "bench", ledger=ledger, source="simulated", watch_optimizers=False
        ) as auditor,
        auditor.track_training("run"),
    ):
        log = ledger.find("run")
        auditor.log_annotations(**rows)[-1].result()
        calls = []
        for _ in range(_CALLS):  # as in training: the store has caught up by the next call
            began = time.perf_counter()
            auditor.log_annotations(**rows)
            calls.append(1000 * (time.perf_counter() - began))
            log.flush()

        def offer() -> None:
            for _ in range(_OFFERED_CALLS):
                auditor.log_annotations(**rows)
            log.flush()

        rate = _OFFERED_CALLS * _ANNOTATIONS / _median_s(offer, _ROUNDS)
    return [
        Result("annotations with commitments, sealed", round(rate), "events/s", goal=50_000,
               lower_is_better=False),
        Result("caller's share of 256 annotations, p50", round(statistics.median(calls), 3), "ms",
               goal=1),
    ]  # fmt: skip


# --- the machine ------------------------------------------------------------------------


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _median_s(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(_times_s(work, rounds))


def _times_s(work: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times
