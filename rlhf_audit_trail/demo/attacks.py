"""Attacks on copies of the demo's ledger and bundle; each must be caught by a named check.

The attacker has all that an operator has: the database, the settings, and the signing keys.
What he has not is the chain's past, and a bundle and key that an auditor already holds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ledger.chain.contract import anchor
from rlhf_audit_trail.ledger.chain.errors import AnchorRefused
from rlhf_audit_trail.ledger.chain.publishing import Publisher
from rlhf_audit_trail.ledger.chain.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signer import Signer
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.keys import LogKeys, read_secret
from rlhf_audit_trail.ledger.log import REGISTRY, Ledger, Log
from rlhf_audit_trail.ledger.proof.bundle import Bundle, encode_bundle, parse_bundle
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import consistency_proof, leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head, parse_tree_head
from rlhf_audit_trail.ledger.proof.verify import OnChain, TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.tiles import GrowingTree
from rlhf_audit_trail.ledger.verdict import STEPS, verdict

__all__ = ["Attack", "Scene", "run_attacks"]

_ATTACKER_TIME_S = 1_700_000_000


@dataclass(frozen=True)
class Scene:
    """What the attacks work on; never changed by them.

    Attributes:
        directory: the honest ledger, closed or at rest.
        run: the run under attack; its log is anchored to the end.
        bundle: an honest bundle of that run, with opened values.
        keys: what the auditor pinned.
        anchored: what the auditor's own node says.
        signer: the publisher, for offers to the contract.
        workspace: where copies go.
    """

    directory: Path
    run: str
    bundle: bytes
    keys: tuple[VerifierKey, ...]
    anchored: tuple[OnChain, ...]
    signer: Signer
    workspace: Path


@dataclass(frozen=True)
class Attack:
    """One attack's outcome; `by` says which check caught it, empty if none did."""

    name: str
    by: str

    @property
    def caught(self) -> bool:
        """Whether anything caught it."""
        return bool(self.by)


def run_attacks(scene: Scene) -> Iterator[Attack]:
    """Carry out every attack on a fresh copy and report what caught it."""
    attacks: tuple[tuple[str, Callable[[Scene], str]], ...] = (
        ("a value changed in the database", _value_changed),
        ("an entry changed, and its hash with it", _entry_and_hash_changed),
        ("a sealed reward replaced in the vault", _vault_changed),
        ("an entry deleted, the rest moved up", _entry_deleted),
        ("two entries swapped", _entries_swapped),
        ("history rewritten, every tree head signed again", _rewritten),
        ("the rewritten history shown to an auditor", _rewritten_bundle),
        ("the tail cut off, with the tree heads over it", _truncated),
        ("another key put into the bundle", _key_swapped),
        ("the tree size in the bundle relabelled", _size_relabelled),
        ("the proof offered for another index", _index_changed),
        ("an opened reward edited in the bundle", _opening_changed),
        ("a forked tree head offered to the contract", _fork_offered),
        ("a smaller tree offered to the contract", _smaller_offered),
    )
    for name, attack in attacks:
        yield Attack(name, attack(scene))


# --- on the database ------------------------------------------------------------------


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


def _value_changed(scene: Scene) -> str:
    with _copy(scene) as directory:
        with _tables(directory) as database:
            number = _number(database, scene.run)
            index, data = _victim(database, number)
            database.execute(
                "UPDATE entry SET data = ? WHERE log_number = ? AND leaf_index = ?",
                (_forge(data), number, index),
            )
        return _found_by_fsck(directory)


def _entry_and_hash_changed(scene: Scene) -> str:
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


def _vault_changed(scene: Scene) -> str:
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


def _entry_deleted(scene: Scene) -> str:
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


def _entries_swapped(scene: Scene) -> str:
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
            (head.root, keys.sign(head, time_s=_ATTACKER_TIME_S), number, size),
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


def _rewritten(scene: Scene) -> str:
    with _copy(scene) as directory:
        _rewrite(directory, scene.run)
        if found := _found_by_fsck(directory):
            raise RuntimeError(f"the rewriting was clumsy, its own store contradicts it: {found}")
        return _offered_for_anchoring(directory, scene)


def _rewritten_bundle(scene: Scene) -> str:
    with _copy(scene) as directory:
        _rewrite(directory, scene.run)
        with Ledger.open(directory) as ledger:
            log = ledger.find(scene.run)
            forged = log.bundle([0])
    # the keys are right and every signature verifies: only the chain remembers
    return _examined(scene, forged, ask_chain=True)


