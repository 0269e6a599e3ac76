"""The end of a process that does not record: it tells the one that does."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final

from rlhf_audit_trail.ranks.channel import CONNECT_TIMEOUT_S, Address, key
from rlhf_audit_trail.ranks.processes import default_store

__all__ = ["RankLink"]

SEND_TIMEOUT_S: Final = 30.0

_logger = logging.getLogger(__name__)


class RankLink:
    """Another process's end: tells the main process, as soon as there is one to be told."""

    def __init__(self, name: str, rank: int) -> None:
        """Connect at once where there is a process group, else with the first message."""
        self._key, self._rank = key(name), rank
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_broken = False
        self.unsent = 0  # events that nobody could be told
        if default_store() is not None:
            with self._lock:
                self._connect()

    def reaches(self) -> bool:
        """Whether the main process can be told; connects where that was not possible before."""
        with self._lock:
            if self._socket is None:
                self._connect()
            return self._socket is not None

    def tell(self, message: Mapping[str, Any], count: int = 1) -> bool:
        """Send a message; return whether it could be handed over. `count` events are in it."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if os.getpid() != self._process:  # a forked child has a connection of its own
            self._process, self._lock = os.getpid(), threading.Lock()
            self._socket, self._is_broken, self.unsent = None, False, 0
            self._connect(is_child=True)
        with self._lock:
            if self._socket is None:
                self._connect()
            if self._socket is not None:
                try:
                    self._socket.sendall(data)
                except OSError as error:
                    self._broke(error)
                else:
                    return True
            self.unsent += count
        return False

    def close(self) -> None:
        """Let go of the connection; what was handed over still arrives."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket, self._is_broken = None, True

    def _connect(self, *, is_child: bool = False) -> None:
        if self._is_broken:
            return
        try:
            self._socket = _connected(Address.found(self._key), self._rank, is_child=is_child)
        except (OSError, RuntimeError, ValueError) as error:  # torch's store raises RuntimeError
            self._broke(error)

    def _broke(self, error: BaseException) -> None:
        self._is_broken, self._socket = True, None
        _logger.warning(
            "rank %d cannot reach the process that records: %s", self._rank, type(error).__name__
        )


def _connected(address: Address, rank: int, *, is_child: bool) -> socket.socket:
    made = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
    hello = {"rank": rank, "token": address.token, "child": is_child}
    made.sendall(json.dumps(hello).encode() + b"\n")
    if not made.recv(1):
        raise ConnectionRefusedError
    made.settimeout(SEND_TIMEOUT_S)
    return made
