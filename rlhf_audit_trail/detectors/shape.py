"""The shape of a batch of completions: what its means do not tell, as a few numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from rlhf_audit_trail.detectors.dip import scaled_dip

__all__ = ["batch_shape"]

_DIP_LEAST: Final = 20  # fewer completions have no groups worth the name
_GROUP_LEAST: Final = 3  # two completions often score alike by chance


def batch_shape(
    prompts: Sequence[Any], scores: Sequence[float | None], finish_reasons: Sequence[Any] | None
) -> dict[str, float]:
    """Return what is known of: reward_dip, frac_reward_zero_std, truncated_share.

    Args:
        prompts: per completion; equal ones make a group.
        scores: total reward per completion; None where nothing scored it.
        finish_reasons: per completion, `length` for one that was cut; or None.
    """
    found: dict[str, float] = {}
    known = [score for score in scores if score is not None and math.isfinite(score)]
    if len(known) == len(scores) >= _DIP_LEAST:
        found["reward_dip"] = scaled_dip(known)
    groups: defaultdict[str, set[float | None]] = defaultdict(set)
    sizes: defaultdict[str, int] = defaultdict(int)
    for prompt, score in zip(prompts, scores, strict=True):
        name = prompt if isinstance(prompt, str) else repr(prompt)
        groups[name].add(score)
        sizes[name] += 1
    # without their prompts, nobody knows which completions belong together
    if None not in prompts and sizes and min(sizes.values()) >= _GROUP_LEAST:
        found["frac_reward_zero_std"] = sum(len(x) == 1 for x in groups.values()) / len(groups)
    if finish_reasons and all(isinstance(reason, str) for reason in finish_reasons):
        cut = sum(reason == "length" for reason in finish_reasons)
        found["truncated_share"] = cut / len(finish_reasons)
    return found
