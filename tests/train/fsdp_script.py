"""A Trainer of transformers that shards by FSDP2, as torchrun starts it in two processes: FOLDER.

Accelerate takes FSDP for GPUs only; told that these processes have some, its own code shards on
CPUs just as well.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainingArguments

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.movement.sharding import whole_tensors
from rlhf_audit_trail.weights.model_weights import digest_model
from tests.train.tiny_trainers import policy, tokenizer

RANK = int(os.environ["RANK"])


def shard(trainer: Trainer, version: int) -> None:
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["GPT2Block"], state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )  # fmt: skip
    trainer.is_fsdp_enabled = True


def main(folder: Path) -> None:
    tokens = tokenizer()
    model = policy(tokens)
    before = digest_model(model).digest.hex()
    rows = [{"input_ids": [n % 5 + 1, 2, 3, 4], "labels": [n % 5 + 1, 2, 3, 4]} for n in range(8)]
    args = TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=1, max_steps=3, save_steps=2,
        use_cpu=True, bf16=False, report_to=[], logging_steps=1, learning_rate=0.01,
    )  # fmt: skip
    trainer = Trainer(model, args=args, train_dataset=rows)
    shard(trainer, 2)
    auditor = AuditableRLHF(
        "tiny", ledger=str(folder / ("ledger" if RANK == 0 else "nowhere")), source="simulated"
    )
    with auditor.track_training(experiment_name="fsdp"):
        auditor.attach(trainer).train()
    whole = {name: tensor.cpu() for name, tensor in whole_tensors(trainer.model)}
    if RANK == 0:
        after = digest_model(whole).digest.hex()
        (folder / "digests.json").write_text(json.dumps([before, after]), "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[2]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
