"""Rollouts: prompts padded on the left, completions sampled, both models' view of them.

Prompts of unequal length are padded on the left so that all completions start in one
column; positions follow the attention mask, so a prompt's tokens have the positions they
would have alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlhf_audit_trail.ppo.loss import live_mask

__all__ = ["Chooser", "Forward", "Sequences", "ValueHead", "forward", "join", "pad_left", "sample"]


class Chooser(Protocol):
    """Where the randomness of sampling comes from, if not from a generator of torch."""

    device: torch.device

    def choose(self, chances: torch.Tensor) -> torch.Tensor:
        """Return (B,) ids drawn with (B, V) probabilities."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with completions, as token ids.

    Attributes:
        tokens: (B, Q + R) ids, pad left of the prompt and behind the end.
        attention: (B, Q + R) bool, true for prompt and live tokens.
        prompt_length: Q, columns of the prompt, padding included.
    """

    tokens: torch.Tensor
    attention: torch.Tensor
    prompt_length: int

    @property
    def responses(self) -> torch.Tensor:
        """(B, R) ids of the completions."""
        return self.tokens[:, self.prompt_length :]

    @property
    def live(self) -> torch.Tensor:
        """(B, R) mask of live response tokens."""
        return self.attention[:, self.prompt_length :]

    def live_responses(self) -> list[torch.Tensor]:
        """Return each completion's live token ids."""
        return [ids[live] for ids, live in zip(self.responses, self.live, strict=True)]

    def rows(self, rows: torch.Tensor) -> Sequences:
        """Return some of the rows."""
        return Sequences(self.tokens[rows], self.attention[rows], self.prompt_length)


@dataclass(frozen=True)
class Forward:
    """What a model says about the response positions.

    Attributes:
        log_probs: (B, R, V) float32, of all tokens given what stands before.
        hidden: (B, R, H), last hidden state before each response token.
    """

    log_probs: torch.Tensor
    hidden: torch.Tensor

    def of(self, responses: torch.Tensor) -> torch.Tensor:
        """Return (B, R) log-probabilities of the tokens that were taken."""
        return self.log_probs.gather(-1, responses.unsqueeze(-1)).squeeze(-1)


class ValueHead(torch.nn.Module):
    """A linear value on the hidden state; zero at first, so that it starts without a claim."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (B, R) float32 values of (B, R, H) hidden states."""
        values: torch.Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return values.squeeze(-1).float()


def pad_left(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, Q) ids and mask of prompts with at least one token each."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), pad_id, dtype=torch.long, device=device)
    attention = torch.zeros_like(tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        attention[row, width - len(prompt) :] = True
    return tokens, attention


def join(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    eos_id: int | None,
    device: torch.device,
) -> Sequences:
    """Return given prompts and completions as one batch; completions are padded on the right."""
    tokens, attention = pad_left(prompts, pad_id=pad_id, device=device)
    width = max(len(response) for response in responses)
    right = torch.full((len(responses), width), pad_id, dtype=torch.long, device=device)
    inside = torch.zeros_like(right, dtype=torch.bool)
    for row, response in enumerate(responses):
        right[row, : len(response)] = torch.tensor(list(response), device=device)
        inside[row, : len(response)] = True
    # where pad and end are one id, the padding must not be read as an end: hence `inside`
    return _batch(tokens, attention, right, live_mask(right, eos_id) & inside, pad_id)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    pad_id: int,
    eos_id: int | None,
    generator: torch.Generator | Chooser,
) -> Sequences:
    """Sample one completion per prompt, with the model's key-value cache.

    Random numbers come from `generator` alone, so nothing else in the process can shift them.
    """
    tokens, attention = pad_left(prompts, pad_id=pad_id, device=generator.device)
    known, step, cache = attention, tokens, None
    drawn: list[torch.Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        positions = _positions(known)[:, -step.shape[1] :]
        call = _inputs(model, step, known, positions)
        out = model(**call, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = torch.softmax(out.logits[:, -1].float() / temperature, dim=-1)
        chosen = _chosen(chances, generator)
        chosen = torch.where(ended, torch.full_like(chosen, pad_id), chosen)
        drawn.append(chosen)
        known = torch.cat([known, ~ended[:, None]], dim=1)
        ended = ended | (chosen == eos_id) if eos_id is not None else ended
        if bool(ended.all()):
            break
        step = chosen[:, None]
    responses = torch.stack(drawn, dim=1)
    return _batch(tokens, attention, responses, known[:, tokens.shape[1] :], pad_id)


def forward(model: Any, sequences: Sequences, *, temperature: float) -> Forward:
    """Run a model over whole sequences; the temperature is the one used for sampling."""
    positions = _positions(sequences.attention)
    call = _inputs(model, sequences.tokens, sequences.attention, positions)
    out = model(**call, use_cache=False, output_hidden_states=True)
    before = slice(sequences.prompt_length - 1, -1)  # a token is predicted one column earlier
    logits = out.logits[:, before].float() / temperature
    return Forward(torch.log_softmax(logits, dim=-1), out.hidden_states[-1][:, before])


def _chosen(chances: torch.Tensor, generator: torch.Generator | Chooser) -> torch.Tensor:
    if isinstance(generator, torch.Generator):
        return torch.multinomial(chances, 1, generator=generator).squeeze(1)
    return generator.choose(chances)


def _batch(
    tokens: torch.Tensor,
    attention: torch.Tensor,
    responses: torch.Tensor,
    live: torch.Tensor,
    pad_id: int,
) -> Sequences:
    responses = torch.where(live, responses, torch.full_like(responses, pad_id))
    return Sequences(
        tokens=torch.cat([tokens, responses], dim=1),
        attention=torch.cat([attention, live], dim=1),
        prompt_length=tokens.shape[1],
    )


def _positions(attention: torch.Tensor) -> torch.Tensor:
    return (attention.long().cumsum(dim=1) - 1).clamp(min=0)


def _inputs(
    model: Any, tokens: torch.Tensor, attention: torch.Tensor, positions: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Name the inputs of a causal language model; one with relative positions takes none."""
    inputs = {"input_ids": tokens, "attention_mask": attention.long()}
    # an adapter's own forward takes anything and names nothing: ask the model inside
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" in inspect.signature(inner.forward).parameters:
        inputs["position_ids"] = positions
    return inputs
