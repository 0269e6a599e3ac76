"""A closed run's entries leave for an archive; every proof stays, and the entries come back."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rlhf_audit_trail.api.app import create_app
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import static_files
from rlhf_audit_trail.ledger.importing import import_copies
from rlhf_audit_trail.ledger.log import Ledger, LedgerMissing
from rlhf_audit_trail.ledger.mirror import DirectoryTaken, SourceContradiction
from rlhf_audit_trail.ledger.monitor import Monitor
from rlhf_audit_trail.ledger.proof.merkle import verify_consistency
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.pruning import (
    ArchiveDamaged,
    NotPrunable,
    PrunePolicy,
    archived_entries,
    prune,
    read_policy,
)
from rlhf_audit_trail.ledger.public_log import DirectoryLog, NotServed, PublicLog, ServedLog
from rlhf_audit_trail.ledger.reading import Forked, Pruned
from rlhf_audit_trail.ledger.settings import SettingsError, UnknownSetting
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow
from rlhf_audit_trail.ledger.tlog_proof import TlogProof, encode_tlog_proof

CHILD = Path(__file__).parent / "run_until_killed.py"
POLICY = PrunePolicy(reason="kept for as long as the policy says")
SIZE = 600


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def log(ledger, annotation):
    """A closed run of 600 entries, heads at 300 and 600."""
    log = ledger.open_run("run42")
    for size in (300, SIZE):
        log.record_many(annotation(number) for number in range(log.size, size))
        log.publish()
    log.close()
    ledger.registry.publish()
    return log


def contents(directory):
    """Entry and vault rows as they are stored."""
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        return [connection.execute(f"SELECT * FROM {x}").fetchall() for x in ("entry", "vault")]  # noqa: S608


def bytes_left(directory):
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        query = "SELECT sum(length(data)) FROM entry JOIN log ON number = log_number"
        return connection.execute(f"{query} WHERE run_id = 'run42'").fetchone()[0]


def test_every_proof_stays_and_the_entries_come_back(ledger, directory, log, archive, examine):
    before = contents(directory)[0]
    proofs = [log.prove_inclusion(index, SIZE) for index in range(0, SIZE, 7)]
    bundle = log.bundle([0, 255, 599], opened=["prompt"])
    public = dict(static_files(log))
    done = prune(ledger, "run42", archive, POLICY)
    assert (done.tree_size, done.entries, done.vault_rows) == (SIZE, SIZE, 0)
    assert bytes_left(directory) == 0
    assert [log.prove_inclusion(index, SIZE) for index in range(0, SIZE, 7)] == proofs
    heads = log.published(300).head, log.published(600).head
    path = log.prove_consistency(300, 600)
    verify_consistency(300, heads[0].root, 600, heads[1].root, path)
    for ask in (lambda: log.read(3), lambda: list(log.entries()), lambda: log.bundle([3])):
        with pytest.raises(Pruned, match="pruned after the run was closed") as caught:
            ask()
        assert caught.value.archive == str(archive)
        assert str(archive) in caught.value.next_step
    found, summary = examine(directory)
    assert (found, summary.pruned, summary.vault_rows) == (set(), SIZE, SIZE)
    assert {
        str(x.relative_to(archive)): x.read_bytes() for x in archive.rglob("*") if x.is_file()
    } == public
    log.read_pruned_from(archived_entries(archive))
    made = log.bundle([0, 255, 599], opened=["prompt"])
    assert made == bundle
    verify_bundle(made, TrustPolicy(log.verifier_keys))
    import_copies(directory, str(archive))
    assert [row for row in contents(directory)[0] if row in before] == before
    found, summary = examine(directory)
    assert (found, summary.pruned, summary.unopenable) == (set(), 0, 0)
    with Ledger.open(directory) as again:
        assert again.find("run42").opened(3)["prompt"] == "prompt 3"
        assert prune(again, "run42", archive, POLICY).entries == SIZE
    assert examine(directory)[0] == set()


def test_the_registry_log_says_what_went_and_by_which_policy(ledger, log, archive):
    done = prune(ledger, "run42", archive, POLICY)
    (event,) = [x.event for x in ledger.registry.entries(kind="run.pruned")]
    head = log.published().head
    assert (event["run"], event["tree_size"], event["root"]) == ("run42", SIZE, head.root.hex())
    assert (event["archive_digest"], event["policy"]["reason"]) == (
        done.archive_digest, POLICY.reason,
    )  # fmt: skip
    assert str(archive) not in str(event)
    lines = [
        f"{hashlib.sha256((archive / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(dict(static_files_of(archive)))
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == done.archive_digest


def static_files_of(directory):
    return ((str(x.relative_to(directory)), x) for x in directory.rglob("*") if x.is_file())


def test_served_without_its_entries_it_says_so_and_still_proves(
    ledger, log, archive, serve, tmp_path
):
    before = encode_tlog_proof(TlogProof(3, log.prove_inclusion(3, SIZE), log.served_note()))
    prune(ledger, "run42", archive, POLICY)
    with TestClient(create_app(ledger), raise_server_exceptions=False) as client:
        for path in (
            "/rlhf/run42/tile/entries/000",
            "/rlhf/run42/tile/entries/002.p/88",
            "/api/v1/logs/run42/entries/3",
            "/api/v1/logs/run42/entries",
            "/api/v1/logs/run42/entries/3/bundle",
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (410, "pruned"), path
            assert "registry log" in answer.json()["detail"]
            assert str(tmp_path) not in answer.text
        for path in ("checkpoint", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2"):
            assert client.get(f"/rlhf/run42/{path}").status_code == 200
        entry = "/api/v1/logs/run42/entries/3"
        assert client.get(f"{entry}/proof.tlog-proof").content == before
        leaf = client.get(f"{entry}/proof").json()["leaf_hash"]
        assert leaf == log.leaf_at(3).hex()
        assert client.get("/api/v1/logs/run42/consistency?old=300&new=600").status_code == 200
    place = f"{serve(create_app(ledger))}/rlhf/run42"
    with pytest.raises(NotServed, match="entries"):  # who follows it hears of no contradiction
        Monitor(PublicLog(ServedLog(place)), log.verifier_keys).look()
    archived = Monitor(PublicLog(DirectoryLog(archive)), log.verifier_keys)
    assert archived.look().head.size == SIZE


@pytest.mark.usefixtures("log")
def test_sealed_values_go_only_if_the_policy_says_so(ledger, directory, archive, examine):
    policy = PrunePolicy(reason="nobody may open them", drop_vault=True)
    assert prune(ledger, "run42", archive, policy).vault_rows == SIZE
    found, summary = examine(directory)
    assert (found, summary.vault_rows) == (set(), 0)
    import_copies(directory, str(archive))
    found, summary = examine(directory)
    assert (found, summary.unopenable) == (set(), SIZE)


def test_gaps_stay_since_they_explain_missing_numbers(
    ledger, directory, annotation, archive, examine
):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(5))
    log.lose(4, "they were lost on the way")
    log.record(annotation(9)).result()
    log.close()
    assert examine(directory)[0] == set()
    assert prune(ledger, "run42", archive, POLICY).entries == 6
    assert log.read(5).event["kind"] == "gap"
    assert examine(directory)[0] == set()


# --- the disk's room ---------------------------------------------------------------------------


def on_disk(directory):
    return sum(x.stat().st_size for x in directory.glob("ledger.db*") if x.name[-3:] != "shm")


def test_the_room_of_what_went_is_free_again_and_the_ledger_goes_on(
    ledger, directory, annotation, archive, examine
):
    other = ledger.open_run("other")
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(10_000))
    log.close()
    kept = prune(ledger, "run42", archive, POLICY, is_compacting=False)
    assert (kept.freed_bytes, kept.not_freed) == (0, "it was not asked for")
    before = on_disk(directory)
    done = prune(ledger, "run42", archive, POLICY)
    assert (done.entries, done.not_freed) == (0, "")
    assert done.freed_bytes == before - on_disk(directory) > 1_000_000
    receipts = other.record_many(annotation(number) for number in range(5))
    assert [receipt.result() for receipt in receipts] == list(range(5))
    assert examine(directory)[0] == set()


@pytest.mark.usefixtures("log")
def test_while_somebody_else_has_the_ledger_open_he_is_not_made_to_wait(
    ledger, directory, annotation, archive, examine
):
    with Ledger.open(directory) as other:
        busy = other.open_run("busy")
        receipts = busy.record_many(annotation(number) for number in range(2_000))
        done = prune(ledger, "run42", archive, POLICY)
        assert (done.entries, done.freed_bytes) == (SIZE, 0)
        assert done.not_freed == "somebody else has the ledger open"
        assert [receipt.result() for receipt in receipts] == list(range(2_000))
    assert prune(ledger, "run42", archive, POLICY).not_freed == ""
    assert examine(directory)[0] == set()


# --- what may not go ---------------------------------------------------------------------------


def anchor(log, ledger, state):
    head = log.published().head
    row = {"log_number": log.number, "tree_size": head.size, "root": head.root, "chain_id": 1}
    row |= {"contract": "0x", "publisher": "0x", "nonce": 0, "tx_hash": state.encode()}
    row |= {"raw_tx": b"", "state": state, "created_at": "", "reason": ""}
    with writing(ledger.engine) as connection:
        connection.execute(AnchorRow.__table__.insert(), row)


def test_what_is_not_ended_is_not_pruned(ledger, directory, annotation, archive):
    log = ledger.open_run("run42")
    log.record(annotation(0)).result()
    for run, error in (("run42", NotPrunable), ("registry", NotPrunable), ("x", LedgerMissing)):
        with pytest.raises(error):
            prune(ledger, run, archive, POLICY)
    assert not archive.exists()
    assert bytes_left(directory) > 0


def test_the_policy_is_kept_to_the_day(ledger, log, archive):
    policy = PrunePolicy(reason="a year", keep_days=365)
    now = datetime.now(UTC)
    with pytest.raises(NotPrunable, match="keeps the run run42 until"):
        prune(ledger, "run42", archive, policy, now=now + timedelta(days=364))
    assert not archive.exists()
    later = now + timedelta(days=366)
    assert prune(ledger, "run42", archive, policy, now=later).entries == SIZE
    assert log.archive == str(archive)


def test_an_anchor_is_demanded_by_policy_or_by_a_chain(ledger, log, archive):
    strict = PrunePolicy(reason="r", require_anchor=True)
    with pytest.raises(NotPrunable, match="not anchored"):
        prune(ledger, "run42", archive, strict)
    fields = {"chain_id": 1, "contract": "0x", "publisher": "0x"}
    ledger.registry.record(Event("chain.registered", fields)).result()
    anchor(log, ledger, "pending")
    with pytest.raises(NotPrunable, match="not anchored"):
        prune(ledger, "run42", archive, POLICY)
    anchor(log, ledger, "finalized")
    assert prune(ledger, "run42", archive, POLICY).entries == SIZE


def test_a_policy_file_is_read_strictly(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('[prune]\nreason = "r"\nkeep_days = 30\ndrop_vault = true\n', "utf-8")
    assert read_policy(path) == PrunePolicy("r", 30, require_anchor=False, drop_vault=True)
    for text, error in (
        ('[prune]\nreason = "r"\nkeep_day = 3\n', UnknownSetting),
        ('[prune]\nreason = "r"\nkeep_days = "3"\n', SettingsError),
        ('[prune]\nreason = " "\n', SettingsError),
        ('[prune]\nreason = "r"\nkeep_days = -1\n', SettingsError),
        ("", SettingsError),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(error):
            read_policy(path)


# --- the archive is not believed ---------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_nothing_goes_before_the_archive_is_sound(ledger, directory, log, archive):
    before = contents(directory)
    archive.mkdir()
    (archive / "mine").touch()
    with pytest.raises(DirectoryTaken):
        prune(ledger, "run42", archive, POLICY)
    (archive / "mine").unlink()
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        connection.execute(
            "UPDATE entry SET data = CAST(data || ' ' AS BLOB) WHERE leaf_index = 599"
        )
    with pytest.raises(SourceContradiction):
        prune(ledger, "run42", archive, POLICY)
    assert contents(directory)[0][:500] == before[0][:500]
    assert list(ledger.registry.entries(kind="run.pruned")) == []
    assert log.archive == ""


def test_another_archive_is_refused_once_entries_are_gone(ledger, directory, log, archive):
    prune(ledger, "run42", archive, POLICY)
    moved = shutil.copytree(archive, archive.with_name("moved"))
    assert prune(ledger, "run42", moved, POLICY).entries == 0
    assert log.archive == str(moved)  # it was moved, and is sound
    flip(moved / "tile/entries/002.p/88")
    with pytest.raises(ArchiveDamaged):
        prune(ledger, "run42", moved, POLICY)
    with pytest.raises(ArchiveDamaged):
        prune(ledger, "run42", archive.with_name("empty"), POLICY)
    log.read_pruned_from(archived_entries(moved))
    with pytest.raises(Forked, match="entry 599"):
        log.bundle([599])
    assert len(list(ledger.registry.entries(kind="run.pruned"))) == 1
    assert bytes_left(directory) == 0


@pytest.mark.usefixtures("log")
def test_fsck_still_finds_a_wrong_leaf_and_bytes_gone_without_a_word(
    ledger, directory, archive, examine
):
    ledger.close()
    shutil.copytree(directory, archive.with_name("wordless"))
    wordless = archive.with_name("wordless")
    with closing(sqlite3.connect(wordless / "ledger.db")) as connection, connection:
        number = connection.execute("SELECT number FROM log WHERE run_id = 'run42'").fetchone()[0]
        connection.execute("UPDATE entry SET data = x'' WHERE log_number = ?", (number,))
    assert ("run42", "entry", "index 0") in examine(wordless)[0]
    with Ledger.open(directory) as again:
        prune(again, "run42", archive, POLICY)
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        connection.execute(
            "UPDATE entry SET leaf_hash = zeroblob(32) WHERE leaf_index = 599 AND log_number = ?",
            (number,),
        )
    found, _ = examine(directory)
    assert ("run42", "tree_head", "size 600") in found


# --- killed at any moment ----------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_loses_nothing(
    ledger, directory, annotation, archive, examine
):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(12_000))
    log.close()
    before = contents(directory)[0]
    keys, whole = log.verifier_keys, bytes_left(directory)
    ledger.close()
    command = [sys.executable, CHILD, "prune", "run42", "--archive", archive, "--reason", "r"]
    command += ["--ledger", directory]
    files = [("files", number) for number in sorted(chosen.sample(range(1, 95), 3))]
    gone = [("bytes", share) for share in sorted(chosen.sample(range(1, 11), 2))]
    killed = 0
    for what, wanted in files + gone:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None:
            if what == "files" and sum(1 for x in archive.rglob("*") if x.is_file()) >= wanted:
                break
            if what == "bytes" and bytes_left(directory) <= whole * (12 - wanted) / 12:
                break
        child.kill()
        child.wait()
        killed += child.returncode == -9
        if bytes_left(directory) < whole:  # what is not here is in the archive, all of it
            archived = Monitor(PublicLog(DirectoryLog(archive)), keys)
            assert archived.look().head.size == 12_000
        assert examine(directory)[0] == set()
    assert killed
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    assert bytes_left(directory) == 0
    found, summary = examine(directory)
    assert (found, summary.pruned) == (set(), 12_000)
    with Ledger.open(directory) as again:
        assert len(list(again.registry.entries(kind="run.pruned"))) == 1
    import_copies(directory, str(archive))
    after = {row[:2]: row for row in contents(directory)[0]}
    assert all(after[row[:2]] == row for row in before)
    assert examine(directory)[0] == set()
