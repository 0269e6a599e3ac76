"""What every command shares: where results go, how errors read, which exit code they get."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import click

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["EXIT_BY_ERROR", "exit_code_of", "guarded", "say", "show_json", "styled"]

# Names, not classes: the table must not import what a verifier's machine does not have.
EXIT_BY_ERROR: Final = {
    "SettingsError": 2,
    "InvalidName": 2,
    "InvalidEvent": 2,
    "NotSealed": 2,
    "NeverOpened": 2,
    "UnknownFormat": 2,
    "UnknownSource": 2,
    "ImportedBefore": 2,
    "NothingToRetire": 2,
    "LedgerExists": 2,
    "WriterExists": 2,
    "DirectoryTaken": 2,
    "ExportTargetTaken": 2,
    "DirectoryInUse": 2,
    "AlreadyWatched": 2,
    "NoCopies": 2,
    "NotPrunable": 3,
    "ForeignCopy": 1,
    "RegistryMissing": 3,
    "NotAnnounced": 3,
    "ArchiveDamaged": 1,
    "Contradiction": 1,
    "MirrorDamaged": 4,
    "BackupUnreadable": 4,
    "Pruned": 3,
    "PrivacyError": 2,
    "RolledBack": 1,
    "Forked": 1,
    "Inconsistent": 1,
    "BadSignature": 1,
    "NotIncluded": 1,
    "VaultDamaged": 1,
    "BlobDamaged": 1,
    "CheckpointDamaged": 1,
    "MalformedDelta": 1,
    "MalformedManifest": 1,
    "CheckpointMissing": 3,
    "UnreadableModel": 4,
    "InvalidPlace": 2,
    "AnchorRefused": 1,
    "AnchorVanished": 1,
    "SpendingCapReached": 3,
    "NotPublished": 3,
    "NotAnchored": 3,
    "PolicyUnmet": 3,
    "Erased": 3,
    "SubjectMissing": 4,
    "DisclosureRefused": 2,
    "NotCorrectable": 2,
    "SubjectFileTaken": 2,
    "MalformedBundle": 4,
    "LedgerMissing": 4,
    "NoExport": 4,
    "WriterMissing": 4,
    "LedgerTooNew": 4,
    "BadKeyFile": 4,
    "EntryMissing": 4,
    "UnreadableExport": 4,
    "UnreadableFile": 4,
    "InvalidTrust": 4,
    "InvalidPolicy": 4,
    "WitnessMissing": 4,
    "BadState": 4,
    "NotServed": 3,
    "BadAddress": 2,
    "AuditTrailError": 5,
}
_COLOURS: Final = {
    "passed": "green", "VERIFIED": "green", "caught": "green", "sound": "green",
    "failed": "red", "FAILED": "red", "SLIPPED": "red", "DAMAGED": "red",
    "READ-ONLY": "red", "unreadable": "red", "UNREADABLE": "red",
    "not shown": "yellow", "INCONCLUSIVE": "yellow",
}  # fmt: skip

_Args = ParamSpec("_Args")
_Back = TypeVar("_Back")


def say(text: str = "") -> None:
    """Write a line of the result to standard output."""
    click.echo(text, color=_colour())


def show_json(record: Any) -> None:
    """Write the result as JSON."""
    click.echo(json.dumps(record, indent=2, ensure_ascii=False))


def styled(word: str, width: int = 0) -> str:
    """Return a state or verdict, padded and in its colour; the word alone carries the meaning."""
    padded = word.ljust(width)
    return click.style(padded, fg=_COLOURS.get(word)) if word in _COLOURS else padded


def exit_code_of(error: AuditTrailError) -> int:
    """Return the exit code of the nearest class that the table knows."""
    return next(
        EXIT_BY_ERROR[x.__name__] for x in type(error).__mro__ if x.__name__ in EXIT_BY_ERROR
    )


def guarded(command: Callable[_Args, _Back]) -> Callable[_Args, _Back]:
    """Turn an expected error of a command into its message and exit code."""

    @wraps(command)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Back:
        try:
            return command(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except AuditTrailError as error:
            _fail(error)
        except ModuleNotFoundError as error:
            _missing(error)
        except KeyboardInterrupt:  # click would exit with 1, as if something were forged
            _operational("interrupted; what was not reached is unknown")
        except OSError as error:
            what = error.strerror or type(error).__name__
            _operational(f"{error.filename}: {what}" if error.filename else what)
        except Exception as error:  # noqa: BLE001 - exit code 1 means forged evidence, never a defect
            # by type only: the text of a driver's error may hold stored values
            _operational(f"unexpected {type(error).__name__}", shown=error)

    return run


def _operational(message: str, *, shown: Exception | None = None) -> NoReturn:
    """End with exit code 5; where it was is shown only to who asks for it."""
    if shown is not None and os.environ.get("RLHF_AUDIT_TRACEBACK"):
        raise shown
    hint = "\n  next: set RLHF_AUDIT_TRACEBACK=1 to see where, and report it" if shown else ""
    click.echo(f"error: {message}{hint}", err=True)
    sys.exit(5)


def _fail(error: AuditTrailError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(exit_code_of(error))


_EXTRAS: Final = {
    "psycopg": "postgres", "sqlmodel": "ledger", "sqlalchemy": "ledger", "alembic": "ledger",
    "obstore": "ledger", "zstandard": "ledger", "numpy": "train",
    "fastapi": "api", "starlette": "api", "uvicorn": "api", "web3": "chain", "eth_account": "chain",
    "eth_utils": "chain", "pyarrow": "data", "torch": "train", "transformers": "train",
    "safetensors": "train", "coincurve": "zk",
}  # fmt: skip


def _missing(error: ModuleNotFoundError) -> NoReturn:
    """Name the extra that brings a missing package; anything else is a defect and is shown."""
    package = (error.name or "").split(".")[0]
    if package not in _EXTRAS:
        raise error
    click.echo(
        f"error: this command needs the package {package}\n"
        f"  next: pip install 'rlhf-audit-trail[{_EXTRAS[package]}]'",
        err=True,
    )
    sys.exit(5)


def _colour() -> bool | None:
    """No colour where the reader asked for none; else click looks whether it is a terminal."""
    return False if os.environ.get("NO_COLOR") else None
