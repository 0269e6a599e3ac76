"""Noise slots: secrets committed to before a public coin is drawn, so that noise cannot be chosen.

    seed(j) = HMAC-SHA256(K, j)                              K: the round's 32 secret bytes
    leaf(j) = SHA-256(0x00 || "noise-slot" || j || seed(j))  j: slot, 8 bytes big-endian
    root    = RFC 6962 tree over leaf(0), ..., leaf(count - 1)
    noise(j) is drawn by the stream `bits.SeededBits` of SHA-256(seed(j) || coin || j)

The root is published and anchored while nobody knows the coin; afterwards neither K, nor the
order of the slots, nor the noise of one can be changed. Who holds K and an answer drawn by
randomised response holds the raw value: K is as secret as the values are, and an opening
shows one slot's values to whoever gets it. Neither prints, nor is pickled.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from os import urandom
from struct import Struct
from typing import Any, Final, NoReturn

from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.merkle import (
    HASH_BYTES,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_inclusion,
)
from rlhf_audit_trail.privacy.bits import SEED_BYTES, SeededBits, slot_seed
from rlhf_audit_trail.privacy.errors import (
    InvalidParameter,
    NoiseProtocolError,
    RestrictedField,
    WrongSlotOpening,
)

__all__ = ["OPENING_BYTES_MAX", "SLOTS_MAX", "NoiseSlots", "SlotOpening"]

SLOTS_MAX: Final = 1 << 20  # of one round; their nodes take 64 bytes each while it is open
OPENING_BYTES_MAX: Final = 2048  # of JSON: 20 hashes of 67 bytes, a seed and a number

_PATH_MAX: Final = (SLOTS_MAX - 1).bit_length()
_LEAF_PREFIX: Final = b"noise-slot"
_LEAF: Final = Struct(f">{len(_LEAF_PREFIX)}sQ{SEED_BYTES}s")
_INDEX: Final = Struct(">Q")
_KEYS: Final = ("path", "seed", "slot")


class NoiseSlots:
    """The secret of one round and the tree over its slots.

    Made again from the vault it has the same root. It holds no position: which slot is next
    is the ledger's to say, which writes every use, and every skip, into an entry.
    """

    __slots__ = ("_count", "_levels", "_root", "_secret")

    def __init__(self, secret: bytes, count: int) -> None:
        """Commit to `count` slots, 1 to 2^20, of a secret of 32 bytes.

        Raises:
            NoiseProtocolError: the secret is not 32 bytes.
            InvalidParameter: the count is out of range.
        """
        if not isinstance(secret, bytes) or len(secret) != SEED_BYTES:
            raise NoiseProtocolError(f"a round's secret must be {SEED_BYTES} bytes")
        self._count = _checked_count(count)
        self._secret = secret
        self._levels = _levels(b"".join(_leaf(j, _seed(secret, j)) for j in range(count)))
        self._root = self._levels[-1]

    @classmethod
    def draw(cls, count: int) -> NoiseSlots:
        """Commit to slots of a new secret from the operating system.

        Raises:
            InvalidParameter: the count is out of range.
        """
        return cls(urandom(SEED_BYTES), count)

    @property
    def secret(self) -> bytes:
        """K, for the vault and nobody else."""
        return self._secret

    @property
    def count(self) -> int:
        """How many slots there are."""
        return self._count

    @property
    def root(self) -> bytes:
        """The public commitment to all slots, 32 bytes."""
        return self._root

    def bits(self, slot: int, coin: bytes) -> SeededBits:
        """Return the stream that draws this slot's noise, once the coin is known.

        Raises:
            NoiseProtocolError: there is no such slot, or the coin is not 32 bytes.
        """
        return SeededBits(slot_seed(_seed(self._secret, self._checked(slot)), coin, slot))

    def open(self, slot: int) -> SlotOpening:
        """Return what proves this slot's seed, and lets its noise be drawn again.

        Raises:
            NoiseProtocolError: there is no such slot.
        """
        path = inclusion_proof(self._checked(slot), self._count, self._node)
        return SlotOpening(slot, _seed(self._secret, slot), path)

    def _checked(self, slot: int) -> int:
        if type(slot) is not int or not 0 <= slot < self._count:
            raise NoiseProtocolError("there is no such slot in this round")
        return slot

    def _node(self, level: int, index: int) -> bytes:
        return self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def __repr__(self) -> str:
        return f"NoiseSlots(count={self._count}, root={self._root.hex()!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RestrictedField("the secret of noise slots is not pickled or copied")


@dataclass(frozen=True)
class SlotOpening:
    """One slot's seed, with the path from its leaf to the round's root.

    To hand it out is to disclose the slot's values, and an `access.read` entry says so.

    Attributes:
        slot: its number, from 0.
        seed: HMAC-SHA256(K, slot), 32 bytes; tells nothing about other slots.
        path: sibling hashes, leaf to root.
    """

    slot: int
    seed: bytes = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)

    def check(self, root: bytes, count: int) -> bytes:
        """Return the seed, shown to be the one committed to at this slot.

        Args:
            root: from the anchored `dp.noise_root` entry.
            count: from the same entry.

        Raises:
            WrongSlotOpening: the path does not lead to that root, or has another form.
            InvalidParameter: the count is out of range.
        """
        _checked_count(count)
        try:
            verify_inclusion(_leaf(self.slot, self.seed), self.slot, count, self.path, root)
        except ProofError as error:
            raise WrongSlotOpening(
                "an opened noise slot is not the one that was committed to",
                next_step="treat the release as made with noise of the operator's choice",
            ) from error
        return self.seed

    def bits(self, coin: bytes) -> SeededBits:
        """Return the stream that draws this slot's noise; `check` the opening first.

        Raises:
            NoiseProtocolError: the coin is not 32 bytes.
        """
        return SeededBits(slot_seed(self.seed, coin, self.slot))

    def to_json(self) -> str:
        """Return the opening as text: secret, for the one reader it is opened to."""
        path = [node.hex() for node in self.path]
        found = {"path": path, "seed": self.seed.hex(), "slot": self.slot}
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> SlotOpening:
        """Read an opening, strictly: compact, keys in order, lower-case hex, nothing else.

        Raises:
            WrongSlotOpening: it has another form; the message does not hold it.
        """
        given = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if len(given) > OPENING_BYTES_MAX:
            raise _malformed()
        try:
            found = _from_fields(json.loads(given))
        except (ValueError, TypeError, RecursionError):
            raise _malformed() from None  # the cause quotes the text
        if found.to_json().encode() != given:
            raise _malformed()
        return found

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RestrictedField("an opened slot is not pickled or copied")


def _from_fields(fields: Any) -> SlotOpening:
    if not isinstance(fields, dict) or tuple(fields) != _KEYS:
        raise ValueError
    path, seed, slot = (fields[key] for key in _KEYS)
    if not isinstance(path, list) or len(path) > _PATH_MAX:
        raise ValueError
    if type(slot) is not int or not 0 <= slot < SLOTS_MAX:
        raise ValueError
    return SlotOpening(slot, _hash(seed), tuple(map(_hash, path)))


def _hash(text: str) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != HASH_BYTES:
        raise ValueError
    return found


def _malformed() -> WrongSlotOpening:
    return WrongSlotOpening("this is no opening of a noise slot: its form is another")


def _checked_count(count: int) -> int:
    if type(count) is not int or not 1 <= count <= SLOTS_MAX:
        raise InvalidParameter(f"a round has 1 to {SLOTS_MAX:,} noise slots")
    return count


def _seed(secret: bytes, slot: int) -> bytes:
    return hmac.digest(secret, _INDEX.pack(slot), "sha256")


def _leaf(slot: int, seed: bytes) -> bytes:
    if len(seed) != SEED_BYTES:  # the format would pad it
        raise WrongSlotOpening("a slot's seed is 32 bytes")
    return leaf_hash(_LEAF.pack(_LEAF_PREFIX, slot, seed))


def _levels(leaves: bytes) -> list[bytes]:
    """Return the tree's complete nodes, level by level in one string each, the root on top.

    An odd last node is moved up unchanged, so that the levels also hold it where it is not
    complete; `inclusion_proof` asks for complete nodes only.
    """
    levels = [leaves]
    while len(nodes := levels[-1]) > HASH_BYTES:
        pairs = range(0, len(nodes) - HASH_BYTES, 2 * HASH_BYTES)
        above = [
            node_hash(nodes[at : at + HASH_BYTES], nodes[at + HASH_BYTES : at + 2 * HASH_BYTES])
            for at in pairs
        ]
        rest = nodes[len(above) * 2 * HASH_BYTES :]
        levels.append(b"".join(above) + rest)
    return levels
