"""Where random bits come from: the operating system, or a seed an auditor may be shown.

A source gives words of 64 bits and nothing else; every sampler in `draw` is a function of
that stream of words. The seeded stream is specified to the bit, so that whoever holds a
seed can draw again in any language:

    block(i) = SHA-256("dp-sha256-ctr/1" || seed || i)     i = 0, 1, 2, ..., 8 bytes big-endian
    words    = block(0) || block(1) || ..., cut into 8 bytes each, big-endian

The name is 15 ASCII bytes and a seed 32, so a block is one run of SHA-256's compression.
"""

from __future__ import annotations

import hashlib
from os import urandom
from struct import Struct
from typing import Final, Protocol

from rlhf_audit_trail.privacy.errors import NoiseProtocolError

__all__ = ["DRBG_NAME", "SEED_BYTES", "BitSource", "SeededBits", "SystemBits", "slot_seed"]

DRBG_NAME: Final = "dp-sha256-ctr/1"
SEED_BYTES: Final = 32
WORD_BITS: Final = 64

_PREFIX: Final = DRBG_NAME.encode()
_BLOCK: Final = Struct(">4Q")
_INDEX: Final = Struct(">Q")


class BitSource(Protocol):
    """An endless stream of independent, uniform 64-bit words."""

    def word(self) -> int:
        """Return the next word, 0 <= word < 2^64."""


class SystemBits:
    """The operating system's generator.

    Every word is its own call. A buffer would be quicker, and copied by `fork`: two workers
    would then draw the same noise, and their difference would show the raw values.
    """

    __slots__ = ()

    def word(self) -> int:
        """Return eight bytes of the operating system as one word."""
        return int.from_bytes(urandom(8))


class SeededBits:
    """The stream of one seed; never share one object among threads or slots."""

    __slots__ = ("_blocks", "_seed", "_words")

    def __init__(self, seed: bytes) -> None:
        """Begin the stream of this seed.

        Raises:
            NoiseProtocolError: the seed is not 32 bytes.
        """
        _check_length("a seed", seed)
        self._seed = _PREFIX + seed
        self._blocks = 0
        self._words: list[int] = []  # of the current block, the next one last

    def word(self) -> int:
        """Return the next word of the stream."""
        if not self._words:
            block = hashlib.sha256(self._seed + _INDEX.pack(self._blocks)).digest()
            self._blocks += 1
            self._words = list(_BLOCK.unpack(block))
            self._words.reverse()
        return self._words.pop()


def slot_seed(secret: bytes, coin: bytes, slot: int) -> bytes:
    """Return the seed of one noise slot: SHA-256(secret || coin || slot).

    Nothing that could be tried again and again enters: no salt, commitment or time. All
    three have a fixed length, so no two slots or coins share an input.

    Args:
        secret: the slot's own 32 bytes, committed to before the coin was known.
        coin: the public 32 bytes that nobody knew then.
        slot: number of the slot, from 0; 8 bytes big-endian.

    Raises:
        NoiseProtocolError: a length is wrong, or the slot is no number from 0 to 2^64 - 1.
    """
    _check_length("a slot's secret", secret)
    _check_length("a coin", coin)
    if not 0 <= slot < 1 << WORD_BITS:
        raise NoiseProtocolError("a slot is numbered from 0 to 2^64 - 1")
    return hashlib.sha256(secret + coin + _INDEX.pack(slot)).digest()


def _check_length(name: str, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != SEED_BYTES:
        raise NoiseProtocolError(f"{name} must be {SEED_BYTES} bytes")
