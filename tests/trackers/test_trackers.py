"""Tree heads in real runs of W&B, MLflow and Trackio, all of them offline."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import Inconsistent
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.trackers import UnknownTracker, require_in, share_at_end, share_head

# each of these brings warnings of its own dependencies
pytestmark = pytest.mark.filterwarnings("ignore")

Opened = tuple[Any, Callable[[], None], Callable[[], dict[str, Any]]]


@pytest.fixture
def auditor(tmp_path: Path) -> Iterator[AuditableRLHF]:
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as ledger:
        yield AuditableRLHF("tiny", ledger=ledger, source="simulated", watch_optimizers=False)


def wandb_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    wandb = pytest.importorskip("wandb", reason="the extra trackers is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="p", mode="offline", dir=str(folder))
    found: dict[str, Any] = {}

    def finish() -> None:
        found.update(dict(run.summary))  # a finished run offline has none any more
        run.finish()
        wandb.teardown()  # its own process writes the file

    def said() -> dict[str, Any]:
        (stored,) = folder.glob("wandb/offline-run-*/*.wandb")  # what `wandb sync` sends
        assert found["rlhf_audit/root"].encode() in stored.read_bytes()
        return {name.removeprefix("rlhf_audit/"): value for name, value in found.items()}

    return run, finish, said


def mlflow_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    mlflow = pytest.importorskip("mlflow", reason="the extra trackers is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((folder / "mlruns").as_uri())
    run = mlflow.start_run()

    def said() -> dict[str, Any]:
        tags = mlflow.MlflowClient().get_run(run.info.run_id).data.tags
        found = {name.removeprefix("rlhf_audit."): value for name, value in tags.items()}
        return found | {"tree_size": int(found["tree_size"])}

    return run, mlflow.end_run, said


def trackio_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    trackio = pytest.importorskip("trackio", reason="the extra trackers is not installed")
    run = trackio.init(project="p", name=folder.name, embed=False)

    def said() -> dict[str, Any]:
        from trackio.utils import TRACKIO_DIR  # read once, at the first import

        with sqlite3.connect(TRACKIO_DIR / "p.db") as database:
            rows = database.execute("select metrics from metrics where run_name = ?", [folder.name])
            found = json.loads(list(rows)[-1][0])
        return {name.removeprefix("rlhf_audit/"): value for name, value in found.items()}

    return run, trackio.finish, said


@pytest.mark.parametrize("opened", [wandb_run, mlflow_run, trackio_run])
@pytest.mark.parametrize("address", ["", "https://log.acme.example/"])
def test_a_tracker_holds_a_head_that_verifies(
    opened: Callable[..., Opened], address: str, auditor: AuditableRLHF, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tracker, finish, said = opened(tmp_path, monkeypatch)
    try:
        with auditor.track_training(experiment_name="run-1") as run:
            run.metrics(1, {"loss": 0.5})
            shared = share_head(run, tracker, address=address)
    finally:
        finish()
    found = said()
    assert {name: found[name] for name in vars(shared)} == vars(shared)
    assert found["verify"].startswith("https://log.acme.example/rlhf/run-1/" if address else "ask")
    signed = open_tree_head(found["signed_head"], run.log.verifier_keys)
    assert (signed.head.size, signed.head.root.hex()) == (found["tree_size"], found["root"])
    require_in(run.log, shared)
    with pytest.raises(Inconsistent):
        require_in(run.log, replace(shared, root="00" * 32))
    with pytest.raises(Inconsistent):
        require_in(run.log, replace(shared, tree_size=10_000))


def test_the_last_head_is_shared_when_the_run_ends(
    auditor: AuditableRLHF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, finish, said = mlflow_run(tmp_path, monkeypatch)
    with auditor.track_training(experiment_name="run-1") as run:
        share_at_end(run, tracker)
    finish()
    assert said()["tree_size"] == run.log.size


def test_something_else_is_refused_at_once(auditor: AuditableRLHF) -> None:
    with (
        auditor.track_training(experiment_name="run-1") as run,
        pytest.raises(UnknownTracker, match="wandb"),
    ):
        share_at_end(run, object())


def test_a_tracker_that_fails_at_the_end_fails_no_training(
    auditor: AuditableRLHF, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @property
        def summary(self) -> Any:
            raise ConnectionError("secret")

    Broken.__module__ = "wandb.sdk"
    with auditor.track_training(experiment_name="run-1") as run:
        share_at_end(run, Broken())
    assert "ConnectionError" in caplog.text
    assert "secret" not in caplog.text
    assert [entry.event["outcome"] for entry in run.log.entries(kind="run.finished")] == [
        "completed"
    ]
