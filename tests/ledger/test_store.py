"""The databases: versions, durability settings, and looking without touching."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError, OperationalError

from rlhf_audit_trail.ledger.fsck import open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.database import (
    LedgerTooNew,
    StoreError,
    _config,
    insert_columns,
    keys_engine,
    ledger_engine,
    transact,
    writing,
)
from rlhf_audit_trail.ledger.store.models import key_metadata, ledger_metadata


@pytest.mark.parametrize(
    ("open_engine", "metadata"), [(ledger_engine, ledger_metadata), (keys_engine, key_metadata)]
)
def test_the_migrations_make_exactly_the_models_tables(tmp_path, open_engine, metadata):
    engine = open_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert found == []


@pytest.mark.parametrize("file", ["ledger.db", "vault-keys.db"])
def test_a_newer_database_is_refused_and_left_alone(directory, file):
    Ledger.create(directory, organisation="acme.example").close()
    with closing(sqlite3.connect(directory / file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    before = (directory / file).read_bytes()
    with pytest.raises(LedgerTooNew, match="9999_from_the_future"):
        Ledger.open(directory)
    with pytest.raises(LedgerTooNew):
        open_damaged(directory)
    assert (directory / file).read_bytes() == before


def test_what_is_no_database_is_refused(directory):
    Ledger.create(directory, organisation="acme.example").close()
    (directory / "ledger.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Ledger.open(directory)


def test_every_connection_is_durable_and_overwrites_what_it_deletes(ledger):
    wanted = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}
    for engine in (ledger.engine, ledger.vault._engine):
        engine.dispose()
        with engine.connect() as connection:
            for name, value in wanted.items():
                assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value


def test_a_read_only_engine_writes_nothing_and_makes_nothing(directory, tmp_path):
    with pytest.raises(StoreError):
        ledger_engine(f"sqlite:///{tmp_path / 'none.db'}", read_only=True)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="older version"):
        ledger_engine(f"sqlite:///{tmp_path / 'empty.db'}", read_only=True)
    Ledger.create(directory, organisation="acme.example").close()
    engine = ledger_engine(f"sqlite:///{directory / 'ledger.db'}", read_only=True)
    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.exec_driver_sql("DELETE FROM entry")
    engine.dispose()


def test_a_path_with_odd_characters_opens_both_ways(tmp_path):
    directory = tmp_path / "a b?c#d%20é"
    Ledger.create(directory, organisation="acme.example").close()
    with Ledger.open(directory) as ledger:
        assert ledger.registry.size == 1
    with open_damaged(directory) as storage:
        assert storage.settings.organisation == "acme.example"


def test_only_the_owner_can_read_the_subjects_secrets(ledger, annotation):
    ledger.open_run("run42").record(annotation(0)).result()
    files = [path for path in ledger.directory.iterdir() if path.name.startswith("vault-keys.db")]
    assert len(files) >= 2  # the database, and what SQLite keeps beside it
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_ledger_of_an_older_version_gets_the_nodes_above_its_tiles(directory, annotation):
    """What 0003 computes is what the tree itself would have kept."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        log.record_many(annotation(number) for number in range(600))[-1].result()
    query = "SELECT level, tile_index, inner_nodes FROM hash_tile ORDER BY level, tile_index"
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        kept = connection.execute(query).fetchall()
    assert len(kept) == 2
    url = f"sqlite:///{directory / 'ledger.db'}"
    engine = ledger_engine(url)
    with writing(engine, is_migration=True) as connection:
        config = _config("ledger_versions")
        config.attributes |= {"connection": connection, "metadata": ledger_metadata}
        command.downgrade(config, "0002_cosignatures")
    engine.dispose()
    ledger_engine(url).dispose()
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        assert connection.execute(query).fetchall() == kept


def test_what_sqlite_refuses_past_sqlalchemy_is_the_same_error(ledger):
    common = {"log_number": 1, "writer_id": "ab" * 16}
    row = {"leaf_index": [0], "seq": [0], "kind": ["x"], "data": [b"x"], "leaf_hash": [bytes(32)]}
    table = ledger_metadata.tables["entry"]
    with pytest.raises(IntegrityError) as caught, writing(ledger.engine) as connection:
        insert_columns(connection, table, common, row)
    assert "ab" * 16 not in str(caught.value)  # no parameter, which may be personal
    with pytest.raises(StoreError, match="disk is full"):
        transact(ledger.engine, fill)


def fill(connection):
    connection.exec_driver_sql("PRAGMA max_page_count = 1")
    columns = {
        "leaf_index": range(9000, 9040),
        "seq": range(40),
        "kind": ["x"] * 40,
        "data": [bytes(60_000)] * 40,
        "leaf_hash": [bytes(32)] * 40,
    }
    table = ledger_metadata.tables["entry"]
    insert_columns(connection, table, {"log_number": 1, "writer_id": "cd" * 16}, columns)
