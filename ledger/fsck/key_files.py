"""The files with public keys beside the ledger: what auditors are given to pin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.findings import Finding, Summary
from rlhf_audit_trail.ledger.succession import KeyHistory

__all__ = ["key_file_findings"]

_SUFFIX: Final = ".vkey"
_FILE_BYTES_MAX: Final = 64 * 1024  # two keys have 2 kB, in the overlap of a rotation 4 kB


def key_file_findings(
    directory: Path, histories: Mapping[str, KeyHistory], summary: Summary
) -> Iterator[Finding]:
    """Yield every file in `directory/keys` that does not hold its log's own keys.

    A file that is missing is no finding: it is written when the log is next opened. One of
    an earlier era is none either; whoever pinned it is led to the newer keys by the log.
    """
    for path in sorted((directory / "keys").glob(f"*{_SUFFIX}")):
        summary.key_files += 1
        run_id = path.name.removesuffix(_SUFFIX)
        try:
            with path.open("rb") as file:
                text = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            yield Finding(run_id, "vkey", f"keys/{path.name}", f"cannot be read: {error.strerror}")
            continue
        history = histories.get(run_id)
        if history is None:
            detail = "there is no such log, so these are nobody's keys"
            yield Finding("", "vkey", f"keys/{path.name}", detail)
        elif all(text != era.key_text.encode() for era in history.eras):
            detail = "it does not hold the log's own keys: whoever pins it would trust others"
            yield Finding(run_id, "vkey", f"keys/{path.name}", detail)
