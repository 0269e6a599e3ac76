"""The files with a log's public keys: what auditors are told to pin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlhf_audit_trail.ledger.contradictions import WAY_OUT_OF_ROLLBACK, RolledBack
from rlhf_audit_trail.ledger.files import write_whole
from rlhf_audit_trail.ledger.keys import GENERATED_KEY
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.succession import KeyHistory

__all__ = ["WrongLedger", "write_key_file"]


class WrongLedger(AuditTrailError):
    """The database belongs to another organisation, or another operator key signs in it."""


def write_key_file(path: Path, history: KeyHistory, later: Iterable[VerifierKey] = ()) -> None:
    """Bring a log's key file to the keys that sign its next tree head.

    Args:
        path: of the file.
        history: the log's keys as the store names them.
        later: keys that are the log's, too, and of which the store knows nothing.

    Raises:
        RolledBack: the file holds such keys: it is newer than the store, and stays as it is.
        WrongLedger: it holds keys that the log never had.
    """
    text = history.eras[-1].key_text
    found = path.read_text("utf-8") if path.is_file() else None
    if found is None or any(found == era.key_text for era in history.eras[:-1]):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, text)
    elif found != text:
        if set(found.splitlines()) & {str(key) for key in later}:
            raise RolledBack(
                f"{path} holds keys that the registry log does not name: the store is an old copy",
                next_step=WAY_OUT_OF_ROLLBACK,
            )
        raise WrongLedger(
            f"{path} holds other keys than {GENERATED_KEY} gives",
            next_step=f"restore {GENERATED_KEY} and the organisation the ledger was made with",
        )
