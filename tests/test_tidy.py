"""What no file of the repository may hold; sizes out of the ordinary are only printed.

Links and files that git ignores are left out.
"""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE_BYTES = 256 * 1024
LONG_FILE_LINES = 400
LONG_FUNCTION_LINES = 70

# Written so that this file does not hold what it looks for.
LEFT_OVERS = re.compile(r"\b(" + "|".join(("FIX" + "ME", "TO" + "DO", "XX" + "X")) + r")\b")
HOSTS = (
    "pypi" + ".org", "python" + "hosted.org", "registry.npm" + "js.org", "npm" + "js.com",
    "npm" + "mirror.com", "registry.yarn" + "pkg.com", "crates" + ".io", "proxy.golang" + ".org",
    "ghcr" + ".io", "docker" + ".io", "soliditylang" + ".org",
)  # fmt: skip
INDEX_HOSTS = re.compile("|".join(map(re.escape, HOSTS)))
INDEX_SETTINGS = re.compile("--(extra-)?index" + "-url|--find" + "-links|regis" + r"try\s*=\s*http")
MACHINE_PATHS = re.compile(
    r"(?<![\w.$}])/(" + "|".join(("wo" + "rk", "ro" + "ot", "home/" + r"\w+", "Users/" + r"\w+"))
    + r")/[\w.]|/tmp/" + r"venv"
)  # fmt: skip
BARE_IMPORT = re.compile(r"^\s*(?:from|import)\s+(ledger|api)(?:[.\s]|$)", re.MULTILINE)
NO_HOME = {"utils.py", "util.py", "common.py", "helpers.py"}


@cache
def files() -> tuple[Path, ...]:
    """Tracked files and those about to be; neither links nor what lies behind them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    found = [ROOT / name for name in listed.split("\0") if name]
    return tuple(file for file in found if file.is_file() and not file.is_symlink())


@cache
def text(file: Path) -> str:
    """The file's text; bytes that are no text cannot hold the words looked for."""
    return file.read_bytes().decode("utf-8", "replace")


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def matches(pattern: re.Pattern[str], *, suffix: str = "") -> list[str]:
    return [
        f"{named(file)}: {match.group(0).strip()}"
        for file in files()
        if file.name.endswith(suffix)
        for match in pattern.finditer(text(file))
    ]


def test_there_are_files_to_look_at() -> None:
    assert {"pyproject.toml", "ledger/FORMAT.md", "tests/test_tidy.py"} <= set(map(named, files()))


def test_nothing_is_left_over() -> None:
    assert matches(LEFT_OVERS) == []


def test_no_file_is_large() -> None:
    assert [named(file) for file in files() if file.stat().st_size > MAX_FILE_BYTES] == []


def test_no_package_index_is_named() -> None:
    assert matches(INDEX_HOSTS) == []
    assert matches(INDEX_SETTINGS) == []


def test_no_path_of_a_machine_is_named() -> None:
    assert matches(MACHINE_PATHS) == []


def test_every_helper_has_a_home() -> None:
    homeless = [
        named(file)
        for file in files()
        if file.name in NO_HOME or {"utils", "common"} & set(file.relative_to(ROOT).parts[:-1])
    ]
    assert homeless == []


def test_ledger_and_api_are_imported_by_their_full_name() -> None:
    assert matches(BARE_IMPORT, suffix=".py") == []


def test_the_patterns_find_what_they_look_for() -> None:
    assert LEFT_OVERS.search("# TO" + "DO: later")
    assert INDEX_HOSTS.search("https://files.python" + "hosted.org/x")
    assert MACHINE_PATHS.search('open("/wo' + 'rk/main/x")')
    assert not MACHINE_PATHS.search("https://example.com/wo" + "rk/x")
    assert BARE_IMPORT.search("from led" + "ger import log")
    assert not BARE_IMPORT.search("from rlhf_audit_trail.ledger import log")


def test_sizes_out_of_the_ordinary_are_printed() -> None:
    """Long files and functions explain themselves; run with -s to see them."""
    for file in files():
        lines = text(file).count("\n")
        if file.suffix in {".py", ".sol", ".js", ".mjs", ".md"} and lines > LONG_FILE_LINES:
            print(f"long file: {named(file)}, {lines} lines")
        if file.suffix == ".py":
            for node in ast.walk(ast.parse(text(file))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > LONG_FUNCTION_LINES:
                        print(f"long function: {named(file)}, {node.name}, {length} lines")
