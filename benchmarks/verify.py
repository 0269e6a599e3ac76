"""How long does an auditor wait? Cold start, size of the install, one bundle in process."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import Result
from rlhf_audit_trail.ledger.chain.contract.abi import encode_anchor
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.evidence.making import storage_evidence
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.bundle import Bundle, encode_bundle, parse_bundle
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, TrustedBlock, open_evidence
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.trust import AnchorTrust

_COLD_STARTS = 21
_ROUNDS = 200
_ENTRIES = 1_000
_LOGS = 300
_SAMPLE = 30
_CHAIN_ROUNDS = 20


def run() -> Sequence[Result]:
    """Measure; the bare interpreter is timed beside the command."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, keys, key_file = _make_bundle(Path(folder))
        path = Path(folder) / "one.bundle"
        path.write_bytes(bundle)
        verify = [sys.executable, "-m", "rlhf_audit_trail.cli", "verify", str(path)]
        verify += ["--key", str(key_file)]
        bare_ms = _median_ms(lambda: _process([sys.executable, "-c", "pass"]), _COLD_STARTS)
        cold_ms = _median_ms(lambda: _process(verify), _COLD_STARTS)
        trust = TrustPolicy(keys=keys)
        warm_ms = _median_ms(lambda: verify_bundle(bundle, trust), _ROUNDS)
    chain_bytes, chain_ms = _chain_part(parse_bundle(bundle))
    return (
        Result("bare interpreter, cold", bare_ms, "ms"),
        Result("rlhf-audit verify, cold", cold_ms, "ms", reference=bare_ms, goal=200),
        Result("verify one bundle in process", warm_ms, "ms", goal=2),
        Result("bundle of one entry", len(bundle), "bytes"),
        Result(f"chain part of a bundle, largest of {_LOGS}", chain_bytes, "bytes", goal=4_000),
        Result("verify one chain part in process", chain_ms, "ms", goal=8),
    )


def _make_bundle(folder: Path) -> tuple[bytes, tuple[VerifierKey, ...], Path]:
    with Ledger.create(folder / "audit", organisation="bench.example") as ledger:
        log = ledger.open_run("run")
        log.record_many(
            Event("metrics.logged", {"step": step}, {"metrics": {"loss": step / 7}})
            for step in range(_ENTRIES)
        )
        log.publish()
        return log.bundle([_ENTRIES // 3]), log.verifier_keys, ledger.key_file("run")


def _chain_part(bundle: Bundle) -> tuple[int, float]:
    """Return the most bytes that chain evidence adds to a bundle, and the median time for one.

    The publisher has 300 logs on a real Anvil; all are measured, and every tenth is timed.
    """
    settings = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))
    sizes, times_ms = [], []
    with Anvil(settings) as chain, RpcClient(chain.url) as rpc:
        contract = deploy(rpc, KeySigner(chain.accounts[0].key), chain_id=31337)
        reader, account = _anchor_logs(rpc, contract, chain.accounts[1].address), chain.accounts[1]
        for number, log_id in enumerate(_log_ids()):
            data, head = storage_evidence(reader, account.address, log_id)
            block = TrustedBlock(31337, head.block.number, head.block.hash, "the benchmark")
            where = AnchorTrust(31337, contract, account.address)
            trust = chain_trust(where, log_id, (block,))
            part = bytes(data)
            sizes.append(len(encode_bundle(replace(bundle, chain=part))))
            if number % (_LOGS // _SAMPLE) == 0:
                times_ms.append(_median_ms(partial(_shown, part, trust), _CHAIN_ROUNDS))
    return max(sizes) - len(encode_bundle(bundle)), statistics.median(times_ms)


def _shown(part: bytes, trust: ChainTrust) -> None:
    shown, missing = open_evidence(part, trust)
    if missing or not shown:
        raise RuntimeError("the evidence does not verify")


def _log_ids() -> list[bytes]:
    return [hashlib.sha256(b"log %d" % number).digest() for number in range(_LOGS)]


def _anchor_logs(rpc: RpcClient, contract: str, account: str) -> AnchorReader:
    for number, log_id in enumerate(_log_ids(), start=1):
        data = encode_anchor(log_id, 1_000 * number, log_id, ())
        call = {"from": account, "to": contract, "gas": hex(200_000), "data": f"0x{data.hex()}"}
        rpc.call("eth_sendTransaction", call)
    rpc.call("anvil_mine", "0x3")
    return AnchorReader(rpc, chain_id=31337, contract=contract)


def _process(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout.decode() + done.stderr.decode())


def _median_ms(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)
