"""How far a ledger's logs are anchored: chain, contract, publisher and store seen together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.chain.anchoring.batch import check_against_chain
from rlhf_audit_trail.ledger.chain.contract.deployment import CodeState, FoundCode, look_at_code
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, Head
from rlhf_audit_trail.ledger.chain.errors import Forked, RolledBack, RpcError
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.reading import AnchorView
from rlhf_audit_trail.ledger.settings import SettingsError

__all__ = ["ChainStanding", "LogStanding", "publisher_of", "read_standing"]

_NEVER: Final = Head(bytes(32), 0, 0, 0, 0)
_UNSETTLED: Final = ("pending", "mined", "safe")
_WITHOUT_BODIES: Final = False


@dataclass(frozen=True)
class LogStanding:
    """One log here and on the chain.

    Attributes:
        run_id: its name in the ledger.
        origin: its name everywhere.
        size: count of durable entries.
        signed_size: of the newest signed tree head.
        head: the newest anchored head; size 0 if there is none.
        finalized_size: of the anchored head as of the newest finalized block.
        unsettled: anchors of this publisher that are not final yet, as the store knows them.
        alarm: what shows that log and chain contradict each other.
    """

    run_id: str
    origin: str
    size: int
    signed_size: int
    head: Head
    finalized_size: int
    unsettled: tuple[AnchorView, ...]
    alarm: RolledBack | Forked | None

    @property
    def lag(self) -> int:
        """Count of entries that are not anchored."""
        return max(0, self.size - self.head.tree_size)


@dataclass(frozen=True)
class ChainStanding:
    """All logs of a ledger on one chain.

    Attributes:
        code: what stands at the contract's address; unless it is the contract, no head was read.
        block_number: the newest.
        block_timestamp: its, Unix seconds.
        finalized_block: None on a chain too young to have one.
        publisher: whose anchors these are.
        balance_wei: of the publisher.
        logs: the registry log first.
    """

    code: FoundCode
    block_number: int
    block_timestamp: int
    finalized_block: int | None
    publisher: str
    balance_wei: int
    logs: tuple[LogStanding, ...]


def publisher_of(ledger: Ledger) -> str:
    """Return under whose address this ledger's heads are anchored.

    Raises:
        SettingsError: neither the settings nor the registry log names anyone.
    """
    if ledger.chain.publisher:
        return ledger.chain.publisher
    known = [entry.event for entry in ledger.registry.entries(kind="chain.registered")]
    if known:
        return str(known[-1]["publisher"])
    raise SettingsError(
        "no publisher is known: nothing was anchored from here yet",
        next_step="name one with --publisher, or set chain.publisher in rlhf-audit.toml",
    )


def read_standing(ledger: Ledger, rpc: RpcClient, *, publisher: str) -> ChainStanding:
    """Ask the node of the ledger's settings, and compare with the store; nothing is written.

    Raises:
        WrongChain: the node serves another chain than the settings name.
        ChainUnreachable, RpcError: no answer, or the node's refusal.
    """
    chain = ledger.chain
    code = look_at_code(rpc, chain_id=chain.chain_id, address=chain.contract)
    reader = AnchorReader(rpc, chain_id=code.chain_id, contract=code.address)
    newest = rpc.call("eth_getBlockByNumber", "latest", _WITHOUT_BODIES)
    finalized = _finalized_block(rpc)
    was_there = finalized is not None and bool(
        parse_data(rpc.call("eth_getCode", code.address, hex(finalized)))
    )
    logs = [ledger.find(run) for run in ("registry", *ledger.runs())]
    if code.state is CodeState.SAME:
        settled = hex(finalized) if finalized is not None and was_there else None
        found = [_compare(log, reader, publisher, settled) for log in logs]
    else:
        found = [_standing(log, _NEVER, 0, (), None) for log in logs]
    return ChainStanding(
        code=code,
        block_number=parse_quantity(newest["number"]),
        block_timestamp=parse_quantity(newest["timestamp"]),
        finalized_block=finalized,
        publisher=publisher,
        balance_wei=parse_quantity(rpc.call("eth_getBalance", publisher, "latest")),
        logs=tuple(found),
    )


def _finalized_block(rpc: RpcClient) -> int | None:
    try:
        block = rpc.call("eth_getBlockByNumber", "finalized", _WITHOUT_BODIES)
    except RpcError:  # so some nodes say that there is none yet
        return None
    return None if block is None else parse_quantity(block["number"])


def _compare(log: Log, reader: AnchorReader, publisher: str, settled: str | None) -> LogStanding:
    head = reader.head(publisher, log.log_id)
    final = reader.head(publisher, log.log_id, block=settled) if settled else _NEVER
    unsettled = tuple(
        anchor
        for anchor in log.anchors()
        if anchor.state in _UNSETTLED
        and (anchor.chain_id, anchor.contract.lower(), anchor.publisher.lower())
        == (reader.chain_id, reader.contract, publisher.lower())
    )
    try:
        check_against_chain(log, head)
    except (RolledBack, Forked) as error:
        return _standing(log, head, final.tree_size, unsettled, error)
    return _standing(log, head, final.tree_size, unsettled, None)


def _standing(
    log: Log,
    head: Head,
    finalized_size: int,
    unsettled: tuple[AnchorView, ...],
    alarm: RolledBack | Forked | None,
) -> LogStanding:
    signed = log.published()
    return LogStanding(
        run_id=log.run_id,
        origin=log.origin,
        size=log.size,
        signed_size=signed.head.size if signed else 0,
        head=head,
        finalized_size=finalized_size,
        unsettled=unsettled,
        alarm=alarm,
    )
