"""The store fills up or goes away under a real training: it goes on, or stops, as was chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import TrainerCallback

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger import writer
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from tests.store_faults import no_more_pages, without_table
from tests.train.tiny_trainers import asked, policy, settings, tokenizer

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]
STEPS = 12


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))


def gone(ledger: Ledger) -> AbstractContextManager[None]:
    """Take the entries' table away: whatever is asked of it now fails."""
    return without_table(ledger, "entry")


class Break(TrainerCallback):
    """Breaks the store after the third step, and counts the steps that follow."""

    def __init__(self, breaking: Callable[[], Any]) -> None:
        self.steps = 0
        self.breaking = breaking

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            self.breaking()


def make_trainer(folder: Path, breaking: Break) -> Any:
    tokens = tokenizer()
    arguments = trl.GRPOConfig(
        **settings(folder, max_steps=STEPS, num_generations=2, max_completion_length=8, beta=0.0)
    )
    return trl.GRPOTrainer(
        policy(tokens), args=arguments, train_dataset=asked(), processing_class=tokens,
        reward_funcs=[lambda completions, **_: [float(len(text)) for text in completions]],
        callbacks=[breaking],
    )  # fmt: skip


def make_ledger(folder: Path, on_loss: str) -> Ledger:
    Ledger.create(folder, organisation="acme.example").close()
    with (folder / "rlhf-audit.toml").open("a") as file:
        file.write(f'on_loss = "{on_loss}"\n')
    return Ledger.open(folder)


@pytest.mark.parametrize("broken", [no_more_pages, gone])
def test_a_training_goes_on_and_the_loss_is_counted(broken: Any, tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger", "warn") as ledger, contextlib.ExitStack() as stack:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated")
        breaking = Break(lambda: stack.enter_context(broken(ledger)))
        with auditor.track_training(experiment_name="run-1") as run:
            auditor.attach(make_trainer(tmp_path / "out", breaking)).train()
            stack.close()  # the store returns
        assert breaking.steps == STEPS
        entries = [entry.event for entry in run.log.entries()]
        gaps = [entry for entry in entries if entry["kind"] == "gap"]
        stored = {entry["seq"] for entry in entries}
        told = {seq for gap in gaps for seq in range(gap["first_seq"], gap["last_seq"] + 1)}
        assert sum(gap["count"] for gap in gaps) > STEPS
        assert stored.isdisjoint(told)
        assert stored | told == set(range(max(stored) + 1))  # nothing is missing in silence
        assert entries[-1]["kind"] == "run.finished"


@pytest.mark.parametrize("broken", [no_more_pages, gone])
def test_a_strict_ledger_stops_the_training(broken: Any, tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger", "strict")
    with contextlib.ExitStack() as stack:
        auditor = AuditableRLHF("tiny", ledger=ledger, source="simulated")
        breaking = Break(lambda: stack.enter_context(broken(ledger)))
        with (
            pytest.raises(Exception, match=r"stored|full|taken|entry") as caught,
            auditor.track_training(experiment_name="run-1") as run,
        ):
            auditor.attach(make_trainer(tmp_path / "out", breaking)).train()
        assert 3 <= breaking.steps < 6
        assert caught.value is not None
        stack.close()
    with contextlib.suppress(AuditTrailError):
        ledger.close()
    with Ledger.open(ledger.directory) as again:
        log = again.find("run-1")
        again.open_run("run-1").record_many([])
        log.flush()
        assert sum(entry.event["count"] for entry in log.entries(kind="gap")) > 0
    assert run.run_id == "run-1"
