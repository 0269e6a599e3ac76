"""Strict reading of settings files: every key is known, typed and explained, or refused."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "LEDGER_TABLES",
    "PUBLISH",
    "REFUSE",
    "STRICT",
    "WARN",
    "ChainSettings",
    "GuardSettings",
    "LedgerSettings",
    "SettingsError",
    "UnknownSetting",
    "WitnessSettings",
    "read_tables",
    "read_toml",
]

STRICT: Final = "strict"
WARN: Final = "warn"
QUEUE_WAIT_MS_MAX: Final = 3_600_000
REFUSE: Final = "refuse"
PUBLISH: Final = "publish"
GUARD_TIMEOUT_S_MAX: Final = 600.0  # a start that takes longer is taken for one that hangs


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
        tables: table name to dataclass; field types are str, int, float, bool, or these with
            None, and `tuple[str, ...]` for a list of texts.

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
    taken = {}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise SettingsError(
                f"{path}: {table}.{name} is {type(value).__name__}, must be {hints[name]}"
            )
        taken[name] = tuple(value) if isinstance(value, list) else value
    return cls(**taken)


def _fits(value: Any, hint: Any) -> bool:
    if hint == tuple[str, ...]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    exact = isinstance(value, bool) == (hint is bool)  # true is not the number 1
    return exact and isinstance(value, hint)


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
        on_loss: what happens when the store does not take entries. Either way a `gap` event
            counts them; with `strict` the next call raises, with `warn` training goes on.
        queue_wait_ms: how long a call waits while more was handed over than the store takes.
    """

    organisation: str = ""
    database: str = "sqlite:///ledger.db"
    keys_database: str = "sqlite:///vault-keys.db"
    on_loss: str = WARN
    queue_wait_ms: int = 5_000

    def __post_init__(self) -> None:
        """Refuse what nothing could be made of; raises SettingsError."""
        if self.on_loss not in (STRICT, WARN):
            raise SettingsError(
                f"ledger.on_loss is {self.on_loss!r:.60}",
                next_step=f"write {STRICT!r} or {WARN!r}",
            )
        if not 0 <= self.queue_wait_ms <= QUEUE_WAIT_MS_MAX:
            raise SettingsError(
                f"ledger.queue_wait_ms is {self.queue_wait_ms}",
                next_step=f"write milliseconds, from 0 to {QUEUE_WAIT_MS_MAX:,}",
            )


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


@dataclasses.dataclass(frozen=True)
class WitnessSettings:
    """Table `[witnesses]` of `rlhf-audit.toml`.

    Attributes:
        policy: file with a tlog-policy (c2sp.org/tlog-policy): the witnesses that are asked
            to cosign, and the quorum; a relative path is below the ledger's directory.
            Empty: nobody is asked.
    """

    policy: str = ""


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """Table `[guard]` of `rlhf-audit.toml`: who else remembers how far the logs have grown.

    Witnesses and contract have tables of their own, and are asked without being named here.

    Attributes:
        mirrors: addresses or directories at which the published logs stand, with `{run}`
            where a log's name goes: `https://log.acme.example/rlhf/{run}`; a relative path
            is below the ledger's directory.
        when_unreachable: what becomes of publishing while nobody answers: `refuse`, or
            `publish` unguarded.
        timeout_s: how long all of them together may take to answer.
    """

    mirrors: tuple[str, ...] = ()
    when_unreachable: str = REFUSE
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what nothing could be made of; raises SettingsError."""
        if self.when_unreachable not in (REFUSE, PUBLISH):
            raise SettingsError(
                f"guard.when_unreachable is {self.when_unreachable!r:.60}",
                next_step=f"write {REFUSE!r} or {PUBLISH!r}",
            )
        if not 0 < self.timeout_s <= GUARD_TIMEOUT_S_MAX:
            raise SettingsError(
                f"guard.timeout_s is {self.timeout_s}",
                next_step=f"write seconds, above 0 and up to {GUARD_TIMEOUT_S_MAX:g}",
            )
        for place in self.mirrors:
            if place.count("{run}") != 1:
                raise SettingsError(
                    f"guard.mirrors: {place!r:.200} does not say where a log's name goes",
                    next_step="write {run} once in it: https://log.acme.example/rlhf/{run}",
                )


LEDGER_TABLES: Final[Mapping[str, type[Any]]] = {
    "ledger": LedgerSettings,
    "chain": ChainSettings,
    "witnesses": WitnessSettings,
    "guard": GuardSettings,
}
"""All tables of `rlhf-audit.toml`."""
