"""Several nodes asked as one: what enough of them say alike is believed, and a liar is named.

Each question has the rule that fits its answer. What must be the same everywhere (chain id, code,
a block, a head at a block, a receipt) must be said alike by `needed` nodes. Of numbers that
honest nodes may differ in, such as the newest block's, the largest is taken that `needed` of them
reach. Prices take the middle. A signed transaction goes to all.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, EndpointsDisagree, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_quantity
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.settings import ChainSettings, SettingsError

__all__ = ["AgreeingRpc", "connect"]

_GRACE_S: Final = 0.25  # for those that have not answered when enough have: they may disagree
_NEWEST: Final = "latest"
_TAGS: Final = ("latest", "safe", "finalized")
_WITHOUT_BODIES: Final = False
_MIDDLE: Final = ("eth_maxPriorityFeePerGas", "eth_gasPrice", "eth_estimateGas", "eth_getBalance")
_RECEIPT_CALL: Final = "eth_getTransactionReceipt"
_REACHED: Final = ("eth_blockNumber", "eth_getTransactionCount")

# Of a receipt and a block, what nodes of different make have in common.
_RECEIPT: Final = ("status", "blockHash", "blockNumber", "transactionHash", "gasUsed",
                   "effectiveGasPrice", "logs")  # fmt: skip
_LOG: Final = ("address", "topics", "data", "blockHash", "transactionHash", "logIndex")

_logger = logging.getLogger(__name__)


def connect(chain: ChainSettings, *, timeout_s: float | None = None) -> RpcClient:
    """Return a way to the chain of the settings: its one node, or all of them in agreement.

    Raises:
        SettingsError: an address is none, or the same one is named twice.
    """
    timeout_s = chain.rpc_timeout_s if timeout_s is None else timeout_s
    urls = (chain.rpc_url, *chain.more_rpc_urls)
    if len(set(urls)) != len(urls):
        raise SettingsError(
            "the same RPC endpoint is named twice", next_step="a node cannot confirm itself"
        )
    if len(urls) == 1:
        return RpcClient(chain.rpc_url, timeout_s=timeout_s)
    needed = chain.rpc_agreement or len(urls) // 2 + 1
    return AgreeingRpc([RpcClient(url, timeout_s=timeout_s) for url in urls], needed=needed)


@dataclass(frozen=True)
class _Answer:
    """What one node said: a result, or its own error."""

    node: int
    result: Any = None
    error: AuditTrailError | None = None


@dataclass
class _Node:
    """One endpoint with the thread that talks to it."""

    client: RpcClient
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="ledger-rpc")
    )
    busy: Future[_Answer] | None = None  # an answer that nobody waits for any more


class AgreeingRpc(RpcClient):
    """Asks several nodes, and answers what enough of them say; not thread-safe.

    Attributes:
        dissenters: nodes that contradicted the others, and in what; kept until closed.
    """

    def __init__(self, clients: Sequence[RpcClient], *, needed: int) -> None:
        """Ask these nodes; `1 <= needed <= len(clients)` of them must agree."""
        self._nodes = [_Node(client) for client in clients]
        self._needed = needed
        self.dissenters: dict[str, str] = {}
        self.shown_url = ", ".join(client.shown_url for client in clients)

    def call(self, method: str, *params: Any) -> Any:
        """Ask all nodes and return what enough of them say.

        Raises:
            EndpointsDisagree: too few say the same.
            ChainUnreachable: too few answer.
            RpcError: enough of them refuse.
        """
        if method == "eth_sendRawTransaction":
            return self._spread(method, params)
        if method in _REACHED:
            return hex(self._reached(self._ask(method, params)))
        if method in _MIDDLE:
            return hex(self._middle(method, self._ask(method, params)))
        if method == "eth_getBlockByNumber" and params[0] in _TAGS:
            return self._tagged_block(str(params[0]))
        if params and params[-1] == _NEWEST:  # the same block for all of them
            params = (*params[:-1], self._newest_block())
        return self._agreed(method, self._ask(method, params))

    def call_many(self, method: str, each: Sequence[Sequence[Any]]) -> list[Any]:
        """Ask once for each list of parameters; each answer is agreed upon by itself."""

        def ask(client: RpcClient) -> list[Any]:
            return client.call_many(method, each)

        answers = self._gather(ask)
        found = []
        for number in range(len(each)):
            said = [
                x if x.error else _Answer(x.node, x.result[number])
                for x in answers
            ]  # fmt: skip
            found.append(self._agreed(method, said))
        return found

    def call_together(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Make different calls, each by its own rule; those of one kind in one exchange."""
        found: list[Any] = []
        for method, group in itertools.groupby(calls, key=lambda call: call[0]):
            each = [params for _, params in group]
            if len(each) > 1 and method == _RECEIPT_CALL:
                found += self.call_many(method, each)
                continue
            for params in each:
                try:
                    found.append(self.call(method, *params))
                except RpcError as error:
                    found.append(error)
        return found

    def close(self) -> None:
        """Close all connections; the next call opens others."""
        for node in self._nodes:
            if node.busy is None or node.busy.done():
                node.client.close()
            node.pool.shutdown(wait=False, cancel_futures=True)
            node.pool = ThreadPoolExecutor(1, thread_name_prefix="ledger-rpc")
            node.busy = None

    # --- asking -----------------------------------------------------------------------

    def _ask(self, method: str, params: Sequence[Any]) -> list[_Answer]:
        return self._gather(lambda client: client.call(method, *params))

    def _gather(self, ask: Callable[[RpcClient], Any]) -> list[_Answer]:
        """Ask all nodes at once; once enough have answered, the others get a moment more.

        A node that still owes an earlier answer is not asked: it hangs, and would only gather
        questions.
        """
        waiting: set[Future[_Answer]] = set()
        for number, node in enumerate(self._nodes):
            if node.busy is not None and not node.busy.done():
                continue
            node.busy = node.pool.submit(_ask_one, number, node.client, ask)
            waiting.add(node.busy)
        answers: list[_Answer] = []
        deadline_s: float | None = None
        while waiting:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            done, waiting = wait(waiting, left_s, FIRST_COMPLETED)
            if not done:
                break
            answers += [future.result() for future in done]
            usable = sum(not isinstance(x.error, ChainUnreachable) for x in answers)
            if usable >= self._needed and deadline_s is None:
                deadline_s = time.monotonic() + _GRACE_S
        return sorted(answers, key=lambda answer: answer.node)

    # --- judging ----------------------------------------------------------------------

    def _agreed(self, method: str, answers: Sequence[_Answer]) -> Any:
        """Return the result that enough nodes gave; what contradicts it is remembered."""
        self._require_heard(method, answers)
        votes: dict[str, list[_Answer]] = {}
        for answer in answers:
            if answer.error is None:
                votes.setdefault(_essence(method, answer.result), []).append(answer)
        winner = max(votes.values(), key=len, default=[])
        if len(winner) < self._needed:
            if _ABSENT in votes:  # some have it not yet: so do we
                return None
            raise EndpointsDisagree(
                f"{method}: fewer than {self._needed} of {len(self._nodes)} nodes say the same",
                next_step="ask each of them alone, and leave out the one that is wrong",
            )
        for essence, others in votes.items():
            if others is not winner and _ABSENT not in (
                essence,
                _essence(method, winner[0].result),
            ):
                self._name(others, method)
        return winner[0].result

    def _reached(self, answers: Sequence[_Answer]) -> int:
        """Return the largest number that enough nodes have reached."""
        numbers = self._numbers("the newest state", answers)
        return numbers[-self._needed]

    def _middle(self, method: str, answers: Sequence[_Answer]) -> int:
        numbers = self._numbers(method, answers)
        return numbers[(len(numbers) - 1) // 2]

    def _numbers(self, method: str, answers: Sequence[_Answer]) -> list[int]:
        self._require_heard(method, answers)
        numbers = sorted(parse_quantity(x.result) for x in answers if x.error is None)
        if len(numbers) < self._needed:
            raise EndpointsDisagree(f"{method}: too few nodes give a number")
        return numbers

    def _require_heard(self, method: str, answers: Sequence[_Answer]) -> None:
        """Raise what stands in the way if too few nodes gave a result."""
        refusals = [x.error for x in answers if isinstance(x.error, RpcError)]
        if len(refusals) >= self._needed:
            raise refusals[0]
        heard = [x for x in answers if not isinstance(x.error, ChainUnreachable)]
        if len(heard) < self._needed:
            silent = set(range(len(self._nodes))) - {x.node for x in heard}
            names = ", ".join(self._nodes[number].client.shown_url for number in sorted(silent))
            raise ChainUnreachable(
                f"{method}: {len(heard)} of {len(self._nodes)} nodes answer, {self._needed} "
                f"are needed; no answer from {names}",
                next_step="start them, or change [chain] in rlhf-audit.toml; nothing is lost",
            )

    def _tagged_block(self, tag: str) -> Any:
        """Return the newest block of a kind that enough nodes have, as they agree on it."""
        answers = self._ask("eth_getBlockByNumber", (tag, _WITHOUT_BODIES))
        numbered = [
            _Answer(x.node, x.result.get("number")) if isinstance(x.result, dict) else x
            for x in answers
        ]
        if sum(x.error is None and x.result is None for x in numbered) >= self._needed:
            return None
        known = [x for x in numbered if x.error is not None or x.result is not None]
        number = hex(self._reached(known))
        return self.call("eth_getBlockByNumber", number, _WITHOUT_BODIES)

    def _newest_block(self) -> str:
        return hex(self._reached(self._ask("eth_blockNumber", ())))

    def _spread(self, method: str, params: Sequence[Any]) -> Any:
        """Give a transaction to all; one that takes it is enough."""
        answers = self._ask(method, params)
        taken = next((x for x in answers if x.error is None), None)
        if taken is not None:
            return taken.result
        refusal = next((x.error for x in answers if isinstance(x.error, RpcError)), None)
        raise refusal or ChainUnreachable(
            f"none of {len(self._nodes)} nodes takes the transaction",
            next_step="start them; what was signed is kept and sent again",
        )

    def _name(self, answers: Sequence[_Answer], method: str) -> None:
        for answer in answers:
            name = self._nodes[answer.node].client.shown_url
            if name not in self.dissenters:
                _logger.warning("%s contradicts the other nodes in %s; ignored", name, method)
                self.dissenters[name] = method


_ABSENT: Final = "null"


def _ask_one(number: int, client: RpcClient, ask: Callable[[RpcClient], Any]) -> _Answer:
    try:
        return _Answer(number, ask(client))
    except AuditTrailError as error:
        return _Answer(number, error=error)


def _essence(method: str, result: Any) -> str:
    """Return what of an answer must be the same, as text."""
    if isinstance(result, dict) and method == "eth_getTransactionReceipt":
        records = [_part(x, _LOG) for x in result.get("logs", ()) if isinstance(x, dict)]
        result = _part(result, _RECEIPT) | {"logs": records}
    elif isinstance(result, dict) and method == "eth_getBlockByNumber":
        result = _part(result, ("hash", "number", "timestamp", "stateRoot", "baseFeePerGas"))
    return json.dumps(result, sort_keys=True).lower()


def _part(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: record.get(name) for name in names}
