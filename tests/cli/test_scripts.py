"""Command-line sessions as readable text: each line after `$` is run, its output compared.

`...` stands for anything within a line; a line of only `...` for any lines. `[exit N]` is
the exit code, 0 where it is left out. Standard error follows standard output.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
TIMEOUT_S = 120


@dataclass
class Step:
    line: int
    command: str
    output: list[str] = field(default_factory=list)
    exit_code: int = 0


def parse(text: str) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("$ "):
            steps.append(Step(number, line[2:]))
        elif match := re.fullmatch(r"\[exit (\d+)\]", line):
            steps[-1].exit_code = int(match[1])
        elif not line.startswith("#"):
            steps[-1].output.append(line)
    return steps


def run(command: str, directory: Path) -> tuple[int, str]:
    words = shlex.split(command)
    if words[0] == "append":
        with (directory / words[1]).open("a") as file:
            file.write(words[2] + "\n")
        return 0, ""
    programs = {
        "rlhf-audit": [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli"],
        "record-run": [sys.executable, "-W", "error", str(SCRIPTS / "record_run.py")],
    }
    done = subprocess.run(
        [*programs.get(words[0], words[:1]), *words[1:]],
        cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "HOME": str(directory), "COLUMNS": "80"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def pattern(lines: list[str]) -> re.Pattern[str]:
    parts = []
    for line in lines:
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(line).replace(r"\.\.\.", r".*") + r"\n")
    return re.compile("".join(parts))


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_script(script: Path, tmp_path: Path) -> None:
    for step in parse(script.read_text("utf-8")):
        code, output = run(step.command, tmp_path)
        where = f"{script.name}:{step.line}: $ {step.command}\n{output}[exit {code}]"
        assert code == step.exit_code, where
        assert pattern(step.output).fullmatch(output), where


def test_the_runner_itself_fails_on_other_output(tmp_path: Path) -> None:
    assert not pattern(["one", "two ..."]).fullmatch("one\nthree\n")
    assert pattern(["one", "...", "end ..."]).fullmatch("one\nx\ny\nend of it\n")
    assert run("ls", tmp_path) == (0, "")
