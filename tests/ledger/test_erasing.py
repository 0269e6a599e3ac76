"""Erasing a person: nothing is left to open or to recognise, and every proof stays."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.exported import ExportCheck
from rlhf_audit_trail.ledger.fsck import Summary, fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.commitment import commit
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, verify_inclusion
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.pruning import PrunePolicy, prune
from rlhf_audit_trail.ledger.store import cleansing
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow
from rlhf_audit_trail.ledger.subjects import (
    SubjectMissing,
    erase_subject,
    find_subject,
)
from rlhf_audit_trail.ledger.vault import Erased
from rlhf_audit_trail.ledger.vault_backup import bring_vault_rows
from tests.ledger.anchoring import anchor_rows
from tests.ledger.annotate_on_demand import annotating

HERE = Path(__file__).parent
ADA = "ada.lovelace@engine.example"
OTHERS = ["grace@navy.example", "alan@park.example"]


def annotated(person, number, run):
    sealed = {"prompt": f"{run}, {person} and prompt {number}", "annotator": person}
    sealed |= {"response": f"an answer of some length, number {number}", "reward": number / 7}
    return Event("annotation.recorded", {"source": "human", "batch": number}, sealed, person)


def fill(ledger, *, rounds=120):
    for run in ("first", "second"):
        log = ledger.open_run(run)
        people = [ADA, *OTHERS]
        events = (annotated(people[x % 3], x, run) for x in range(3 * rounds))
        log.record_many(events)[-1].result()
        log.publish()


def secrets_of(directory, tag):
    """Everything that must not be found afterwards: secret, tag, ciphertexts."""
    with closing(sqlite3.connect(directory / "vault-keys.db")) as keys:
        found = keys.execute("SELECT secret FROM subject_key WHERE subject = ?", (tag,)).fetchall()
    with closing(sqlite3.connect(directory / "ledger.db")) as stored:
        texts = stored.execute("SELECT ciphertext FROM vault WHERE subject = ?", (tag,)).fetchall()
    return [tag, *(row[0] for row in found), *(row[0] for row in texts)]


def files_with(directory, needles):
    found = set()
    for path in directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found |= {path.name for needle in needles if needle in data}
    return found


def spelled(openings):
    """How a value or salt could stand in a file."""
    for opening in openings:
        for data in (opening.value, opening.salt):
            if len(data) >= 12:  # shorter ones are found by chance
                yield from (data, data.hex().encode())


def test_nothing_is_left_in_any_file_while_the_ledger_is_open(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger)
        log = ledger.find("first")
        tag = ledger.vault.subject_tag(ADA, log.origin)
        subject = find_subject(ledger, ADA)
        openings = [x for index in subject.runs[0].indices for x in log.openings(index)]
        needles = [*secrets_of(directory, tag), *spelled(openings), ADA.encode()]
        needles += [run.pseudonym.encode() for run in subject.runs]
        assert {"ledger.db-wal", "vault-keys.db-wal"} <= files_with(directory, needles)
        done = erase_subject(ledger, ADA, basis="request")
        assert done.entries == {"first": 120, "second": 120}
        assert (done.is_secret_destroyed, done.leftovers) == (True, [])
        assert files_with(directory, needles) == set()
        with pytest.raises(Erased):
            log.openings(0)
        assert log.opened(1)["prompt"].endswith("prompt 1")
        with pytest.raises(SubjectMissing) as caught:
            find_subject(ledger, ADA)
        assert ADA not in str(caught.value)
    assert files_with(directory, needles) == set()


def test_no_commitment_opens_by_trying_all_that_could_be_known(directory):
    """Whoever knows id, values and every key that is left still cannot tell whose entry it was."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=4)
        log = ledger.find("first")
        pseudonym = find_subject(ledger, ADA).runs[0].pseudonym
        known = log.openings(0)  # as the thief knows them, but for the salts
        erase_subject(ledger, ADA, basis="request")
        entry = json.loads(log.read(0).data)
    files = {x: x.read_bytes() for x in directory.rglob("*") if x.is_file()}
    small = [data for data in files.values() if len(data) <= 65]
    keys = [bytes(32), *(hashlib.sha256(data).digest() for data in small)]
    keys += [bytes.fromhex(x.decode()) for x in small if len(x.strip()) == 64]
    everything = b"".join(files.values())
    windows = {everything[x : x + 32] for x in range(len(everything) - 32)}
    message = b"pseudonym\x00" + log.origin.encode()
    names = {hmac.new(x, message, "sha256").hexdigest()[:32] for x in (*keys, *windows)}
    assert pseudonym not in names
    for opening in known:
        target = bytes.fromhex(entry["c"][opening.path])
        text = b"rlhf-audit/commitment/v1\x00" + len(opening.path).to_bytes(2, "big")
        text += opening.path.encode() + opening.value
        assert commit(opening) == target == hmac.new(opening.salt, text, "sha256").digest()
        if opening.path == "reward":  # every 32 bytes of every file as the salt
            assert target not in {hmac.new(x, text, "sha256").digest() for x in windows}


