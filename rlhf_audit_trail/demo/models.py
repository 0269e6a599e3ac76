"""The demo's models, made here from nothing: tokenizer, policy, reward model. No downloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_audit_trail.demo.language import EOS, PAD, UNKNOWN, vocabulary

__all__ = [
    "RewardModel",
    "fit_reward_model",
    "imitate",
    "make_policy",
    "make_tokenizer",
]

IGNORED: Final = -100  # a label that counts for nothing


def make_tokenizer() -> Any:
    """Return a tokenizer with one token per word of the tiny language."""
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def make_policy(tokenizer: Any, *, hidden_size: int = 64) -> Any:
    """Return a GPT-2 of two layers with random weights from torch's global generator."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=hidden_size,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


class RewardModel(torch.nn.Module):
    """Reads prompt and answer word by word and returns one score from 0 to 1."""

    def __init__(self, vocabulary_size: int, *, width: int = 32, hidden_size: int = 64) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary_size, width)
        self.reader = torch.nn.GRU(width, hidden_size, batch_first=True)
        self.score = torch.nn.Linear(hidden_size, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (B,) scores of (B, T) ids; what the mask hides is not read."""
        # padding may stand on either side: bring what counts to the front
        order = torch.argsort(attention_mask, dim=1, descending=True, stable=True)
        states, _ = self.reader(self.embedding(input_ids.gather(1, order)))
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(len(last), device=last.device)
        scores: torch.Tensor = torch.sigmoid(self.score(states[rows, last]))
        return scores.squeeze(-1)


@dataclass(frozen=True)
class Fit:
    """How a reward model fits: mean loss at the end, and correlation with what it had to learn."""

    loss: float
    correlation: float


def imitate(
    policy: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    after_step: Callable[[Any, float], None],
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> None:
    """Train the policy on (prompt, answer) pairs; `after_step(optimizer, loss)` follows each."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate)
    order = torch.randperm(len(pairs)).tolist()
    policy.train()
    for step in range(steps):
        rows = [order[(step * batch_size + i) % len(pairs)] for i in range(batch_size)]
        texts = [f"{pairs[row][0]} {pairs[row][1]} {EOS}" for row in rows]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, :-1]
        wanted = ids.masked_fill(mask == 0, IGNORED)[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after_step(optimizer, loss.item())


def fit_reward_model(
    model: RewardModel,
    tokenizer: Any,
    texts: Sequence[str],
    ratings: Sequence[float],
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
) -> Fit:
    """Fit the reward model to single ratings.

    The loss is the absolute error for all but small ones: like a median, it lets one
    annotator who rates upside down count little.
    """
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wanted = torch.tensor(list(ratings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        rows = torch.randint(len(wanted), (batch_size,))
        found = model(ids[rows], mask[rows])
        loss = torch.nn.functional.smooth_l1_loss(found, wanted[rows], beta=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        found = model(ids, mask)
        final = torch.nn.functional.smooth_l1_loss(found, wanted, beta=0.1)
        pair = torch.corrcoef(torch.stack([found, wanted]))
    return Fit(loss=float(final), correlation=float(pair[0, 1]))
