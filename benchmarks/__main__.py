"""Run one benchmark, or all: `python -m benchmarks NAME [--json]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import Result

_FIELDS = ("name", "value", "unit", "reference", "ratio", "goal", "met")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a goal was missed. With `all`, one JSON object a line."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name[0] != "_"
    )
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=["all", *names])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    missed = False
    for name in names if options.name == "all" else [options.name]:
        with _output_apart():
            results: Sequence[Result] = importlib.import_module(f"benchmarks.{name}").run()
        missed |= any(result.met is False for result in results)
        if options.json:
            print(json.dumps(_report(name, results), indent=None if options.name == "all" else 1))
        else:
            print(*map(_line, results), sep="\n")
    return int(missed)


@contextmanager
def _output_apart() -> Iterator[None]:
    """Send what trainers and child processes print to the error output: ours is the report."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _report(name: str, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "benchmark": name,
        "results": [{field: getattr(result, field) for field in _FIELDS} for result in results],
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            "rlhf-audit-trail": metadata.version("rlhf-audit-trail"),
        },
        "commit": _commit(),
    }


def _line(result: Result) -> str:
    goal = (
        ""
        if result.met is None
        else f"  goal {result.goal:,g}: {'met' if result.met else 'MISSED'}"
    )
    ratio = "" if result.ratio is None else f"  {result.ratio:.2f} of {result.reference:,.0f}"
    value = "not measured" if result.value is None else f"{result.value:,.0f} {result.unit}"
    return f"{result.name:<52} {value:>12}{ratio}{goal}"


def _commit() -> str | None:
    """Return the commit measured, or None where there is none."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None if found.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
