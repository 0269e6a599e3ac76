"""JSON-RPC to an Ethereum node over one kept-alive connection; standard library only.

Used by the auditor's command line as well as by the anchorer: nothing here needs web3,
whose import takes longer than a whole verification.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit

from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, RpcError
from rlhf_audit_trail.ledger.settings import SettingsError

__all__ = ["MAX_ANSWER_BYTES", "RpcClient", "parse_data", "parse_quantity"]

MAX_ANSWER_BYTES: Final = 512 * 2**20
"""An answer above this is refused. The largest we ask for is a development chain's state."""

_CALLS_PER_EXCHANGE: Final = 100  # what public nodes commonly take

_QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]{0,63})")

# What a kept-alive connection raises once the server has closed it between two calls.
_CLOSED_WHILE_IDLE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class RpcClient:
    """Calls one node; not thread-safe, so give each thread its own.

    The URL may hold a secret (many providers put the key there), so messages show only
    its scheme, host and port.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        """Remember where the node is; nothing is opened until the first call."""
        self._url = _parse_url(url)
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._connection: http.client.HTTPConnection | None = None
        self.shown_url = f"{self._url.scheme}://{self._url.hostname}:{_port(self._url)}"

    def call(self, method: str, *params: Any) -> Any:
        """Call a method and return the answer's `result`.

        Raises:
            ChainUnreachable: no usable answer within the time limit.
            RpcError: the node's own error.
        """
        request_id = next(self._ids)
        body = json.dumps(_request(request_id, method, params)).encode()
        status, answer = self._exchange(body)
        try:
            reply = json.loads(answer)
        except ValueError:
            raise self._unreachable(f"status {status}, and no JSON in the answer") from None
        return self._result(method, request_id, status, reply)

    def call_many(self, method: str, each: Sequence[Sequence[Any]]) -> list[Any]:
        """Call a method once for each list of parameters, and return the results in order.

        One exchange holds up to a hundred calls (a JSON-RPC batch).

        Raises:
            ChainUnreachable, RpcError: see `call`; of the first call that failed.
        """
        found = self.call_together([(method, params) for params in each])
        for result in found:
            if isinstance(result, RpcError):
                raise result
        return found

    def call_together(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Make different calls in one exchange, or in one for each hundred.

        Returns:
            For each its result, or the node's own error of it as an `RpcError`.

        Raises:
            ChainUnreachable: no usable answer.
        """
        found: list[Any] = []
        for start in range(0, len(calls), _CALLS_PER_EXCHANGE):
            found += self._call_batch(calls[start : start + _CALLS_PER_EXCHANGE])
        return found

    def _call_batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        requests = [_request(next(self._ids), method, params) for method, params in calls]
        status, answer = self._exchange(json.dumps(requests).encode())
        try:
            replies = json.loads(answer)
        except ValueError:
            raise self._unreachable(f"status {status}, and no JSON in the answer") from None
        if not isinstance(replies, list):  # a node that takes no batches refuses the whole
            return [_or_refusal(self.call, method, *params) for method, params in calls]
        by_id = {reply.get("id"): reply for reply in replies if isinstance(reply, dict)}
        return [
            _or_refusal(self._result, request["method"], number, status, by_id.get(number))
            for request in requests
            for number in [request["id"]]
        ]

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """Send and receive, once more if the server had closed the idle connection.

        Sending the same request twice is harmless to a signed transaction: its hash is the same.
        """
        reused = self._connection is not None
        try:
            return self._exchange_once(body)
        except _CLOSED_WHILE_IDLE as error:
            self.close()
            if not reused:
                raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error
        try:
            return self._exchange_once(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error

    def _exchange_once(self, body: bytes) -> tuple[int, bytes]:
        connection = self._connection or self._connect()
        self._connection = connection
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            answer = response.read(MAX_ANSWER_BYTES + 1)
            if len(answer) > MAX_ANSWER_BYTES:
                raise http.client.HTTPException(f"an answer of over {MAX_ANSWER_BYTES:,} bytes")
            return response.status, answer

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._url.hostname or "", _port(self._url), timeout=self._timeout_s)

    def _result(self, method: str, request_id: int, status: int, reply: Any) -> Any:
        if not isinstance(reply, dict) or reply.get("id") not in (request_id, None):
            raise self._unreachable("the answer is not to the question asked")
        error = reply.get("error")
        if isinstance(error, dict):
            raise RpcError(
                f"{method}: the node says: {error.get('message', 'no reason given')}",
                code=int(error.get("code", 0)),
                data=error.get("data"),
            )
        if "result" not in reply:
            raise self._unreachable(f"status {status}, with neither result nor error")
        return reply["result"]

    def _unreachable(self, reason: object) -> ChainUnreachable:
        return ChainUnreachable(
            f"cannot reach the chain at {self.shown_url}: {reason}",
            next_step="start the node, or correct the RPC address; nothing recorded is lost",
        )


def _request(request_id: int, method: str, params: Sequence[Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": list(params)}


def _or_refusal(ask: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result, or the node's own error, as one of several answers."""
    try:
        return ask(*arguments)
    except RpcError as error:
        return error


def parse_quantity(value: Any) -> int:
    """Read a JSON-RPC quantity such as `0x1f`; no leading zeros.

    Raises:
        ChainUnreachable: it is not one.
    """
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ChainUnreachable("the node answered something that is not a number")
    return int(value, 16)


def parse_data(value: Any, *, size_bytes: int | None = None) -> bytes:
    """Read JSON-RPC bytes such as `0x00ff`, of an exact size if one is given.

    Raises:
        ChainUnreachable: they are not, or have another size.
    """
    text = value[2:] if isinstance(value, str) and value.startswith("0x") else "none"
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if 2 * len(data) != len(text):  # `fromhex` takes spaces, too
        raise ChainUnreachable("the node answered something that is not bytes")
    if size_bytes is not None and len(data) != size_bytes:
        raise ChainUnreachable(f"the node answered {len(data)} bytes for {size_bytes}")
    return data


def _parse_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _port(parts)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            "an RPC address must look like http://127.0.0.1:8545",
            next_step="give the node's http or https address",
        )
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
