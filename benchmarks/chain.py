"""How long does it take until a tree head stands on the chain? Against a real, automining Anvil.

A head is timed from the moment it is signed: the step reads the chain, builds and signs the
transaction, commits it to the journal (SQLite, synced), broadcasts it and sees it mined. What a
step needs besides, publishing and the lease on the publisher key, is timed with it in a row of
its own. The reference is the node's own work: the same call data, sent unsigned from an unlocked
account, until its receipt is seen.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import Result
from benchmarks.gas import Growth, synthetic_growth
from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.anchoring.fees import FeeLimits
from rlhf_audit_trail.ledger.chain.anchoring.journal import SqlAnchorJournal
from rlhf_audit_trail.ledger.chain.anchoring.log_view import LogView
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.abi import HeadUpdate, encode_anchor_many
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import TRANSACTION_GAS_MAX, deploy
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import await_receipt
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.settings import AnchorSettings, ChainSettings

__all__ = ["run"]

CHAIN_ID = 31337
HEADS = 200
WARM = 10
BATCHES = (1, 10, 100, 500)
REPEATS = 5
FIRSTS_AT_ONCE = 300  # first anchors take more gas
SEED = 6962
P50_GOAL_MS, P99_GOAL_MS = 10.0, 50.0
BATCH_GOAL = 5_000  # logs a second
NO_LIMITS = FeeLimits(day_wei_max=0)


def run() -> Sequence[Result]:
    """Measure on a fresh chain; the fees of a benchmark have no limit."""
    config = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))
    with (
        Anvil(config) as anvil,
        RpcClient(anvil.url) as rpc,
        tempfile.TemporaryDirectory() as folder,
    ):
        signer = KeySigner(anvil.accounts[0].key)
        contract = deploy(rpc, signer, chain_id=CHAIN_ID)
        reader = AnchorReader(rpc, chain_id=CHAIN_ID, contract=contract)
        Ledger.create(Path(folder) / "ledger", organisation="bench.example").close()
        with Ledger.open(Path(folder) / "ledger") as ledger:
            ledger.chain = ChainSettings(rpc_url=anvil.url, chain_id=CHAIN_ID)
            ledger.anchoring = AnchorSettings(ether_per_day_max=0.0)
            other = anvil.accounts[1].address
            return [
                Result("signing a digest", _signing_ms(signer), "ms"),
                *_heads(ledger, reader, signer, other),
                *_batches(ledger, reader, anvil),
            ]


def _signing_ms(signer: KeySigner) -> float:
    times = [_ms(lambda n=n: signer.sign_digest(n.to_bytes(32))) for n in range(1, 31)]
    return statistics.median(times)


def _heads(ledger: Ledger, reader: AnchorReader, signer: KeySigner, other: str) -> list[Result]:
    log, alone, whole, floors = ledger.open_run("bench"), [], [], []
    anchorer = Anchorer(reader, signer, SqlAnchorJournal(ledger.engine, [log]), limits=NO_LIMITS)
    rng = random.Random(SEED)
    for _ in range(WARM + HEADS):
        _append(log)
        head = log.publish().head
        alone.append(_ms(lambda head=head: anchorer.step([LogView(log, head)])))
        assert reader.head(signer.address, log.log_id).tree_size == head.size
        update = HeadUpdate(rng.randbytes(32), 1, rng.randbytes(32))
        floors.append(_ms(lambda update=update: _send(reader, other, [update])))
    with Publisher(ledger, signer) as publisher:
        for _ in range(WARM + HEADS):
            _append(log)
            whole.append(_ms(lambda: publisher.anchor(log)))
    p50, p99 = _p(floors, 50), _p(floors, 99)
    return [
        Result("signed tree head to mined, p50", _p(alone, 50), "ms", p50, P50_GOAL_MS),
        Result("signed tree head to mined, p99", _p(alone, 99), "ms", p99, P99_GOAL_MS),
        Result("guard, sign, lease and anchor, p50", _p(whole, 50), "ms", p50),
        Result("guard, sign, lease and anchor, p99", _p(whole, 99), "ms", p99),
    ]


def _append(log: Log) -> None:
    log.record(
        Event("annotation.recorded", {"source": "simulated", "batch": 0}, {"reward": 0.5})
    ).result()


class _Grown:
    """A real log's name and row, over a tree of about 10^6 leaves of which a proof is known."""

    def __init__(self, log: Log, growth: Growth) -> None:
        self.origin, self.log_id, self.size = log.origin, log.log_id, growth.new_size
        self.growth = growth
        self.is_new = False

    def latest_head(self) -> tuple[int, bytes]:
        known = self.growth
        return (known.new_size, known.new_root) if self.is_new else (known.old_size, known.old_root)

    def root_at(self, _tree_size: int, /) -> bytes:
        return self.growth.old_root

    def consistency_proof(self, _old: int, _new: int) -> tuple[bytes, ...]:
        return self.growth.proof


