"""Write the vectors of the samplers: `python tests/privacy/make_vectors.py [--check]`.

`redraw.mjs` derives every one of them again from the text of `bits` and `draw` alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from rlhf_audit_trail.privacy import draw
from rlhf_audit_trail.privacy.bits import DRBG_NAME, SeededBits, slot_seed

FILE = Path(__file__).parent / "draw_vectors.json"
DRAWS = 24
SEEDS = 3

PARAMETERS: dict[str, tuple[list[Any], ...]] = {
    "below": ([1], [2], [3], [10], [2**63 + 1], [2**64 - 1], [2**64]),
    "bernoulli": ([0, 1], [1, 1], [1, 2], [1, 3], [10**30, 10**30 + 1], [1, 2**64], [5, 2**70]),
    "bernoulli_exp": ([0, 7], [1, 1], [1, 3], [5, 2], [40, 3], [10**20 + 1, 10**20]),
    "discrete_laplace": (["1"], ["1/3"], ["10"], ["7/2"], ["2560"], ["1000000007/97"]),
    "discrete_gaussian": (["1"], ["1/4"], ["2/3"], ["13184161/10000"], ["1000000"], ["12345678901/89"]),
    "centred_binomial": ([2], [64], [66], [128], [1000], [4096]),
    "randomised_response": (["1", 2, 0], ["1", 2, 1], ["1/4", 2, 1], ["1/10", 5, 4], ["4", 5, 0], ["1/2", 1000, 999]),
    "rounded_response": (["1", "0"], ["1", "1"], ["1", "1/3"], ["1/4", "5404319552844595/9007199254740992"]),
}  # fmt: skip
THRESHOLDS = (
    ("1", 2), ("1", 4), ("1/10", 2), ("1/4", 2), ("1/4", 5), ("1/2", 3), ("4", 5), ("40", 2), ("60", 1000),
    ("1/1000000000000", 2), ("1/1000000000000", 1024), ("123456789/1000000", 7), ("27182818/10000000", 1048576),
)  # fmt: skip


def drawn(sampler: str, parameters: list[Any], bits: SeededBits) -> int:
    """Draw once by the package."""
    if sampler == "randomised_response":
        epsilon, levels, value = parameters
        t = draw.keep_threshold(Fraction(epsilon), levels)
        return draw.randomised_response(bits, value, levels=levels, threshold=t)
    if sampler == "rounded_response":
        epsilon, position = parameters
        t = draw.keep_threshold(Fraction(epsilon), 2)
        return draw.rounded_response(bits, *Fraction(position).as_integer_ratio(), threshold=t)
    function: Callable[..., int] = getattr(draw, sampler)
    return int(function(bits, *(Fraction(p) if isinstance(p, str) else p for p in parameters)))


def seed(text: str) -> bytes:
    return hashlib.sha256(f"vector {text}".encode()).digest()


def vectors() -> dict[str, Any]:
    """Every vector; 64-bit words are hex, since JSON readers round large integers."""
    return {
        "drbg": DRBG_NAME,
        "words": [words(bytes(32)), words(bytes(range(32))), words(b"\xff" * 32)],
        "slots": [slot(0), slot(1), slot(2**32), slot(2**64 - 1)],
        "thresholds": [
            {"epsilon": e, "levels": k, "threshold": f"{draw.keep_threshold(Fraction(e), k):016x}"}
            for e, k in THRESHOLDS
        ],
        "draws": [
            sequence(sampler, parameters, number)
            for sampler, lists in PARAMETERS.items()
            for parameters in lists
            for number in range(SEEDS)
        ],
    }


def words(given: bytes) -> dict[str, Any]:
    bits = SeededBits(given)
    return {"seed": given.hex(), "words": [f"{bits.word():016x}" for _ in range(10)]}


def slot(number: int) -> dict[str, Any]:
    secret, coin = seed("secret"), seed("coin")
    found = slot_seed(secret, coin, number)
    return {"secret": secret.hex(), "coin": coin.hex(), "slot": str(number), "seed": found.hex()}


def sequence(sampler: str, parameters: list[Any], number: int) -> dict[str, Any]:
    """Return several draws from one stream, and the word after them: how many were taken."""
    given = seed(f"{sampler} {parameters} {number}")
    bits = SeededBits(given)
    draws = [str(drawn(sampler, parameters, bits)) for _ in range(DRAWS)]
    texts = [str(parameter) for parameter in parameters]
    return {
        "sampler": sampler,
        "parameters": texts,
        "seed": given.hex(),
        "draws": " ".join(draws),
        "next_word": f"{bits.word():016x}",
    }


def encoded() -> str:
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(FILE.read_text() != encoded())
    FILE.write_text(encoded())
