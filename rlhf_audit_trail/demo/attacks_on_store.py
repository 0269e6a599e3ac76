"""Attacks on the ledger's own files, by who has the settings and the signing keys, too."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlhf_audit_trail.demo.scene import ATTACKER_TIME_S, Scene, examined
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.keys import LogKeys, read_secret
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.tiles import GrowingTree

__all__ = [
    "entries_swapped",
    "entry_and_hash_changed",
    "entry_deleted",
    "rewritten",
    "rewritten_bundle",
    "truncated",
    "value_changed",
    "vault_changed",
]


@contextmanager
def _copy(scene: Scene) -> Iterator[Path]:
    """Copy the ledger's directory, databases through SQLite so that no page is torn."""
    target = scene.workspace / "attacked"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scene.directory, target, ignore=shutil.ignore_patterns("*.db*"))
    for database in scene.directory.glob("*.db"):
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(target / database.name)) as copy,
        ):
            source.backup(copy)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


@contextmanager
def _tables(directory: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(directory / "ledger.db")) as database, database:
        yield database


def _number(database: sqlite3.Connection, run: str) -> int:
    row = database.execute("SELECT number FROM log WHERE run_id = ?", (run,)).fetchone()
    return int(row[0])


def _victim(database: sqlite3.Connection, number: int) -> tuple[int, bytes]:
    """Index and bytes of the first annotation."""
    row = database.execute(
        "SELECT leaf_index, data FROM entry WHERE log_number = ? AND kind = 'annotation.recorded'"
        " ORDER BY leaf_index",
        (number,),
    ).fetchone()
    return int(row[0]), bytes(row[1])


def _forge(data: bytes) -> bytes:
    """Change what an entry says: simulated feedback becomes human."""
    record: dict[str, Any] = json.loads(data)
    record["source"] = "human"
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _found_by_fsck(directory: Path) -> str:
    with open_damaged(directory) as storage:
        first = next(fsck(storage), None)
    return f"fsck: {first.what} {first.where}, {first.detail}" if first else ""


def value_changed(scene: Scene) -> str:
    """An annotation's bytes, and nothing else."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, data = _victim(database, number)
            database.execute(
                "UPDATE entry SET data = ? WHERE log_number = ? AND leaf_index = ?",
                (_forge(data), number, index),
            )
        return _found_by_fsck(directory)


def entry_and_hash_changed(scene: Scene) -> str:
    """An annotation's bytes and the leaf hash beside them."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, data = _victim(database, number)
            forged = _forge(data)
            database.execute(
                "UPDATE entry SET data = ?, leaf_hash = ? WHERE log_number = ? AND leaf_index = ?",
                (forged, leaf_hash(forged), number, index),
            )
        return _found_by_fsck(directory)


def vault_changed(scene: Scene) -> str:
    """A person's sealed values in the place of others of the same person."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, _ = _victim(database, number)
            database.execute(
                "UPDATE vault SET ciphertext = (SELECT other.ciphertext FROM vault AS other"
                " WHERE other.log_number = vault.log_number AND other.leaf_index > ?"
                " AND other.subject = vault.subject ORDER BY other.leaf_index LIMIT 1)"
                " WHERE log_number = ? AND leaf_index = ?",
                (index, number, index),
            )
        return _found_by_fsck(directory)


def entry_deleted(scene: Scene) -> str:
    """An annotation is gone, and no index is free."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, _ = _victim(database, number)
            for table in ("entry", "vault"):
                database.execute(
                    f"DELETE FROM {table} WHERE log_number = ? AND leaf_index = ?",  # noqa: S608 - a fixed name
                    (number, index),
                )
                # by way of negative numbers, since rows may not collide on their way down
                database.execute(
                    f"UPDATE {table} SET leaf_index = -leaf_index"  # noqa: S608
                    " WHERE log_number = ? AND leaf_index > ?",
                    (number, index),
                )
                database.execute(
                    f"UPDATE {table} SET leaf_index = -leaf_index - 1"  # noqa: S608
                    " WHERE log_number = ? AND leaf_index < 0",
                    (number,),
                )
            database.execute("UPDATE log SET size = size - 1 WHERE number = ?", (number,))
        return _found_by_fsck(directory)


