"""What a store lacks comes back from copies, entry for entry; what does not fit, never."""

# ruff: noqa: S608 - the tests' own table names

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rlhf_audit_trail.api.app import create_app
from rlhf_audit_trail.ledger.copies import ForeignCopy, NoCopies
from rlhf_audit_trail.ledger.export import export_log, update_export
from rlhf_audit_trail.ledger.importing import (
    NotAnnounced,
    RegistryMissing,
    import_copies,
)
from rlhf_audit_trail.ledger.log import Ledger, LedgerMissing
from rlhf_audit_trail.ledger.mirror import SourceContradiction
from rlhf_audit_trail.ledger.proof.errors import BadSignature, Inconsistent
from rlhf_audit_trail.ledger.public_log import NotServed
from rlhf_audit_trail.ledger.reading import Forked, RolledBack
from rlhf_audit_trail.ledger.refusals import BadToken
from rlhf_audit_trail.ledger.restoring import StoreMoved
from rlhf_audit_trail.ledger.rotation import retire, rotate
from rlhf_audit_trail.ledger.store.errors import StoreError
from rlhf_audit_trail.ledger.tokens import WriterTokens
from rlhf_audit_trail.ledger.vault_backup import BackupUnreadable

CHILD = Path(__file__).parent / "run_until_killed.py"
DATABASE = "ledger.db"


def grow(log, annotation, size):
    log.record_many(annotation(number) for number in range(log.size, size))
    log.publish()


def export_all(ledger, target):
    ledger.registry.publish()
    for run in ("registry", *ledger.runs()):
        update_export(ledger.find(run), target / run)


def rows(directory, *tables):
    """All rows of the runs; of a tree head without our clock when it was signed."""
    wanted = tables or ("entry", "hash_tile", "tree_head")
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        return {
            (table, row[:-1] if table == "tree_head" else row)
            for table in wanted
            for row in connection.execute(
                f"SELECT log.run_id, log.size, log.closed, {table}.* FROM {table}"
                f" JOIN log ON log.number = {table}.log_number WHERE log.run_id != 'registry'"
            )
        }


def lose_databases(directory, *names):
    for name in names or (DATABASE, "vault-keys.db"):
        for path in directory.glob(f"{name}*"):
            path.unlink()


@pytest.fixture
def copies(tmp_path):
    return tmp_path / "copies"


@pytest.fixture
def rolled_back(ledger, directory, annotation, copies, tmp_path):
    """A backup from when the run had 300 entries; the ledger has 1,000 now, and one run more."""
    log = ledger.open_run("run42")
    grow(log, annotation, 300)
    export_all(ledger, tmp_path / "older")
    shutil.copytree(directory, tmp_path / "backup")
    grow(log, annotation, 600)
    grow(log, annotation, 1_000)
    grow(ledger.open_run("ended"), annotation, 5)
    ledger.find("ended").close()
    export_all(ledger, copies)
    ledger.close()
    return tmp_path / "backup"


@pytest.fixture
def lost(directory, rolled_back, tmp_path):
    """Only settings and operator key are left."""
    assert rolled_back.is_dir()  # with it, the copies were made
    (tmp_path / "lost").mkdir()
    for name in ("rlhf-audit.toml", "operator.key"):
        shutil.copy(directory / name, tmp_path / "lost" / name)
    return tmp_path / "lost"


def newest_only(found):
    """A copy has one tree head: those before the newest do not come back from it."""
    return {x for x in found if x[0] != "tree_head" or x[1][4] == x[1][1]}


def test_a_backup_that_is_behind_is_brought_up_to_date(
    rolled_back, directory, copies, examine, annotation
):
    found, _ = examine(rolled_back)
    assert found == set()  # in itself it is sound: only others can tell
    done = {item.run: item for item in import_copies(rolled_back, str(copies))}
    assert [(x.from_size, x.entries) for x in done.values()] == [(2, 2), (300, 700), (0, 5)]
    assert (done["run42"].to_size, done["run42"].unopenable) == (1_000, 700)
    assert rows(rolled_back, "entry", "hash_tile") == rows(directory, "entry", "hash_tile")
    assert newest_only(rows(directory)) <= rows(rolled_back)
    found, summary = examine(rolled_back)
    assert (found, summary.unopenable) == (set(), 705)
    assert not list(rolled_back.glob("*import*"))
    with Ledger.open(rolled_back) as ledger:
        events = [x.event for x in ledger.registry.entries(kind="log.restored")]
        assert [(x["run"], x["from_size"], x["to_size"]) for x in events] == [
            ("registry", 2, 4), ("run42", 300, 1_000), ("ended", 0, 5),
        ]  # fmt: skip
        assert all(str(copies) not in str(event) for event in events)
        assert ledger.find("ended").closed
        log = ledger.open_run("run42")
        assert log.opened(299)["prompt"] == "prompt 299"
        assert log.openings(300) == []
        grow(log, annotation, 1_001)
    assert examine(rolled_back)[0] == set()


