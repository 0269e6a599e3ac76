"""The arithmetic of PPO against slow references, one completion and one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.ppo.loss import (
    advantages_and_returns,
    clipped_policy_loss,
    clipped_value_loss,
    exact_entropy,
    exact_kl,
    live_mask,
    masked_mean,
    token_rewards,
    whiten,
)

LENGTHS = [5, 1, 3]
LIVE = torch.arange(5)[None, :] < torch.tensor(LENGTHS)[:, None]


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)


def test_live_tokens_end_with_the_first_end_token() -> None:
    responses = torch.tensor([[4, 9, 9, 4], [9, 4, 4, 4], [4, 4, 4, 4], [4, 4, 4, 9]])
    wanted = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert live_mask(responses, 9).int().tolist() == wanted
    assert live_mask(responses, None).all()


def slow_advantages(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> list[float]:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, by its definition."""
    padded = [*values, 0.0]
    deltas = [r + gamma * padded[t + 1] - padded[t] for t, r in enumerate(rewards)]
    return [
        math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@given(
    seed=st.integers(0, 1000),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
)
@settings(deadline=None, max_examples=30)
def test_advantages_match_the_definition(seed: int, gamma: float, lam: float) -> None:
    rewards, values = random_batch(seed)
    found, returns = advantages_and_returns(rewards, values, LIVE, gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        wanted = slow_advantages(
            rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam
        )
        assert found[row, :length].tolist() == pytest.approx(wanted, abs=1e-5)
        assert found[row, length:].tolist() == [0.0] * (5 - length)
        sums = [a + v for a, v in zip(wanted, values[row, :length].tolist(), strict=True)]
        assert returns[row, :length].tolist() == pytest.approx(sums, abs=1e-5)
        assert returns[row, length:].tolist() == [0.0] * (5 - length)


def test_what_stands_behind_the_end_never_counts() -> None:
    rewards, values = random_batch(3)
    dead = ~LIVE
    first = advantages_and_returns(rewards, values, LIVE, gamma=1.0, lam=0.95)
    second = advantages_and_returns(
        rewards + 7 * dead, values - 9 * dead, LIVE, gamma=1.0, lam=0.95
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_score_lands_on_the_last_live_token_and_kl_on_every_one() -> None:
    log_probs, reference = random_batch(1)
    scores = torch.tensor([10.0, 20.0, 30.0])
    found = token_rewards(scores, log_probs, reference, LIVE, kl_coef=0.5)
    for row, length in enumerate(LENGTHS):
        for step in range(5):
            wanted = -0.5 * (log_probs[row, step] - reference[row, step]).item()
            wanted = wanted if step < length else 0.0
            wanted += scores[row].item() if step == length - 1 else 0.0
            assert found[row, step].item() == pytest.approx(wanted)


def test_whitening_is_over_live_tokens() -> None:
    values, _ = random_batch(4)
    found = whiten(values, LIVE)
    assert found[LIVE].mean().item() == pytest.approx(0, abs=1e-6)
    assert found[LIVE].var(correction=0).item() == pytest.approx(1, rel=1e-5)
    assert (found[~LIVE] == 0).all()
    assert torch.isfinite(whiten(torch.ones(3, 5), LIVE)).all()


def test_the_policy_loss_is_the_worse_of_both_ratios() -> None:
    new, old = random_batch(5)
    advantages, _ = random_batch(6)
    found = clipped_policy_loss(new, old, advantages, LIVE, clip_range=0.2)
    losses, clipped, deviations = [], 0, []
    for row, length in enumerate(LENGTHS):
        for step in range(length):
            ratio = math.exp((new[row, step] - old[row, step]).item())
            gain = advantages[row, step].item()
            losses.append(-min(gain * ratio, gain * min(max(ratio, 0.8), 1.2)))
            clipped += abs(ratio - 1) > 0.2
            deviations.append(abs(ratio - 1))
    assert found.loss.item() == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert found.clip_fraction.item() == pytest.approx(clipped / len(losses))
    assert found.ratio_deviation_max.item() == pytest.approx(max(deviations), rel=1e-5)
    assert found.approx_kl.item() >= 0


def test_equal_policies_have_ratio_one_and_the_policy_gradient() -> None:
    old, advantages = random_batch(7)
    new = old.clone().requires_grad_()
    found = clipped_policy_loss(new, old, advantages, LIVE, clip_range=0.2)
    assert found.ratio_deviation_max == 0
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert torch.allclose(gradient, -advantages * LIVE / LIVE.sum())


def test_a_ratio_beyond_the_clip_has_no_gradient() -> None:
    new = torch.tensor([[1.0]], requires_grad=True)
    live = torch.ones(1, 1, dtype=torch.bool)
    found = clipped_policy_loss(new, torch.zeros(1, 1), torch.ones(1, 1), live, clip_range=0.2)
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert gradient.item() == 0.0


def test_the_value_loss_is_the_worse_of_value_and_clipped_value() -> None:
    values, old = random_batch(8)
    returns, _ = random_batch(9)
    found = clipped_value_loss(values, old, returns, LIVE, clip_range=0.2)
    errors = []
    for row, length in enumerate(LENGTHS):
        for step in range(length):
            v, o, r = (x[row, step].item() for x in (values, old, returns))
            near = o + min(max(v - o, -0.2), 0.2)
            errors.append(0.5 * max((v - r) ** 2, (near - r) ** 2))
    assert found.item() == pytest.approx(math.fsum(errors) / len(errors), rel=1e-5)


def test_kl_and_entropy_are_those_of_the_whole_distribution() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    log_p, log_q = torch.tensor(p).log(), torch.tensor(q).log()
    kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert exact_kl(log_p, log_q).item() == pytest.approx(kl, rel=1e-6)
    assert exact_kl(log_p, log_p).item() == 0
    entropy = -math.fsum(a * math.log(a) for a in p)
    assert exact_entropy(log_p).item() == pytest.approx(entropy, rel=1e-6)


def test_a_masked_mean_ignores_the_rest() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0]])
    assert masked_mean(values, torch.tensor([[True, True, False]])).item() == 2.0