def entries_swapped(scene: Scene) -> str:
    """Two annotations in each other's place."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, _ = _victim(database, number)
            for old, new in ((index, -1), (index + 1, index), (-1, index + 1)):
                for table in ("entry", "vault"):
                    database.execute(
                        f"UPDATE {table} SET leaf_index = ?"  # noqa: S608 - a fixed name
                        " WHERE log_number = ? AND leaf_index = ?",
                        (new, number, old),
                    )
        return _found_by_fsck(directory)


def _rewrite(directory: Path, run: str) -> None:
    """Forge one entry and rebuild all that hangs on it: signatures, and the registry log."""
    secret = read_secret(directory / "operator.key")
    with _tables(directory) as database:
        index, _ = _victim(database, _number(database, run))
        root = _rebuild(
            database, secret, run, lambda at, data: _forge(data) if at == index else data
        )

        def forge_close(_: int, data: bytes) -> bytes:
            record = json.loads(data)
            if record["kind"] != "run.closed" or record["run"] != run:
                return data
            return json.dumps(record | {"root": root.hex()}, separators=(",", ":")).encode()

        _rebuild(database, secret, REGISTRY, forge_close)


def _rebuild(
    database: sqlite3.Connection, secret: bytes, run: str, forge: Callable[[int, bytes], bytes]
) -> bytes:
    """Replace a log by one of forged entries, signed again at every size; return its root."""
    number = _number(database, run)
    where = "FROM entry WHERE log_number = ? ORDER BY leaf_index"
    rows = database.execute(f"SELECT leaf_index, data {where}", (number,)).fetchall()
    leaves = []
    for index, data in ((int(row[0]), forge(int(row[0]), bytes(row[1]))) for row in rows):
        leaves.append(leaf_hash(data))
        database.execute(
            "UPDATE entry SET data = ?, leaf_hash = ? WHERE log_number = ? AND leaf_index = ?",
            (data, leaves[-1], number, index),
        )
    _sign_again(database, secret, number, leaves)
    # the anchors on file would give the rewriting away at once
    database.execute("DELETE FROM anchor WHERE log_number = ?", (number,))
    tree = GrowingTree()
    tree.append(leaves)
    return tree.root()


def _sign_again(
    database: sqlite3.Connection, secret: bytes, number: int, leaves: list[bytes]
) -> None:
    query = "SELECT origin FROM log WHERE number = ?"
    origin = str(database.execute(query, (number,)).fetchone()[0])
    keys, tree = LogKeys.derive(secret, origin), GrowingTree()
    database.execute("DELETE FROM hash_tile WHERE log_number = ?", (number,))
    query = "SELECT tree_size FROM tree_head WHERE log_number = ? ORDER BY tree_size"
    for size in [int(row[0]) for row in database.execute(query, (number,))]:
        for tile in tree.append(leaves[tree.size : size]):
            database.execute(
                "INSERT INTO hash_tile (log_number, level, tile_index, hashes, inner_nodes)"
                " VALUES (?, ?, ?, ?, ?)",
                (number, tile.level, tile.tile_index, tile.hashes, tile.inner_nodes),
            )
        head = TreeHead(origin, size, tree.root())
        database.execute(
            "UPDATE tree_head SET root = ?, note = ? WHERE log_number = ? AND tree_size = ?",
            (head.root, keys.sign(head, time_s=ATTACKER_TIME_S), number, size),
        )


def _offered_for_anchoring(directory: Path, scene: Scene) -> str:
    """Let the anchorer look at an attacked copy; return what it says."""
    with Ledger.open(directory) as ledger:
        log = ledger.find(scene.run)
        with Publisher(ledger, scene.signer) as publisher:
            try:
                publisher.anchor(log)
            except AuditTrailError as error:
                return f"anchorer: {type(error).__name__}, {error.message}"
    return ""


def rewritten(scene: Scene) -> str:
    """All that follows from a forged entry is made anew, with the right keys."""
    with _copy(scene) as directory:
        _rewrite(directory, scene.run)
        if found := _found_by_fsck(directory):
            raise RuntimeError(f"the rewriting was clumsy, its own store contradicts it: {found}")
        return _offered_for_anchoring(directory, scene)


def rewritten_bundle(scene: Scene) -> str:
    """A bundle made from the rewritten history."""
    with _copy(scene) as directory:
        _rewrite(directory, scene.run)
        with Ledger.open(directory) as ledger:
            log = ledger.find(scene.run)
            forged = log.bundle([0])
    # the keys are right and every signature verifies: only the chain remembers
    return examined(scene, forged, ask_chain=True)


def truncated(scene: Scene) -> str:
    """The log as it was before its last tree heads."""
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            heads = database.execute(
                "SELECT tree_size FROM tree_head WHERE log_number = ? ORDER BY tree_size DESC",
                (number,),
            ).fetchall()
            size = int(heads[1][0])
            for table, column in (
                ("entry", "leaf_index"), ("vault", "leaf_index"), ("tree_head", "tree_size - 1"),
                ("anchor", "tree_size - 1"),
            ):  # fmt: skip
                database.execute(
                    f"DELETE FROM {table} WHERE log_number = ? AND {column} >= ?",  # noqa: S608
                    (number, size),
                )
            tiles = (
                "DELETE FROM hash_tile"
                " WHERE log_number = ? AND (tile_index + 1) << (8 * level + 8) > ?"
            )
            database.execute(tiles, (number, size))
            database.execute("UPDATE log SET size = ?, closed = 0 WHERE number = ?", (size, number))
        return _offered_for_anchoring(directory, scene)
