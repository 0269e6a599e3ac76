"""Ledgers of older versions, on both databases: brought to this version, and to the same rows."""

from __future__ import annotations

import pytest
from alembic import command

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.database import _config, migrate, writing
from rlhf_audit_trail.ledger.store.models import ledger_metadata

WRITER, TIME = "ab" * 16, "2026-11-20T10:15:00.123456Z"
FILED = ("writer_span", "kind_tile", "subject_tile")


def alert(number):
    return Event("alert.raised", {"name": "x", "severity": "info", "step": number, "detail": ""})


def rows_of(engine):
    with engine.connect() as connection:
        found = {
            name: connection.execute(ledger_metadata.tables[name].select()).all() for name in FILED
        }
    return {
        name: sorted(
            tuple(bytes(x) if isinstance(x, memoryview) else x for x in row) for row in rows
        )
        for name, rows in found.items()
    }


def downgrade(engine, version):
    with writing(engine, is_migration=True) as connection:
        config = _config("ledger_versions")
        config.attributes |= {"connection": connection, "metadata": ledger_metadata}
        command.downgrade(config, version)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request):
    if request.param == "sqlite":
        return "sqlite:///ledger.db"
    return request.getfixturevalue("new_database")()


@pytest.mark.parametrize("version", ["0006_anchor_costs", "0001_first"])
def test_entries_of_an_older_version_are_found_by_writer_and_kind_as_new_ones(
    tmp_path, database, annotation, version
):
    directory = tmp_path / "ledger"
    with Ledger.create(directory, organisation="acme.example", database=database) as ledger:
        log = ledger.open_run("run42")
        for turn in range(3):  # two writers by turns, one of them with two kinds
            log.record_many([annotation(200 * turn + number) for number in range(150)])
            log.record_many([alert(number) for number in range(50)])[-1].result()
            log.append_as(WRITER, turn, [alert(turn)], TIME)
        filed = rows_of(ledger.engine)
        assert len([row for row in filed["writer_span"] if row[0] == log.number]) == 6
        downgrade(ledger.engine, version)
        migrate(ledger.engine, "ledger_versions", ledger_metadata)
        assert rows_of(ledger.engine) == filed
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        assert log.append_as(WRITER, 2, [alert(2)], TIME) == [602]
        assert log.append_as(WRITER, 3, [alert(3)], TIME) == [603]
        alerts = [entry.leaf_index for entry in log.entries(kind="alert.raised")]
        assert alerts == [x for x in range(603) if x % 201 >= 150] + [603]
        assert log.newest("annotation.recorded").leaf_index == 551
        assert [str(finding) for finding in fsck(ledger)] == []