def test_writer_tokens_come_back_as_the_registry_log_tells(
    ledger, directory, annotation, copies, examine, tmp_path
):
    grow(ledger.open_run("run42"), annotation, 3)
    tokens = WriterTokens(ledger)
    given = {"early": tokens.grant("early", "run42"), "ended": tokens.grant("ended")}
    shutil.copytree(directory, tmp_path / "backup")
    given |= {"late": tokens.grant("late", "run42"), "short": tokens.grant("short")}
    for name in ("ended", "short"):
        tokens.revoke(name)
    known = tokens.tokens()
    export_all(ledger, copies)
    ledger.close()
    for target in (tmp_path / "backup", tmp_path / "lost"):
        if target.name == "lost":
            target.mkdir()
            for name in ("rlhf-audit.toml", "operator.key"):
                shutil.copy(directory / name, target)
        for _ in range(2):
            import_copies(target, str(copies))
        assert examine(target)[0] == set()
        with Ledger.open(target) as again:
            restored = WriterTokens(again)
            facts = [(x.writer, x.run_id, x.digest, bool(x.revoked_at)) for x in known]
            found = [(x.writer, x.run_id, x.digest, bool(x.revoked_at)) for x in restored.tokens()]
            assert found == facts
            assert restored.authenticate(given["early"]).writer == "early"
            assert restored.authenticate(given["late"]).run_id == "run42"
            for name in ("ended", "short"):
                with pytest.raises(BadToken, match="revoked"):
                    restored.authenticate(given[name])


def test_again_there_is_nothing_to_do(rolled_back, copies, examine):
    import_copies(rolled_back, str(copies))
    before = rows(rolled_back, "entry", "hash_tile", "tree_head")
    assert [x.entries for x in import_copies(rolled_back, str(copies))] == [0, 0, 0]
    assert rows(rolled_back, "entry", "hash_tile", "tree_head") == before
    with Ledger.open(rolled_back) as ledger:
        assert len(list(ledger.registry.entries(kind="log.restored"))) == 3
    assert examine(rolled_back)[0] == set()


def test_lost_altogether_it_comes_back_from_settings_key_and_copies(
    lost, directory, copies, examine
):
    done = import_copies(lost, str(copies))
    assert [(x.run, x.entries) for x in done] == [("registry", 4), ("run42", 1_000), ("ended", 5)]
    assert rows(lost) == newest_only(rows(directory))
    found, summary = examine(lost)
    assert (found, summary.logs, summary.unopenable) == (set(), 3, 1_005)
    for name in ("registry", "run42", "ended"):
        assert (lost / f"keys/{name}.vkey").read_bytes() == (
            directory / f"keys/{name}.vkey"
        ).read_bytes()


def test_after_a_rotation_each_head_is_asked_for_the_keys_of_its_time(
    lost, directory, copies, annotation, examine, tmp_path
):
    with Ledger.open(directory) as ledger:
        rotate(ledger)
        grow(ledger.open_run("run42"), annotation, 1_100)
        export_all(ledger, copies)
        shutil.copytree(copies, tmp_path / "overlapping")
        retire(ledger)
        grow(ledger.open_run("run42"), annotation, 1_200)
        export_all(ledger, copies)
    with pytest.raises(BadSignature):
        import_copies(lost, str(copies))
    shutil.copy(directory / "operator-2.key", lost)
    import_copies(lost, str(tmp_path / "overlapping"))
    assert examine(lost)[0] == set()
    shutil.copytree(lost, tmp_path / "again")
    lose_databases(tmp_path / "again")
    done = {x.run: x.entries for x in import_copies(tmp_path / "again", str(copies))}
    assert done["run42"] == rows_of(directory, "run42")
    assert examine(tmp_path / "again")[0] == set()


def rows_of(directory, run_id):
    with Ledger.open(directory) as ledger:
        return ledger.find(run_id).size


