"""What does an anchor cost? Gas of whole transactions, read from receipts of a real Anvil.

Trees of up to 10^9 leaves are not built: a consistency proof is a list of hashes, so proofs of
the right shape are made of random nodes, and the two roots follow from them. Gas depends on the
shape alone, and the contract checks these proofs like any other. The sample is fixed by a seed.

The reference of each anchor is the same call data sent to an account without code: what any
contract would have to pay for the transaction itself. Peers get the same call data, too; their
reference is ours.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import Result
from benchmarks._gas_peers import PEERS, QUOTED, compile_peers
from rlhf_audit_trail.ledger.chain.contract.abi import (
    WORD_BYTES,
    HeadUpdate,
    address_word,
    encode_anchor,
    encode_anchor_many,
)
from rlhf_audit_trail.ledger.chain.contract.compiled import (
    CREATE2_FACTORY,
    CREATE2_SALT,
    load_artifact,
)
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import await_receipt, keccak256
from rlhf_audit_trail.ledger.proof.merkle import node_hash, verify_consistency

__all__ = ["Growth", "run", "sample", "sample_digest", "synthetic_growth"]

SEED = 6962
SAMPLES = 64
PEER_SAMPLES = 16  # the first of them: four contracts, two transactions each
GAS_LIMIT = 16_000_000
NOWHERE = "0x000000000000000000000000000000000000dead"
SIZES = {"10^3": 10**3, "10^6": 10**6, "10^9": 10**9}
GOALS = {"10^6": 48_000, "10^9": 56_000}
BATCH_GOAL = 29_000  # per log, 50 logs at 10^6 leaves
NEW_SLOTS_GOAL = 0  # storage slots that a later anchor creates


@dataclass(frozen=True)
class Growth:
    """A tree that grew: two (size, root) pairs and the proof between them."""

    old_size: int
    old_root: bytes
    new_size: int
    new_root: bytes
    proof: tuple[bytes, ...] = field(repr=False)


def synthetic_growth(old_size: int, new_size: int, rng: random.Random) -> Growth:
    """Make a valid proof out of random nodes; `1 <= old_size < new_size`.

    The walk is the verifier's of RFC 9162 section 2.1.4.2, drawing each node where that reads one.
    """
    whole = old_size & (old_size - 1) == 0  # then the walk starts at the old root itself
    proof: list[bytes] = []
    old = new = rng.randbytes(32)
    if not whole:
        proof.append(old)
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    while sn:
        sibling = rng.randbytes(32)
        proof.append(sibling)
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    verify_consistency(old_size, old, new_size, new, proof)
    return Growth(old_size, old, new_size, new, tuple(proof))


class _Chain:
    """Sends calls from an unlocked account of a development chain and reads their gas."""

    def __init__(self, rpc: RpcClient, sender: str, contract: str) -> None:
        self._rpc = rpc
        self._sender = sender
        self.contract = contract

    def gas(self, to: str, data: bytes, *, succeeds: bool = True) -> int:
        call = {"from": self._sender, "to": to, "data": f"0x{data.hex()}", "gas": hex(GAS_LIMIT)}
        tx_hash = self._rpc.call("eth_sendTransaction", call)
        receipt = await_receipt(self._rpc, parse_data(tx_hash))
        assert (receipt["status"] == "0x1") == succeeds, receipt
        return parse_quantity(receipt["gasUsed"])

    def create(self, code: bytes) -> str:
        """Deploy other code, and return where it stands."""
        call = {"from": self._sender, "data": f"0x{code.hex()}", "gas": hex(GAS_LIMIT)}
        receipt = await_receipt(self._rpc, parse_data(self._rpc.call("eth_sendTransaction", call)))
        return str(receipt["contractAddress"])

    def slots(self) -> int:
        """Count the contract's storage slots in use, in the node's own dump of its state."""
        state = json.loads(gzip.decompress(parse_data(self._rpc.call("anvil_dumpState"))))
        words = state["accounts"][self.contract]["storage"].values()
        return sum(int(word, 16) != 0 for word in words)

    def view(self, data: bytes) -> bytes:
        call = {"to": self.contract, "data": f"0x{data.hex()}"}
        return parse_data(self._rpc.call("eth_call", call, "latest"))

    def anchor(self, *arguments: Any, succeeds: bool = True) -> tuple[int, int]:
        """Gas of an anchor, and of its call data alone."""
        data = encode_anchor(*arguments)
        return self.gas(self.contract, data, succeeds=succeeds), self.gas(NOWHERE, data)


def run() -> Sequence[Result]:
    """Measure everything on a fresh chain."""
    config = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))
    with Anvil(config) as anvil, RpcClient(anvil.url) as rpc:
        artifact = load_artifact()
        chain = _Chain(rpc, anvil.accounts[0].address, artifact.address)
        deployment = chain.gas(CREATE2_FACTORY, CREATE2_SALT + artifact.creation)
        return [
            Result("deploy through the CREATE2 factory", deployment, "gas"),
            *_anchors(chain),
            *_slots(chain),
            *_batches(chain),
            _signed_by_publisher(chain, KeySigner(anvil.accounts[1].key)),
            *_refusals(chain),
            *_peers(chain),
            *(Result(f"quoted: {name}", gas, "gas") for name, gas in QUOTED.items()),
        ]


@dataclass(frozen=True)
class Series:
    """Growths of one kind: trees of about one size, to and from multiples of one number."""

    label: str
    aligned: int
    growths: tuple[tuple[bytes, Growth], ...] = field(repr=False)

    @property
    def name(self) -> str:
        return f"at {self.label} leaves" + (", multiples of 256" * (self.aligned > 1))


def sample() -> tuple[Series, ...]:
    """Make the one sample that all means are taken over; the same on every machine."""
    rng = random.Random(f"{SEED} anchors")
    found = []
    for aligned in (256, 1):
        for label, size in SIZES.items():
            pairs = [(_sample(size, aligned, rng), rng.randbytes(32)) for _ in range(SAMPLES)]
            found.append(Series(label, aligned, tuple((log_id, item) for item, log_id in pairs)))
    return tuple(found)


def sample_digest() -> str:
    """Name the sample by a hash over the call data of its later anchors."""
    digest = hashlib.sha256()
    for series in sample():
        for log_id, growth in series.growths:
            digest.update(_next_call(log_id, growth))
    return digest.hexdigest()


def _next_call(log_id: bytes, growth: Growth) -> bytes:
    return encode_anchor(log_id, growth.new_size, growth.new_root, growth.proof)


def _anchors(chain: _Chain) -> Iterator[Result]:
    firsts: list[tuple[int, int]] = []
    rows = []
    for series in sample():
        nexts = []
        for log_id, growth in series.growths:
            firsts.append(chain.anchor(log_id, growth.old_size, growth.old_root, ()))
            nexts.append(chain.anchor(log_id, growth.new_size, growth.new_root, growth.proof))
        goal = GOALS.get(series.label) if series.aligned > 1 else None
        rows.append(_mean(f"next anchor {series.name}", nexts, goal))
    yield _mean("first anchor of a log", firsts, None)
    yield from rows


def _slots(chain: _Chain) -> Iterator[Result]:
    """Count storage before and after, over logs of their own."""
    rng = random.Random(f"{SEED} slots")
    growths = [(rng.randbytes(32), _sample(10**6, 256, rng)) for _ in range(SAMPLES)]
    before = chain.slots()
    for log_id, growth in growths:
        chain.anchor(log_id, growth.old_size, growth.old_root, ())
    between = chain.slots()
    for log_id, growth in growths:
        chain.anchor(log_id, growth.new_size, growth.new_root, growth.proof)
    after = chain.slots()
    yield Result("storage slots created by a first anchor", (between - before) / SAMPLES, "slots")
    yield Result(
        "storage slots created by a later anchor",
        (after - between) / SAMPLES,
        "slots",
        goal=NEW_SLOTS_GOAL,
    )


def _peers(chain: _Chain) -> Iterator[Result]:
    """Send the aligned anchors of the sample to other contracts, and compare with ours."""
    places = {name: chain.create(code) for name, code in compile_peers().items()}
    for series in sample():
        if series.aligned == 1:
            continue
        costs: dict[str, list[tuple[int, int]]] = {name: [] for name in places}
        for log_id, growth in series.growths[:PEER_SAMPLES]:
            fresh = hashlib.sha256(log_id).digest()  # the log is already anchored under its own id
            first = encode_anchor(fresh, growth.old_size, growth.old_root, ())
            later = _next_call(fresh, growth)
            chain.gas(chain.contract, first)
            ours = chain.gas(chain.contract, later)
            for name, place in places.items():
                chain.gas(place, first)
                costs[name].append((chain.gas(place, later), ours))
        for name, about in PEERS.items():
            yield _mean(f"peer {series.name}: {about}", costs[name], None)


def _sample(size: int, aligned: int, rng: random.Random) -> Growth:
    """Grow a tree of about that size by up to 2,048 leaves, to and from multiples of `aligned`."""
    old = aligned * rng.randint(size // 2 // aligned + 1, 3 * size // 2 // aligned)
    return synthetic_growth(old, old + aligned * rng.randint(1, 2048 // aligned), rng)


def _batches(chain: _Chain) -> Iterator[Result]:
    rng = random.Random(f"{SEED} batches")
    for count in (1, 10, 50):
        growths = [(rng.randbytes(32), _sample(10**6, 256, rng)) for _ in range(count)]
        for log_id, growth in growths:
            chain.anchor(log_id, growth.old_size, growth.old_root, ())
        data = encode_anchor_many(
            [HeadUpdate(log_id, x.new_size, x.new_root, x.proof) for log_id, x in growths]
        )
        gas, floor = chain.gas(chain.contract, data), chain.gas(NOWHERE, data)
        yield Result(
            f"anchorMany at 10^6 leaves, per log, {count} logs",
            gas / count,
            "gas",
            reference=floor / count,
            goal=BATCH_GOAL if count == 50 else None,  # the size the goal is set for
        )


def _signed_by_publisher(chain: _Chain, publisher: KeySigner) -> Result:
    """Anchor for a publisher who only signs, while another account pays."""
    rng, pairs = random.Random(f"{SEED} signed"), []
    for _ in range(SAMPLES):
        growth, log_id = _sample(10**6, 256, rng), rng.randbytes(32)
        for size, root, proof in (
            (growth.old_size, growth.old_root, ()),
            (growth.new_size, growth.new_root, growth.proof),
        ):
            data = _encode_for(chain, publisher, log_id, size, root, proof)
            pair = chain.gas(chain.contract, data), chain.gas(NOWHERE, data)
        pairs.append(pair)
    return _mean("anchorFor at 10^6 leaves, multiples of 256", pairs, None)


def _encode_for(
    chain: _Chain, signer: KeySigner, log_id: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bytes:
    """Sign a tree head by EIP-712 and write the call of `anchorFor` that carries it."""
    functions, deadline = load_artifact().functions, _word(2**64)
    type_hash = keccak256(b"TreeHead(bytes32 logId,uint64 treeSize,bytes32 root,uint256 deadline)")
    message = keccak256(type_hash + log_id + _word(size) + root + deadline)
    domain = chain.view(functions["domainSeparator()"])
    signature = signer.sign_digest(keccak256(b"\x19\x01" + domain + message))
    signed = _word(signature.r) + _word(signature.s) + bytes([27 + signature.y_parity])
    signature_at = _word(7 * WORD_BYTES + WORD_BYTES * (1 + len(proof)))
    static = (address_word(signer.address), log_id, _word(size), root, _word(7 * WORD_BYTES))
    selector = functions["anchorFor(address,bytes32,uint64,bytes32,bytes32[],uint256,bytes)"]
    words = (*static, deadline, signature_at, _word(len(proof)), *proof, _word(len(signed)))
    return selector + b"".join(words) + signed.ljust(3 * WORD_BYTES, b"\0")


def _word(value: int) -> bytes:
    return value.to_bytes(WORD_BYTES)


def _refusals(chain: _Chain) -> Iterator[Result]:
    rng = random.Random(f"{SEED} refusals")
    growth, log_id = synthetic_growth(10**6, 10**6 + 1000, rng), rng.randbytes(32)
    forked = synthetic_growth(10**6, 10**6 + 1000, rng)
    chain.anchor(log_id, growth.old_size, growth.old_root, ())
    size, root, proof = growth.new_size, growth.new_root, growth.proof
    wrong = (*proof[:-1], rng.randbytes(32))
    for name, arguments in {
        "a first anchor with a proof": (rng.randbytes(32), size, root, proof),
        "a smaller tree": (log_id, growth.old_size - 1, root, proof),
        "an equal size with another root": (log_id, growth.old_size, root, ()),
        "a fork with a proof of its own": (log_id, size, forked.new_root, forked.proof),
        "a wrong proof": (log_id, size, root, wrong),
        "a proof too short": (log_id, size, root, proof[:-1]),
    }.items():
        gas, floor = chain.anchor(*arguments, succeeds=False)
        yield Result(f"refused: {name}", gas, "gas", reference=floor)


def _mean(name: str, pairs: Sequence[tuple[int, int]], goal: float | None) -> Result:
    gas, floors = zip(*pairs, strict=True)
    return Result(
        f"{name} (mean of {len(pairs)})",
        round(statistics.mean(gas), 1),
        "gas",
        reference=round(statistics.mean(floors), 1),
        goal=goal,
    )