def _truncated(scene: Scene) -> str:
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


# --- on the bundle --------------------------------------------------------------------


def _examined(scene: Scene, data: bytes, *, ask_chain: bool = False) -> str:
    """Verify as the auditor would; return which step refused it."""
    trust = TrustPolicy(keys=scene.keys, on_chain=scene.anchored if ask_chain else None)
    found = examine_bundle(data, trust)
    if found.decisive is None or verdict(found) not in {"FAILED", "UNREADABLE"}:
        return ""
    return f"verify: {verdict(found)} at {STEPS[found.decisive.step - 1]}, {found.decisive.text}"


def _parsed(scene: Scene) -> Bundle:
    return parse_bundle(scene.bundle)


def _key_swapped(scene: Scene) -> str:
    bundle = _parsed(scene)
    head = open_tree_head(bundle.tree_head, ()).head
    keys = LogKeys.derive(hashlib.sha256(b"the attacker's own secret").digest(), head.origin)
    forged = replace(
        bundle,
        log_keys=tuple(str(key) for key in keys.verifier_keys),
        tree_head=keys.sign(head, time_s=_ATTACKER_TIME_S),
        anchored=(),
    )
    return _examined(scene, encode_bundle(forged))


def _size_relabelled(scene: Scene) -> str:
    bundle = _parsed(scene)
    text, rest = bundle.tree_head.split("\n\n", 1)
    head = parse_tree_head(text + "\n")
    relabelled = TreeHead(head.origin, head.size + 1, head.root)
    return _examined(scene, encode_bundle(replace(bundle, tree_head=relabelled.text + "\n" + rest)))


def _index_changed(scene: Scene) -> str:
    bundle = _parsed(scene)
    moved = replace(bundle.entries[0], index=bundle.entries[0].index ^ 1)
    return _examined(scene, encode_bundle(replace(bundle, entries=(moved, *bundle.entries[1:]))))


def _opening_changed(scene: Scene) -> str:
    bundle = _parsed(scene)
    first = bundle.entries[0]
    openings = tuple(
        replace(opening, value=b"1.0") if opening.path == "reward" else opening
        for opening in first.openings
    )
    forged = replace(bundle, entries=(replace(first, openings=openings), *bundle.entries[1:]))
    return _examined(scene, encode_bundle(forged))


# --- on the contract ------------------------------------------------------------------


def _offered(scene: Scene, offer: Callable[[Log], tuple[int, bytes, tuple[bytes, ...]]]) -> str:
    """Send a tree head straight to the contract, past the anchorer's own checks."""
    with Ledger.open(scene.directory) as ledger:
        log = ledger.find(scene.run)
        size, root, proof = offer(log)
        with RpcClient(ledger.chain.rpc_url) as rpc:
            reader = AnchorReader(
                rpc, chain_id=ledger.chain.chain_id, contract=ledger.chain.contract
            )
            try:
                anchor(
                    reader, scene.signer,
                    log_id=log.log_id, tree_size=size, root=root, proof=proof,
                )  # fmt: skip
            except AnchorRefused as error:
                return f"contract: {error.reason}, {error.message}"
    return ""


def _fork_offered(scene: Scene) -> str:
    """A larger tree over forged leaves, with the best proof the forger can make."""

    def offer(log: Log) -> tuple[int, bytes, tuple[bytes, ...]]:
        leaves = [leaf_hash(entry.data) for entry in log.entries()]
        leaves[0] = leaf_hash(b"another beginning")
        leaves.append(leaf_hash(b"and another end"))
        forged = GrowingTree()
        forged.append(leaves)
        return forged.size, forged.root(), _proof(leaves, log.size, forged.size)

    return _offered(scene, offer)


def _proof(leaves: list[bytes], old: int, new: int) -> tuple[bytes, ...]:
    def node(level: int, index: int) -> bytes:
        return root_hash(leaves[index << level : (index + 1) << level])

    return consistency_proof(old, new, node)


def _smaller_offered(scene: Scene) -> str:
    def offer(log: Log) -> tuple[int, bytes, tuple[bytes, ...]]:
        size = log.size - 1
        return size, log.root_at(size), ()

    return _offered(scene, offer)