def test_sealed_values_come_from_a_backup_where_they_still_open(
    rolled_back, directory, copies, examine
):
    lose_databases(rolled_back, "vault-keys.db")
    shutil.copy(directory / "vault-keys.db", rolled_back)
    with closing(sqlite3.connect(directory / "vault-keys.db")) as keys:
        (gone,) = keys.execute("SELECT subject FROM subject_key LIMIT 1").fetchone()
    with closing(sqlite3.connect(rolled_back / "vault-keys.db")) as keys, keys:
        keys.execute("DELETE FROM subject_key WHERE subject = ?", (gone,))
    with closing(sqlite3.connect(directory / DATABASE)) as backup, backup:
        where = "leaf_index = ? AND log_number = (SELECT number FROM log WHERE run_id = 'run42')"
        erased = "SELECT count(*) FROM vault WHERE subject = ? AND leaf_index >= 300"
        (count,) = backup.execute(erased, (gone,)).fetchone()
        others = backup.execute(
            "SELECT leaf_index FROM vault WHERE subject != ? AND leaf_index > 900", (gone,)
        ).fetchall()
        (damaged,), (moved,), *_ = others
        backup.execute(f"UPDATE vault SET ciphertext = zeroblob(64) WHERE {where}", (damaged,))
        # the same row, an entry with other bytes: it is of another history
        backup.execute(f"UPDATE entry SET data = data || ' ' WHERE {where}", (moved,))
    done = {x.run: x for x in import_copies(rolled_back, str(copies), backup=directory / DATABASE)}
    brought = done["run42"].vault
    assert (brought.rows, brought.erased, brought.refused) == (700 - count - 2, count, 1)
    assert done["run42"].unopenable == count + 2
    found, summary = examine(rolled_back)
    assert (found, summary.unopenable > count) == (set(), True)
    with Ledger.open(rolled_back) as ledger:
        opened = [x for x in range(300, 900) if ledger.find("run42").openings(x)]
        assert ledger.find("run42").opened(opened[0])["prompt"] == f"prompt {opened[0]}"
    assert examine(rolled_back)[0] == set()


def test_a_file_that_is_no_backup_is_refused(rolled_back, copies, tmp_path):
    (tmp_path / "none.db").write_bytes(b"not a database" * 100)
    for name in ("none.db", "missing.db"):
        with pytest.raises(BackupUnreadable):
            import_copies(rolled_back, str(copies), backup=tmp_path / name)


def test_from_an_address_as_from_a_directory(rolled_back, directory, serve, examine):
    with Ledger.open(directory) as served:
        place = serve(create_app(served))
        for run, count in (("registry", 2), ("run42", 700), ("ended", 5)):
            (done,) = [x for x in import_copies(rolled_back, f"{place}/rlhf/{run}") if x.run == run]
            assert done.entries == count
    assert rows(rolled_back, "entry", "hash_tile") == rows(directory, "entry", "hash_tile")
    assert examine(rolled_back)[0] == set()
    assert not (rolled_back / ".import").exists()


# --- refusals: each leaves the store as it was ---------------------------------------------


def refuses(directory, place, error, match=None):
    before = rows(directory)
    with pytest.raises(error, match=match):
        import_copies(directory, str(place))
    assert rows(directory) == before


def test_a_fork_is_refused(rolled_back, copies, annotation):
    with Ledger.open(rolled_back) as ledger:
        ledger.open_run("run42").record(annotation(7)).result()
    refuses(rolled_back, copies, Forked, "first 301 entries")


def test_a_fork_under_a_head_beyond_the_store_is_refused(rolled_back, copies):
    """The entries are gone, the head that was signed over them is not."""
    with closing(sqlite3.connect(rolled_back / DATABASE)) as connection, connection:
        connection.execute(
            "INSERT INTO tree_head SELECT log_number, 400, zeroblob(32), note, signed_at"
            " FROM tree_head WHERE tree_size = 300"
        )
    refuses(rolled_back, copies, Forked, "first 400 entries")


def test_a_copy_older_than_what_was_signed_is_refused(rolled_back, copies):
    with closing(sqlite3.connect(rolled_back / DATABASE)) as connection, connection:
        connection.execute(
            "INSERT INTO tree_head SELECT log_number, 2000, root, note, signed_at"
            " FROM tree_head WHERE tree_size = 300"
        )
    refuses(rolled_back, copies, RolledBack, "2,000 was signed")


@pytest.mark.usefixtures("rolled_back")
def test_an_older_copy_of_a_whole_store_changes_nothing(directory, tmp_path):
    before = rows(directory, "entry", "hash_tile")
    assert [x.entries for x in import_copies(directory, str(tmp_path / "older"))] == [0, 0]
    assert rows(directory, "entry", "hash_tile") == before


def test_logs_of_others_are_refused(rolled_back, copies, annotation, tmp_path):
    other = tmp_path / "stranger"
    with Ledger.create(other, organisation="other.example") as ledger:
        grow(ledger.open_run("run42"), annotation, 400)
        export_all(ledger, tmp_path / "foreign")
    refuses(rolled_back, tmp_path / "foreign", ForeignCopy)
    shutil.rmtree(other)
    with Ledger.create(other, organisation="acme.example") as ledger:  # the name, not the keys
        grow(ledger.open_run("run42"), annotation, 400)
        export_all(ledger, tmp_path / "forged")
    refuses(rolled_back, tmp_path / "forged", BadSignature)
    refuses(rolled_back, tmp_path / "forged/run42", BadSignature)
    refuses(rolled_back, tmp_path / "nowhere", NoCopies)
    with pytest.raises(LedgerMissing):
        import_copies(tmp_path / "nowhere", str(copies))


