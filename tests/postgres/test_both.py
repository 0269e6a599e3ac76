"""Append, publish, fsck: the same on both databases."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger, RunClosed, WrongLedger
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.store.database import keys_engine, ledger_engine
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata

CHILD = Path(__file__).parent / "appender.py"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    if request.param == "sqlite":
        return "sqlite:///ledger.db"
    return request.getfixturevalue("new_database")()


def at_once(count, work):
    """Run `work(number)` in so many threads that begin together; raise what one raised."""
    barrier, errors = threading.Barrier(count), []

    def run(number):
        try:
            barrier.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize(
    ("open_engine", "metadata"), [(ledger_engine, ledger_metadata), (keys_engine, key_metadata)]
)
def test_the_migrations_make_exactly_the_models_tables(
    new_database, open_engine, metadata, tmp_path, database
):
    url = f"sqlite:///{tmp_path / 'x.db'}" if database.startswith("sqlite") else new_database()
    engine = open_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert found == []


def test_what_is_recorded_is_read_opened_proven_and_sound(ledger, directory, annotation, sound):
    log = ledger.open_run("run42")
    receipts = [log.record(annotation(0)), *log.record_many(annotation(x) for x in range(1, 700))]
    assert [receipt.result() for receipt in receipts] == list(range(700))
    assert [entry.event["batch"] for entry in log.entries()] == list(range(700))
    assert log.opened(513)["prompt"] == "prompt 513"
    head = log.publish().head
    assert head.root == root_hash([leaf_hash(entry.data) for entry in log.entries()])
    assert str(log.publish().note) == str(log.published().note)
    trust = TrustPolicy(keys=log.verifier_keys)
    proven = verify_bundle(log.bundle([0, 255, 699], opened=["prompt"]), trust)
    assert proven.entries[699] == log.read(699).data
    digests = [ledger.blobs.put(data) for data in (b"small", b"small", b"large" * 20_000)]
    assert ledger.blobs.get(digests[2]) == b"large" * 20_000
    assert sound(directory).entries == 700 + ledger.registry.size
    assert list(fsck(ledger)) == []


def test_a_ledger_opened_again_goes_on(ledger, directory, annotation, sound):
    first = ledger.open_run("run42")
    first.record_many(annotation(x) for x in range(300))
    ledger.close()
    with Ledger.open(directory) as opened:
        log = opened.find("run42")
        log.record_many(annotation(x) for x in range(300))
        assert log.publish().head.size == 600
        log.close()
        with pytest.raises(RunClosed):
            log.record(annotation(0))
    assert sound(directory).tree_heads == 1


def test_a_run_closed_by_another_takes_no_more(ledger, annotation):
    log = ledger.open_run("run42")
    log.record(annotation(0)).result()
    with Ledger.open(ledger.directory) as other:
        other.find("run42").close()
    with pytest.raises(RunClosed):
        log.record(annotation(1)).result()
    assert log.size == 1


def new_ledger(directory, database, new_database):
    """Make a directory whose database has no tables yet."""
    Ledger.create(directory, organisation="acme.example").close()
    for path in directory.glob("*.db*"):
        path.unlink()
    for name in ("ledger.db", "vault-keys.db"):
        (directory / name).touch()  # opening makes no database, but fills an empty one
    url = database if database.startswith("sqlite") else new_database()
    lines = ["[ledger]", 'organisation = "acme.example"', f'database = "{url}"', ""]
    (directory / "rlhf-audit.toml").write_text("\n".join(lines))


def test_a_new_ledger_opened_by_threads_at_once_begins_once(
    directory, database, new_database, sound
):
    new_ledger(directory, database, new_database)
    opened = {}

    def work(number):
        opened[number] = Ledger.open(directory)

    at_once(6, work)
    kinds = [entry.event["kind"] for entry in opened[0].registry.entries()]
    for ledger in opened.values():
        ledger.close()
    assert kinds == ["ledger.created"]
    assert sound(directory).logs == 1


@pytest.mark.slow
def test_a_new_ledger_and_run_opened_by_processes_at_once_begin_once(
    directory, database, new_database, sound
):
    new_ledger(directory, database, new_database)
    command = [sys.executable, CHILD, directory, "run42", "20", "10"]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    with Ledger.open(directory) as ledger:
        kinds = [entry.event["kind"] for entry in ledger.registry.entries()]
        assert kinds == ["ledger.created", "run.opened"]
    assert sound(directory).entries == 4 * 20 + 2


def test_a_new_run_opened_and_closed_by_many_at_once_is_announced_once(
    ledger, directory, annotation, sound
):
    ledgers = [Ledger.open(directory) for _ in range(4)]

    def work(number):
        log = ledgers[number].open_run("run42")
        log.record(annotation(number)).result()

    at_once(4, work)
    at_once(4, lambda number: ledgers[number].find("run42").close())
    kinds = [entry.event["kind"] for entry in ledger.registry.entries()]
    assert kinds == ["ledger.created", "run.opened", "run.closed"]
    for opened in ledgers:
        opened.close()
    assert sound(directory).entries == 4 + 3


def test_new_subjects_and_blobs_seen_by_many_at_once_are_stored_once(ledger, directory, annotation):
    ledgers = [Ledger.open(directory) for _ in range(4)]
    logs = [opened.open_run("run42") for opened in ledgers]

    def work(number):
        logs[number].record_many(annotation(x) for x in range(20))[-1].result()
        for x in range(20):
            ledgers[number].blobs.put(b"%d" % x)

    at_once(4, work)
    log = ledger.open_run("run42")
    assert len({log.opened(index)["annotator"] for index in range(80)}) == 5
    assert len(ledger.blobs.digests()) == 20
    assert list(fsck(ledger)) == []
    for opened in ledgers:
        opened.close()


@pytest.mark.usefixtures("ledger")
def test_signers_at_once_sign_a_size_once(directory, annotation, sound):
    ledgers = [Ledger.open(directory) for _ in range(3)]
    logs = [opened.open_run("run42") for opened in ledgers]
    notes = [[], [], []]

    def work(number):
        for x in range(15):
            logs[number].record(annotation(x))
            signed = logs[number].publish()
            notes[number].append((signed.head.size, str(signed.note)))

    at_once(3, work)
    kept = {size: str(logs[0].published(size).note) for size in logs[0].published_sizes()}
    assert {size: note for found in notes for size, note in found} == kept
    assert all(kept[size] == note for found in notes for size, note in found)
    for opened in ledgers:
        opened.close()
    assert sound(directory).tree_heads == len(kept)


def test_another_organisation_or_operator_key_is_refused(ledger, directory, annotation):
    ledger.open_run("run42").record(annotation(0)).result()
    settings, key = directory / "rlhf-audit.toml", directory / "operator.key"
    before = settings.read_text()
    settings.write_text(before.replace("acme.example", "other.example"))
    with pytest.raises(WrongLedger, match=r"other\.example"):
        Ledger.open(directory)
    settings.write_text(before)
    key.write_text("11" * 32 + "\n")
    with pytest.raises(WrongLedger, match=r"operator\.key"):
        Ledger.open(directory)
