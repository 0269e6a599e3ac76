"""Strict reading of settings files: every key is known, typed and explained, or refused."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from rlhf_audit_trail.ledger.events import KINDS
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "ENVIRONMENT",
    "KEYSTORE",
    "LEDGER_TABLES",
    "PUBLISH",
    "REFUSE",
    "REMOTE",
    "STRICT",
    "WARN",
    "AnchorSettings",
    "ChainSettings",
    "GuardSettings",
    "LedgerSettings",
    "RetentionSettings",
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
ENVIRONMENT: Final = "environment"
KEYSTORE: Final = "keystore"
REMOTE: Final = "remote"
RPC_TIMEOUT_S_MAX: Final = 600.0
_DAYS: Final = re.compile(r"[1-9][0-9]{0,5}d")
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
        more_rpc_urls: further endpoints of the same chain, best of other operators.
        rpc_agreement: how many endpoints must say the same before it is believed; 0 for
            more than half of them.
        rpc_timeout_s: how long an endpoint may take to answer.
        chain_id: the only chain that transactions are made for.
        contract: address of TreeHeadAnchor.
        publisher: address under which this ledger's heads are anchored.
        trusted_headers: file with blocks, CHAIN:NUMBER:HASH a line, that the HTTP verifier
            trusts beside those that its caller names; a relative path is below the ledger's
            directory. Empty: none.
    """

    rpc_url: str = ""
    more_rpc_urls: tuple[str, ...] = ()
    rpc_agreement: int = 0
    rpc_timeout_s: float = 10.0
    chain_id: int = 0
    contract: str = ""
    publisher: str = ""
    trusted_headers: str = ""

    def __post_init__(self) -> None:
        """Refuse what nothing could be made of; raises SettingsError."""
        count = len(self.more_rpc_urls) + 1
        if not 0 <= self.rpc_agreement <= count:
            raise SettingsError(
                f"chain.rpc_agreement is {self.rpc_agreement}, and there are {count} endpoints",
                next_step="write how many of them must agree, or 0 for more than half",
            )
        if not 0 < self.rpc_timeout_s <= RPC_TIMEOUT_S_MAX:
            raise SettingsError(
                f"chain.rpc_timeout_s is {self.rpc_timeout_s}",
                next_step=f"write seconds, above 0 and up to {RPC_TIMEOUT_S_MAX:g}",
            )


@dataclasses.dataclass(frozen=True)
class AnchorSettings:
    """Table `[anchor]` of `rlhf-audit.toml`: when to anchor, what it may cost, who signs.

    With none of the first four set, anchors are made by `rlhf-audit anchor` alone.

    Attributes:
        every_entries: anchor a log when it has grown by so many entries; 0 for never.
        every_s: anchor a log when an entry has waited for so long; 0 for never.
        at_checkpoints: anchor after each checkpoint of a model.
        at_run_end: anchor when a run finishes, fails or is closed.
        align_to: prefer tree sizes that are a multiple of this: they cost less gas.
        align_delay_s_max: how long an anchor that is due may wait for such a size.
        fee_gwei_max: for a unit of gas; above it, anchors wait.
        ether_per_day_max: for all anchors of 24 hours; above it, they wait. 0 for no limit.
        replace_after_s: how long an offer stands before a higher one replaces it.
        warn_below_anchors: warn when the balance pays for fewer anchors than this.
        signer: where the publisher's key is: `environment`, `keystore` or `remote`.
        keystore: the version 3 file; a relative path is below the ledger's directory.
        remote_signer: address of the service that signs, see `chain/remote_signer.py`.
    """

    every_entries: int = 0
    every_s: float = 0.0
    at_checkpoints: bool = False
    at_run_end: bool = False
    align_to: int = 256
    align_delay_s_max: float = 600.0
    fee_gwei_max: float = 100.0
    ether_per_day_max: float = 0.1
    replace_after_s: float = 48.0
    warn_below_anchors: int = 50
    signer: str = ENVIRONMENT
    keystore: str = ""
    remote_signer: str = ""

    @property
    def is_automatic(self) -> bool:
        """Whether anything is anchored without being asked for."""
        return bool(self.every_entries or self.every_s or self.at_checkpoints or self.at_run_end)

    def __post_init__(self) -> None:
        """Refuse what nothing could be made of; raises SettingsError."""
        for name in ("every_entries", "every_s", "align_delay_s_max", "warn_below_anchors",
                     "ether_per_day_max"):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(
                    f"anchor.{name} is {getattr(self, name)}", next_step="write 0 or more"
                )
        for name in ("align_to", "fee_gwei_max", "replace_after_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(
                    f"anchor.{name} is {getattr(self, name)}", next_step="write more than 0"
                )
        needs = {ENVIRONMENT: "", KEYSTORE: "keystore", REMOTE: "remote_signer"}
        if self.signer not in needs:
            raise SettingsError(
                f"anchor.signer is {self.signer!r:.60}",
                next_step=f"write {ENVIRONMENT!r}, {KEYSTORE!r} or {REMOTE!r}",
            )
        if needs[self.signer] and not getattr(self, needs[self.signer]):
            raise SettingsError(
                f'anchor.signer is "{self.signer}", and anchor.{needs[self.signer]} is empty',
                next_step="say where it is",
            )


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


@dataclasses.dataclass(frozen=True)
class BlobSettings:
    """Table `[blobs]` of `rlhf-audit.toml`: where large values and weights go from now on.

    Attributes:
        url: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or
            abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX; credentials come from the
            environment. Empty: the directory `blobs`.
    """

    url: str = ""


@dataclasses.dataclass(frozen=True)
class RetentionSettings:
    """Table `[retention]` of `rlhf-audit.toml`: for how long sealed values are kept.

    Attributes:
        keep: kinds of event and days, `annotation.recorded=90d`; what is not named stays.
            `rlhf-audit retention run` destroys what is older.
    """

    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what nothing could be made of; raises SettingsError."""
        if len(self.days) != len(self.keep):
            raise SettingsError(
                "retention.keep names a kind of event twice", next_step="write each kind once"
            )

    @property
    def days(self) -> dict[str, int]:
        """Days by kind of event; raises SettingsError."""
        return dict(map(self._read, self.keep))

    @staticmethod
    def _read(text: str) -> tuple[str, int]:
        kind, _, days = text.partition("=")
        if kind.startswith("dp."):
            raise SettingsError(
                f"retention.keep has {text!r:.80}, by which budgets are recomputed",
                next_step="leave it out: these values name nobody",
            )
        if kind not in KINDS or not KINDS[kind].sealed or _DAYS.fullmatch(days) is None:
            raise SettingsError(
                f"retention.keep has {text!r:.80}",
                next_step="write a kind of event that has sealed fields, and days: "
                "annotation.recorded=90d",
            )
        return kind, int(days[:-1])


LEDGER_TABLES: Final[Mapping[str, type[Any]]] = {
    "ledger": LedgerSettings,
    "chain": ChainSettings,
    "anchor": AnchorSettings,
    "witnesses": WitnessSettings,
    "guard": GuardSettings,
    "blobs": BlobSettings,
    "retention": RetentionSettings,
}
"""All tables of `rlhf-audit.toml`."""
