"""The rules that are watched by unless others are given; each with where it comes from."""

from __future__ import annotations

from typing import Final

from rlhf_audit_trail.detectors.rule import Rule

__all__ = ["DEFAULT_RULES"]

# The first seven are those of rlwatch 0.5.1, with conditions added against false alarms. The
# thresholds were tried on the demo's trainings; they are starting points, not laws.
DEFAULT_RULES: Final[tuple[Rule, ...]] = (
    # Entropy collapse: the policy stops exploring (Mnih et al. 2016, arXiv 1602.01783; Cui et
    # al. 2025, arXiv 2505.22617). Below 1 nat, and below a quarter of what was usual: a small
    # vocabulary begins below 1. Half of the 50 steps make a warning.
    Rule(
        name="entropy_collapse", test="below_for", metrics=("entropy",),
        warning=25, critical=50, floor=1.0, baseline=20, window=50,
    ),
    # KL to the reference jumps: more than 3 standard deviations, and twice the usual.
    Rule(
        name="kl_spike", test="spike", metrics=("kl",),
        warning=3.0, critical=4.5, floor=2.0, window=50,
    ),
    # Variance of rewards within a batch: some completions found what others have not.
    Rule(
        name="reward_variance", test="square_ratio", metrics=("reward_std",),
        warning=3.0, critical=6.0, baseline=20,
    ),
    # Two kinds of completion: Hartigan and Hartigan 1985, doi 10.1214/aos/1176346577. The
    # statistic is sqrt(n) times the dip, less what it was at first; rewards that are right or
    # wrong have two kinds from the beginning.
    Rule(
        name="reward_bimodal", test="dip", metrics=("reward_dip", "reward_std"),
        warning=0.6, critical=0.9, floor=0.3, baseline=10, window=3,
    ),
    Rule(
        name="advantage_std", test="ratio", metrics=("advantage_std",),
        warning=3.0, critical=6.0, baseline=20,
    ),
    Rule(
        name="non_finite_loss", test="non_finite", metrics=("loss",),
        warning=1, critical=1, warm_up=0, cooldown=50,
    ),
    Rule(
        name="grad_norm_spike", test="spike", metrics=("grad_norm",),
        warning=3.0, critical=4.5, floor=2.0, window=50,
    ),
    # A mean reward that never once falls back: learning is noisy, exploiting a flaw is not.
    Rule(
        name="reward_monotone", test="monotone", metrics=("reward_mean",),
        warning=25, critical=50, window=51, warm_up=26,
    ),
    # Length as a shortcut to reward: Singhal et al. 2023, arXiv 2310.03716.
    Rule(
        name="length_drift", test="ratio", metrics=("length",),
        warning=1.4, critical=2.0, baseline=20, window=5,
    ),
    # Completions cut at the limit teach the policy from unfinished answers (Yu et al. 2025,
    # DAPO, arXiv 2503.14476).
    Rule(
        name="truncation", test="above_for", metrics=("truncated_share",),
        warning=0.5, critical=0.9, window=10, warm_up=10,
    ),
    # Groups whose completions all score alike give no gradient (DAPO, section 3.2).
    Rule(
        name="frac_reward_zero_std", test="above_for", metrics=("frac_reward_zero_std",),
        warning=0.8, critical=0.95, window=10, warm_up=10,
    ),
    # DPO widens its margin while the chosen answers become less likely, too: Pal et al. 2024,
    # arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847.
    Rule(
        name="chosen_logps_falling", test="falls", metrics=("chosen_logps",),
        warning=0.2, critical=0.5, baseline=10, window=10,
    ),
    # The score follows the distance from the reference: Gao, Schulman, Hilton 2022, arXiv
    # 2210.10760. Their gold score turned within tens of nats a completion.
    Rule(
        name="score_rises_with_kl", test="rises_with", metrics=("reward_mean", "kl"),
        warning=25.0, critical=50.0, floor=0.8, baseline=5, window=20,
    ),
)  # fmt: skip