def test_every_proof_and_root_stays_and_the_registry_says_how_many(directory, tmp_path):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger)
        ledger.find("second").close()
        logs = {run: ledger.find(run) for run in ("first", "second")}
        before = {run: (log.size, log.root_at(log.size)) for run, log in logs.items()}
        bundles = {run: log.bundle(range(log.size), opened=["reward"]) for run, log in logs.items()}
        erase_subject(ledger, ADA, basis="consent-withdrawn")
        for run, log in logs.items():
            assert (log.size, log.root_at(log.size)) == before[run]
            assert str(log.published().note) in json.loads(bundles[run])["tree_head"]
            trust = TrustPolicy(log.verifier_keys)
            assert len(verify_bundle(log.bundle(range(log.size)), trust).entries) == log.size
            assert len(verify_bundle(bundles[run], trust).entries) == log.size
        told = [x.event for x in ledger.registry.entries(kind="subject.erased")]
        assert [(x["run"], x["entries"], x["basis"]) for x in told] == [
            ("first", 120, "consent-withdrawn"),
            ("second", 120, "consent-withdrawn"),
        ]
        assert not any("c" in x or ADA in json.dumps(x) for x in told)
        summary = Summary()
        assert [str(x) for x in fsck(ledger, summary=summary)] == []
        assert (summary.erased, summary.vault_rows) == (240, 720)
        export_log(logs["first"], tmp_path / "out")
        assert list(ExportCheck(tmp_path / "out", logs["first"].verifier_keys).findings()) == []
        prune(ledger, "second", tmp_path / "archive", PrunePolicy("it is elsewhere"))
        assert [str(x) for x in fsck(ledger)] == []


def test_fsck_tells_erased_from_lost_and_from_come_back(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=4)
        shutil.copytree(directory, directory.parent / "old")
        erase_subject(ledger, ADA, basis="request")
        assert list(fsck(ledger)) == []
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE vault SET subject = x'', ciphertext = x'' "
                                       "WHERE log_number = 2 AND leaf_index = 1")  # fmt: skip
        found = [(x.log, x.what, x.where) for x in fsck(ledger)]
        assert found == [("first", "vault", "erased")]
        with ledger.engine.begin() as connection:
            old = f"ATTACH '{directory.parent / 'old' / 'ledger.db'}' AS old"
            connection.connection.driver_connection.execute("COMMIT")
            connection.connection.driver_connection.execute(old)
            connection.connection.driver_connection.execute("BEGIN")
            connection.exec_driver_sql(
                "REPLACE INTO vault SELECT * FROM old.vault WHERE log_number = 2 AND leaf_index < 2"
            )
            connection.exec_driver_sql(
                "INSERT OR IGNORE INTO subject_tile SELECT * FROM old.subject_tile WHERE log_number = 2"
            )
        assert list(fsck(ledger)) == []  # it is back, and cannot be opened
        with closing(sqlite3.connect(directory / "vault-keys.db")) as keys, keys:
            keys.execute(f"ATTACH '{directory.parent / 'old' / 'vault-keys.db'}' AS old")
            keys.execute("INSERT OR IGNORE INTO subject_key SELECT * FROM old.subject_key")
        assert [(x.log, x.what) for x in fsck(ledger)] == [("first", "vault")]


def test_an_old_copy_of_the_ledger_brings_nothing_back(directory, tmp_path):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=4)
        with (
            closing(sqlite3.connect(tmp_path / "backup.db")) as copy,
            closing(sqlite3.connect(directory / "ledger.db")) as source,
        ):
            source.backup(copy)
        erase_subject(ledger, ADA, basis="request")
        log = ledger.find("first")
        assert bring_vault_rows(ledger.engine, ledger.vault, log, tmp_path / "backup.db").rows == 0
        with ledger.engine.begin() as connection:  # and were the rows lost altogether
            connection.exec_driver_sql("DELETE FROM vault WHERE log_number = 2")
        brought = bring_vault_rows(ledger.engine, ledger.vault, log, tmp_path / "backup.db")
        assert (brought.rows, brought.erased, brought.refused) == (8, 4, 0)


