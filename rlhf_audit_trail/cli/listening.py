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
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            raise AddressTaken(
                f"cannot listen on {host}:{port}: {error.strerror}",
                next_step="stop the other process, or choose another --port",
            ) from error
        yield listener, f"http://{host}:{listener.getsockname()[1]}"
