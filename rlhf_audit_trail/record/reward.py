"""Reward functions that record what they return, and change nothing else about themselves.

A trainer that records its own rollouts collects the calls instead, so that each completion
stands in one entry; it then also knows None from NaN, which TRL makes one of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_audit_trail.capture import plain_value

__all__ = ["RewardCall", "recorded_reward"]


@dataclass(frozen=True)
class RewardCall:
    """What one call of a reward function returned, one value per completion."""

    name: str
    values: Sequence[Any]


class _Recorder(Protocol):
    reward_calls: list[RewardCall] | None

    def on_rollouts_scored(
        self, prompts: Any, completions: Any, rewards: dict[str, Any], *, token_ids: Any
    ) -> Any: ...

    def kept_alive(self, what: str) -> Any: ...


def recorded_reward(
    function: Callable[..., Any], recorder_of: Callable[[], _Recorder]
) -> Callable[..., Any]:
    """Return `function`, sync or async as it is and under its name, recording what it returns.

    Args:
        function: called with prompts and completions, by name or in this order.
        recorder_of: the run to record into, asked at each call.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def record(args: tuple[Any, ...], named: dict[str, Any], returned: Any) -> Any:
        values = returned.tolist() if hasattr(returned, "tolist") else list(returned)
        recorder = recorder_of()
        with recorder.kept_alive("rollout.scored"):
            if recorder.reward_calls is not None:
                plain = [plain_value("rewards", value) for value in values]
                recorder.reward_calls.append(RewardCall(name, plain))
            else:
                prompts, completions = _texts(args, named)
                recorder.on_rollouts_scored(
                    prompts, completions, {name: values}, token_ids=named.get("completion_ids")
                )
        return returned

    if _is_async(function):

        async def scored_later(*args: Any, **named: Any) -> Any:
            return record(args, named, await function(*args, **named))

        return _named_like(scored_later, function, name)

    def scored(*args: Any, **named: Any) -> Any:
        return record(args, named, function(*args, **named))

    return _named_like(scored, function, name)


def _texts(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Return prompts and completions of a call; without prompts, nothing stands for them."""
    completions = named.get("completions", args[1] if len(args) > 1 else args[0] if args else [])
    prompts = named.get("prompts", args[0] if len(args) > 1 else [""] * len(completions))
    return prompts, completions


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - of an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _named_like(
    wrapper: Callable[..., Any], function: Callable[..., Any], name: str
) -> Callable[..., Any]:
    functools.update_wrapper(wrapper, function)
    wrapper.__name__ = name  # trainers make a metric's key of it
    return wrapper
