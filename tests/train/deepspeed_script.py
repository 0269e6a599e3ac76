"""A DeepSpeed training in two processes, as its launcher starts it: `2,3 FOLDER`, ZeRO stages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.trainers.deepspeed_engine import engine_records, watch_engine
from tests.train.rank_script import RATE, loss_of, model, rows, share

FOLDER = Path(sys.argv[2])
RANK = int(os.environ["RANK"])


def main(stage: int) -> None:
    net = model()
    settings = {
        "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=net, optimizer=torch.optim.SGD(net.parameters(), lr=RATE), config=settings
    )
    auditor = AuditableRLHF(
        "tiny", ledger=str(FOLDER / ("ledger" if RANK == 0 else "nowhere")), source="simulated"
    )
    with auditor.track_training(experiment_name=f"zero-{stage}") as run:
        watch_engine(run, engine, algorithm="plain")
        for step, batch in enumerate(share(RANK)):
            run.on_batch_consumed(step, batch)
            loss = loss_of(engine(rows()[batch]))
            engine.backward(loss)
            engine.step()
        run.checkpoint(epoch=0, model=engine_records(run, engine))
    told = {"rows": sum(map(len, share(RANK))), "updates": int(engine.global_steps)}
    (FOLDER / f"zero-{stage}-counts-{RANK}.json").write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for text in sys.argv[1].split(","):
        main(int(text))
    torch.distributed.destroy_process_group()
