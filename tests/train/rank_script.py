"""What one of two processes does: `rank_script.py SCENARIO,SCENARIO FOLDER`.

With RANK and WORLD_SIZE in the environment. Each scenario is a run of its own name. Processes
count for themselves, and write what they counted to FOLDER/SCENARIO-counts-RANK.json.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.movement.sharding import UnknownSharding
from rlhf_audit_trail.ranks.log import OnMainProcess
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.trainers.distributed_checkpoint import record_async_save
from rlhf_audit_trail.weights.model_files import read_model

FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
RANK = int(os.environ.get("RANK", "0"))
NAME = [""]  # of the scenario that is running
RATE = 0.1
TIMEOUT = timedelta(seconds=30)


def rows() -> torch.Tensor:
    return torch.linspace(-1, 1, 11 * 4).reshape(11, 4).sin()


def model() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 1).square().mean()


def share(rank: int, size: int = 2) -> list[list[int]]:
    """Return one process's batches: rank 0 has 2, 2 and 2 rows, rank 1 has 2, 2 and 1."""
    mine = list(range(11))[rank::size]
    return [mine[start : start + 2] for start in range(0, len(mine), 2)]


def counted(**counts: Any) -> None:
    (FOLDER / f"{NAME[0]}-counts-{RANK}.json").write_text(json.dumps(counts), "utf-8")


def auditor() -> AuditableRLHF:
    # only the recording process may need the ledger: for the others there is none
    return AuditableRLHF(
        "tiny", ledger=str(FOLDER / ("ledger" if RANK == 0 else "nowhere")), source="simulated"
    )


def train(run: RunRecorder, net: Any, optimizer: Any, batches: list[list[int]]) -> int:
    for step, batch in enumerate(batches):
        run.on_batch_consumed(step, batch)
        optimizer.zero_grad()
        loss_of(net(rows()[batch])).backward()
        optimizer.step()
    return sum(map(len, batches))


def ddp() -> None:
    net = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with auditor().track_training(experiment_name=NAME[0]) as run:
        run.register_model(net, "policy_init")
        run.watch(net, optimizer, algorithm="plain")
        seen = train(run, net, optimizer, share(RANK))
        run.checkpoint(epoch=0, model=net)
        run.metrics(3, {"loss": 0.5})
        if RANK == 1:
            run.gap(2, "two rows were unreadable")
            refused = ""
            try:
                run.log_annotations(prompts=["p"], responses=["r"], rewards=[1.0])
            except OnMainProcess as error:
                refused = error.message
            assert refused, "annotations of another process must be refused"
    if RANK == 0:
        save_file(net.module.state_dict(), FOLDER / f"{NAME[0]}.safetensors")
    counted(rows=seen, updates=3, is_main=run.is_main, other=(FOLDER / "nowhere").exists())


def uneven() -> None:
    """Rank 1 has fewer batches: it shadows the others until they are done, and reports none."""
    net = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    batches = share(RANK)[: 3 - 2 * RANK]
    with auditor().track_training(experiment_name=NAME[0]) as run, Join([net]):
        seen = train(run, net, optimizer, batches)
    counted(rows=seen)


def late() -> None:
    """The process group begins inside the run, as a trainer's may."""
    dist.destroy_process_group()
    with auditor().track_training(experiment_name=NAME[0]) as run:
        join()
        net = DistributedDataParallel(model())
        train(run, net, torch.optim.SGD(net.parameters(), lr=RATE), share(RANK))


