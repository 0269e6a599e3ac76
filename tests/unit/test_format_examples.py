"""FORMAT.md: its examples run, and its numbers are those of the code."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from rlhf_audit_trail.ledger import events, verdict
from rlhf_audit_trail.ledger.proof import bundle, note

FORMAT = Path(events.__file__).parent / "FORMAT.md"


def test_every_example_gives_what_the_page_says() -> None:
    failed, tried = doctest.testfile(str(FORMAT), module_relative=False, encoding="utf-8")
    assert tried > 30
    assert failed == 0


def test_limits_on_the_page_are_those_of_the_code() -> None:
    text = FORMAT.read_text("utf-8")
    assert bundle.MAX_ENTRY_BYTES == events.MAX_ENTRY_BYTES
    for limit in (
        bundle.MAX_BUNDLE_BYTES, bundle.MAX_ENTRIES, bundle.MAX_ENTRY_BYTES, bundle.MAX_ANCHORS,
        bundle.MAX_KEYS, bundle.MAX_PATH, bundle.MAX_OPENINGS, note.MAX_NOTE_BYTES,
        note.MAX_SIGNATURES, note.MAX_NAME_BYTES,
    ):  # fmt: skip
        assert re.search(rf"\b{limit:,}\b", text), limit


def test_steps_and_verdicts_on_the_page_are_those_of_the_code() -> None:
    text = FORMAT.read_text("utf-8")
    for number, name in enumerate(verdict.STEPS, start=1):
        assert f"\n| {number} | `{name}` |" in text
        assert f"\n{number}. **{name}.**" in text
    for name, code in verdict.EXIT_CODES.items():
        assert f"\n| {code} | {name} |" in text


def test_sections_cited_in_the_code_exist() -> None:
    text = FORMAT.read_text("utf-8")
    for file in FORMAT.parent.rglob("*.py"):
        for section in re.findall(
            r"FORMAT\.md`,\s+section (\d[\d.]*\d|\d)", file.read_text("utf-8")
        ):
            assert re.search(rf"^##+ {re.escape(section)}[. ]", text, re.MULTILINE), (file, section)
