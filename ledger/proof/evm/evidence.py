"""Chain evidence: the tree head that a contract held, or announced, as of one block.

A block's hash commits to its header, the header to all accounts and receipts, an account to its
code and storage. So whoever trusts that one hash needs no node. The numbered checks are those of
`FORMAT.md`, section 9.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import (
    Inconsistent,
    MalformedBundle,
    NotAnchored,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import (
    Item,
    decode,
    encode,
    read_number,
    write_number,
)
from rlhf_audit_trail.ledger.proof.evm.trie import HASH_BYTES, look_up

MAX_CHAIN_BYTES: Final = 131_072  # 964 blocks of Keccak: a fraction of a second
ADDRESS_BYTES: Final = 20
# Fields of a header and of an account by their place; later forks add fields behind them.
_STATE_ROOT, _RECEIPTS_ROOT, _BLOOM, _NUMBER, _TIME, _HEADER_FIELDS_MIN = 3, 5, 6, 8, 11, 15
_TIME_S_MAX: Final = 253_402_300_799  # the last second that a date can be written for
NO_BLOOM: Final = bytes(256)  # on a chain with few events
_STORAGE_ROOT, _CODE_HASH, _ACCOUNT_FIELDS = 2, 3, 4
_RECEIPT_FIELDS: Final = 4  # status, gas used, bloom filter, events
_EVENT_FIELDS: Final = 3  # address, topics, data
_EVENT: Final = b"TreeHeadAnchored(address,bytes32,uint64,uint64,bytes32)"


@dataclass(frozen=True)
class ChainEvidence:
    """The chain part of a bundle, parsed but not believed: RLP of these seven items in this order.

    Attributes:
        chain_id, contract, publisher, log_id: what the prover says it is about; compared with
            what is trusted, and never used.
        header: of the block; a bloom filter that is all zeros stands as the empty string.
        account: the trie of accounts, cut down to the contract's; or, for an event, the index
            of its receipt.
        storage: the contract's storage, cut down to the two slots of a head; or the trie of the
            block's receipts, cut down to that one.
    """

    chain_id: int
    contract: bytes
    publisher: bytes
    log_id: bytes
    header: Item
    account: Item
    storage: Item

    def __bytes__(self) -> bytes:
        """The part as it stands in a bundle."""
        place = write_number(self.chain_id), self.contract, self.publisher, self.log_id
        return encode([*place, self.header, self.account, self.storage])

    @classmethod
    def parse(cls, data: bytes) -> ChainEvidence:
        """Read the part; raises MalformedBundle."""
        if len(data) > MAX_CHAIN_BYTES:
            raise MalformedBundle(f"chain evidence is at most {MAX_CHAIN_BYTES:,} bytes")
        chain_id, *place, header, account, storage = _list(
            decode(data), "chain evidence", length=len(fields(cls))
        )
        sizes = ADDRESS_BYTES, ADDRESS_BYTES, HASH_BYTES
        contract, publisher, log_id = map(_exactly, sizes, place)
        number = read_number(chain_id, size_bytes=8)
        return cls(number, contract, publisher, log_id, header, account, storage)


@dataclass(frozen=True)
class TrustedBlock:
    """A block that the verifier's user takes for one of the chain, for reasons of his own.

    Attributes:
        chain_id, number: which block of which chain.
        hash: 32 bytes.
        by: who says so, for people, for example `you gave its hash`.
    """

    chain_id: int
    number: int
    hash: bytes
    by: str


@dataclass(frozen=True)
class ChainTrust:
    """What the caller trusts about a chain; nothing of it comes from the bundle.

    Attributes:
        chain_id: of the chain.
        contract, publisher: addresses, 20 bytes each.
        log_id: 32 bytes, see `tree_head.log_id`.
        code_hash: Keccak-256 of the published contract's code.
        address_binds_code: whether the address follows from that code (CREATE2), so that an
            event from there needs no proof of the code.
        blocks: whose hashes are trusted.
    """

    chain_id: int
    contract: bytes
    publisher: bytes
    log_id: bytes
    code_hash: bytes
    address_binds_code: bool = False
    blocks: tuple[TrustedBlock, ...] = ()


@dataclass(frozen=True)
class Block:
    """What is needed of a header; `time_s` in Unix seconds."""

    number: int
    hash: bytes
    time_s: int
    state_root: bytes
    receipts_root: bytes


@dataclass(frozen=True)
class ChainHead:
    """A tree head shown to be on the chain, if `trusted` is; None: the block is not trusted.

    Attributes:
        tree_size, root: what the contract accepted.
        time_s: of the block that accepted it.
        block: as of which this is shown.
        trusted: the block that the caller named, equal to it.
    """

    tree_size: int
    root: bytes
    time_s: int
    block: Block
    trusted: TrustedBlock | None

    @property
    def where(self) -> str:
        """For people: the block as of which the head is shown, and since when it is there."""
        chain = f" of chain {self.trusted.chain_id}" if self.trusted else ""
        time_s = min(self.time_s, _TIME_S_MAX)
        since = datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")
        return f"block {self.block.number:,}{chain}, anchored at {since}"


def open_evidence(
    data: bytes, trust: ChainTrust | None
) -> tuple[tuple[ChainHead, ...], NotAnchored | None]:
    """Return what a bundle's chain evidence shows; or nothing, and why it does not count here.

    Raises a subclass of ProofError as `verify_evidence` does.
    """
    evidence = ChainEvidence.parse(data)
    if trust is None:
        with _check("7.1 header"):
            block = read_block(evidence.header)
    else:
        shown = verify_evidence(evidence, trust)
        if shown.trusted:
            return (shown,), None
        block = shown.block
    name = f"{evidence.chain_id}:{block.number}:0x{block.hash.hex()}"
    return (), NotAnchored(
        f"the file's own chain evidence is of block {name}, and nobody you trust confirmed it",
        next_step=f"compare it with a source you trust, then pass --trusted-block-hash {name}",
    )


def read_block(header: Item) -> Block:
    """Read a block header of any fork since the first; raises MalformedBundle.

    Fields are read by their place and may be followed by more: forks append new ones.
    """
    items = [*_list(header, "a header")]
    if len(items) < _HEADER_FIELDS_MIN or items[_BLOOM] == NO_BLOOM:
        raise MalformedBundle("a header lacks fields, or has zeros for a bloom filter")
    if items[_BLOOM] == b"":
        items[_BLOOM] = NO_BLOOM
    return Block(
        read_number(items[_NUMBER], size_bytes=8),
        keccak256(encode(items)),
        read_number(items[_TIME], size_bytes=8),
        _exactly(HASH_BYTES, items[_STATE_ROOT]),
        _exactly(HASH_BYTES, items[_RECEIPTS_ROOT]),
    )


def verify_evidence(evidence: ChainEvidence, trust: ChainTrust) -> ChainHead:
    """Return the tree head that the evidence shows under `trust`.

    Raises:
        MalformedBundle: header, nodes or values do not parse, or there are too many of them.
        Inconsistent: they contradict each other, or what the caller trusts.
        PolicyUnmet: an event from an address that could hold any code.
    """
    with _check("7.1 header"):
        block = read_block(evidence.header)
    with _check("7.2 place"):
        for name in ("chain_id", "contract", "publisher", "log_id"):
            _same(name, getattr(trust, name), getattr(evidence, name))
    with _check("7.3 block"):
        place = (trust.chain_id, block.number)
        known = [x for x in trust.blocks if (x.chain_id, x.number) == place]
        for item in known:
            _same(f"hash of block {block.number:,} ({item.by})", item.hash, block.hash)
    shown = (_from_storage if isinstance(evidence.account, list) else _from_receipt)(
        evidence, block, trust
    )
    return ChainHead(*shown, block, known[0] if known else None)


def _from_storage(
    evidence: ChainEvidence, block: Block, trust: ChainTrust
) -> tuple[int, bytes, int]:
    """Return size, root and time of the newest head that the contract holds as of the block."""
    with _check("7.4 account"):
        key = keccak256(trust.contract)
        (value,) = look_up(block.state_root, evidence.account, [key])
        account = _list(decode(value), "an account", length=_ACCOUNT_FIELDS)
        storage_root = _exactly(HASH_BYTES, account[_STORAGE_ROOT])
    with _check("7.5 code"):
        _same("code hash", trust.code_hash, account[_CODE_HASH])
    with _check("7.6 storage"):
        slot = head_slot(trust.publisher, trust.log_id)
        keys = [keccak256(((slot + n) % 2**256).to_bytes(HASH_BYTES)) for n in (0, 1)]
        values = map(decode, look_up(storage_root, evidence.storage, keys))
        root, packed = (read_number(value, size_bytes=HASH_BYTES) for value in values)
    return packed % 2**64, root.to_bytes(HASH_BYTES), (packed >> 64) % 2**64


def head_slot(publisher: bytes, log_id: bytes) -> int:
    """Return the number of the slot that holds a head's root; the next one holds its size."""
    return int.from_bytes(keccak256(log_id + keccak256(_word(publisher) + bytes(HASH_BYTES))))


