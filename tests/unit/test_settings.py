"""Settings files: every key is known and typed, or refused with a hint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.settings import (
    ChainSettings,
    LedgerSettings,
    SettingsError,
    UnknownSetting,
    read_tables,
    read_toml,
)


@dataclass(frozen=True)
class Knobs:
    name: str = "default"
    count: int = 3
    loud: bool = False
    path: str | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def read(file: Path, text: str) -> Knobs:
    file.write_text(text, "utf-8")
    return read_tables(file, {"knobs": Knobs})["knobs"]


def test_values_are_read_and_the_rest_takes_its_default(file: Path) -> None:
    assert read(file, '[knobs]\nname = "x"\nloud = true\npath = "p"\n') == Knobs("x", 3, True, "p")  # noqa: FBT003 - fields in order
    assert read(file, "") == Knobs()


def test_the_ledgers_own_tables(file: Path) -> None:
    file.write_text('[ledger]\norganisation = "acme.example"\n[chain]\nchain_id = 31337\n', "utf-8")
    found = read_tables(file, {"ledger": LedgerSettings, "chain": ChainSettings})
    assert found == {
        "ledger": LedgerSettings(organisation="acme.example"),
        "chain": ChainSettings(chain_id=31337),
    }


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[knobs]\nnaem = 1\n", "did you mean 'name'?"),
        ("[knosb]\nname = 1\n", "did you mean 'knobs'?"),
        ("[knobs]\nzzz = 1\n", "known: count, loud, name, path"),
        ("name = 1\n", "known: knobs"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(file: Path, text: str, hint: str) -> None:
    with pytest.raises(UnknownSetting) as caught:
        read(file, text)
    assert caught.value.next_step == hint


@pytest.mark.parametrize(
    "line",
    ["name = 1", 'count = "3"', "count = true", "count = 1.5", "loud = 1", "path = 2", "name = []"],
)
def test_values_of_another_type_are_refused_with_their_name(file: Path, line: str) -> None:
    with pytest.raises(SettingsError, match=rf"knobs\.{line.partition(' ')[0]} is "):
        read(file, f"[knobs]\n{line}\n")


@pytest.mark.parametrize("text", ["[knobs", "knobs = 1", "[knobs]\nname = 'a'\nname = 'b'\n"])
def test_what_is_no_settings_file_is_refused(file: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        read(file, text)


def test_missing_files_and_other_bytes_are_named(file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        read_toml(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML"):
        read_toml(file)