@pytest.mark.parametrize("name", ["run42/tile/entries/003.p/232", "run42/tile/0/002"])
def test_a_copy_with_a_fault_at_its_end_leaves_nothing_half_written(
    rolled_back, lost, copies, name
):
    data = bytearray((copies / name).read_bytes())
    data[-1] ^= 1
    (copies / name).write_bytes(data)
    refuses(rolled_back, copies, Inconsistent)
    (copies / name).unlink()
    refuses(rolled_back, copies, NotServed)
    with pytest.raises(NotServed):
        import_copies(lost, str(copies))
    assert not (lost / DATABASE).exists()


def test_a_run_that_the_registry_log_does_not_announce_is_refused(rolled_back, lost, copies):
    refuses(rolled_back, copies / "ended", NotAnnounced)
    with pytest.raises(RegistryMissing):
        import_copies(lost, str(copies / "ended"))
    assert sorted(x.name for x in lost.iterdir()) == ["operator.key", "rlhf-audit.toml"]


def test_a_closed_run_comes_back_whole_or_not_at_all(
    rolled_back, copies, directory, annotation, tmp_path
):
    """The registry log says how long it was; an older copy of it is not enough."""
    with Ledger.open(directory) as ledger:
        log = ledger.open_run("short")
        grow(log, annotation, 3)
        export_log(log, tmp_path / "short")
        log.record(annotation(3)).result()
        log.close()
        export_all(ledger, copies)
    shutil.rmtree(copies / "short")
    (tmp_path / "short").rename(copies / "short")
    with pytest.raises(RolledBack, match="closed with 4 entries"):
        import_copies(rolled_back, str(copies))


def test_rows_in_the_way_and_lost_subject_keys_are_named(rolled_back, copies):
    with closing(sqlite3.connect(rolled_back / DATABASE)) as connection, connection:
        connection.execute(
            "INSERT INTO entry SELECT log_number, 500, 'x', 0, kind, data, leaf_hash"
            " FROM entry WHERE leaf_index = 200"
        )
    with pytest.raises(StoreMoved, match="in the way"):
        import_copies(rolled_back, str(copies))
    lose_databases(rolled_back, "vault-keys.db")
    with pytest.raises(StoreError, match=r"vault-keys.db is missing"):
        import_copies(rolled_back, str(copies))


def test_a_served_fork_is_refused_with_evidence(rolled_back, directory, serve, copies):
    with Ledger.open(directory) as served:
        place = f"{serve(create_app(served))}/rlhf/run42"
        shutil.copytree(copies / "run42", rolled_back / ".import/run42")
        (rolled_back / ".import/run42/checkpoint").write_text(
            (copies / "run42/checkpoint").read_text("utf-8"), "utf-8"
        )
        with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
            connection.execute("DELETE FROM tree_head WHERE tree_size = 1000")
        with pytest.raises(SourceContradiction, match="fewer"):
            import_copies(rolled_back, place)


# --- killed at any moment ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("what", ["behind", "lost"])
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    ledger, directory, annotation, copies, tmp_path, examine, what
):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    log = ledger.open_run("run42")
    grow(log, annotation, 300)
    shutil.copytree(directory, tmp_path / "target")
    grow(log, annotation, 12_000)
    log.close()
    export_all(ledger, copies)
    ledger.close()
    target = tmp_path / "target"
    if what == "lost":
        lose_databases(target)
    command = [sys.executable, CHILD, "import", copies, "--ledger", target]
    before = stored(target)  # as long as nothing came, an older copy is all there is to see
    killed, sizes = 0, []
    for wanted in sorted(chosen.sample(range(12_000), 4)):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None and stored(target) < wanted:
            pass
        child.kill()
        child.wait()
        killed += child.returncode == -9
        sizes.append(stored(target))
        if before < sizes[-1] < 12_000:  # whoever looks in between is told that it is not whole
            with Ledger.open(target) as half, pytest.raises(RolledBack):
                half.find("run42")
    assert killed
    assert sizes == sorted(sizes)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    assert newest_only(rows(target)) == newest_only(rows(directory))
    found, summary = examine(target)
    assert (found, summary.unopenable) == (set(), 12_000 - (300 if what == "behind" else 0))
    with Ledger.open(target) as opened:
        restored = [x.event for x in opened.registry.entries(kind="log.restored")]
        assert sorted(x["run"] for x in restored) == ["registry", "run42"]


def stored(directory):
    """How many entries of the run are stored; 0 while there is no database."""
    if not (directory / DATABASE).is_file():
        return 0
    with closing(sqlite3.connect(f"file:{directory / DATABASE}?mode=ro", uri=True)) as connection:
        (size,) = connection.execute("SELECT max(size) FROM log WHERE run_id = 'run42'").fetchone()
    return size or 0
