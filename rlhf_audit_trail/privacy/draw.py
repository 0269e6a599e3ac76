"""Draw noise exactly: integers in, integers out, no float anywhere.

Floating-point Laplace and Gaussian noise leaks: of its outputs for the input 0, a large part
cannot arise from the input 1 (Mironov, CCS 2012). Here every probability is a rational, or
the exponential of one, and is met exactly; only the source of bits is assumed to be uniform.

Each function names the words it takes from the source, in order, so that an auditor can
re-derive a draw from its seed in another language (`tests/privacy/draw_vectors.json`). All
random choices reduce to two:

    below(n)          take words u until u < 2^64 - (2^64 mod n); the result is u mod n;
                      n = 1 takes no word
    bernoulli(p, q)   a uniform real, in base 2^64, lies below p/q: compare digit by digit.
                      Take a word u; d = floor(2^64 p / q), r = 2^64 p mod q. If u != d the
                      result is u < d; if r = 0 it is False; else go on with r / q

`bernoulli` nearly always ends after one word, and is exact for any q.

Time depends on what is drawn (rejection), so it must not be observable per value.

Papers: Canonne, Kamath, Steinke, The Discrete Gaussian for Differential Privacy, NeurIPS
2020 (algorithms 1-3); Warner 1965 and Kairouz, Oh, Viswanath 2014 (randomised response);
Ghosh, Roughgarden, Sundararajan 2009 (geometric mechanism).
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Final

from rlhf_audit_trail.privacy.bits import WORD_BITS, BitSource
from rlhf_audit_trail.privacy.errors import InvalidEpsilon, InvalidParameter
from rlhf_audit_trail.privacy.exact import floor_of

__all__ = [
    "below",
    "bernoulli",
    "bernoulli_exp",
    "centred_binomial",
    "discrete_gaussian",
    "discrete_laplace",
    "keep_threshold",
    "randomised_response",
    "rounded_response",
]

_WORDS: Final = 1 << WORD_BITS  # how many values a word has
LEVELS_MAX: Final = 1 << 20
COINS_MAX: Final = 1 << 20
SCALE_MAX: Final = _WORDS  # numerator of a Laplace scale: `below` goes no further
VARIANCE_MAX: Final = 1 << 126  # so that sigma is such a scale


def below(bits: BitSource, count: int) -> int:
    """Draw a number from 0 to count - 1, all alike; 1 <= count <= 2^64."""
    if not 1 <= count <= _WORDS:
        raise InvalidParameter("a uniform draw is among 1 to 2^64 numbers")
    if count == 1:
        return 0
    limit = _WORDS - _WORDS % count
    while (word := bits.word()) >= limit:
        pass
    return word % count


def bernoulli(bits: BitSource, numerator: int, denominator: int) -> bool:
    """Draw True with probability numerator / denominator; 0 <= numerator <= denominator."""
    if not 0 <= numerator <= denominator or denominator == 0:
        raise InvalidParameter("a probability is from 0 to 1")
    return _bernoulli(bits, numerator, denominator)


def _bernoulli(bits: BitSource, numerator: int, denominator: int) -> bool:
    # u < d exactly if (u + 1) q <= 2^64 p, and u > d if u q > 2^64 p: cheaper than dividing
    target = numerator << WORD_BITS
    product = bits.word() * denominator
    if product > target:
        return False
    if product + denominator <= target:
        return True
    return product != target and _bernoulli(bits, target - product, denominator)  # once in 2^64


def bernoulli_exp(bits: BitSource, numerator: int, denominator: int) -> bool:
    """Draw True with probability exp(-numerator / denominator); both >= 0 (CKS, algorithm 1).

    Words: while the exponent is above 1, those of `_bernoulli_exp_1(1, 1)`, and one less
    of it, until one is False; then those of `_bernoulli_exp_1(rest, denominator)`.
    """
    if numerator < 0 or denominator <= 0:
        raise InvalidParameter("an exponent is 0 or less")
    while numerator > denominator:
        if not _bernoulli_exp_1(bits, 1, 1):
            return False
        numerator -= denominator
    return _bernoulli_exp_1(bits, numerator, denominator)


def _bernoulli_exp_1(bits: BitSource, numerator: int, denominator: int) -> bool:
    """Draw True with probability exp(-x), 0 <= x <= 1; its alternating series, term by term.

    Words: bernoulli(x / 1), bernoulli(x / 2), ... until one is False; True if that was an
    odd one, counted from 1. The first takes no word where its outcome is certain: x is 0 or 1.
    """
    if numerator == 0:
        return True
    term, odd = denominator, True
    if numerator == denominator:
        term, odd = 2 * denominator, False
    while _bernoulli(bits, numerator, term):
        term += denominator
        odd = not odd
    return odd


def discrete_laplace(bits: BitSource, scale: Fraction) -> int:
    """Draw x with probability proportional to exp(-|x| / scale) (CKS, algorithm 2).

    This is the two-sided geometric distribution; with scale = sensitivity / epsilon it makes
    an integer statistic epsilon-private.

    Words, with scale = t / s in lowest terms: u = below(t); bernoulli_exp(u, t), and from the
    beginning if False; then bernoulli_exp(1, 1) until one is False, v being the number of
    True; y = floor((u + t v) / s); bernoulli(1, 2) is the sign, True for minus. Minus
    zero is drawn again from the beginning.
    """
    if scale <= 0 or scale.numerator > SCALE_MAX:
        raise InvalidParameter("a scale is above 0, its numerator at most 2^64")
    return _laplace(bits, scale.numerator, scale.denominator)


def _laplace(bits: BitSource, t: int, s: int) -> int:
    while True:
        u = below(bits, t)
        if not _bernoulli_exp_1(bits, u, t):
            continue
        while _bernoulli_exp_1(bits, 1, 1):
            u += t
        size = u // s
        minus = _bernoulli(bits, 1, 2)
        if size or not minus:
            return -size if minus else size


def discrete_gaussian(bits: BitSource, variance: Fraction) -> int:
    """Draw x with probability proportional to exp(-x^2 / (2 variance)) (CKS, algorithm 3).

    `variance` is the parameter sigma^2; on a coarse grid the actual variance is a little less.

    Words, with variance = p / q in lowest terms and t = floor(sqrt(p / q)) + 1: y =
    discrete_laplace(t); bernoulli_exp((|y| q t - p)^2, 2 p q t^2); from the beginning if False.
    """
    p, q = variance.numerator, variance.denominator
    if not 0 < variance <= VARIANCE_MAX:
        raise InvalidParameter("a variance is above 0, and at most 2^126")
    t = isqrt(p // q) + 1
    step, denominator = q * t, 2 * p * q * t * t
    while True:
        y = _laplace(bits, t, 1)
        if bernoulli_exp(bits, (abs(y) * step - p) ** 2, denominator):
            return y


def centred_binomial(bits: BitSource, coins: int) -> int:
    """Draw the number of heads among `coins` fair coins, minus half of them; `coins` is even.

    Words: ceil(coins / 64); heads are the one bits, of the last word only its highest
    coins mod 64 bits where that is not 0.
    """
    if not 2 <= coins <= COINS_MAX or coins % 2:  # noqa: PLR2004 - two coins are the fewest
        raise InvalidParameter(f"coins are an even number from 2 to {COINS_MAX}")
    whole, rest = divmod(coins, WORD_BITS)
    heads = sum(bits.word().bit_count() for _ in range(whole))
    if rest:
        heads += (bits.word() >> (WORD_BITS - rest)).bit_count()
    return heads - coins // 2


def keep_threshold(epsilon: Fraction, levels: int) -> int:
    """Return T: randomised response keeps the truth if a 64-bit word is below T.

    T = floor(2^64 e^eps / (e^eps + k - 1)), exactly. Rounding down gives up a little truth,
    so that the epsilon kept, ln(T (k - 1) / (2^64 - T)), is never above the one claimed.

    Raises:
        InvalidEpsilon: not above 0, or so small that 64 bits cannot favour the truth.
        InvalidParameter: `levels` is not from 2 to 2^20.
    """
    if not 2 <= levels <= LEVELS_MAX:  # noqa: PLR2004 - two answers are the fewest
        raise InvalidParameter(f"answers are from 2 to {LEVELS_MAX}")
    if epsilon <= 0:
        raise InvalidEpsilon("epsilon must be above 0")
    found = floor_of(lambda y: _WORDS * y / (y + levels - 1), epsilon)
    if found * levels < _WORDS:
        raise InvalidEpsilon("epsilon is too small for 64-bit randomised response")
    return found


def randomised_response(bits: BitSource, value: int, *, levels: int, threshold: int) -> int:
    """Return `value` with probability threshold / 2^64, else one of the other levels, all alike.

    Words: u, and the value is kept if u < threshold; else r = below(levels - 1), and the
    answer is r if r < value, else r + 1. How many words are taken does not depend on `value`.

    Raises:
        InvalidParameter: `value` is not from 0 to levels - 1.
    """
    if not 0 <= value < levels:
        raise InvalidParameter("a value is outside its levels")
    if bits.word() < threshold:
        return value
    other = below(bits, levels - 1)
    return other if other < value else other + 1


def rounded_response(bits: BitSource, numerator: int, denominator: int, *, threshold: int) -> int:
    """Round a position in [0, 1] to 0 or 1 without bias, and answer that by randomised response.

    Words: bernoulli(numerator, denominator), whether or not in lowest terms; then those of
    `randomised_response` with two levels. Always two, but for once in 2^64 draws.
    """
    one = bernoulli(bits, numerator, denominator)
    return int(one if bits.word() < threshold else not one)
