"""How long does an auditor wait? Cold start, size of the install, one bundle in process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import Result
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle

_COLD_STARTS = 21
_ROUNDS = 200
_ENTRIES = 1_000


def run() -> Sequence[Result]:
    """Measure; the bare interpreter is timed beside the command."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, keys, key_file = _make_bundle(Path(folder))
        path = Path(folder) / "one.bundle"
        path.write_bytes(bundle)
        verify = [sys.executable, "-m", "rlhf_audit_trail.cli", "verify", str(path)]
        verify += ["--key", str(key_file)]
        bare_ms = _median_ms(lambda: _process([sys.executable, "-c", "pass"]), _COLD_STARTS)
        cold_ms = _median_ms(lambda: _process(verify), _COLD_STARTS)
        trust = TrustPolicy(keys=keys)
        warm_ms = _median_ms(lambda: verify_bundle(bundle, trust), _ROUNDS)
    return (
        Result("bare interpreter, cold", bare_ms, "ms"),
        Result("rlhf-audit verify, cold", cold_ms, "ms", reference=bare_ms, goal=200),
        Result("verify one bundle in process", warm_ms, "ms", goal=2),
        Result("bundle of one entry", len(bundle), "bytes"),
    )


def _make_bundle(folder: Path) -> tuple[bytes, tuple[VerifierKey, ...], Path]:
    with Ledger.create(folder / "audit", organisation="bench.example") as ledger:
        log = ledger.open_run("run")
        log.record_many(
            Event("metrics.logged", {"step": step}, {"metrics": {"loss": step / 7}})
            for step in range(_ENTRIES)
        )
        log.publish()
        return log.bundle([_ENTRIES // 3]), log.verifier_keys, ledger.key_file("run")


def _process(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout.decode() + done.stderr.decode())


def _median_ms(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)
