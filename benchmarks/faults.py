"""Is anything lost, anchored twice or overwritten, whatever goes wrong? A soak of random faults.

Each round takes a sound chain, breaks it in one way (`benchmarks/_chain_faults.py`), puts the
outside right again, and lets the anchorer go on by itself until every signed tree head stands on
the chain. After each round the chain's own events are compared with the logs: a head that is
lost, anchored twice or overwritten ends the run with an error, and there is no result. One round
in twenty runs against three nodes of which one lies. Recovery is timed from the moment everything
outside is right again, and the node answers; the whole, from before the fault, which mostly is the
fault's own time. The sequence follows from the seed:

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
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import Result
from benchmarks._chain_faults import FAULTS, LIES, RARE, Fault
from benchmarks._world import World
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable

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
    soak, compared = _Soak(count), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            with World(Path(folder) / "one", runs=2) as world:
                try:
                    soak.inject(world, count - lies, random.Random(seed), FAULTS)
                finally:
                    compared += world.compared
            with World(Path(folder) / "three", runs=2, proxies=3) as world:
                try:
                    soak.inject(world, lies, random.Random(seed + 1), LIES)
                finally:
                    compared += world.compared
    except KeyboardInterrupt:
        print(f"interrupted after {soak.done:,} of {count:,} faults", file=sys.stderr)
    finally:
        logging.disable(logging.NOTSET)
    return [Result("anchors compared with their logs", compared, "anchors"), *soak.results()]


class _Soak:
    """Injects faults one after the other, and tells on standard error how far it is.

    Attributes:
        done: count of faults after which everything was anchored and compared.
    """

    def __init__(self, count: int) -> None:
        self.done = self._late = 0
        self._count, self._began_s = count, time.monotonic()
        self._recoveries_s: dict[str, list[float]] = {}  # by fault
        self._wholes_s: list[float] = []

    def inject(
        self, world: World, count: int, rng: random.Random, faults: Mapping[str, Fault]
    ) -> None:
        """Draw so many of these faults, and let the world recover from each."""
        names = list(faults)
        weights = [RARE.get(name, 1.0) for name in names]
        for number in range(count):
            name = rng.choices(names, weights)[0]
            try:
                self._round(world, name, faults[name], rng)
                if number % _CHECK_ALL_EVERY == 0:
                    world.check(from_block=0)
            except BaseException as error:
                error.add_note(f"in round {number}, fault {name}")
                raise
        world.check(from_block=0)

    def _round(self, world: World, name: str, fault: Fault, rng: random.Random) -> None:
        began_s = time.monotonic()
        try:
            fault(world, rng)
        except ChainUnreachable:  # Anvil itself was late: one more fault, and the same promise
            self._late += 1
        world.heal()
        recovery_s = world.settle()
        self._wholes_s.append(time.monotonic() - began_s)
        self._recoveries_s.setdefault(name, []).append(recovery_s)
        self.done += 1
        if self.done % _TELL_EVERY == 0 or recovery_s > RECOVERY_GOAL_S:
            self._tell(name, recovery_s)

    def _tell(self, name: str, recovery_s: float) -> None:
        spent_s = time.monotonic() - self._began_s
        left_s = spent_s / self.done * (self._count - self.done)
        print(
            f"{self.done:,} of {self._count:,} faults in {spent_s:,.0f} s, about {left_s:,.0f} s "
            f"left; the last: {name}, recovered in {1000 * recovery_s:,.0f} ms",
            file=sys.stderr,
            flush=True,
        )

    def results(self) -> list[Result]:
        """Return the figures of what was injected until now."""
        every = sorted(value for values in self._recoveries_s.values() for value in values)
        injected = Result(
            "faults injected", len(every), "faults", goal=COUNT, lower_is_better=False
        )
        if not every:
            return [injected]
        worst_s, wholes_s = every[-1], sorted(self._wholes_s)
        return [
            injected,
            Result("of these, with Anvil itself late besides", self._late, "faults"),
            Result("recovery, p50", 1000 * statistics.median(every), "ms"),
            Result("recovery, p99", 1000 * every[int(0.99 * len(every))], "ms"),
            Result("recovery, worst", 1000 * worst_s, "ms", goal=1000 * RECOVERY_GOAL_S),
            Result("fault and recovery, p50", 1000 * statistics.median(wholes_s), "ms"),
            Result("fault and recovery, worst", 1000 * wholes_s[-1], "ms"),
            *(
                Result(f"recovery after {name}, worst of {len(values)}", 1000 * max(values), "ms")
                for name, values in sorted(self._recoveries_s.items())
            ),
        ]
