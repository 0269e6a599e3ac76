"""Noise from slots has its mechanism's law, is independent, and owes nothing to user seeds."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import exp

import numpy as np
import torch
from scipy.stats import chi2

from rlhf_audit_trail.privacy.mechanisms import DiscreteGaussian, Geometric, RandomisedResponse
from rlhf_audit_trail.privacy.redraw import drawn
from rlhf_audit_trail.privacy.slots import NoiseSlots

ALPHA = 1e-9
COUNT = 20_000
COIN, OTHER = hashlib.sha256(b"public").digest(), hashlib.sha256(b"another").digest()
SLOTS = NoiseSlots(hashlib.sha256(b"statistics").digest(), COUNT)  # fixed: these tests never flake
GAUSSIAN = DiscreteGaussian(Fraction(25, 4))


def noise(coin: bytes = COIN) -> list[int]:
    return [drawn(GAUSSIAN, [0], SLOTS.bits(slot, coin))[0] for slot in range(COUNT)]  # type: ignore[index]


def fits(found: Sequence[int], weight: dict[int, float]) -> bool:
    """Chi-square of draws against weights that are at least five draws each; the rest is one bin."""
    total, counts = sum(weight.values()), Counter(found)
    bins = {x: len(found) * w / total for x, w in weight.items() if len(found) * w / total >= 5}
    rest = len(found) - sum(bins.values())
    others = len(found) - sum(counts[x] for x in bins)
    statistic = sum((counts[x] - e) ** 2 / e for x, e in bins.items())
    if rest >= 1:
        statistic += (others - rest) ** 2 / rest
    return bool(chi2.sf(statistic, len(bins)) > ALPHA)


def test_noise_from_slots_is_the_mechanism_s() -> None:
    found = noise()
    assert fits(found, {x: exp(-x * x / 12.5) for x in range(-40, 41)})
    assert abs(np.var(found) / 6.25 - 1) < 6 * (2 / COUNT) ** 0.5
    assert abs(np.mean(found)) < 6 * 2.5 / COUNT**0.5
    narrow = DiscreteGaussian(GAUSSIAN.variance * Fraction(81, 100))  # nine tenths as wide
    faulty = [drawn(narrow, [0], SLOTS.bits(slot, COIN))[0] for slot in range(COUNT)]  # type: ignore[index]
    assert not fits(faulty, {x: exp(-x * x / 12.5) for x in range(-40, 41)})


def test_geometric_and_responses_are_too() -> None:
    geometric, response = Geometric(Fraction(1, 2)), RandomisedResponse(Fraction(1), 4)
    found = [drawn(geometric, [0], SLOTS.bits(slot, COIN))[0] for slot in range(COUNT)]  # type: ignore[index]
    assert fits(found, {x: exp(-abs(x) / 2) for x in range(-80, 81)})
    answers = [drawn(response, 2, SLOTS.bits(slot, COIN)) for slot in range(COUNT)]
    weight = dict.fromkeys((0, 1, 3), float(response.other)) | {2: float(response.keep)}
    assert fits(answers, weight)  # type: ignore[arg-type]


def test_neighbouring_slots_cells_and_coins_are_independent() -> None:
    ours, theirs = noise(), noise(OTHER)
    cells = [drawn(GAUSSIAN, [0, 0], SLOTS.bits(slot, COIN)) for slot in range(COUNT)]
    pairs = {
        "slots": list(pairwise(ours)),
        "coins": list(zip(ours, theirs, strict=True)),
        "cells of one slot": [tuple(pair) for pair in cells],  # type: ignore[arg-type]
    }
    for name, found in pairs.items():
        correlation = np.corrcoef(np.array(found).T)[0, 1]
        assert abs(correlation) < 6 / len(found) ** 0.5, name
        signs = Counter((np.sign(a), np.sign(b)) for a, b in found)
        first, second = (Counter(np.sign(pair[at]) for pair in found) for at in (0, 1))
        statistic = sum(
            (signs[a, b] - first[a] * second[b] / len(found)) ** 2
            / (first[a] * second[b] / len(found))
            for a in first
            for b in second
        )
        assert chi2.sf(statistic, 4) > ALPHA, name


def in_process(secret: bytes, queue: multiprocessing.Queue[tuple[bytes, list[int]]]) -> None:
    fresh = NoiseSlots.draw(4).secret
    known = [NoiseSlots(secret, 4).bits(slot, COIN).word() for slot in range(4)]
    queue.put((fresh, known))


def test_forked_workers_draw_secrets_of_their_own_and_redraw_the_same_noise() -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[bytes, list[int]]] = context.Queue()
    torch.set_num_threads(1)
    workers = [context.Process(target=in_process, args=(SLOTS.secret, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({fresh for fresh, _ in found} | {NoiseSlots.draw(4).secret}) == 5
    ours = [NoiseSlots(SLOTS.secret, 4).bits(slot, COIN).word() for slot in range(4)]
    assert all(known == ours for _, known in found)


def seeded() -> tuple[bytes, list[int]]:
    random.seed(42)
    np.random.seed(42)  # noqa: NPY002 - what users do
    torch.manual_seed(42)
    slots = NoiseSlots.draw(3)
    return slots.secret, [slots.bits(slot, COIN).word() for slot in range(3)]


def test_user_seeds_decide_nothing_and_are_not_used_up() -> None:
    (first, noise_1), (second, noise_2) = seeded(), seeded()
    assert first != second
    assert not set(noise_1) & set(noise_2)
    after = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(42)
    np.random.seed(42)  # noqa: NPY002
    torch.manual_seed(42)
    assert after == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
