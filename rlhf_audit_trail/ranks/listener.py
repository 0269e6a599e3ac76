"""The recording process's end: it takes what the others tell, and notices when one is gone."""

from __future__ import annotations

import hmac
import itertools
import json
import logging
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Final

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ranks.channel import BATCH, CONNECT_TIMEOUT_S, OWN_KINDS, Address, host, key

__all__ = ["RankListener"]

END_WAIT_S: Final = 60.0  # for the last word of processes that are still working
END_WAIT_FAILED_S: Final = 3.0  # they may be waiting for one that has gone
_LINE_BYTES_MAX: Final = 64 * 1024 * 1024
_HELLO_BYTES_MAX: Final = 1_000
_HELLO_TIMEOUT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05
_NAMED_MAX: Final = 10

_logger = logging.getLogger(__name__)


class _Handler(socketserver.StreamRequestHandler):
    timeout = _HELLO_TIMEOUT_S

    def handle(self) -> None:
        with suppress(OSError):
            self.server.listener.greeted(self.connection, self.rfile)  # type: ignore[attr-defined]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], listener: RankListener) -> None:
        self.listener = listener
        super().__init__(address, _Handler)

    def service_actions(self) -> None:
        self.listener.publish()  # the process group may begin later than the run

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        kind = sys.exc_info()[0]
        _logger.warning(
            "what another process told was not recorded: %s", kind.__name__ if kind else ""
        )


