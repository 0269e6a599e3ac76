"""A PostgreSQL ledger put back from an old backup, and brought up to date from copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from rlhf_audit_trail.ledger.export import update_export
from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.importing import import_copies
from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack
from rlhf_audit_trail.ledger.mirror import Mirror
from rlhf_audit_trail.ledger.public_log import PublicLog, ServedLog
from rlhf_audit_trail.ledger.restoring import StoreMoved
from rlhf_audit_trail.ledger.trust import read_keys
from rlhf_audit_trail.ledger.vault_backup import BackupUnreadable
from tests.ledger.guarding import RUN, WitnessProcess, grow, watched_by
from tests.ledger.http_service import serving

OLD, NEW = 300, 1_000


@pytest.fixture
def witness(ledger, tmp_path):
    """A witness process for the ledger, which is closed."""
    process = WitnessProcess(ledger, tmp_path / "witness.db")
    ledger.close()
    yield process
    process.kill()


def export_all(directory, target):
    with Ledger.open(directory) as ledger:
        ledger.registry.publish()
        for run in ("registry", *ledger.runs()):
            update_export(ledger.find(run), target / run)


def rows(directory, *tables):
    """All rows of the run; a tree head without our clock when it was signed."""
    with Ledger.open(directory) as ledger, ledger.engine.connect() as connection:
        number = ledger.find(RUN).number
        return {
            (table, tuple(row)[: -1 if table == "tree_head" else None])
            for table in tables
            for row in connection.execute(
                text(f"SELECT * FROM {table} WHERE log_number = {number}")  # noqa: S608
            )
        }


def examine(directory):
    summary = Summary()
    with open_damaged(directory) as storage:
        assert [str(finding) for finding in fsck(storage, summary=summary)] == []
    return summary


def command_line(*arguments):
    """Run the command as an operator does; returns its exit code and what it printed."""
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", *map(str, arguments)]
    wide = os.environ | {"COLUMNS": "400"}
    done = subprocess.run(command, capture_output=True, text=True, env=wide, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def behind(directory, database, server, annotation, tmp_path):
    """A backup of 300 entries in the place of a ledger of 1,000, of which there are copies."""
    grow(directory, annotation, OLD)
    server.dump(database, tmp_path / "old.dump")
    grow(directory, annotation, NEW)
    export_all(directory, tmp_path / "copies")
    server.dump(database, tmp_path / "newest.dump")
    server.restore(tmp_path / "old.dump", database)
    return directory


# --- the guard ---------------------------------------------------------------------------------


@pytest.fixture
def guarded(directory, witness):
    watched_by(directory, witness.url)
    return witness


@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
def test_an_old_backup_takes_nothing_and_names_the_way_out_which_works(
    behind, annotation, tmp_path
):
    with Ledger.open(behind) as ledger:
        with pytest.raises(RolledBack, match="witness w0 holds a tree of 1,000"):
            ledger.open_run(RUN)
        log = ledger.find(RUN)
        for attempt in (lambda: log.record(annotation(0)), log.publish, log.close):
            with pytest.raises(RolledBack):
                attempt()
        assert (log.size, log.published().head.size) == (OLD, OLD)
    code, printed = command_line("status", "--ledger", behind)
    assert code == 1
    assert "an old copy is in place" in printed
    assert "rlhf-audit import SOURCE" in printed
    code, printed = command_line("import", tmp_path / "copies", "--ledger", behind)
    assert code == 0, printed
    assert "put back 700 entries" in printed
    grow(behind, annotation, NEW + 5)  # and the witness, who was never forgotten, cosigns
    assert examine(behind).unopenable == NEW - OLD


@pytest.mark.slow
def test_what_was_appended_while_nobody_could_be_asked_is_never_signed(guarded, behind, annotation):
    guarded.kill()
    with Ledger.open(behind) as ledger:
        log = ledger.open_run(RUN)
        receipts = log.record_many(annotation(5_000 + number) for number in range(800))
        assert [receipt.result() for receipt in receipts] == list(range(OLD, OLD + 800))
        with pytest.raises(Exception, match="nobody could be asked"):
            log.publish()
        guarded.start()
        watched_by(behind, guarded.url)
    with Ledger.open(behind) as ledger:
        log = ledger.find(RUN)
        with pytest.raises(Forked, match="holds another tree of 1,000") as caught:
            log.publish()
        assert "rlhf-audit import SOURCE" in caught.value.next_step
        assert log.published_sizes() == [OLD]


# --- import ------------------------------------------------------------------------------------


@pytest.fixture
def closed(ledger):
    ledger.close()


@pytest.mark.usefixtures("closed")
def test_from_an_export_entries_come_back_byte_for_byte(
    behind, database, server, annotation, tmp_path
):
    done = {item.run: item for item in import_copies(behind, str(tmp_path / "copies"))}
    assert (done[RUN].from_size, done[RUN].entries, done[RUN].unopenable) == (OLD, 700, 700)
    restored = rows(behind, "entry", "hash_tile", "tree_head")
    assert [x.entries for x in import_copies(behind, str(tmp_path / "copies"))] == [0, 0]
    grow(behind, annotation, NEW + 1)
    assert examine(behind).unopenable == NEW - OLD
    server.restore(tmp_path / "newest.dump", database)
    assert rows(behind, "entry", "hash_tile", "tree_head") == restored


@pytest.mark.usefixtures("closed")
def test_sealed_values_come_from_a_backup_restored_beside(
    behind, new_database, server, tmp_path, annotation
):
    beside = new_database()
    with pytest.raises(BackupUnreadable):
        import_copies(behind, str(tmp_path / "copies"), backup=beside)
    server.restore(tmp_path / "newest.dump", beside)
    code, printed = command_line(
        "import", tmp_path / "copies", "--vault", beside, "--ledger", behind
    )
    assert code == 0, printed
    assert "700 brought, 0 erased, 0 refused" in printed
    assert examine(behind).unopenable == 0
    with Ledger.open(behind) as ledger:
        assert ledger.find(RUN).opened(NEW - 1)["prompt"] == f"prompt {NEW - 1}"
    grow(behind, annotation, NEW + 1)


@pytest.mark.usefixtures("closed")
def test_from_a_mirror_of_the_served_log_into_an_empty_database(
    directory, database, server, annotation, tmp_path
):
    grow(directory, annotation, NEW)
    with serving(directory) as service:
        for run in ("registry", RUN):
            public = PublicLog(ServedLog(f"{service.url}/rlhf/{run}"))
            keys = read_keys(str(directory / f"keys/{run}.vkey"))
            assert Mirror(public, tmp_path / "mirrors" / run, keys).sync().head.size
    before = rows(directory, "entry", "hash_tile", "tree_head")
    name = make_url(database).database
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.execute(f"CREATE DATABASE {name}")
    shutil.rmtree(directory / "keys")
    done = {item.run: item.entries for item in import_copies(directory, str(tmp_path / "mirrors"))}
    assert done == {"registry": 2, RUN: NEW}
    assert rows(directory, "entry", "hash_tile", "tree_head") == before
    assert examine(directory).unopenable == NEW
    grow(directory, annotation, NEW + 1)


@pytest.mark.usefixtures("closed")
def test_while_another_process_appends_nothing_is_mixed(behind, annotation, tmp_path, monkeypatch):
    from rlhf_audit_trail.ledger import restoring

    real, other = restoring._store, []

    def interrupted(connection, **chunk):
        if not other and chunk["chunk"].begin >= OLD:
            other.append(1)
            # its head was stored first
            with Ledger.open(behind) as ledger, pytest.raises(RolledBack):
                ledger.open_run(RUN).record(annotation(0))
        return real(connection, **chunk)

    monkeypatch.setattr(restoring, "_store", interrupted)
    try:
        import_copies(behind, str(tmp_path / "copies"))
    except StoreMoved:
        import_copies(behind, str(tmp_path / "copies"))
    assert other
    assert examine(behind).entries >= NEW