def killed() -> None:
    net = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with auditor().track_training(experiment_name=NAME[0]) as run:
        run.watch(net, optimizer)
        for step, batch in enumerate(share(RANK)):
            run.on_batch_consumed(step, batch)
            optimizer.zero_grad()
            loss_of(net(rows()[batch])).backward()
            if (RANK, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()


def failing() -> None:
    """Rank 1 fails after the last collective, so that rank 0 notices nothing by itself."""
    with auditor().track_training(experiment_name=NAME[0]) as run:
        train(run, model(), torch.optim.SGD(model().parameters(), lr=RATE), share(RANK))
        if RANK == 1:
            raise LookupError


def alone() -> None:
    """Only rank 0 knows of the record."""
    if RANK == 0:
        with auditor().track_training(experiment_name=NAME[0]) as run:
            train(run, model(), torch.optim.SGD(model().parameters(), lr=RATE), share(RANK))


def fsdp() -> None:
    """FSDP2: the last layer has fewer rows than there are processes, so one holds nothing of it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    net = model()
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    exact = torch.optim.SGD(net[0].parameters(), lr=RATE)
    sampled = torch.optim.SGD(net[2].parameters(), lr=RATE)
    with auditor().track_training(experiment_name=NAME[0]) as run:
        run.register_model(net, "policy_init")
        run.watch(net, exact, algorithm="exact", every=3)
        run.watch(net, sampled, algorithm="sampled", delta_norm="sampled", every=3)
        for step, batch in enumerate(share(RANK)):
            run.on_batch_consumed(step, batch)
            loss_of(net(rows()[batch])).backward()
            exact.step()
            sampled.step()
            net.zero_grad()
        run.checkpoint(epoch=0, model=net)
        dcp.save(net.state_dict(), checkpoint_id=FOLDER / "dcp")
        if run.is_main:
            files = FOLDER / "dcp"
            run.checkpoint(epoch=1, model=read_model(files).records(), path=files)
    whole = get_model_state_dict(
        net, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if RANK == 0:
        save_file(whole, FOLDER / f"{NAME[0]}.safetensors")
    counted(rows=5 + (RANK == 0))


def dcp_async() -> None:
    """Shards are written beside the training; each checkpoint is recorded when all of it lies there."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = model()
    fully_shard(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    records = []
    with auditor().track_training(experiment_name=NAME[0]) as run:
        for step, batch in enumerate(share(RANK)):
            run.on_batch_consumed(step, batch)
            loss_of(net(rows()[batch])).backward()
            optimizer.step()
            net.zero_grad()
            folder = FOLDER / f"dcp-async-{step}"
            response = dcp.async_save(net.state_dict(), checkpoint_id=folder)
            records.append(record_async_save(run, response, folder, epoch=step, metrics={"n": 1}))
            if step < 2:  # one at a time, says torch; the last one is left to the run's end
                response.result()
        lost: Future[None] = Future()
        failed = record_async_save(run, lost, FOLDER / "nowhere", epoch=9)
        lost.set_exception(OSError(28, "no space"))
        assert isinstance(failed.exception(), OSError if run.is_main else OnMainProcess)
    if run.is_main:
        assert [x.result().name for x in records] == ["epoch_0", "epoch_1", "epoch_2"]
    counted(rows=5 + (RANK == 0))


def fsdp_stored() -> None:
    """Weights that lie in parts are stored whole."""
    from torch.distributed.fsdp import fully_shard

    net = model()
    fully_shard(net)
    keeping = AuditableRLHF(
        "tiny", ledger=str(FOLDER / "ledger"), source="simulated", storage_backend="local"
    )
    with keeping.track_training(experiment_name=NAME[0]) as run:
        run.checkpoint(epoch=0, model=net)


def fsdp_first() -> None:
    """The first FSDP flattens weights: figures of a part must not pass for those of the whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    net = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    with auditor().track_training(experiment_name=NAME[0]) as run:
        run.watch(net, optimizer)
        train(run, net, optimizer, share(RANK))
        refused = ""
        try:
            run.register_model(net, "policy_final")
        except UnknownSharding as error:
            refused = error.message
        assert refused, "a digest of parts is none"


def documented() -> None:
    """The lines that OPERATING.md shows."""
    page = (Path(__file__).parents[2] / "ledger/OPERATING.md").read_text("utf-8")
    section = page.split("## A training of several processes\n", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    net = DistributedDataParallel(model())
    names = {
        "AuditableRLHF": AuditableRLHF, "model": net, "my_batches": share(RANK),
        "optimizer": torch.optim.SGD(net.parameters(), lr=RATE),
        "loss_of": lambda of, batch: loss_of(of(rows()[batch])),
    }  # fmt: skip
    code = code.replace('"audit"', f'"{FOLDER / "ledger"}", source="simulated"')
    exec(code.replace("run45", NAME[0]), names)  # noqa: S102 - the page's own code


def join() -> None:
    init = (
        f"file://{FOLDER / NAME[0]}-rendezvous" if "TORCHELASTIC_RUN_ID" not in os.environ else None
    )
    dist.init_process_group(
        "gloo", init_method=init, rank=RANK, world_size=int(os.environ["WORLD_SIZE"]),
        timeout=TIMEOUT,
    )  # fmt: skip


SCENARIOS: dict[str, Callable[[], None]] = {
    name: found for name, found in globals().items() if callable(found)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    join()
    for name in sys.argv[1].split(","):
        NAME[0] = name
        SCENARIOS[name]()
    if dist.is_initialized():
        dist.destroy_process_group()
