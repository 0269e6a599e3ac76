"""Asking somebody else's HTTP server: bounded in time and in bytes, standard library only.

Whatever the other side does (sends nothing, sends one byte a minute, sends for ever), a call
ends within its limits with an answer or with `Unreachable`. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["Answer", "BadAddress", "Unreachable", "ask", "parse_url"]

_AGENT: Final = "rlhf-audit-trail"
_PIECE_BYTES: Final = 64 * 1024
_TEXT: Final[Mapping[str, str]] = {"Content-Type": "text/plain; charset=utf-8"}


class BadAddress(AuditTrailError):
    """This is not an http or https address."""


class Unreachable(AuditTrailError):
    """The other side gave no usable answer within the limits."""


@dataclass(frozen=True)
class Answer:
    """What a server answered, whatever the status."""

    status: int
    content_type: str
    body: bytes


def parse_url(url: str) -> SplitResult:
    """Return the parts of an http or https address.

    Raises:
        BadAddress: another scheme, no host, a bad port, or characters that no request holds.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        raise BadAddress(
            f"{url!r:.200} is no address of a server",
            next_step="write it as https://host/path, in ASCII",
        )
    return parts


def ask(
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    answer_bytes_max: int,
) -> Answer:
    """GET an address, or POST a body to it.

    Args:
        url: http or https; what it may hold as secret is not repeated in messages.
        body: what to POST; None to GET.
        headers: sent along; what they hold as secret is not repeated either. A body is plain
            text if they are left out.
        timeout_s: for the whole call, not for each packet; a host with several addresses
            that all let a connection hang is given as long for each of them.
        answer_bytes_max: a longer answer is an error.

    Raises:
        BadAddress: not an http or https address.
        Unreachable: no connection, no answer in time, or one that is too long or no HTTP.
    """
    parts = parse_url(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    # The socket's own timeout begins anew with each byte; this one ends the whole call.
    sockets: list[socket.socket] = []
    watchdog = threading.Timer(timeout_s, _cut, [connection, sockets])
    watchdog.daemon = True
    watchdog.start()
    deadline = time.monotonic() + timeout_s
    try:
        connection.connect()
        sockets.append(connection.sock)  # which the connection forgets before a body's end
        return _exchange(connection, parts, body, headers, answer_bytes_max)
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= deadline
        reason = f"no answer within {timeout_s:g} s" if late else str(error) or type(error).__name__
        raise Unreachable(
            f"{parts.scheme}://{parts.hostname}: {reason:.200}",
            next_step="check the address and the network, then try again",
        ) from error
    finally:
        watchdog.cancel()
        connection.close()


def _exchange(
    connection: http.client.HTTPConnection,
    parts: SplitResult,
    body: bytes | None,
    headers: Mapping[str, str] | None,
    most: int,
) -> Answer:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if headers is None:
        headers = {} if body is None else _TEXT
    sent = {"User-Agent": _AGENT} | dict(headers)
    connection.request("GET" if body is None else "POST", path, body, sent)
    with connection.getresponse() as response:
        data = bytearray()
        # not `read`: told of a chunk of -1 bytes, it takes all that comes
        while piece := response.read1(min(_PIECE_BYTES, most + 1 - len(data))):
            data += piece
            if len(data) > most:
                raise http.client.HTTPException(f"an answer of more than {most:,} bytes")
        content_type = response.headers.get("Content-Type", "")
        return Answer(response.status, content_type, bytes(data))


def _cut(connection: http.client.HTTPConnection, sockets: list[socket.socket]) -> None:
    """Wake whoever reads from the connection; closing it alone would not."""
    for item in (connection.sock, *sockets):
        if item is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(item, socket.SHUT_RDWR)  # below TLS, if there is any
