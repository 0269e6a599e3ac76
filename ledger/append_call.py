"""One request that appends to a run of another machine's ledger, and what the answer means.

What may pass by itself raises `NotAnswered`: sent again, it changes nothing that the first
request did. Every other answer is final. Standard library only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from rlhf_audit_trail.ledger.bearer import require_token
from rlhf_audit_trail.ledger.events import EntryTooLarge, InvalidEvent
from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.refusals import (
    BadToken,
    ConflictingEntry,
    LogMissing,
    NotPermitted,
    RunClosed,
    SequenceGap,
)
from rlhf_audit_trail.ledger.web import Answer, BadAddress, Unreachable, ask, parse_url

__all__ = [
    "REQUEST_BYTES_MAX",
    "REQUEST_EVENTS_MAX",
    "AppendCall",
    "InsecureAddress",
    "NotAnswered",
    "Refused",
]

REQUEST_EVENTS_MAX: Final = 1_000  # a group commit of the store
REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024
_ANSWER_BYTES_MAX: Final = 1024 * 1024  # an index and its comma take 17 bytes at most
_DETAIL_CHARACTERS_MAX: Final = 500
_PASSING: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
_REFUSALS: Final[dict[str, type[AuditTrailError]]] = {
    "bad_token": BadToken,
    "not_permitted": NotPermitted,
    "log_missing": LogMissing,
    "run_closed": RunClosed,
    "conflicting_entry": ConflictingEntry,
    "invalid_event": InvalidEvent,
    "entry_too_large": EntryTooLarge,
    "body_too_large": EntryTooLarge,
    "bad_request": InvalidEvent,
}


class InsecureAddress(BadAddress):
    """Sealed values and the token would cross a network in clear."""


class NotAnswered(AuditTrailError):
    """Nobody said what became of a request; it can be sent again."""


class Refused(AuditTrailError):
    """What answers at this address does not take entries."""


class AppendCall:
    """Where entries of one run go, and with what right."""

    def __init__(
        self, url: str, run_id: str, token: str, *, timeout_s: float, is_private_network: bool
    ) -> None:
        """Send nothing yet.

        Raises:
            BadAddress, InsecureAddress, BadToken: nothing could be sent like this.
        """
        parts = parse_url(url)
        if parts.query or parts.fragment:
            raise BadAddress(
                "the service's address has a query or a fragment",
                next_step="pass where the service begins: https://audit.acme.example",
            )
        if parts.scheme == "http" and not (is_private_network or _is_loopback(parts.hostname)):
            raise InsecureAddress(
                f"http://{parts.hostname} would see the token and all values in clear",
                next_step="use https, or pass is_private_network=True if only you can listen there",
            )
        self._log_url = f"{url.rstrip('/')}/api/v1/logs/{quote(run_id, safe='')}"
        self.url = f"{self._log_url}/entries"
        self._token = require_token(token)
        self._timeout_s = timeout_s

    def append(
        self, writer_id: str, first_seq: int, recorded_at: str, events: Sequence[bytes]
    ) -> list[int]:
        """Send events, each as the JSON that the service takes, and return their leaf indices.

        Raises:
            NotAnswered: no answer, or one that says no more than that: the outcome is unknown.
            BadToken, NotPermitted, LogMissing, RunClosed, ConflictingEntry, SequenceGap,
            InvalidEvent, EntryTooLarge, Refused: the service said no; it stored nothing of it.
        """
        head = f'"writer_id":"{writer_id}","first_seq":{first_seq},"recorded_at":"{recorded_at}"'
        body = b"".join((b"{", head.encode(), b',"events":[', b",".join(events), b"]}"))
        return _indices(self._ask(self.url, body).get("indices"), len(events))

    def progress(self) -> dict[str, Any]:
        """Ask where the run stands; raises as `append`."""
        return self._ask(f"{self._log_url}/progress")

    def publish(self) -> None:
        """Have the service sign what is durable; raises as `append`."""
        self._ask(f"{self._log_url}/tree-head", b"")

    def _ask(self, url: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        try:
            answer = ask(
                url,
                body=body,
                headers=headers,
                timeout_s=self._timeout_s,
                answer_bytes_max=_ANSWER_BYTES_MAX,
            )
        except Unreachable as error:
            raise NotAnswered(error.message, next_step=error.next_step) from error
        return self._understand(answer)

    def _understand(self, answer: Answer) -> dict[str, Any]:
        try:
            said = parse_json(answer.body)
        except MalformedBundle:
            said = None
        said = said if isinstance(said, dict) else {}
        if answer.status == HTTPStatus.OK:
            return said
        if answer.status in _PASSING or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            detail = f"the service cannot answer now: {answer.status} {self._text(said, 'detail')}"
            raise NotAnswered(detail.rstrip(), next_step=self._text(said, "next"))
        raise self._refusal(answer.status, said)

    def _refusal(self, status: int, said: dict[str, Any]) -> AuditTrailError:
        code, detail, after = said.get("code"), self._text(said, "detail"), self._text(said, "next")
        expected = said.get("expected")
        if code == "sequence_gap" and type(expected) is int:
            return SequenceGap(detail, expected=expected, next_step=after)
        kind = _REFUSALS.get(code) if isinstance(code, str) else None
        if kind is None:
            after = "check the address: it is where `rlhf-audit serve` is reached"
            return Refused(
                f"no service for entries: status {status} {detail}".strip(), next_step=after
            )
        return kind(detail, next_step=after)

    def _text(self, said: dict[str, Any], name: str) -> str:
        """Return a text of the answer in bounds; even a server that repeats the token is not."""
        text = str(said.get(name, "")).replace(self._token, "[token]")
        return "".join(x for x in text[:_DETAIL_CHARACTERS_MAX] if x.isprintable())


def _indices(found: Any, count: int) -> list[int]:
    is_whole = isinstance(found, list) and len(found) == count
    if not is_whole or any(type(index) is not int or index < 0 for index in found):
        raise NotAnswered(
            "the answer does not say where the entries are",
            next_step="check that nothing stands between this machine and the service",
        )
    return list(found)


def _is_loopback(hostname: str | None) -> bool:
    try:
        return hostname == "localhost" or ipaddress.ip_address(hostname or "").is_loopback
    except ValueError:
        return False
