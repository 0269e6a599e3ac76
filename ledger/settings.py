"""Strict reading of settings files: every key is known, typed and explained, or refused."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "ChainSettings",
    "LedgerSettings",
    "SettingsError",
    "UnknownSetting",
    "read_tables",
    "read_toml",
]


class SettingsError(AuditTrailError):
    """A settings file cannot be read, or a value has the wrong type."""


class UnknownSetting(SettingsError):
    """A settings file has a table or key that nothing reads."""


Settings = TypeVar("Settings")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SettingsError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error


def read_tables(path: Path, tables: Mapping[str, type[Settings]]) -> dict[str, Settings]:
    """Read a TOML file into one dataclass per table; a missing table takes its defaults.

    Args:
        path: the file.
        tables: table name to dataclass; field types are str, int, float, bool, or these with None.

    Raises:
        UnknownSetting: a table or key that is not among them, with the nearest name.
        SettingsError: unreadable file, or a value of another type.
    """
    data = read_toml(path)
    _refuse_unknown(path, "table", data, tables)
    return {name: _fill(path, name, cls, data.get(name, {})) for name, cls in tables.items()}


def _fill(path: Path, table: str, cls: type[Settings], values: Any) -> Settings:
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: [{table}] must be a table")
    hints = get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    _refuse_unknown(path, f"setting in [{table}]", values, names)
    for name, value in values.items():
        exact = isinstance(value, bool) == (hints[name] is bool)  # true is not the number 1
        if not (exact and isinstance(value, hints[name])):
            raise SettingsError(
                f"{path}: {table}.{name} is {type(value).__name__}, must be {hints[name]}"
            )
    return cls(**values)


def _refuse_unknown(path: Path, what: str, given: Any, known: Any) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise UnknownSetting(f"{path}: unknown {what} {name!r}", next_step=hint)


@dataclasses.dataclass(frozen=True)
class LedgerSettings:
    """Table `[ledger]` of `rlhf-audit.toml`.

    Attributes:
        organisation: first part of every log's origin, usually a domain name.
        database: SQLAlchemy URL, `sqlite:///FILE` or `postgresql+psycopg://USER@HOST/NAME`;
            a relative SQLite path is below the ledger's directory.
        keys_database: another one, for the subjects' secrets, so that long-lived backups of
            the first do not keep what an erasure destroys. Several machines that share one
            `database` must share this one, too: with a file each, a person would have a
            secret on every machine, and none could open what another has sealed.
    """

    organisation: str = ""
    database: str = "sqlite:///ledger.db"
    keys_database: str = "sqlite:///vault-keys.db"


@dataclasses.dataclass(frozen=True)
class ChainSettings:
    """Table `[chain]` of `rlhf-audit.toml`; an empty contract means no anchoring.

    Attributes:
        rpc_url: JSON-RPC endpoint.
        chain_id: the only chain that transactions are made for.
        contract: address of TreeHeadAnchor.
        publisher: address under which this ledger's heads are anchored.
    """

    rpc_url: str = ""
    chain_id: int = 0
    contract: str = ""
    publisher: str = ""