def test_by_pseudonym_and_of_one_run_only(directory):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=4)
        whole = find_subject(ledger, ADA)
        names = [run.pseudonym for run in whole.runs]
        assert len(set(names)) == 2
        assert all(find_subject(ledger, name) == whole for name in names)
        done = erase_subject(ledger, names[0], run_id="first", basis="objection")
        assert (done.entries, done.is_secret_destroyed) == ({"first": 4}, False)
        (left,) = find_subject(ledger, ADA).runs
        assert (left.run_id, left.pseudonym) == ("second", names[1])
        with pytest.raises(Erased):
            ledger.find("first").openings(0)
        assert ledger.find("second").opened(0)["annotator"] == names[1]
        assert list(fsck(ledger)) == []
        erase_subject(ledger, names[1], basis="request")
        for name in (ADA, *names):
            with pytest.raises(SubjectMissing):
                find_subject(ledger, name)
        assert list(fsck(ledger)) == []


def test_two_runs_pseudonyms_are_linked_by_nothing_but_the_vault(directory):
    """Not by the ledger's database, the operator's secret and the person's id together."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=2)
        runs = find_subject(ledger, ADA).runs
        origins = [ledger.find(run.run_id).origin for run in runs]
        with closing(sqlite3.connect(directory / "vault-keys.db")) as keys:
            tag = ledger.vault.subject_tag(ADA, "")
            query = "SELECT secret FROM subject_key WHERE subject = ?"
            (secret,) = keys.execute(query, (tag,)).fetchone()
    assert [
        hmac.new(secret, b"pseudonym\x00" + origin.encode(), "sha256").hexdigest()[:32]
        for origin in origins
    ] == [run.pseudonym for run in runs]
    rest = [x for x in directory.rglob("*") if x.is_file() and "vault-keys" not in x.name]
    data = b"".join(x.read_bytes() for x in rest)
    assert secret not in data
    assert not any(run.pseudonym.encode() in data for run in runs)
    operator = bytes.fromhex((directory / "operator.key").read_text().strip())
    guesses = {tag, operator, ADA.encode(), hashlib.sha256(ADA.encode()).digest()}
    guesses |= {hmac.new(operator, x, "sha256").digest() for x in guesses}
    for origin, run in zip(origins, runs, strict=True):
        for key in guesses:
            for text in (origin.encode(), b"pseudonym\x00" + origin.encode()):
                assert hmac.new(key, text, "sha256").hexdigest()[:32] != run.pseudonym


def test_killed_before_any_statement_it_is_erased_once_or_not_at_all(directory, tmp_path):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=3)
    script = [sys.executable, HERE / "erase_until_killed.py", directory, tmp_path, ADA]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    states = [json.loads(line) for line in done.stdout.splitlines()]
    assert states[-1]["is_killed"] is False
    assert len(states) > 30
    is_begun = [state["left"] == 0 for state in states]
    assert is_begun == sorted(is_begun)  # from one statement on, and for good
    assert not is_begun[0]
    for state in states:
        assert state["findings"] == [], state
        assert state["pending"] == 0, state
        if state["left"]:
            assert (state["left"], state["told"], state["emptied"]) == (6, {}, 0), state
        else:
            assert state["told"] == {"first": 3, "second": 3}, state
            assert (state["entries_told"], state["emptied"]) == (2, 6), state
            assert state["seen_in"] == [], state


@pytest.fixture
def training(directory):
    """A process that has the ledger open, and knows the person's secret."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=2)
    with annotating(directory, "first") as annotate:
        yield annotate


