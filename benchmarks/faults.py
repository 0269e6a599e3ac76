"""Is anything lost, anchored twice or overwritten, whatever goes wrong? A soak of random faults.

Each round takes a sound chain, breaks it in one way (`benchmarks/_chain_faults.py`), puts the
outside right again, and lets the anchorer go on by itself until every signed tree head stands on
the chain. After each round the chain's own events are compared with the logs: a head that is
lost, anchored twice or overwritten ends the run with an error, and there is no result. One round
in twenty runs against three nodes of which one lies. The sequence follows from the seed:

    RLHF_AUDIT_FAULTS=10000 RLHF_AUDIT_FAULTS_SEED=7 python -m benchmarks faults

How far it is, is told on standard error. Interrupted (Ctrl-C, SIGTERM), it reports the faults it
injected until then, and misses its goal.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import Result
from benchmarks._chain_faults import FAULTS, RARE, lying_endpoint
from benchmarks._world import World

__all__ = ["run"]

COUNT = 2_000
SEED = 6962
LIES_IN_100 = 5
RECOVERY_GOAL_S = 1.0
_CHECK_ALL_EVERY = 250
_TELL_EVERY = 25


def run() -> Sequence[Result]:
    """Inject the faults; an assertion that fails ends the run with the seed and round."""
    count = int(os.environ.get("RLHF_AUDIT_FAULTS", COUNT))
    seed = int(os.environ.get("RLHF_AUDIT_FAULTS_SEED", SEED))
    logging.disable(logging.ERROR)  # each fault is logged, as it should be elsewhere
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lies = count * LIES_IN_100 // 100
    seconds: dict[str, list[float]] = {}
    told, compared = Told(count), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            with World(Path(folder) / "one") as world:
                try:
                    _soak(world, count - lies, random.Random(seed), seconds, told)
                finally:
                    compared += world.compared
            with World(Path(folder) / "three", proxies=3) as world:
                try:
                    _lie(world, lies, random.Random(seed + 1), seconds, told)
                finally:
                    compared += world.compared
    except KeyboardInterrupt:
        print(f"interrupted after {told.done:,} of {count:,} faults", file=sys.stderr)
    finally:
        logging.disable(logging.NOTSET)
    return [Result("anchors compared with their logs", compared, "anchors"), *_results(seconds)]


class Told:
    """Tells on standard error how far it is, every few faults."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.began_s = count, 0, time.monotonic()

    def one_more(self, name: str, recovery_s: float) -> None:
        self.done += 1
        if self.done % _TELL_EVERY and recovery_s <= RECOVERY_GOAL_S:
            return
        spent_s = time.monotonic() - self.began_s
        left_s = spent_s / self.done * (self.count - self.done)
        print(
            f"{self.done:,} of {self.count:,} faults in {spent_s:,.0f} s, about {left_s:,.0f} s "
            f"left; the last: {name}, recovered in {1000 * recovery_s:,.0f} ms",
            file=sys.stderr,
            flush=True,
        )


def _soak(
    world: World, count: int, rng: random.Random, seconds: dict[str, list[float]], told: Told
) -> None:
    names = list(FAULTS)
    weights = [RARE.get(name, 1.0) for name in names]
    for number in range(count):
        name = rng.choices(names, weights)[0]
        told.one_more(name, _round(world, name, number, rng, seconds))
        if number % _CHECK_ALL_EVERY == 0:
            world.check(from_block=0)
    world.check(from_block=0)


def _round(
    world: World, name: str, number: int, rng: random.Random, seconds: dict[str, list[float]]
) -> float:
    try:
        FAULTS[name](world, rng)
        world.heal()
        recovery_s = world.settle()
    except BaseException as error:
        error.add_note(f"in round {number}, fault {name}")
        raise
    seconds.setdefault(name, []).append(recovery_s)
    return recovery_s


def _lie(
    world: World, count: int, rng: random.Random, seconds: dict[str, list[float]], told: Told
) -> None:
    for _ in range(count):
        lying_endpoint(world, rng)
        world.heal()
        recovery_s = world.settle()
        seconds.setdefault("lying_endpoint", []).append(recovery_s)
        told.one_more("lying_endpoint", recovery_s)
    world.check(from_block=0)


def _results(seconds: dict[str, list[float]]) -> list[Result]:
    every = sorted(value for values in seconds.values() for value in values)
    if not every:
        return [Result("faults injected", 0, "faults", goal=COUNT, lower_is_better=False)]
    found = [
        Result("faults injected", len(every), "faults", goal=COUNT, lower_is_better=False),
        Result("recovery, p50", 1000 * statistics.median(every), "ms"),
        Result("recovery, p99", 1000 * every[int(0.99 * len(every))], "ms"),
        Result("recovery, worst", 1000 * every[-1], "ms", goal=1000 * RECOVERY_GOAL_S),
    ]
    return found + [
        Result(f"recovery after {name}, worst of {len(values)}", 1000 * max(values), "ms")
        for name, values in sorted(seconds.items())
    ]
