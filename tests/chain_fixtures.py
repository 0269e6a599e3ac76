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

from rlhf_audit_trail.ledger.chain.anchorer import AnchorRecord, JournalEntry
from rlhf_audit_trail.ledger.chain.anvil import Anvil
from rlhf_audit_trail.ledger.chain.anvil_settings import AnvilConfig, NodeSettings, StateSettings
from rlhf_audit_trail.ledger.chain.contract import deploy
from rlhf_audit_trail.ledger.chain.reader import AnchoredHead, AnchorReader, AnchorState
from rlhf_audit_trail.ledger.chain.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signer import KeySigner
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

    def intent(self, record: AnchorRecord) -> None:
        self._write("intent", record, record=_to_json(record))

    def mined(self, record: AnchorRecord, anchored: AnchoredHead) -> None:
        self._write("mined", record, anchored=_to_json(anchored))

    def unmined(self, record: AnchorRecord) -> None:
        self._write("unmined", record)

    def dropped(self, record: AnchorRecord, reason: str) -> None:
        self._write("dropped", record, reason=reason)

    def unsettled(self) -> list[JournalEntry]:
        entries: dict[str, JournalEntry] = {}
        for line in self.lines():
            key = line["tx_hash"]
            if line["kind"] == "intent":
                entries[key] = JournalEntry(_from_json(AnchorRecord, line["record"]))
            elif line["kind"] == "dropped":
                del entries[key]
            else:
                seen = line.get("anchored")
                anchored = _from_json(AnchoredHead, seen) if seen else None
                entries[key] = dataclasses.replace(entries[key], anchored=anchored)
        return [e for e in entries.values() if e.state is not AnchorState.FINALIZED]

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


def _to_json(item: AnchorRecord | AnchoredHead) -> dict[str, Any]:
    values = dataclasses.asdict(item)
    return {k: {"hex": v.hex()} if isinstance(v, bytes) else v for k, v in values.items()}


def _from_json(kind: type[Any], values: dict[str, Any]) -> Any:
    plain = {k: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for k, v in values.items()}
    if "state" in plain:
        plain["state"] = AnchorState(plain["state"])
    return kind(**plain)