def _batches(ledger: Ledger, reader: AnchorReader, anvil: Anvil) -> list[Result]:
    """Anchor many logs in one step, each time with another publisher, to whom all are new."""
    rng = random.Random(SEED)
    logs = [ledger.open_run(f"log-{number}") for number in range(max(BATCHES))]
    journal = SqlAnchorJournal(ledger.engine, logs)
    found = []
    for count in BATCHES:
        rates, floors = [], []
        for account in anvil.accounts[2 : 2 + REPEATS]:
            signer = KeySigner(hashlib.sha256(account.key + bytes([count % 251])).digest())
            reader.rpc.call("anvil_setBalance", signer.address, hex(10**21))
            anchorer = Anchorer(reader, signer, journal, limits=NO_LIMITS)
            grown = [_Grown(log, _growth(rng)) for log in logs[:count]]
            anchorer.step(grown)
            for log in grown:
                log.is_new = True
            rates.append(1000 * count / _ms(lambda a=anchorer, g=grown: a.step(g)))
            head = reader.head(signer.address, grown[-1].log_id)
            assert head.tree_size == grown[-1].size
            floors.append(_node_alone(reader, account.address, count, rng))
        found.append((count, statistics.median(rates), statistics.median(floors)))
    return [
        Result(
            f"anchorMany, {count} logs, proofs made to all mined",
            rate,
            "logs/s",
            reference=floor,
            goal=BATCH_GOAL if count == max(BATCHES) else None,
            lower_is_better=False,
        )
        for count, rate, floor in found
    ]


def _node_alone(reader: AnchorReader, sender: str, count: int, rng: random.Random) -> float:
    """Return the logs a second of the node itself: unsigned, unread, in one transaction."""
    pairs = [(rng.randbytes(32), _growth(rng)) for _ in range(count)]
    firsts = [HeadUpdate(log_id, g.old_size, g.old_root) for log_id, g in pairs]
    for start in range(0, count, FIRSTS_AT_ONCE):
        _send(reader, sender, firsts[start : start + FIRSTS_AT_ONCE])
    nexts = [HeadUpdate(log_id, g.new_size, g.new_root, g.proof) for log_id, g in pairs]
    return 1000 * count / _ms(lambda: _send(reader, sender, nexts))


def _growth(rng: random.Random) -> Growth:
    old = 256 * rng.randint(3_000, 4_800)
    return synthetic_growth(old, old + 256 * rng.randint(1, 8), rng)


def _send(reader: AnchorReader, sender: str, updates: Sequence[HeadUpdate]) -> None:
    """Have the node itself send and mine the call from an unlocked account."""
    call = {
        "from": sender,
        "to": reader.contract,
        "data": f"0x{encode_anchor_many(updates).hex()}",
        "gas": hex(TRANSACTION_GAS_MAX),
    }
    tx_hash = parse_data(reader.rpc.call("eth_sendTransaction", call))
    assert await_receipt(reader.rpc, tx_hash)["status"] == "0x1"


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def _p(times: list[float], percent: int) -> float:
    """Return a percentile, the first rounds left out: they load modules and warm the node."""
    ordered = sorted(times[WARM:])
    return ordered[min(len(ordered) - 1, percent * len(ordered) // 100)]
