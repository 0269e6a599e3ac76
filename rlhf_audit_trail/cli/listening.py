"""A socket that already listens when its address is printed: who reads it can connect."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = ["AddressTaken", "listening"]


class AddressTaken(AuditTrailError):
    """The address to serve on is in use, or not this machine's."""


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """Give a listening socket and its URL; port 0 takes any free one.

    Raises:
        AddressTaken: the address cannot be listened on.
    """
    shown = f"[{host}]" if ":" in host else host  # an IPv6 address has colons of its own
    try:
        listener = _listener(host, port)
    except OSError as error:
        raise AddressTaken(
            f"cannot listen on {shown}:{port}: {error.strerror}",
            next_step="stop the other process, or choose another --port or --host",
        ) from error
    with listener:
        yield listener, f"http://{shown}:{listener.getsockname()[1]}"


def _listener(host: str, port: int) -> socket.socket:
    """Listen on the first address that a host has; raises OSError."""
    kind, flags = socket.SOCK_STREAM, socket.AI_PASSIVE
    family, *_, address = socket.getaddrinfo(host, port, type=kind, flags=flags)[0]
    return socket.create_server(address[:2], family=family)
