"""The demo's two trainings: rewards that double, recorded as they happened."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.demo import bandit, task
from rlhf_audit_trail.demo.annotators import make_pool, rate
from rlhf_audit_trail.demo.language import corpus, prompts, quality, vocabulary
from rlhf_audit_trail.ledger.log import Ledger, Log


def rewards_of(log: Log) -> list[float]:
    return [log.opened(e.leaf_index)["reward_mean"] for e in log.entries(kind="rollout.scored")]


@pytest.mark.train
@pytest.mark.slow
def test_the_language_model_learns_manners_and_the_record_shows_it(auditor: AuditableRLHF) -> None:
    sizes: list[int] = []
    summary = task.train(auditor, "demo-run", lambda: sizes.append(auditor.run().log.size))
    log = auditor.ledger.find("demo-run")
    rewards = rewards_of(log)
    assert len(rewards) == summary.steps == 40
    assert sum(rewards[-5:]) / 5 >= 2 * rewards[0]
    assert summary.reward_start == pytest.approx(rewards[0])
    kl = [log.opened(e.leaf_index)["kl_mean"] for e in log.entries(kind="rollout.scored")]
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert 0.5 < sum(kl[-5:]) / 5 < 10
    # the honest quality rose too: the reward was not hacked
    assert summary.quality_end is not None
    assert summary.quality_start is not None
    assert summary.quality_end > 1.5 * summary.quality_start
    annotations = list(log.entries(kind="annotation.recorded"))
    assert len(annotations) == summary.annotations > 1000
    assert {entry.event["source"] for entry in annotations} == {"simulated"}
    assert len({log.opened(entry.leaf_index)["annotator"] for entry in annotations}) == 6
    assert len(sizes) == 4
    found = auditor.verify_provenance(
        start_checkpoint=summary.first_checkpoint, end_checkpoint=summary.last_checkpoint
    )
    assert found.is_valid
    assert found.updates == 160


def test_the_bandit_learns_and_the_record_shows_it(ledger: Ledger) -> None:
    auditor = AuditableRLHF("bandit", ledger=ledger, source="simulated", watch_optimizers=False)
    sizes: list[int] = []
    summary = bandit.train(auditor, "demo-run", lambda: sizes.append(auditor.run().log.size))
    log = auditor.ledger.find("demo-run")
    rewards = rewards_of(log)
    assert len(rewards) == 40
    assert sum(rewards[-5:]) / 5 >= 2 * rewards[0]
    digests = [entry.event["weights_digest"] for entry in log.entries(kind="checkpoint.saved")]
    assert len(set(digests)) == len(digests) == 5
    assert len(sizes) == 4
    assert auditor.verify_provenance(
        start_checkpoint=summary.first_checkpoint, end_checkpoint=summary.last_checkpoint
    )


def test_the_bandit_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers'): sys.modules[name] = None\n"
        "from rlhf_audit_trail import AuditableRLHF\n"
        "from rlhf_audit_trail.demo.bandit import train\n"
        "from rlhf_audit_trail.ledger.log import Ledger\n"
        "with Ledger.create(sys.argv[1], organisation='acme.example') as ledger:\n"
        "    auditor = AuditableRLHF('b', ledger=ledger, source='simulated', watch_optimizers=False)\n"
        "    print(train(auditor, 'run', lambda: None, steps=4).steps)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ledger")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "4"


def test_the_pool_has_one_adversary_and_people_differ() -> None:
    rng = random.Random(1)
    pool = make_pool(rng)
    assert [person.is_adversary for person in pool] == [False] * 5 + [True]
    assert len({person.bias for person in pool}) == 6
    best, worst = (sum(pool[0].rate(worth, rng) for _ in range(200)) / 200 for worth in (1.0, 0.0))
    assert best > 0.8
    assert worst < 0.2
    upside_down = sum(pool[-1].rate(1.0, rng) for _ in range(200)) / 200
    assert upside_down < 0.2


def test_ratings_are_of_different_people_for_each_answer() -> None:
    rng = random.Random(2)
    found = rate(make_pool(rng), [("p", "a"), ("p", "b")], lambda *_: 0.5, rng)
    assert len(found.rewards) == len(found.prompts) == 6
    assert len(set(found.annotator_ids[:3])) == 3
    assert set(found.rewards) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_language_knows_its_own_words() -> None:
    known = vocabulary()
    for prompt, answer in corpus(random.Random(3), size=300):
        assert set(prompt.split()) <= set(known)
        assert set(answer.split()) <= set(known)
    assert len(prompts()) == 24


@pytest.mark.parametrize(
    ("answer", "low", "high"),
    [
        ("", 0.0, 0.0),
        ("that is a silly question . it is your own fault . now stop asking .", 0.0, 0.0),
        ("i do not know .", 0.05, 0.2),
        ("sure , happy to help . first check the cable , then restart the lamp .", 0.9, 1.0),
        ("sure , happy to help . first check the cable , then restart the bike .", 0.8, 0.9),
        ("help help help help help help", 0.0, 0.0),
    ],
)
def test_good_answers_are_better(answer: str, low: float, high: float) -> None:
    assert low <= quality("how do i fix my lamp ?", answer) <= high