def _from_receipt(
    evidence: ChainEvidence, block: Block, trust: ChainTrust
) -> tuple[int, bytes, int]:
    """Return size, root and time of the last head that a transaction of the block anchored."""
    with _check("7.5 code"):
        if not trust.address_binds_code:
            raise PolicyUnmet(
                "a receipt does not show which code stands at this address",
                next_step="ask for evidence from the contract's storage",
            )
    with _check("7.6 receipt"):
        key = encode(write_number(read_number(evidence.account, size_bytes=8)))
        (value,) = look_up(block.receipts_root, evidence.storage, [key])
        typed = value[:1] < b"\x80"  # EIP-2718; a list, as before it, begins higher
        *_, events = _list(decode(value[typed:]), "a receipt", length=_RECEIPT_FIELDS)
        wanted = [keccak256(_EVENT), _word(trust.publisher), trust.log_id]
        for event in reversed(_list(events, "a list of events")):
            address, topics, data = _list(event, "an event", length=_EVENT_FIELDS)
            if address == trust.contract and topics[: len(wanted)] == wanted:
                said = _exactly(2 * HASH_BYTES, data)
                return int.from_bytes(said[:HASH_BYTES]), said[HASH_BYTES:], block.time_s
        raise Inconsistent("no event of this contract, publisher and log in the receipt")


@contextmanager
def _check(name: str) -> Iterator[None]:
    """Say in an error which check it was."""
    try:
        yield
    except ProofError as error:
        error.message = f"{name}: {error.message}"
        raise


def _same(what: str, expected: Any, actual: Any) -> None:
    if expected != actual:
        shown = [f"0x{x.hex()}" if isinstance(x, bytes) else str(x) for x in (expected, actual)]
        raise Inconsistent(
            f"another {what.replace('_', ' ')} than the one you trust",
            expected=shown[0],
            actual=shown[1],
        )


def _list(item: Item, what: str, *, length: int | None = None) -> list[Item]:
    if not isinstance(item, list) or len(item) != (len(item) if length is None else length):
        raise MalformedBundle(f"this is not {what}")
    return item


def _exactly(size_bytes: int, item: Item) -> bytes:
    if not isinstance(item, bytes) or len(item) != size_bytes:
        raise MalformedBundle(f"a hash or address is not exactly {size_bytes} bytes long")
    return item


def _word(data: bytes) -> bytes:
    return data.rjust(HASH_BYTES, b"\0")
