"""Randomness of a private training: seeded by the operating system, and by nobody else.

A training's seeds are known to whoever reads its settings, and equal seeds give equal noise,
which could then be taken off again. Torch's generator on the CPU would not do either: it uses
32 bits of a seed, which can be tried one by one. So noise and batches come from two generators
of NumPy, each with 128 bits from the operating system, and never leave the process: a forked
child begins anew, and copies are refused.

Not cryptographic: Philox is no cipher, and Gaussian floats have gaps. Statements say so.
"""

from __future__ import annotations

import os
import secrets
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from rlhf_audit_trail.privacy.errors import UnsafeAccounting

__all__ = ["NAME", "OsSeeded"]

NAME: Final = "Philox-4x64, 128-bit key from the operating system; not cryptographic"
_KEY_BITS: Final = 128


class OsSeeded:
    """A generator that nobody can repeat; owned by the thread that trains."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._generator = np.random.Generator(np.random.Philox(key=secrets.randbits(_KEY_BITS)))

    def _here(self) -> np.random.Generator:
        if os.getpid() != self._process:  # forked: two processes must not draw the same
            self._begin()
        return self._generator

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw independent standard normal numbers."""
        return self._here().standard_normal(shape, dtype=np.float32)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw independent numbers from 0 to below 1."""
        return self._here().random(count)

    def chosen(self, size: int, rate: float) -> NDArray[np.int64]:
        """Return which of `size` rows are in a Poisson batch: each with probability `rate`."""
        # 53 bits: of 24, as float32 has, a small rate would be rounded up noticeably
        return np.flatnonzero(self._here().random(size) < rate)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or saved: the copy would draw the same."""
        raise UnsafeAccounting(
            "generators of a private training are neither copied nor saved",
            next_step="make them anew after loading; nothing needs them again",
        )
