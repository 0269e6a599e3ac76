"""A real Anvil with the real contract on it, and small real parts around it, for any test.

Import the fixtures into a `conftest.py`. One chain serves a whole session: tests stay apart by
using publishers and log ids of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.records import (
    SUPERSEDED,
    Account,
    AnchorRecord,
    Dropped,
    Intended,
    JournalEntry,
    Lost,
    Member,
    Mined,
    Note,
    Seen,
    Spent,
)
from rlhf_audit_trail.ledger.chain.anchoring.view import Place
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees
from rlhf_audit_trail.ledger.proof import merkle

__all__ = [
    "FREE_PORT",
    "FileJournal",
    "GrowingLog",
    "anvil",
    "fund",
    "log",
    "publisher",
    "reader",
    "rpc",
]

FREE_PORT = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def anvil() -> Iterator[Anvil]:
    """A chain with the contract deployed, ended with the session."""
    with Anvil(FREE_PORT) as chain:
        with RpcClient(chain.url) as client:
            deploy(client, KeySigner(chain.accounts[0].key), chain_id=chain.config.anvil.chain_id)
        yield chain


@pytest.fixture
def rpc(anvil: Anvil) -> Iterator[RpcClient]:
    with RpcClient(anvil.url) as client:
        yield client


@pytest.fixture
def reader(rpc: RpcClient, anvil: Anvil) -> AnchorReader:
    """The contract where `deploy` puts it."""
    address = deploy(rpc, KeySigner(anvil.accounts[0].key), chain_id=31337)
    return AnchorReader(rpc, chain_id=31337, contract=address)


@pytest.fixture
def publisher(rpc: RpcClient) -> KeySigner:
    """A funded account that no other test uses."""
    signer = KeySigner(
        hashlib.sha256(f"publisher {os.getpid()} {next(_numbers)}".encode()).digest()
    )
    fund(rpc, signer.address)
    return signer


@pytest.fixture
def log() -> GrowingLog:
    return GrowingLog(f"example.org/rlhf/test-{next(_numbers)}")


def fund(rpc: RpcClient, address: str) -> None:
    rpc.call("anvil_setBalance", address, hex(10**21))


class GrowingLog:
    """An RFC 6962 log in memory: an `AnchorableLog` whose every append is published."""

    def __init__(self, origin: str, leaves: Sequence[bytes] = ()) -> None:
        self.origin = origin
        self.log_id = hashlib.sha256(origin.encode()).digest()
        self.leaves = list(leaves)

    def grow(self, count: int) -> GrowingLog:
        for _ in range(count):
            self.leaves.append(merkle.leaf_hash(f"{self.origin} {len(self.leaves)}".encode()))
        return self

    @property
    def size(self) -> int:
        return len(self.leaves)

    def latest_head(self) -> tuple[int, bytes] | None:
        return (self.size, self.root_at(self.size)) if self.leaves else None

    def root_at(self, size: int) -> bytes:
        return merkle.root_hash(self.leaves[:size])

    def consistency_proof(self, old: int, new: int) -> tuple[bytes, ...]:
        return merkle.consistency_proof(old, new, self._node)

    def inclusion_proof(self, index: int, size: int) -> tuple[bytes, ...]:
        return merkle.inclusion_proof(index, size, self._node)

    def _node(self, level: int, index: int) -> bytes:
        return merkle.root_hash(self.leaves[index << level : (index + 1) << level])


class FileJournal:
    """An `AnchorJournal` as lines of JSON, each synced, so that a killed process loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, notes: Sequence[Note]) -> None:
        for note in notes:
            match note:
                case Intended(record):
                    self.intent(record)
                case Seen(record, mined):
                    self.mined(record, mined)
                case Lost(record):
                    self.unmined(record)
                case Dropped(record):
                    self.dropped(record, note.reason, note.spent, note.failed_at)

    def intent(self, record: AnchorRecord) -> None:
        self._write("intent", record, record=_plain(record))

    def mined(self, record: AnchorRecord, mined: Mined) -> None:
        self._write("mined", record, mined=_plain(mined))

    def unmined(self, record: AnchorRecord) -> None:
        self._write("unmined", record)

    def dropped(
        self, record: AnchorRecord, reason: str, spent: Spent | None, failed_at: Place | None
    ) -> None:
        more = {name: _plain(x) if x else None for name, x in (("spent", spent), ("at", failed_at))}
        self._write("dropped", record, reason=reason, **more)

    def unsettled(self, account: Account | None = None) -> list[JournalEntry]:
        del account  # a journal of one
        entries = self.entries()
        unsettled = {
            e.record.nonce
            for e in entries
            if (e.failed_at or not e.is_dropped)
            and not (e.mined and e.mined.state is AnchorState.FINALIZED)
        }
        return [entry for entry in entries if entry.record.nonce in unsettled]

    def last_final(self, account: Account) -> Place | None:
        for entry in self.finalized(account):
            return entry.mined.place if entry.mined else None
        return None

    def finalized(self, account: Account) -> list[JournalEntry]:
        del account  # a journal of one
        final = [e for e in self.entries() if e.mined and e.mined.state is AnchorState.FINALIZED]
        return final[::-1]

    def superseded(self, account: Account) -> list[JournalEntry]:
        del account  # a journal of one
        said = {line["tx_hash"]: line.get("reason") for line in self.lines()}
        return [x for x in self.entries() if said[x.record.tx_hash.hex()] == SUPERSEDED]

    def spent_since(self, publisher: str, timestamp: int) -> int:
        del publisher  # a journal of one
        spent: dict[str, dict[str, int]] = {}
        for line in self.lines():
            said = (line.get("mined") or {}).get("spent") or line.get("spent")
            if said:
                spent[line["tx_hash"]] = said
        return sum(
            x["gas_used"] * x["gas_price_wei"] for x in spent.values() if x["timestamp"] > timestamp
        )

    def entries(self) -> list[JournalEntry]:
        """All of them, in the order of intent."""
        found: dict[str, JournalEntry] = {}
        for line in self.lines():
            key, kind = line["tx_hash"], line["kind"]
            if kind == "intent":
                found[key] = JournalEntry(_record(line["record"]))
            else:
                mined = _mined(line["mined"]) if kind == "mined" else None
                at = line.get("at")
                place = Place(at["block_number"], bytes.fromhex(at["block_hash"])) if at else None
                record = found[key].record
                found[key] = JournalEntry(record, mined, kind == "dropped", place)
        return list(found.values())

    def lines(self) -> list[dict[str, Any]]:
        """Everything ever written, oldest first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def kinds(self) -> list[str]:
        return [line["kind"] for line in self.lines()]

    def _write(self, kind: str, record: AnchorRecord, /, **more: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "tx_hash": record.tx_hash.hex(), **more}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(item: AnchorRecord | Mined | Spent | Place) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(item), default=bytes.hex))
    return plain


def _record(values: dict[str, Any]) -> AnchorRecord:
    members = [
        Member(bytes.fromhex(x["log_id"]), x["tree_size"], bytes.fromhex(x["root"]))
        for x in values["members"]
    ]
    raw, tx_hash = bytes.fromhex(values["raw"]), bytes.fromhex(values["tx_hash"])
    made = {"members": tuple(members), "fees": Fees(**values["fees"]), "raw": raw}
    return AnchorRecord(**(values | made | {"tx_hash": tx_hash}))


def _mined(values: dict[str, Any]) -> Mined:
    place = Place(values["place"]["block_number"], bytes.fromhex(values["place"]["block_hash"]))
    sequences = tuple(values["sequences"])
    return Mined(AnchorState(values["state"]), place, sequences, Spent(**values["spent"]))
