"""A small made-up chain: a state with the contract in it, a block, and receipts.

Tries are built by `ledger/chain/evidence/trie.py`, which its own tests compare with foreign libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.chain.evidence.trie import Trie
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainEvidence, head_slot, read_block
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import Item, encode, write_number

CHAIN_ID: Final = 31337
BLOCK_NUMBER: Final = 1_234
BLOCK_TIME_S: Final = 1_794_701_000
ANCHORED_AT_S: Final = 1_794_700_900
EVENT: Final = keccak256(b"TreeHeadAnchored(address,bytes32,uint64,uint64,bytes32)")


def made_up(what: str, size_bytes: int = 32) -> bytes:
    return hashlib.sha256(what.encode()).digest()[:size_bytes]


CONTRACT: Final = made_up("contract", 20)
PUBLISHER: Final = made_up("publisher", 20)
CODE_HASH: Final = made_up("code")


@dataclass(frozen=True)
class World:
    """What the chain holds: heads by log id, each a size and a root."""

    heads: Mapping[bytes, tuple[int, bytes]]
    publisher: bytes = PUBLISHER
    contract: bytes = CONTRACT
    code_hash: bytes = CODE_HASH
    neighbours: int = 30
    header: Mapping[int, bytes] = field(default_factory=dict)
    bloom: bytes = b""

    def evidence(self, log_id: bytes, about: bytes | None = None) -> ChainEvidence:
        """Evidence of storage for one log; cut down for `about` instead, if that is given."""
        storage, accounts = self.storage(), None
        accounts = self.accounts(storage.root)
        keys = slot_keys(self.publisher, about or log_id)
        return ChainEvidence(
            CHAIN_ID, self.contract, self.publisher, log_id,
            self.block(state_root=accounts.root),
            accounts.prove([keccak256(self.contract)]), storage.prove(keys),
        )  # fmt: skip

    def storage(self) -> Trie:
        """The contract's storage: our heads among those of others."""
        others = {
            made_up(f"log {n}"): (n + 1, made_up(f"root {n}")) for n in range(self.neighbours)
        }
        words: dict[bytes, bytes] = {}
        for log_id, (size, root) in (others | dict(self.heads)).items():
            packed = size | ANCHORED_AT_S << 64 | BLOCK_NUMBER - 9 << 128 | 3 << 192
            values = root, packed.to_bytes(32)
            keys = slot_keys(self.publisher, log_id)
            words |= {k: encode(v.lstrip(b"\0")) for k, v in zip(keys, values, strict=True)}
        return Trie(words)

    def accounts(self, storage_root: bytes) -> Trie:
        """All accounts: the contract's among those of others."""
        others = {
            keccak256(made_up(f"account {n}", 20)): encode(
                [b"", write_number(n), bytes(32), bytes(32)]
            )
            for n in range(self.neighbours)
        }
        own = encode([b"\1", b"", storage_root, self.code_hash])
        return Trie(others | {keccak256(self.contract): own})

    def block(self, *, state_root: bytes = bytes(32), receipts_root: bytes = bytes(32)) -> Item:
        """A header of 21 fields."""
        fields: list[Item] = [made_up(f"field {n}") for n in range(21)]
        fields[2], fields[6], fields[14] = made_up("miner", 20), self.bloom, bytes(8)
        fields[3], fields[5] = state_root, receipts_root
        numbers = {7: 0, 8: BLOCK_NUMBER, 9: 30_000_000, 10: 21_000, 11: BLOCK_TIME_S, 15: 7}
        for place, number in (numbers | {17: 0, 18: 0}).items():
            fields[place] = write_number(number)
        for place, value in self.header.items():
            fields[place] = value
        return fields

    def receipt_evidence(
        self, log_id: bytes, events: list[Item], index: int = 5, count: int = 20
    ) -> ChainEvidence:
        """Evidence of one receipt among others."""
        bodies = {n: receipt([]) for n in range(count)} | {index: receipt(events)}
        keys = {n: encode(write_number(n)) for n in bodies}
        trie = Trie({keys[n]: body for n, body in bodies.items()})
        return ChainEvidence(
            CHAIN_ID, self.contract, self.publisher, log_id,
            self.block(receipts_root=trie.root), write_number(index), trie.prove([keys[index]]),
        )  # fmt: skip


def slot_keys(publisher: bytes, log_id: bytes) -> list[bytes]:
    slot = head_slot(publisher, log_id)
    return [keccak256(((slot + n) % 2**256).to_bytes(32)) for n in (0, 1)]


def event(log_id: bytes, size: int, root: bytes, **changed: Any) -> Item:
    """The contract's event."""
    of = {"contract": CONTRACT, "publisher": PUBLISHER, "kind": EVENT} | changed
    topics = [of["kind"], bytes(12) + of["publisher"], log_id, bytes(31) + b"\3"]
    return [of["contract"], topics, size.to_bytes(32) + root]


def receipt(events: list[Item]) -> bytes:
    """A receipt of type 2."""
    return b"\2" + encode([b"\1", write_number(50_000), bytes(256), events])


def trust(log_id: bytes, evidence: ChainEvidence, **changed: Any) -> dict[str, Any]:
    """What a vector's caller trusts: all of it, the block included."""
    block = read_block(evidence.header)
    values: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "contract": CONTRACT.hex(),
        "publisher": PUBLISHER.hex(),
        "log_id": log_id.hex(),
        "code_hash": CODE_HASH.hex(),
        "address_binds_code": False,
        "blocks": [{"chain_id": CHAIN_ID, "number": block.number, "hash": block.hash.hex()}],
    }
    return {"chain": values | changed}
