"""Reading a signed anchor transaction: what it anchors, where, and who signed it.

Type 2 (EIP-1559) in the one spelling that RLP has, calling `anchor` or `anchorMany` as the
contract's ABI writes them; kernel only, since fsck needs no chain library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.ledger.fsck.secp256k1 import signer_of
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import decode, encode, read_number

__all__ = ["MAX_TX_BYTES", "AnchorCall", "AnchoredMember", "read_transaction"]

MAX_TX_BYTES: Final = 1 << 20  # nodes refuse larger ones than 128 KiB
_TYPE: Final = b"\x02"
_FIELDS: Final = 12
_WORD: Final = 32
_PARAMETERS: Final = 4  # log id, tree size, root, and where the proof begins
_ONE: Final = keccak256(b"anchor(bytes32,uint64,bytes32,bytes32[])")[:4]
_MANY: Final = keccak256(b"anchorMany((bytes32,uint64,bytes32,bytes32[])[])")[:4]


@dataclass(frozen=True)
class AnchoredMember:
    """One tree head of a transaction; log id and root are 32 bytes."""

    log_id: bytes
    tree_size: int
    root: bytes


@dataclass(frozen=True)
class AnchorCall:
    """What a signed transaction says; addresses are 20 bytes, fees per unit of gas in wei."""

    chain_id: int
    nonce: int
    tip_wei: int
    max_fee_wei: int
    contract: bytes
    publisher: bytes
    members: tuple[AnchoredMember, ...]


def read_transaction(data: bytes) -> AnchorCall:
    """Read a transaction's bytes as they were broadcast.

    Raises:
        MalformedBundle: they are no transaction of ours.
    """
    if data[:1] != _TYPE:
        raise MalformedBundle("it is no transaction of type 2")
    item = decode(data[1:])
    if not isinstance(item, list) or len(item) != _FIELDS:
        raise MalformedBundle("it has not the fields of a transaction")
    *unsigned, parity, r, s = item
    chain_id, nonce, tip, cap = (read_number(unsigned[x], size_bytes=32) for x in range(4))
    contract, value, call, access = unsigned[5], unsigned[6], unsigned[7], unsigned[8]
    if not isinstance(contract, bytes) or not isinstance(call, bytes) or value or access:
        raise MalformedBundle("it sends ether or lists storage, or calls nothing")
    signature = [read_number(x, size_bytes=32) for x in (parity, r, s)]
    publisher = signer_of(keccak256(_TYPE + encode(unsigned)), *signature)
    return AnchorCall(chain_id, nonce, tip, cap, contract, publisher, _members(call))


def _members(call: bytes) -> tuple[AnchoredMember, ...]:
    selector, data = call[:4], call[4:]
    if selector == _ONE:
        return (_member(data, 0),)
    if selector != _MANY or _number(data, 0) != _WORD:
        raise MalformedBundle("it calls neither anchor nor anchorMany")
    count = _number(data, _WORD)
    if count * _WORD > len(data):
        raise MalformedBundle("it has fewer members than it says")
    offsets = [_number(data, _WORD * (2 + number)) for number in range(count)]
    return tuple(_member(data, 2 * _WORD + offset) for offset in offsets)


def _member(data: bytes, at: int) -> AnchoredMember:
    """Read the parameters that begin at a byte; the proof is the contract's to check."""
    if _number(data, at + 3 * _WORD) != _PARAMETERS * _WORD:
        raise MalformedBundle("the proof of a member is not where it must be")
    return AnchoredMember(_word(data, at), _number(data, at + _WORD), _word(data, at + 2 * _WORD))


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(_word(data, at))


def _word(data: bytes, at: int) -> bytes:
    word = data[at : at + _WORD]
    if len(word) != _WORD:
        raise MalformedBundle("its call data ends too early")
    return word