class RankListener:
    """The main process's end: records what the others tell, and notices when one is gone."""

    def __init__(
        self,
        name: str,
        size: int,
        *,
        record: Callable[[list[Event]], Any],
        lose: Callable[[int, str], None],
        flush: Callable[[], None],
        policy_step: Callable[[], int],
    ) -> None:
        """Listen from now on.

        Args:
            name: of the run.
            size: how many processes there are, this one included.
            record: records events; called from other threads.
            lose: counts events that could not be recorded, with a reason.
            flush: makes them durable.
            policy_step: policy updates so far; the others count from what it is now.
        """
        self._size, self._record, self._lose, self._flush = size, record, lose, flush
        self._policy_step, self._began_at = policy_step, policy_step()
        self._process = os.getpid()
        self._key, self._is_published = key(name), False
        # below is owned by _changed
        self._changed = threading.Condition()
        self._connected: set[int] = set()
        self._ended: dict[int, tuple[str, str]] = {}
        self._lost: set[int] = set()
        self._batches: Counter[int] = Counter()
        self._is_over = False
        name = host()
        self._server = _Server(("127.0.0.1" if name == "127.0.0.1" else "", 0), self)
        self._address = Address(name, self._server.server_address[1], secrets.token_hex(16))
        self.publish()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_AGAIN_S,), name="ranks", daemon=True
        )
        self._thread.start()

    def publish(self) -> None:
        """Say where this listens, as soon as there is a process group."""
        if not self._is_published:
            self._is_published = self._address.published(self._key)

    def count(self, events: Sequence[Event]) -> None:
        """Take notice of what this process recorded itself."""
        with self._changed:
            self._batches[0] += sum(event.kind == BATCH for event in events)

    def all_here(self) -> bool:
        """Wait until all others have reported once; False if one did not, or is gone."""
        with self._changed:
            everybody = self._size - 1
            self._changed.wait_for(lambda: len(self._connected) == everybody, CONNECT_TIMEOUT_S)
            return len(self._connected) == everybody and not self._lost

    def settled(self, outcome: str, error: str) -> tuple[str, str]:
        """Wait for the others' last words, and return how the training ended with all of them.

        Args:
            outcome: of this process: completed or failed.
            error: the type of its exception, or empty.
        """
        if os.getpid() != self._process:
            return outcome, error
        with self._changed:
            deadline = time.monotonic() + (END_WAIT_S if outcome == "completed" else 0)
            self._wait(lambda: self._connected, deadline)
            self._wait(lambda: range(1, self._size), time.monotonic() + END_WAIT_FAILED_S)
            self._is_over = True
            silent = sorted(self._connected - self._ended.keys() - self._lost)
            unheard = sorted(set(range(1, self._size)) - self._connected)
        for rank in silent:
            self._gone(rank, "had not ended when the run did")
        if unheard:
            detail = f"{len(unheard)} of {self._size} processes never reported: {_some(unheard)}"
            self._record([_alert("ranks_not_heard", "warning", self._policy_step(), detail)])
        failed = [said for _, said in sorted(self._ended.items()) if said[0] != "completed"]
        if outcome != "completed":
            return outcome, error
        if self._lost:
            return "failed", "RankLost"
        return failed[0] if failed else (outcome, error)

    def close(self) -> None:
        """Stop listening."""
        if os.getpid() == self._process:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _wait(self, ranks: Callable[[], Any], deadline: float) -> None:
        """Wait, with `_changed` held, until all of these ranks have ended."""
        while any(rank not in self._ended and rank not in self._lost for rank in ranks()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            self._changed.wait(left_s)

    # --- a thread for each of the others --------------------------------------------------

    def greeted(self, connection: socket.socket, lines: BinaryIO) -> None:
        """Take what one process says until its end; called in a thread of its own."""
        hello = _parsed(lines.readline(_HELLO_BYTES_MAX))
        rank, is_child = hello.get("rank"), bool(hello.get("child"))
        is_known = hmac.compare_digest(str(hello.get("token")), self._address.token)
        if not is_known or not isinstance(rank, int) or not 0 < rank < self._size:
            return
        connection.settimeout(None)
        _keep_alive(connection)
        if not is_child:
            with self._changed:
                self._connected.add(rank)
                self._changed.notify_all()
        connection.sendall(b"\n")
        says_end = self._heard(rank, lines)
        if not is_child and not says_end:
            self._gone(rank, "ended without a word")

    def _heard(self, rank: int, lines: BinaryIO) -> bool:
        """Record what a process says; return whether it said that it ends."""
        with suppress(OSError):  # a connection that is reset has ended, too
            while (line := lines.readline(_LINE_BYTES_MAX)).endswith(b"\n"):
                message = _parsed(line)
                if self._is_over:  # that this rank had not ended is recorded already
                    return False
                if "end" in message:
                    with self._changed:
                        self._ended[rank] = (str(message["end"]), str(message.get("error", "")))
                        self._changed.notify_all()
                    return True
                self._take(rank, message)
        return False

    def _take(self, rank: int, message: Mapping[str, Any]) -> None:
        if "lost" in message:
            self._lose(int(message["lost"]), f"rank {rank}: {message.get('reason', '')}")
            return
        said: list[Any] = message.get("events") or [None]
        try:
            events = [self._event(rank, item) for item in said]
            with self._changed:
                self._batches[rank] += sum(event.kind == BATCH for event in events)
            self._record(events)
        except Exception as error:  # noqa: BLE001 - whatever it was, it must be counted
            reason = f"events of rank {rank} could not be recorded: {type(error).__name__}"
            _logger.warning("%s", reason)
            self._lose(len(said), reason)

    def _event(self, rank: int, said: Any) -> Event:
        if said["kind"] not in OWN_KINDS:
            raise ValueError(said["kind"])
        fields = self._counted(said["fields"]) | {"rank": rank}
        return Event(said["kind"], fields, said["sealed"], said["subject"])

    def _counted(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return an event's fields with its step counted from where the run began here."""
        steps = {name: fields[name] for name in ("policy_step", "step") if name in fields}
        return fields | {name: step + self._began_at for name, step in steps.items()}

    def _gone(self, rank: int, how: str) -> None:
        """Count what a process took with it: the batch under way, at least."""
        with self._changed:
            if rank in self._lost:
                return
            self._lost.add(rank)
            behind = max(self._batches.values(), default=0) - self._batches[rank]
            heard = self._batches[rank]
            self._changed.notify_all()
        detail = f"rank {rank} of {self._size} {how}, after {heard:,} batches"
        self._lose(max(1, behind), f"{detail}; what it trained on since is not known")
        self._record([_alert("rank_lost", "critical", self._policy_step(), detail)])
        with suppress(Exception):  # the writer goes on trying; this only waits for it
            self._flush()


def _keep_alive(connection: socket.socket) -> None:
    """Have the system notice a machine that vanished, which sends no end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alert(name: str, severity: str, step: int, detail: str) -> Event:
    fields = {"name": name, "severity": severity, "step": step, "detail": detail}
    return Event("alert.raised", fields)


def _some(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, itertools.islice(ranks, _NAMED_MAX)))
    return shown if len(ranks) <= _NAMED_MAX else f"{shown} …"
