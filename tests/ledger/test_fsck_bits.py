"""One flipped bit anywhere: exit code 1, and the finding names what was hit."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import CosignatureRow

SEEDS = 6
TRIES = 50
RUN = "log_number = (SELECT number FROM log WHERE run_id = 'run42')"


@pytest.fixture(scope="module")
def ledger_directory(_sound, tmp_path_factory):
    """The sound ledger with two cosignatures, and an export of its longest log."""
    directory = Path(shutil.copytree(_sound, tmp_path_factory.mktemp("bits") / "ledger"))
    witness = Cosigner.derive(b"\x07" * 32, "witness.example/w1")
    with Ledger.open(directory) as ledger:
        log = ledger.find("run42")
        head = log.published().head
        export_log(log, directory.with_name("export"))
        rows = [
            {"log_number": log.number, "tree_size": head.size, "witness": line.name,
             "key_id": line.key_id.hex(), "vkey": str(key), "blob": line.blob, "cosigned_at_s": 5}
            for key, line in zip(witness.keys, witness.cosign(head, time_s=5), strict=True)
        ]  # fmt: skip
        with writing(ledger.engine) as connection:
            connection.execute(CosignatureRow.__table__.insert(), rows)
    return directory


@dataclass
class Column:
    """Hit a random row; `name` says from (rowid, leaf_index or the like) what fsck must call it."""

    table: str
    column: str
    what: str
    place: str
    named: Callable[..., str]
    where: str = RUN


def index(number):
    return f"index {number}"


def size(number):
    return f"size {number}"


COLUMNS = [
    *(Column("entry", column, "entry", "leaf_index", index)
      for column in ("data", "leaf_hash", "writer_id", "seq", "kind")),
    *(Column("writer_span", column, "writer_span", "first_index", index)
      for column in ("writer_id", "first_seq")),
    Column("kind_tile", "kind", "kind_tile", "tile_index * 256", index),
    Column("subject_tile", "subject", "subject_tile", "tile_index * 256", index),
    *(Column("hash_tile", column, "hash_tile", "level || ' ' || tile_index",
             lambda x: "level {}, tile {}".format(*x.split()))
      for column in ("hashes", "inner_nodes")),
    *(Column("tree_head", column, "tree_head", "tree_size", size) for column in ("note", "root")),
    *(Column("cosignature", column, "cosignature", "tree_size || ' ' || witness",
             lambda x: "size {}, '{}'".format(*x.split()))
      for column in ("blob", "cosigned_at_s", "vkey", "key_id")),
    Column("vault", "ciphertext", "vault", "leaf_index", index),
    Column("blob", "data", "blob", "digest", str, "data IS NOT NULL"),
    Column("blob", "size_bytes", "blob", "digest", str, "1"),
    *(Column("anchor", column, "anchor", "id", lambda x: f"row {x}", "1")
      for column in ("root", "tree_size", "log_number", "chain_id", "contract", "publisher",
                     "nonce", "tx_hash", "max_fee_wei", "tip_wei", "state")),
    Column("anchor", "raw_tx", "anchor", "id", lambda x: f"row {x}", "length(raw_tx) > 0"),
    *(Column("writer_token", column, "writer_token", "writer", repr, "1")
      for column in ("run_id", "token_digest", "granted_index")),
    Column("writer_token", "revoked_index", "writer_token", "writer", repr, "revoked_index > 0"),
    Column("remote_writer", "writer", "remote_writer", "writer_id", repr, "1"),
]  # fmt: skip


def flipped(value, chosen):
    """The same kind of value with one bit changed."""
    if isinstance(value, int):
        return value ^ 1 << chosen.randrange(40)
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    return bytes(data)


def hit(database, item, chosen):
    """Flip one bit of one row; return how the row was called, and how to undo it."""
    for _ in range(TRIES):
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            query = (
                f"SELECT rowid, {item.place}, {item.column} FROM {item.table} WHERE {item.where}"  # noqa: S608
            )
            rowid, place, value = chosen.choice(connection.execute(query).fetchall())
            change = f"UPDATE {item.table} SET {item.column} = {'CAST(? AS TEXT)' if isinstance(value, str) else '?'} WHERE rowid = ?"  # noqa: S608
            try:
                connection.execute(change, (flipped(value, chosen), rowid))
            except sqlite3.IntegrityError:
                continue  # the bit would have made it another row's
            return place, (change, (value, rowid))
    raise AssertionError("no bit can be flipped")


def examine(*arguments):
    """Run the command; return its exit code and findings as (what, where)."""
    result = CliRunner().invoke(main, ["fsck", "--json", "--jobs", "1", *map(str, arguments)])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    record = json.loads(result.stdout)
    return result.exit_code, {(x["what"], x["where"]) for x in record["findings"]}


@pytest.mark.parametrize("item", COLUMNS, ids=lambda item: f"{item.table}.{item.column}")
def test_a_bit_of_a_row(ledger_directory, item):
    database = ledger_directory / "ledger.db"
    for seed in range(SEEDS):
        place, (statement, before) = hit(database, item, random.Random(f"{item.column} {seed}"))
        code, found = examine("--ledger", ledger_directory)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(statement, before)
        assert code == 1, (seed, place)
        assert (item.what, item.named(place)) in found, (seed, found)


def test_nothing_is_found_where_nothing_was_hit(ledger_directory):
    assert examine("--ledger", ledger_directory) == (0, set())
    assert examine("--export", ledger_directory.with_name("export")) == (0, set())


def files_of(directory, pattern):
    found = sorted(x for x in directory.glob(pattern) if x.is_file())
    assert found
    return found


@pytest.mark.parametrize(
    ("pattern", "what"), [("blobs/*", "blob"), ("keys/*.vkey", "vkey")], ids=["blob", "vkey"]
)
def test_a_bit_of_a_file_beside_the_database(ledger_directory, pattern, what):
    for seed in range(SEEDS):
        chosen = random.Random(seed)
        path = chosen.choice(files_of(ledger_directory, pattern))
        sound = path.read_bytes()
        path.write_bytes(flipped(sound, chosen))
        code, found = examine("--ledger", ledger_directory)
        path.write_bytes(sound)
        name = path.name if what == "blob" else f"keys/{path.name}"
        assert (code, found) == (1, {(what, name)}), seed


@pytest.mark.parametrize("with_key", [True, False], ids=["pinned", "by its own keys"])
@pytest.mark.parametrize("pattern", ["tile/[01]/**/*", "tile/entries/**/*", "checkpoint", "vkey"])
def test_a_bit_of_an_export(ledger_directory, pattern, with_key):
    directory = ledger_directory.with_name("export")
    options = ["--key", ledger_directory / "keys" / "run42.vkey"] if with_key else []
    for seed in range(SEEDS):
        chosen = random.Random(f"{pattern} {seed}")
        path = chosen.choice(files_of(directory, pattern))
        sound = path.read_bytes()
        path.write_bytes(flipped(sound, chosen))
        code, found = examine("--export", directory, *options)
        path.write_bytes(sound)
        name = path.relative_to(directory).as_posix()
        assert code == 1, (seed, name)
        # without a pinned key, nobody can say whether the keys changed or the signatures
        named = {where for _, where in found}
        assert name in named or (not with_key and "checkpoint" in named), (seed, name, found)
        if name.startswith("tile"):
            assert named == {name}, (seed, found)
