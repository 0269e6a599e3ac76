"""The slow checks of the contract, one after the other: `make contracts-audit`.

    python contracts/audit.py

1. forge, with far more runs than in `make test`, and each snapshot of gas to the unit.
2. halmos: no call shrinks a log or touches another's, from any state, for any argument, as far
   as two rounds of each loop and proofs of one node go.
3. slither: nothing above informational; the contract's source says beside two lines why what
   slither suspects there is not so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.chain.contract.build import node_on_path

HERE: Final = Path(__file__).resolve().parent
AUDIT: Final = HERE / ".audit"
MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
FORGE_BIN: Final = (
    HERE / "node_modules" / "@foundry-rs"
    / f"forge-{platform.system().lower()}-{MACHINES.get(platform.machine(), platform.machine())}"
    / "bin"
)  # fmt: skip

SYMBOLIC_CHECKS: Final = 4
HALMOS_OPTIONS: Final = (
    "--contract", "SymbolicTest", "--loop", "2", "--default-array-lengths", "1",
    "--default-bytes-lengths", "65", "--no-status",
)  # fmt: skip

WORTH_STOPPING: Final = ("High", "Medium", "Low")


class AuditFailed(Exception):
    """A check did not pass; the message says which and why."""


def forge() -> str:
    """Run all of Forge's tests, each fuzz test 2,000 times."""
    ran = _run(FORGE_BIN / "forge", "test", "--json", FOUNDRY_PROFILE="audit",
               FORGE_SNAPSHOT_CHECK="true")  # fmt: skip
    if ran.returncode:
        raise AuditFailed(ran.stdout[-2000:] + ran.stderr[-2000:])
    suites = json.loads(ran.stdout[ran.stdout.index("{") :]).values()
    results = [result for suite in suites for result in suite["test_results"].values()]
    if not results or any(result["status"] != "Success" for result in results):
        raise AuditFailed(ran.stdout[-2000:])
    return f"{len(results)} tests in {len(suites)} suites"


def halmos() -> str:
    """Run the symbolic checks."""
    report = AUDIT / "halmos.json"
    report.unlink(missing_ok=True)
    # apart from other builds: forge leaves out what is built already, with syntax trees or without
    apart = {"FOUNDRY_OUT": ".audit/halmos-out", "FOUNDRY_CACHE_PATH": ".audit/halmos-cache"}
    ran = _run(AUDIT / "halmos/bin/halmos", "--root", HERE, *HALMOS_OPTIONS, "--forge-build-out",
               ".audit/halmos-out", "--json-output", report, **apart)  # fmt: skip
    if ran.returncode or not report.is_file():
        raise AuditFailed(ran.stdout[-4000:] + ran.stderr[-2000:])
    checks = [x for found in json.loads(report.read_text())["test_results"].values() for x in found]
    if len(checks) != SYMBOLIC_CHECKS or any(check["exitcode"] for check in checks):
        raise AuditFailed(ran.stdout[-4000:])
    paths = sum(check["num_paths"][0] for check in checks)
    return f"{len(checks)} properties over {paths:,} paths"


def slither() -> str:
    """Run slither on the contract without its tests."""
    # where forge builds for slither, which begins with emptying it
    apart = {"FOUNDRY_OUT": ".audit/out", "FOUNDRY_CACHE_PATH": ".audit/cache"}
    ran = _run(AUDIT / "slither-analyzer/bin/slither", ".", "--filter-paths", "test/",
               "--foundry-out-directory", ".audit/out", "--json", "-", **apart)  # fmt: skip
    report = json.loads(ran.stdout)
    if not report["success"]:
        raise AuditFailed(str(report["error"]))
    found = report["results"].get("detectors", [])
    serious = [item for item in found if item["impact"] in WORTH_STOPPING]
    if serious:
        raise AuditFailed("\n".join(item["description"] for item in serious))
    return f"nothing above informational, and {len(found)} of that"


def _run(program: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    if not program.exists():
        raise AuditFailed(f"{program.name} is not installed; run: make contracts-audit")
    path = f"{FORGE_BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [program, *arguments], cwd=HERE, env=os.environ | {"PATH": path, "NO_COLOR": "1"} | more,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def main() -> int:
    """Run every check, also after one failed; 1 if any did."""
    failed = 0
    steps: tuple[Callable[[], str], ...] = (forge, halmos, slither)
    with node_on_path():
        for step in steps:
            began_s = time.monotonic()
            try:
                said, word = step(), "passed"
            except AuditFailed as error:
                said, word = str(error), "FAILED"
                failed = 1
            took_s = time.monotonic() - began_s
            print(f"{word}  {step.__name__:<8} {took_s:6.0f} s  {said}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
