"""Where a ledger is, and its databases: the URLs of its settings, made absolute."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.settings import SettingsError

__all__ = ["LedgerExists", "LedgerMissing", "missing_file", "parse_url", "resolve"]


class LedgerMissing(AuditTrailError):
    """There is no ledger in this directory."""


class LedgerExists(AuditTrailError):
    """A ledger, or something else, is already there."""


def missing_file(url: str, directory: Path) -> str:
    """Return the path of an SQLite database that is not there, else nothing."""
    parsed = make_url(resolve(url, directory))
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return ""
    return "" if Path(parsed.database).is_file() else parsed.database


def parse_url(url: str) -> URL:
    """Read a database URL; raises SettingsError where it is none."""
    try:
        return make_url(url)
    except ArgumentError as error:
        raise SettingsError(
            "a database in rlhf-audit.toml is not a URL",
            next_step="write sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
        ) from error


def resolve(url: str, directory: Path) -> str:
    """Make a relative SQLite path one below the ledger's directory.

    Raises:
        SettingsError: not a URL.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(database=str(directory / parsed.database))
    return parsed.render_as_string(hide_password=False)
