"""fsck on a database file that was hit anywhere: findings, never a hang or a crash."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError


@pytest.mark.parametrize("page", range(2, 120, 9))
def test_a_page_of_noise_ends_in_findings_not_in_a_hang_or_a_crash(damaged, page, examine):
    database = damaged / "ledger.db"
    size = database.stat().st_size
    assert size > 120 * 4096
    with database.open("r+b") as file:
        file.seek(page * 4096)
        file.write(hashlib.shake_256(bytes([page])).digest(4096))
    try:
        found, _ = examine(damaged)
    except AuditTrailError:
        return  # not even the tables' list can be read
    assert found


def content(database):
    """All rows of all tables; the parts of a page that hold nothing are left out."""
    with closing(sqlite3.connect(database)) as connection:
        connection.text_factory = bytes
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found = {}
        for (name,) in names:
            query = f"SELECT * FROM {name.decode()}"  # noqa: S608 - a table's own name
            found[name] = connection.execute(query).fetchall()
        return found


@pytest.mark.slow
def test_any_flipped_bit_of_the_file_that_changes_content_is_found(damaged, examine):
    database = damaged / "ledger.db"
    sound, before = database.read_bytes(), content(database)
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    for _ in range(40):
        at, bit = chosen.randrange(len(sound)), 1 << chosen.randrange(8)
        database.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
        try:
            found, _ = examine(damaged)
        except AuditTrailError:
            continue
        if not found:
            after = content(database)
            # what an anchor's transaction says is the chain's to confirm
            changed = [x for x in before if before[x] != after.get(x) and x != b"anchor"]
            assert all(clock_only(before[name], after[name]) for name in changed), (at, bit)


def clock_only(before, after):
    """Whether rows differ in nothing but times that the entries do not depend on."""
    pairs = [
        (x, y)
        for old, new in zip(before, after, strict=True)
        for x, y in zip(old, new, strict=True)
    ]
    return all(x[:3] == b"202" for x, y in pairs if x != y)
