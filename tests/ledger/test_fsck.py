"""fsck finds every kind of damage, names it, goes on, and finds nothing else."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing

import pytest

from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger, LedgerMissing
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.store.database import StoreError
from rlhf_audit_trail.ledger.subjects import erase_subject

RUN = "(SELECT number FROM log WHERE run_id = 'run42')"


def sql(directory, *statements, file="ledger.db"):
    """Damage the database behind the software's back; `flip(x)` changes one bit."""
    with closing(sqlite3.connect(directory / file)) as connection, connection:
        connection.create_function("flip", 1, flip)
        connection.create_function("leaf", 1, lambda data: hashlib.sha256(b"\0" + data).digest())
        connection.create_function("edit", 3, edit)
        for statement in statements:
            done = connection.execute(statement.replace("RUN", RUN))
            assert done.rowcount, f"changed nothing: {statement}"


def flip(value, at=0.5):
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[int(len(data) * at)] ^= 1
    return bytes(data)


def edit(data, old, new):
    changed = data.replace(b'"batch":%d,' % old, b'"batch":%d,' % new)
    assert changed != data
    return changed


def test_a_sound_ledger_has_no_finding_and_everything_was_looked_at(damaged, examine):
    found, summary = examine(damaged)
    assert found == set()
    assert (summary.logs, summary.entries, summary.vault_rows) == (3, 604 + 6, 603)
    assert (summary.hash_tiles, summary.tree_heads) == (2, 3 + 1 + 1)
    assert (summary.blobs, summary.anchors, summary.erased) == (2, 3, 0)


def test_an_open_ledger_can_be_checked_while_it_is_appended_to(ledger, annotation):
    log = ledger.open_run("run42")
    log.record_many(annotation(number) for number in range(600))[-1].result()
    seen = []

    def progress(come):
        seen.append((come.origin, come.done, come.size))
        log.record(annotation(0)).result()
        log.publish()

    findings = list(fsck(ledger, progress=progress))
    assert findings == []
    assert (log.origin, 600, 600) in seen
    assert log.size > 600


