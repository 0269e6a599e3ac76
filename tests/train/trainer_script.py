"""A script of a trainer of TRL, as torchrun starts it in two processes: `DPO,GRPO FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import trl

from rlhf_audit_trail.auditor import AuditableRLHF
from tests.train.tiny_trainers import (
    Counted,
    asked,
    counted,
    policy,
    preferences,
    settings,
    tokenizer,
)

FOLDER = Path(sys.argv[2])
RANK = int(os.environ["RANK"])


def main(kind: str) -> None:
    counts, tokens = Counted(), tokenizer()
    auditor = AuditableRLHF(
        "tiny", ledger=str(FOLDER / ("ledger" if RANK == 0 else "nowhere")), source="simulated"
    )
    scored = []

    @auditor.reward
    def words(completions: list[str], **_: object) -> list[float]:
        scored.extend(completions)
        return [float(len(set(text.split()))) for text in completions]

    given = {"ref_model": policy(tokens), "train_dataset": preferences(20)}
    more = {}
    if kind == "GRPO":
        given = {"reward_funcs": [words], "train_dataset": asked()}
        more = {"num_generations": 2, "max_completion_length": 8, "beta": 0.0}
    args = settings(FOLDER / kind, save_steps=4, **more)
    trainer = counted(getattr(trl, f"{kind}Trainer"), counts)(
        policy(tokens), args=getattr(trl, f"{kind}Config")(**args), processing_class=tokens, **given
    )
    if kind == "DPO":  # as for whoever tracks the run itself
        with auditor.track_training(experiment_name=kind):
            auditor.attach(trainer).train()
    else:  # and for a run that begins with the trainer, and ends with the process
        trainer.args.run_name = kind
        auditor.attach(trainer).train()
    told = {"rows": counts.rows, "updates": counts.updates, "scored": len(scored)}
    (FOLDER / f"{kind}-counts-{RANK}.json").write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1].split(","):
        main(name)
    torch.distributed.destroy_process_group()
