"""Importing into a real ledger: counted, once each, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.importers import (
    ImportedBefore,
    Reading,
    UnknownFormat,
    UnreadableExport,
    import_annotations,
)
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.run_events import UnknownSource

HUMAN = Reading(source="human")
PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad", "annotator": "ann"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger", organisation="acme.example") as made:
        yield made


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def annotations(log: Log) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = log.entries(kind="annotation.recorded")
    return [(entry.event, log.opened(entry.leaf_index)) for entry in found]


def test_each_row_becomes_an_entry_with_its_line(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    text = [json.dumps(PAIR), "{broken", json.dumps({"prompt": "Q"}), "", "[]", '{"a": NaN}']
    path.write_text("\n".join([*text, json.dumps(PAIR | {"annotator": None})]), "utf-8")
    (tmp_path / "guide.md").write_text("be kind", "utf-8")
    done = import_annotations(
        ledger, "run-1", path, HUMAN, guideline=tmp_path / "guide.md", revision="abc"
    )
    assert (done.rows, done.recorded, done.unattributed) == (6, 2, 1)
    assert done.left_out == {"bad": 4}
    assert [item.row for item in done.left_out_rows] == [2, 3, 5, 6]
    log = ledger.find("run-1")
    (first, opened), (second, other) = annotations(log)
    assert (first["source"], first["row"], second["row"]) == ("human", 1, 7)
    assert opened["response"] == "good"
    assert opened["rejected"] == "bad"
    assert "reward" not in opened  # a choice is no number
    assert opened["annotator"] != "ann"  # a pseudonym
    assert "annotator" not in other
    for entry in log.entries():
        for secret in (b'ann"', b"good", b'"Q"'):
            assert secret not in entry.data
    (told,) = list(log.entries(kind="annotations.imported"))
    assert told.event["left_out"] == {"bad": 4}
    assert told.event["revision"] == "abc"
    assert len(told.event["guideline_digest"]) == 64
    listed = log.opened(told.leaf_index)["left_out_rows"]
    assert listed[0] == [2, "bad", "not JSON"]
    signed = log.published()
    assert signed is not None
    assert signed.head.size == log.size


def test_the_same_file_again_records_nothing(ledger: Ledger, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [PAIR] * 5)
    assert import_annotations(ledger, "run-1", path, HUMAN).recorded == 5
    size = ledger.find("run-1").size
    again = import_annotations(ledger, "run-1", lines(tmp_path / "b.jsonl", [PAIR] * 5), HUMAN)
    assert (again.recorded, again.already, again.is_repeated) == (0, 5, True)
    assert ledger.find("run-1").size == size
    with pytest.raises(ImportedBefore, match="another way"):
        import_annotations(ledger, "run-1", path, Reading(source="user_interaction"))
    assert ledger.find("run-1").size == size
    other = Reading(source="user_interaction")
    assert import_annotations(ledger, "run-1", path, other, is_again=True).recorded == 5
    assert import_annotations(ledger, "run-2", path, HUMAN).recorded == 5


def test_a_dry_run_opens_no_run(ledger: Ledger, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [PAIR] * 5)
    assert import_annotations(ledger, "run-1", path, HUMAN, is_dry=True).annotations == 5
    assert ledger.runs() == []


@pytest.mark.slow
def test_an_import_killed_in_the_middle_goes_on_without_doubling(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", organisation="acme.example").close()
    rows = [PAIR | {"prompt": f"Q{row}"} for row in range(20_000)]
    path = lines(tmp_path / "a.jsonl", rows)
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "ingest", "run-1", str(path),
               "--source", "human", "--ledger", str(tmp_path / "ledger")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        database = tmp_path / "ledger" / "ledger.db-wal"
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if database.exists() and database.stat().st_size > 1_000_000:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    with Ledger.open(tmp_path / "ledger") as ledger:
        log = ledger.find("run-1")
        before = len(list(log.entries(kind="annotation.recorded")))
        assert 0 < before < len(rows)
        assert list(log.entries(kind="annotations.imported")) == []
        done = import_annotations(ledger, "run-1", path, HUMAN)
        assert (done.already, done.recorded) == (before, len(rows) - before)
        found = sorted(entry.event["row"] for entry in log.entries(kind="annotation.recorded"))
        assert found == list(range(1, len(rows) + 1))
        batches = {entry.event["batch"] for entry in log.entries(kind="annotation.recorded")}
        assert batches == {1}


def test_models_are_named_and_kept_apart(ledger: Ledger, tmp_path: Path) -> None:
    ultra = {"instruction": "Q", "completions": [{"response": "A", "overall_score": 7}]}
    path = lines(tmp_path / "ultra.jsonl", [ultra])
    with pytest.raises(UnknownSource, match="name of the model"):
        import_annotations(ledger, "run-1", path, Reading(source="ai_feedback"))
    judged = Reading(source="ai_feedback", judge_model="gpt-4 (2023-06)")
    done = import_annotations(ledger, "run-2", path, judged)
    assert done.judge_models == {"gpt-4 (2023-06)": 1}
    assert done.unattributed == 0
    ((public, sealed),) = annotations(ledger.find("run-2"))
    assert (public["source"], public["judge_model"]) == ("ai_feedback", "gpt-4 (2023-06)")
    assert sealed["reward"] == 7.0


def test_ids_of_two_tools_are_two_people(ledger: Ledger, tmp_path: Path) -> None:
    task = {"id": 1, "data": {"prompt": "Q", "answer1": "a", "answer2": "b"}, "annotations": [
        {"completed_by": 7, "updated_at": f"2026-0{month}-01T00:00:00Z",
         "result": [{"value": {"selected": "left"}}]} for month in (1, 3)]}  # fmt: skip
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]), "utf-8")
    import_annotations(ledger, "run-1", path, Reading(source="human", since="2026-02-01"))
    other = lines(tmp_path / "a.jsonl", [PAIR | {"annotator": "7"}])
    import_annotations(ledger, "run-1", other, HUMAN)
    found = annotations(ledger.find("run-1"))
    assert len(found) == 2
    assert len({sealed["annotator"] for _, sealed in found}) == 2
    assert [public["batch"] for public, _ in found] == [1, 2]
    (told, _) = list(ledger.find("run-1").entries(kind="annotations.imported"))
    assert told.event["left_out"] == {"before_since": 1}


def test_datasets_in_memory_and_in_parquet(ledger: Ledger, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra trl or data is not installed")
    dataset = datasets.Dataset.from_list([PAIR, PAIR | {"prompt": "Q2"}])
    done = import_annotations(ledger, "run-1", dataset, HUMAN, revision="main@1")
    assert done.recorded == 2
    (told,) = list(ledger.find("run-1").entries(kind="annotations.imported"))
    assert told.event["fingerprint"] == dataset._fingerprint
    dataset.to_parquet(tmp_path / "a.parquet")
    assert import_annotations(ledger, "run-2", tmp_path / "a.parquet", HUMAN).recorded == 2
    dataset.to_csv(tmp_path / "a.csv")
    assert import_annotations(ledger, "run-3", tmp_path / "a.csv", HUMAN).recorded == 2
    assert [row["row"] for row, _ in annotations(ledger.find("run-3"))] == [2, 3]
    with pytest.raises(UnknownFormat, match="once"):
        import_annotations(ledger, "run-4", iter([PAIR]), HUMAN)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"x"),
        ("a.json", b"{"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'{"a": "\xff"}'),
        ("a.json", b'{"a": ' + b"9" * 10_000 + b"}"),
        ("a.csv", b"a,b\n\xff,1\n"),
        ("a.csv", b'a,b\n"x\n'),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("a.parquet", b"x"),
    ],
)
def test_hostile_files_are_refused_by_name(
    ledger: Ledger, tmp_path: Path, name: str, data: bytes
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="the extra data is not installed")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableExport):
        import_annotations(ledger, "run-1", tmp_path / name, HUMAN)
    assert ledger.runs() == []


@pytest.mark.parametrize(
    "line",
    [b"[" * 200_000, b"\xff\xfe", b'{"prompt": "\\ud800"', b"null", b'{"chosen": 1e999}',
     b'{"a":' * 50_000],
)  # fmt: skip
def test_hostile_lines_are_counted(ledger: Ledger, tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b"\n" + line + b"\n" + json.dumps(PAIR).encode())
    done = import_annotations(ledger, "run-1", path, HUMAN)
    assert (done.recorded, done.left_out) == (2, {"bad": 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "somebody"},
        {"source": "human", "format": "other"},
        {"source": "human", "columns": {"what": "x"}},
        {"source": "human", "columns": {"prompt": "x"}},
        {"source": "human", "since": "yesterday"},
    ],
)
def test_settings_nobody_could_read_by_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((UnknownFormat, UnknownSource)):
        Reading(**settings)


def ingest(ledger: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["ingest", *arguments, "--ledger", str(ledger)])


def test_the_command_reports_and_repeats(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("question,text,stars,who\nQ,A,4,ann\nQ,B,x,bob\nQ,C\n", "utf-8")
    columns = [
        f"--column={x}"
        for x in ("prompt=question", "response=text", "reward=stars", "annotator=who")
    ]
    done = ingest(ledger.directory, "run-1", str(path), "--source", "human", *columns)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "columns: 3 rows, 1 annotations (1 human)",
        "recorded in run-1: 1; before: 0",
        "  left out, bad: 2",
        "    row 3: the reward is no finite number",
        "    row 4: not as many fields as the header",
    ]
    done = ingest(ledger.directory, "run-1", str(path), "--source", "human", *columns, "--json")
    assert json.loads(done.output)["already"] == 1
    done = ingest(ledger.directory, "run-1", str(path), "--source", "simulated", *columns)
    assert done.exit_code == 2
    done = ingest(ledger.directory, "run-1", str(path), "--source", "human")
    assert done.exit_code == 2
    assert "--column" in done.output
    (tmp_path / "x.json").write_text("{", "utf-8")
    done = ingest(ledger.directory, "run-1", str(tmp_path / "x.json"), "--source", "human")
    assert done.exit_code == 4
