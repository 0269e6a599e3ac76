"""What does privacy cost: accounting, drawing, a response with its commitment, provable noise?

The floor of accounting is NumPy's bare count of the same integers, that of drawing the one
SHA-256 call that every seeded draw needs at least; both are measured in the same run. The
floor of a verifiable count is one multiplication of a point for each half of a proof.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from benchmarks import Result
from rlhf_audit_trail.ledger.proof.commitment import Opening, commit
from rlhf_audit_trail.privacy.account import Budget
from rlhf_audit_trail.privacy.bits import SeededBits, SystemBits, slot_seed
from rlhf_audit_trail.privacy.cost import gaussian_cost, pure_cost, response_cost
from rlhf_audit_trail.privacy.draw import discrete_gaussian, randomised_response
from rlhf_audit_trail.privacy.interval import Interval
from rlhf_audit_trail.privacy.mechanisms import Binomial, RandomisedResponse, RoundedResponse
from rlhf_audit_trail.privacy.redraw import Noised, check_release
from rlhf_audit_trail.privacy.slots import NoiseSlots, SlotOpening
from rlhf_audit_trail.privacy.stream import StreamFilter, use_counts

_ANNOTATORS = 100_000
_ANNOTATIONS = 10_000_000
_BATCH = 100_000
_BATCHES = 30
_DRAWS = 2_000
_ROUNDS = 7
_DRAW_ROUNDS = 25  # short ones: the machine is shared
_SLOTS = 100_000
_COUNTED = 10_000
_COUNT_ROUNDS = 5
_VARIANCE = Fraction(3631, 100) ** 2  # sigma of the mode moderate, in sensitivities


def run() -> Sequence[Result]:
    """Measure everything; medians."""
    return [*_counting(), *_filtering(), *_drawing(), *_proving(), *_counts_in_zero_knowledge()]


def _counting() -> list[Result]:
    rng = np.random.default_rng(1)
    annotators = rng.integers(0, _ANNOTATORS, _ANNOTATIONS)
    mechanisms = rng.integers(0, 3, _ANNOTATIONS)
    costs = np.array([[response_cost(Fraction(1, 4)).epsilon_units], [3], [5]])

    def one() -> None:
        use_counts(annotators, np.zeros_like(annotators), n_annotators=_ANNOTATORS, n_mechanisms=1)

    def three() -> None:
        found = use_counts(annotators, mechanisms, n_annotators=_ANNOTATORS, n_mechanisms=3) @ costs
        assert found.shape == (_ANNOTATORS, 1)

    bare_s = _median_s(lambda: np.bincount(annotators, minlength=_ANNOTATORS))
    one_s = _median_s(one)
    bare, single = (round(_ANNOTATIONS / 1e6 / spent_s, 1) for spent_s in (bare_s, one_s))
    return [
        Result("10 M annotations, bare int64 bincount", bare, "M/s"),
        Result("10 M annotations, one mechanism", single, "M/s", reference=bare),
        Result(
            "10 M annotations, three mechanisms", round(_median_s(three), 4), "s", bare_s, goal=1
        ),
    ]


def _filtering() -> list[Result]:
    """Batches of one call each, for fresh annotators and for such as are nearly exhausted."""
    rng = np.random.default_rng(2)
    costs = [
        response_cost(Fraction(1, 10)),
        pure_cost(Fraction(1, 20)),
        gaussian_cost(_VARIANCE, 1),
    ]
    batches = [
        (rng.integers(0, _ANNOTATORS, _BATCH), rng.integers(0, 3, _BATCH)) for _ in range(_BATCHES)
    ]

    def rate(epsilon: int) -> float:
        rates = []
        for _ in range(_ROUNDS):
            stream = StreamFilter(Budget.of(epsilon, 1e-6), costs, n_annotators=_ANNOTATORS)
            began = time.perf_counter()
            for batch in batches:
                stream.charge(*batch)
            rates.append(_BATCH * _BATCHES / (time.perf_counter() - began))
        return round(statistics.median(rates))

    goal = {"goal": 2_000_000.0, "lower_is_better": False}
    return [
        Result("streaming filter, all admitted", rate(10), "decisions/s", **goal),
        Result("streaming filter, half refused", rate(1), "decisions/s", **goal),
    ]


def _drawing() -> list[Result]:
    response = RandomisedResponse(Fraction(1, 4), 5)
    rounded = RoundedResponse(Fraction(1, 4), Interval.of(0, 1))
    bits, secret, coin = SystemBits(), b"s" * 32, b"c" * 32

    def hashed(slot: int) -> None:
        hashlib.sha256(secret + slot.to_bytes(23)).digest()

    def gaussian(slot: int) -> None:
        discrete_gaussian(SeededBits(slot_seed(secret, coin, slot)), _VARIANCE)

    def committed(answer: int) -> None:
        commit(Opening("reward", os.urandom(32), b"%d" % answer))

    def respond(slot: int) -> None:
        committed(randomised_response(bits, slot % 5, levels=5, threshold=response.threshold))

    def respond_rounded(slot: int) -> None:
        committed(rounded.respond(bits, slot / _DRAWS))

    floor_us = _each_us(hashed)
    return [
        Result("one SHA-256 of 55 bytes", floor_us, "us"),
        Result("randomised response, commitment", _each_us(respond), "us", floor_us, goal=10),
        Result("rounded response, commitment", _each_us(respond_rounded), "us", floor_us, goal=10),
        Result("discrete Gaussian, own seed each", _each_us(gaussian), "us", floor_us, goal=15),
    ]  # fmt: skip


def _proving() -> list[Result]:
    """Slots of a round of 100,000: committing to one, and an auditor's check of one."""
    coin, response = b"c" * 32, RandomisedResponse(Fraction(1, 4), 5)
    slots = NoiseSlots.draw(_SLOTS)
    root = slots.root
    openings = [slots.open(slot).to_json() for slot in range(_DRAWS)]
    events = [
        Noised(
            response.public(),
            root,
            _SLOTS,
            slot,
            coin,
            response.respond(slots.bits(slot, coin), slot % 5),
        )
        for slot in range(_DRAWS)
    ]

    def hashed(slot: int) -> None:
        hashlib.sha256(root + slot.to_bytes(23)).digest()

    def opened(slot: int) -> None:
        SlotOpening.from_json(openings[slot]).check(root, _SLOTS)

    def audited(slot: int) -> None:
        check_release(events[slot], slot % 5, SlotOpening.from_json(openings[slot]))

    floor_us = _each_us(hashed)
    committed_us = round(1e6 * _median_s(lambda: NoiseSlots.draw(_SLOTS)) / _SLOTS, 2)
    return [
        Result("precommitted noise slot", committed_us, "us", floor_us, goal=10),
        Result("noise-provenance opening check", _each_us(opened), "us", floor_us, goal=50),
        Result("whole audit of one noised event", _each_us(audited), "us", floor_us, goal=50),
    ]


