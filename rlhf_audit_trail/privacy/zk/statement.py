"""What a verifiable count is about, and the public coins that follow from a coin.

    context = SHA-256("rlhf-audit/zk/count/v1" || u16 length || origin || u16 length || statistic
                      || u32 participants || u32 coins)
    public coins: words of `bits.SeededBits` of SHA-256("rlhf-audit/zk/public-coins/v1" ||
        context || B), 64 coins in each, the highest bit first

B is the 32 bytes of the `dp.coin` entry.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from rlhf_audit_trail.privacy.bits import SEED_BYTES, WORD_BITS, SeededBits
from rlhf_audit_trail.privacy.errors import InvalidParameter, NoiseProtocolError
from rlhf_audit_trail.privacy.mechanisms import Binomial

__all__ = ["BITS_MAX", "CountStatement"]

BITS_MAX: Final = 1 << 18  # of participants and coins together: 42 MB, half a minute to verify
_TEXT_BYTES_MAX: Final = 1024
_DOMAIN: Final = b"rlhf-audit/zk/count/v1"
_COINS_DOMAIN: Final = b"rlhf-audit/zk/public-coins/v1"


@dataclass(frozen=True)
class CountStatement:
    """Which count a proof is of; every challenge binds it.

    Attributes:
        origin: of the log in which the count is released.
        statistic: name of this one release, never used twice in a log.
        participants: how many annotators contribute one bit each; public.
        mechanism: how many coins are tossed, and what that costs.
    """

    origin: str
    statistic: str
    participants: int
    mechanism: Binomial

    def __post_init__(self) -> None:
        for text in (self.origin, self.statistic):
            if not 1 <= len(text.encode()) <= _TEXT_BYTES_MAX:
                raise InvalidParameter(f"a name has 1 to {_TEXT_BYTES_MAX} bytes of UTF-8")
        if self.participants < 1 or self.participants + self.coins > BITS_MAX:
            raise InvalidParameter(f"a count is over 1 to {BITS_MAX:,} participants and coins")
        if self.mechanism.sensitivity != 1:
            raise InvalidParameter("in a verifiable count each annotator has one bit")

    @property
    def coins(self) -> int:
        """How many coins are tossed; an even number."""
        return self.mechanism.coins

    def digest(self) -> bytes:
        """Return the context of all proofs, 32 bytes."""
        found = hashlib.sha256(_DOMAIN)
        for text in (self.origin.encode(), self.statistic.encode()):
            found.update(len(text).to_bytes(2) + text)
        found.update(self.participants.to_bytes(4) + self.coins.to_bytes(4))
        return found.digest()

    def public_coins(self, coin: bytes) -> list[bool]:
        """Return the coins that flip the private ones.

        Raises:
            NoiseProtocolError: the coin is not 32 bytes.
        """
        if not isinstance(coin, bytes) or len(coin) != SEED_BYTES:
            raise NoiseProtocolError(f"a coin must be {SEED_BYTES} bytes")
        bits = SeededBits(hashlib.sha256(_COINS_DOMAIN + self.digest() + coin).digest())
        return tossed(bits, self.coins)


def tossed(bits: SeededBits, count: int) -> list[bool]:
    """Return `count` fair coins from a stream: 64 of each word, the highest bit first."""
    found: list[bool] = []
    while len(found) < count:
        word = bits.word()
        taken = min(WORD_BITS, count - len(found))
        found += [bool(word >> (WORD_BITS - 1 - at) & 1) for at in range(taken)]
    return found
