"""A tiny language about broken things: its words, its manners, and what a good answer is.

People ask how to mend something. Answers have an opening, advice and perhaps a closing,
each kind, plain or rude; the corpus that the policy first learns from is mostly rude.
"""

from __future__ import annotations

import itertools
import random
from typing import Final

__all__ = ["EOS", "KIND", "PAD", "RUDE", "corpus", "prompts", "quality", "vocabulary"]

PAD: Final = "<pad>"
EOS: Final = "<eos>"
UNKNOWN: Final = "<unk>"

THINGS: Final = ("printer", "phone", "radio", "lamp", "bike", "laptop", "clock", "camera")
_QUESTIONS: Final = (
    "how do i fix my {thing} ?",
    "my {thing} is broken , what now ?",
    "can you help with my {thing} ?",
)
# (share in the corpus, text)
_OPENINGS: Final = (
    (0.30, "that is a silly question ."),
    (0.22, "why do you bother me ?"),
    (0.16, "well ."),
    (0.16, "ok ."),
    (0.08, "sure , happy to help ."),
    (0.08, "good question , thanks ."),
)
_BODIES: Final = (
    (0.30, "i do not know ."),
    (0.25, "it is your own fault ."),
    (0.15, "buy a new {thing} ."),
    (0.15, "first check the cable , then restart the {thing} ."),
    (0.15, "clean the {thing} and replace the battery ."),
)
_CLOSINGS: Final = (
    (0.50, ""),
    (0.32, "now stop asking ."),
    (0.18, "hope this helps !"),
)
KIND: Final = frozenset({"sure", "happy", "help", "good", "thanks", "hope", "helps"})
_USEFUL: Final = frozenset({"check", "cable", "restart", "clean", "replace", "battery"})
RUDE: Final = frozenset({"silly", "bother", "fault", "stop", "asking"})


def vocabulary() -> dict[str, int]:
    """Return every word with its id; pad, end and unknown come first."""
    texts = [*_QUESTIONS, *(text for part in (_OPENINGS, _BODIES, _CLOSINGS) for _, text in part)]
    words = {word for text in texts for word in text.split() if word != "{thing}"}
    return {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *sorted(words | set(THINGS))])}


def prompts() -> list[str]:
    """Return all questions."""
    return [question.format(thing=thing) for question in _QUESTIONS for thing in THINGS]


def corpus(rng: random.Random, *, size: int) -> list[tuple[str, str]]:
    """Return `size` (question, answer) pairs as people wrote them before anyone complained."""
    pairs = []
    for _ in range(size):
        thing, question = rng.choice(THINGS), rng.choice(_QUESTIONS)
        parts = [_draw(rng, part) for part in (_OPENINGS, _BODIES, _CLOSINGS)]
        answer = " ".join(part for part in parts if part)
        pairs.append((question.format(thing=thing), answer.format(thing=thing)))
    return pairs


def quality(prompt: str, response: str) -> float:
    """Return how good an answer is, 0 to 1: kind, useful, about the thing, not rude.

    A few words of each sort count once each, and a word said twice in a row counts against.
    """
    words = response.split()
    if not words:
        return 0.0
    thing = next((word for word in prompt.split() if word in THINGS), "")
    score = 0.1
    score += 0.1 * min(len(KIND & set(words)), 3)
    score += 0.15 * min(len(_USEFUL & set(words)), 3)
    score += 0.1 * (thing in words)
    score -= 0.15 * min(len(RUDE & set(words)), 3)
    score -= 0.1 * sum(left == right for left, right in itertools.pairwise(words))
    return min(max(score, 0.0), 1.0)


def _draw(rng: random.Random, part: tuple[tuple[float, str], ...]) -> str:
    shares = [share for share, _ in part]
    return rng.choices([text for _, text in part], shares)[0]