def _counts_in_zero_knowledge() -> list[Result]:
    """Prove and verify one bit each of 10,000 annotators; nothing without the extra `[zk]`."""
    if importlib.util.find_spec("coincurve") is None:
        return []
    from rlhf_audit_trail.privacy.zk.count import (  # noqa: PLC0415 - an extra
        PrivateCount,
        verify_commitments,
        verify_count,
    )
    from rlhf_audit_trail.privacy.zk.group import (  # noqa: PLC0415
        random_scalar,
        scalar_bytes,
        second_generator,
    )
    from rlhf_audit_trail.privacy.zk.statement import CountStatement  # noqa: PLC0415

    mechanism = Binomial(128, Fraction(1), Fraction(1, 10**6))
    statement = CountStatement("example.org/log", "ones", _COUNTED, mechanism)
    coin, bits = b"c" * 32, [slot % 2 for slot in range(_COUNTED)]
    scalars = [scalar_bytes(random_scalar()) for _ in range(_DRAWS)]
    floor_us = _each_us(lambda slot: second_generator().multiply(scalars[slot]))
    private = PrivateCount.draw(statement, bits)
    data, opened = private.proven().to_bytes(), private.open(coin)

    def prove() -> None:
        PrivateCount.draw(statement, bits).proven()

    def verify() -> None:
        assert verify_count(verify_commitments(data, statement), coin, opened) == opened.count

    proven_s, verified_s = (_median_s(work, rounds=_COUNT_ROUNDS) for work in (prove, verify))
    per_bit = 1e6 / (_COUNTED + mechanism.coins)
    return [
        Result("one multiplication of a point", floor_us, "us"),
        Result("bit, committed and proven", round(proven_s * per_bit, 1), "us", floor_us, goal=124),
        Result("bit, verified", round(verified_s * per_bit, 1), "us", floor_us, goal=162),
        Result("count over 10,000 annotators, proven", round(proven_s, 2), "s", goal=1.2),
        Result("count over 10,000 annotators, verified", round(verified_s, 2), "s", goal=1.6),
        Result("count over 10,000 annotators, size", round(len(data) / 1e6, 2), "MB", goal=1.9),
    ]


def _each_us(work: Callable[[int], object]) -> float:
    def all_of_them() -> None:
        for slot in range(_DRAWS):
            work(slot)

    return round(1e6 * _median_s(all_of_them, rounds=_DRAW_ROUNDS) / _DRAWS, 2)


def _median_s(work: Callable[[], object], *, rounds: int = _ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