DAMAGE = {
    "a bit of an entry in a full tile": (
        ["UPDATE entry SET data = edit(data, 5, 6) WHERE log_number = RUN AND leaf_index = 5"],
        {("run42", "entry", "index 5")},
    ),
    "a bit of a leaf hash in a full tile": (
        ["UPDATE entry SET leaf_hash = flip(leaf_hash) WHERE log_number = RUN AND leaf_index = 5"],
        {("run42", "entry", "index 5")},
    ),
    "a bit of a leaf hash at the ragged edge": (
        ["UPDATE entry SET leaf_hash = flip(leaf_hash) WHERE log_number = RUN AND leaf_index = 590"],
        {("run42", "entry", "index 590")},
    ),
    "an entry at the ragged edge": (
        ["UPDATE entry SET data = edit(data, 590, 591) WHERE log_number = RUN AND leaf_index = 590"],
        {("run42", "entry", "index 590"), ("run42", "tree_head", "size 600")},
    ),
    "an entry rewritten with its leaf hash": (
        [
            "UPDATE entry SET data = edit(data, 5, 6) WHERE log_number = RUN AND leaf_index = 5",
            "UPDATE entry SET leaf_hash = leaf(data) WHERE log_number = RUN AND leaf_index = 5",
        ],
        {
            ("run42", "hash_tile", "level 0, tile 0"),
            ("run42", "tree_head", "size 100"),
            ("run42", "tree_head", "sizes 300 to 600"),
        },
    ),
    "bytes that are not JSON": (
        ["UPDATE entry SET data = x'7b' WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "text where bytes belong": (
        ["UPDATE entry SET data = 'text' WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "no bytes at all": (
        ["UPDATE entry SET data = x'' WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "a kind column": (
        ["UPDATE entry SET kind = 'gap' WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "a kind column that is not UTF-8": (
        ["UPDATE entry SET kind = CAST(x'ff' AS TEXT) WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "a seq column": (
        ["UPDATE entry SET seq = seq + 1000 WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "a writer_id column": (
        ["UPDATE entry SET writer_id = 'nobody' WHERE log_number = RUN AND leaf_index = 7"],
        {("run42", "entry", "index 7")},
    ),
    "a surplus row before the first": (
        ["UPDATE entry SET leaf_index = -1 WHERE log_number = RUN AND leaf_index = 599",
         "UPDATE vault SET leaf_index = -1 WHERE log_number = RUN AND leaf_index = 599",
         "UPDATE log SET size = 599 WHERE run_id = 'run42'"],
        {("run42", "entry", "index -1"), ("run42", "vault", "index -1"), ("run42", "tree_head", "size 600")},
    ),
    "a tail put very far away": (
        ["UPDATE entry SET leaf_index = 1 << 60 WHERE log_number = RUN AND leaf_index = 599",
         "UPDATE vault SET leaf_index = 1 << 60 WHERE log_number = RUN AND leaf_index = 599"],
        {("run42", "entry", "index 599"), ("run42", "log", "size"),
         *(("run42", what, f"index {1 << 60}") for what in ("writer_span", "kind_tile", "subject_tile"))},
    ),
    "a span of a writer's numbers deleted": (
        ["DELETE FROM writer_span WHERE log_number = RUN AND first_index = 0"],
        {("run42", "writer_span", "index 0")},
    ),
    "a span that begins too late": (
        ["UPDATE writer_span SET first_index = 7, first_seq = 7 WHERE log_number = RUN AND first_index = 0"],
        {("run42", "writer_span", "index 0")},
    ),
    "a span of somebody else": (
        ["UPDATE writer_span SET writer_id = 'x' WHERE log_number = RUN AND first_index = 0"],
        {("run42", "writer_span", "index 0")},
    ),
    "a span that counts from elsewhere": (
        ["UPDATE writer_span SET first_seq = first_seq + 1 WHERE log_number = RUN AND first_index = 0"],
        {("run42", "writer_span", "index 0")},
    ),
    "a span without a number": (
        ["UPDATE writer_span SET first_seq = 'x' WHERE log_number = RUN AND first_index = 0"],
        {("run42", "writer_span", "index 0")},
    ),
    "a span behind the end": (
        ["INSERT INTO writer_span VALUES (RUN, 700, 'x', 0)"],
        {("run42", "writer_span", "index 700")},
    ),
    "a span within another": (
        ["INSERT INTO writer_span VALUES (RUN, 300, 'x', 0)"],
        {("run42", "writer_span", "index 300")},
    ),
    "a kind that is not filed": (
        ["DELETE FROM kind_tile WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "kind_tile", "index 256")},
    ),
    "a kind filed where it is not": (
        ["INSERT INTO kind_tile VALUES (RUN, 'gap', 1)"],
        {("run42", "kind_tile", "index 256")},
    ),
    "a subject that is not filed": (
        ["DELETE FROM subject_tile WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "subject_tile", "index 256")},
    ),
    "a subject filed where it is not": (
        ["INSERT INTO subject_tile VALUES (RUN, 1, x'00')"],
        {("run42", "subject_tile", "index 256")},
    ),
    "a subject filed behind the end": (
        ["INSERT INTO subject_tile VALUES (RUN, 9, x'00')"],
        {("run42", "subject_tile", "index 2304")},
    ),
    "a kind filed behind the end": (
        ["INSERT INTO kind_tile VALUES (RUN, 'gap', 9)"],
        {("run42", "kind_tile", "index 2304")},
    ),
    "a log's size": (
        ["UPDATE log SET size = 1 << 60 WHERE run_id = 'run42'"],
        {("run42", "log", "size")},
    ),
    "a log's origin": (
        ["UPDATE log SET origin = 'other' WHERE run_id = 'run42'"],
        {("run42", "log", "origin")},
    ),
    "a hash in a tile": (
        ["UPDATE hash_tile SET hashes = flip(hashes) WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "hash_tile", "level 0, tile 1")},
    ),
    "a node above the hashes of a tile": (
        ["UPDATE hash_tile SET inner_nodes = flip(inner_nodes) WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "hash_tile", "level 0, tile 1")},
    ),
    "a tile cut short": (
        ["UPDATE hash_tile SET hashes = x'00' WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "hash_tile", "level 0, tile 1")},
    ),
    "a tile missing": (
        ["DELETE FROM hash_tile WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "hash_tile", "level 0, tile 1")},
    ),
    "a surplus tile": (
        ["INSERT INTO hash_tile SELECT log_number, level, 2, hashes, inner_nodes FROM hash_tile WHERE log_number = RUN AND tile_index = 1"],
        {("run42", "hash_tile", "level 0, tile 2")},
    ),
    "a bit of a signed note": (
        ["UPDATE tree_head SET note = flip(note) WHERE log_number = RUN AND tree_size = 300"],
        {("run42", "tree_head", "size 300")},
    ),
    "a signature taken away": (
        ["UPDATE tree_head SET note = substr(note, 1, length(note) - 3000) || char(10) WHERE log_number = RUN AND tree_size = 300"],
        {("run42", "tree_head", "size 300")},
    ),
    "a head's root column": (
        ["UPDATE tree_head SET root = flip(root) WHERE log_number = RUN AND tree_size = 300"],
        {("run42", "tree_head", "size 300")},
    ),
    "a head's size column": (
        ["UPDATE tree_head SET tree_size = 301 WHERE log_number = RUN AND tree_size = 300"],
        {("run42", "tree_head", "size 301")},
    ),
    "another log's head": (
        ["UPDATE tree_head SET note = (SELECT note FROM tree_head WHERE log_number <> RUN LIMIT 1) WHERE log_number = RUN AND tree_size = 300"],
        {("run42", "tree_head", "size 300")},
    ),
    "a sealed value": (
        ["UPDATE vault SET ciphertext = flip(ciphertext) WHERE log_number = RUN AND leaf_index = 9"],
        {("run42", "vault", "index 9")},
    ),
    "a sealed value gone": (
        ["DELETE FROM vault WHERE log_number = RUN AND leaf_index = 9"],
        {("run42", "vault", "index 9")},
    ),
    "a sealed value of another entry of the same person": (
        ["UPDATE vault SET ciphertext = (SELECT ciphertext FROM vault WHERE log_number = RUN AND leaf_index = 14) WHERE log_number = RUN AND leaf_index = 9"],
        {("run42", "vault", "index 9")},
    ),
    "a sealed value of no entry": (
        ["INSERT INTO vault SELECT log_number, 700, subject, ciphertext FROM vault WHERE log_number = RUN AND leaf_index = 9"],
        {("run42", "vault", "index 700")},
    ),
    "an entry deleted": (
        ["DELETE FROM entry WHERE log_number = RUN AND leaf_index = 5",
         "DELETE FROM vault WHERE log_number = RUN AND leaf_index = 5"],
        {("run42", "entry", "index 5"), ("run42", "sequence", "*")},
    ),
    "an entry deleted at the ragged edge": (
        ["DELETE FROM entry WHERE log_number = RUN AND leaf_index = 590",
         "DELETE FROM vault WHERE log_number = RUN AND leaf_index = 590"],
        {("run42", "entry", "index 590"), ("run42", "sequence", "*")},
    ),
    "the tail truncated": (
        ["DELETE FROM entry WHERE log_number = RUN AND leaf_index >= 590",
         "DELETE FROM vault WHERE log_number = RUN AND leaf_index >= 590",
         "UPDATE log SET size = 590 WHERE run_id = 'run42'"],
        {("run42", "tree_head", "size 600")},
    ),
    "a closed run opened again": (
        ["UPDATE log SET closed = 0 WHERE run_id = 'ended'"],
        {("ended", "log", "closed")},
    ),
    "a run closed by hand": (
        ["UPDATE log SET closed = 1 WHERE run_id = 'run42'"],
        {("run42", "log", "closed")},
    ),
    "a run's log row deleted": (
        ["DELETE FROM log WHERE run_id = 'ended'"],
        {("registry", "registry", "index 2"), ("", "anchor", "row 2"), *(("", "log", f"table {name}") for name in ("entry", "kind_tile", "subject_tile", "tree_head", "vault", "writer_span"))},
    ),
    "an anchor's root": (
        ["UPDATE anchor SET root = flip(root) WHERE id = 1"],
        {("", "anchor", "row 1")},
    ),
    "an anchor of a size that was never signed": (
        ["UPDATE anchor SET tree_size = 599 WHERE id = 1"],
        {("", "anchor", "row 1")},
    ),
    "an anchor of another signed head than its transaction's": (
        ["UPDATE anchor SET tree_size = 300, root = (SELECT root FROM tree_head WHERE tree_size = 300) WHERE id = 1"],
        {("", "anchor", "row 1")},
    ),
    "an anchor's transaction exchanged for another one of ours": (
        ["UPDATE anchor SET (raw_tx, tx_hash) = (SELECT raw_tx, tx_hash FROM anchor WHERE id = 3) WHERE id = 2"],
        {("", "anchor", "row 2")},
    ),
    "an anchor's transaction deleted": (
        ["UPDATE anchor SET raw_tx = x'' WHERE id = 1"],
        {("", "anchor", "row 1"), ("", "anchor", "row 2")},
    ),
    "an anchor said to be in a block that nobody knows": (
        ["UPDATE anchor SET state = 'finalized' WHERE id = 3"],
        {("", "anchor", "row 3")},
    ),
    "an anchor that is not in its block any more": (
        ["UPDATE anchor SET state = 'pending' WHERE id = 1"],
        {("", "anchor", "row 1")},
    ),
    "a token that was never granted": (
        ["INSERT INTO writer_token SELECT 'thief', run_id, zeroblob(32), created_at, granted_index, '', NULL FROM writer_token WHERE writer = 'gpu-1'"],
        {("", "writer_token", "'thief'")},
    ),
    "a token exchanged for another": (
        ["UPDATE writer_token SET token_digest = zeroblob(32) WHERE writer = 'gpu-1'"],
        {("", "writer_token", "'gpu-1'")},
    ),
    "a token for every run, granted for one": (
        ["UPDATE writer_token SET run_id = '' WHERE writer = 'gpu-1'"],
        {("", "writer_token", "'gpu-1'")},
    ),
    "a revoked token in force": (
        ["UPDATE writer_token SET revoked_at = '' WHERE writer = 'gpu-2'"],
        {("", "writer_token", "'gpu-2'")},
    ),
    "a revoked token in force, as if it had never been revoked": (
        ["UPDATE writer_token SET revoked_at = '', revoked_index = NULL WHERE writer = 'gpu-2'"],
        {("", "writer_token", "'gpu-2'")},
    ),
    "a token revoked by another's revocation": (
        ["UPDATE writer_token SET revoked_at = created_at, revoked_index = 6 WHERE writer = 'gpu-1'"],
        {("", "writer_token", "'gpu-1'")},
    ),
    "a token deleted": (
        ["DELETE FROM remote_writer WHERE writer = 'gpu-1'", "DELETE FROM writer_token WHERE writer = 'gpu-1'"],
        {("", "writer_token", "'gpu-1'")},
    ),
    "a process that no token admitted": (
        ["UPDATE remote_writer SET writer = 'nobody' WHERE writer = 'gpu-1'"],
        {("run42", "remote_writer", repr("1" * 32))},
    ),
    "a process in a run that its token is not for": (
        ["UPDATE remote_writer SET log_number = 3 WHERE writer = 'gpu-1'"],
        {("ended", "remote_writer", repr("1" * 32))},
    ),
    "a process that was there before its token": (
        ["UPDATE remote_writer SET first_seen_at = '2020-01-01T00:00:00.000000Z' WHERE writer = 'gpu-1'"],
        {("run42", "remote_writer", repr("1" * 32))},
    ),
    "the ledger's own row": (
        ["UPDATE ledger SET organisation = 'other.example'"],
        {("", "ledger", "row")},
    ),
    "a small blob": (
        ["UPDATE blob SET data = flip(data) WHERE data IS NOT NULL"],
        {("", "blob", hashlib.sha256(b"small").hexdigest())},
    ),
    "a blob's size": (
        ["UPDATE blob SET size_bytes = 1 WHERE data IS NULL"],
        {("", "blob", hashlib.sha256(b"large" * 20_000).hexdigest())},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("statements", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_named(damaged, statements, expected, examine):
    sql(damaged, *statements)
    found, _ = examine(damaged)
    found = {(log, what, "*" if what == "sequence" else where) for log, what, where in found}
    assert found == expected


def test_damage_to_many_entries_is_named_one_by_one(damaged, examine):
    broken = [3, 77, 255, 256, 511, 512, 599]
    for index in broken:
        change = (
            "UPDATE entry SET leaf_hash = flip(leaf_hash) WHERE log_number = RUN AND leaf_index = "
        )
        sql(damaged, change + str(index))
    found, _ = examine(damaged)
    assert found == {("run42", "entry", f"index {index}") for index in broken}


def test_two_entries_swapped(damaged, examine):
    sql(
        damaged,
        "UPDATE entry SET leaf_index = 10000, seq = seq + 10000 WHERE log_number = RUN AND leaf_index = 4",
        "UPDATE entry SET leaf_index = 4 WHERE log_number = RUN AND leaf_index = 6",
        "UPDATE entry SET leaf_index = 6, seq = seq - 10000 WHERE log_number = RUN AND leaf_index = 10000",
    )
    found, _ = examine(damaged)
    assert ("run42", "hash_tile", "level 0, tile 0") in found
    assert ("run42", "tree_head", "size 100") in found
    assert {where for _, what, where in found if what == "sequence"} >= {"index 6"}


def test_the_registry_log_speaks_against_a_changed_run(damaged, examine):
    with Ledger.open(damaged) as ledger:
        registry = ledger.registry
        opened = next(x for x in registry.entries(kind="run.opened") if x.event["run"] == "run42")
    changed = opened.data.replace(b"run42+", b"run43+")
    with closing(sqlite3.connect(damaged / "ledger.db")) as connection, connection:
        connection.execute(
            "UPDATE entry SET data = ? WHERE log_number = 1 AND leaf_index = ?",
            (changed, opened.leaf_index),
        )
    found, _ = examine(damaged)
    assert ("run42", "registry", f"index {opened.leaf_index}") in found
    assert ("registry", "entry", f"index {opened.leaf_index}") in found


def test_an_object_damaged_or_gone(damaged, examine):
    digest = hashlib.sha256(b"large" * 20_000).hexdigest()
    (damaged / "blobs" / digest).write_bytes(flip(b"large" * 20_000))
    assert examine(damaged)[0] == {("", "blob", digest)}
    (damaged / "blobs" / digest).unlink()
    assert examine(damaged)[0] == {("", "blob", digest)}


def test_an_erased_subject_is_counted_and_no_damage(damaged, examine):
    with Ledger.open(damaged) as ledger:
        done = erase_subject(ledger, "annotator-1@example.org", basis="request")
    assert done.entries == {"run42": 120, "ended": 1}
    found, summary = examine(damaged)
    assert found == set()
    assert summary.erased == 121


def test_a_secret_that_is_gone_without_a_word_is_damage(damaged, examine):
    sql(damaged, "DELETE FROM subject_key WHERE rowid = 1", file="vault-keys.db")
    found, summary = examine(damaged)
    assert ("run42", "vault", "erased") in found
    assert {(what, where) for _, what, where in found} == {("vault", "erased")}
    assert summary.erased in {120, 121}  # whichever person it was


def test_the_key_database_gone(damaged, examine):
    (damaged / "vault-keys.db").unlink()
    found, summary = examine(damaged)
    assert found == {("", "vault", "vault-keys.db")}
    assert summary.entries == 610
    assert not (damaged / "vault-keys.db").exists()


def test_what_cannot_be_checked_at_all_says_so(damaged, tmp_path):
    with pytest.raises(LedgerMissing):
        open_damaged(tmp_path / "nowhere")
    (damaged / "ledger.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError):
        open_damaged(damaged)
    (damaged / "ledger.db").unlink()
    with pytest.raises(StoreError):
        open_damaged(damaged)
    assert not (damaged / "ledger.db").exists()


def test_looking_changes_nothing(damaged, examine):
    before = {path: path.read_bytes() for path in damaged.rglob("*.db")}
    examine(damaged)
    assert {path: path.read_bytes() for path in damaged.rglob("*.db")} == before


def test_damage_that_keeps_a_ledger_from_opening_does_not_stop_fsck(damaged, examine):
    sql(
        damaged,
        "UPDATE entry SET leaf_hash = flip(leaf_hash) WHERE log_number = 1 AND leaf_index = 0",
    )
    with pytest.raises(AuditTrailError):
        Ledger.open(damaged)
    assert examine(damaged)[0] == {("registry", "entry", "index 0")}


def test_a_directory_without_its_key_is_an_error_not_a_finding(damaged):
    shutil.move(damaged / "operator.key", damaged / "elsewhere")
    with pytest.raises(AuditTrailError, match="operator key"):
        open_damaged(damaged)