def test_an_open_writer_does_not_bring_the_old_secret_back(directory, training):
    training(ADA, 3)
    with Ledger.open(directory) as ledger:
        log = ledger.find("first")
        old = find_subject(ledger, ADA)
        needles = secrets_of(directory, old.tag)
        assert erase_subject(ledger, ADA, basis="request").entries == {"first": 5, "second": 2}
        (index, *_) = training(ADA, 2)  # out of the secrets that it has in memory
        new = find_subject(ledger, ADA)
        assert new.entries == 2
        assert new.runs[0].pseudonym not in {run.pseudonym for run in old.runs}
        assert log.opened(index)["annotator"] == new.runs[0].pseudonym
        training(OTHERS[0], 2)
        assert list(fsck(ledger)) == []
        tag, *gone = needles
        assert files_with(directory, gone) == set()  # the person is filed under the same tag
        assert tag in (directory / "vault-keys.db-wal").read_bytes()
        assert erase_subject(ledger, ADA, basis="request").entries == {"first": 2}
        assert files_with(directory, needles) == set()


def test_erased_again_and_again_while_a_training_goes_on(directory, training):
    with Ledger.open(directory) as ledger:
        for _ in range(5):
            training(ADA, 300)
            training(OTHERS[1], 20)
            erase_subject(ledger, ADA, basis="request")
        told = sum(x.event["entries"] for x in ledger.registry.entries(kind="subject.erased"))
        assert told == 4 + 5 * 300
        summary = Summary()
        assert [str(x) for x in fsck(ledger, summary=summary)] == []
        assert summary.erased == told
        assert find_subject(ledger, OTHERS[1]).entries == 4 + 5 * 20


def test_sent_again_after_the_erasure_no_secret_is_made(directory):
    events = [annotated(ADA, 0, "first"), annotated(OTHERS[0], 1, "first")]
    place = ("ab" * 16, 0, events, "2026-11-20T10:15:00Z")
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("first")
        assert log.append_as(*place) == [0, 1]
        erase_subject(ledger, ADA, basis="request")
    with Ledger.open(directory) as ledger:
        assert ledger.find("first").append_as(*place) == [0, 1]
        with pytest.raises(SubjectMissing):
            find_subject(ledger, ADA)
        assert list(fsck(ledger)) == []


def test_one_of_a_thousand_in_an_anchored_run(directory):
    people = [f"annotator-{number:04}@acme.example" for number in range(1_000)]
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("first")
        log.record_many(annotated(x, number, "first") for number, x in enumerate(people))
        size = log.publish().head.size
        with writing(ledger.engine) as connection:
            for row in anchor_rows(log, nonce=1):
                connection.execute(AnchorRow.__table__.insert(), row)
        anchors = log.anchors()
        paths = [log.prove_inclusion(index, size) for index in range(size)]
        openings = log.openings(500)
        needles = [*secrets_of(directory, ledger.vault.subject_tag(people[500], ""))]
        needles += [people[500].encode(), *spelled(openings)]
        assert erase_subject(ledger, people[500], basis="request").entries == {"first": 1}
        assert files_with(directory, needles) == set()
        (anchor,) = log.anchors()
        assert [anchor] == anchors
        assert anchor.root == log.root_at(anchor.tree_size)
        for index in range(1_000):
            leaf = leaf_hash(log.read(index).data)
            path = log.prove_inclusion(index, size)
            assert path == paths[index]
            verify_inclusion(leaf, index, size, path, anchor.root)
        with pytest.raises(Erased):
            log.openings(500)
        assert sum(len(log.openings(x)) for x in range(1_000) if x != 500) == 4 * 999
        assert list(fsck(ledger)) == []


def test_asked_for_again_while_the_first_time_is_not_complete(directory, monkeypatch):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        fill(ledger, rounds=2)
        tag = ledger.vault.subject_tag(ADA, "")
        with closing(sqlite3.connect(directory / "ledger.db", isolation_level=None)) as reader:
            monkeypatch.setattr(cleansing, "_PATIENCE_S", 0.2)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM vault").fetchone()  # keeps the old pages alive
            done = erase_subject(ledger, ADA, basis="request")
            assert [place for place in done.leftovers if "ledger.db-wal" in place]
            log = ledger.find("first")
            log.record(annotated(ADA, 9, "first")).result()  # under a new secret
            assert erase_subject(ledger, ADA, basis="request").entries == {"first": 1}
            needles = secrets_of(directory, tag)
        assert needles == [tag]
    with Ledger.open(directory) as ledger:  # goes on now that nobody reads
        assert [done.leftovers for done in ledger.resumed_erasures] == [[]]
        with pytest.raises(SubjectMissing):
            find_subject(ledger, ADA)
        assert files_with(directory, needles) == set()
        assert list(fsck(ledger)) == []
