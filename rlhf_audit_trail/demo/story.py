"""The whole path, once: ledger, chain, training, anchors, bundle, verification, attacks.

Everything is real: the chain is Anvil with the real contract, the training is a real
policy-gradient run, the verification happens in a process that has neither torch nor web3
nor a database nor a network. Only the annotators are simulated, and the record says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.demo.attacks import Attack, Scene, run_attacks
from rlhf_audit_trail.detectors.checking import REPRODUCED, check_alerts
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import read_anchored
from rlhf_audit_trail.ledger.chain.evidence.making import storage_evidence
from rlhf_audit_trail.ledger.chain.evidence.own_evidence import own_reader
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import AnvilConfig, NodeSettings
from rlhf_audit_trail.ledger.chain.node.confirming import confirm_block
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.evm.evidence import TrustedBlock
from rlhf_audit_trail.ledger.proof.verify import OnChain
from rlhf_audit_trail.ledger.trust import TRUST_SCHEMA, AnchorTrust

__all__ = ["DemoFailed", "DemoReport", "tell"]

RUN: Final = "demo-run"
HACKED_RUN: Final = "demo-hacked"
_HACKED_STEPS: Final = 26  # by then the policy says little but kind words
HEAVY: Final = (
    "torch", "transformers", "numpy", "web3", "eth_account", "sqlmodel", "sqlalchemy", "fastapi",
)  # fmt: skip
_VERIFY_TIMEOUT_S: Final = 60
_ENDS_AVERAGED: Final = 5  # rollouts whose mean stands for the end

Say = Callable[[str], None]


class DemoFailed(AuditTrailError):
    """A step of the demonstration did not do what it must."""


@dataclass
class DemoReport:
    """What happened, in numbers; the `--json` output."""

    directory: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    hacking: dict[str, Any] = field(default_factory=dict)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    provenance_valid: bool = False
    bundle: str = ""
    trusted_block: str = ""
    verified_exit_code: int = -1
    attacks: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything that must hold held."""
        caught = bool(self.attacks) and all(item["by"] for item in self.attacks)
        return caught and self.provenance_valid and self.verified_exit_code == 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"schema": "rlhf-audit/demo/v1", "passed": self.passed} | asdict(self)


def tell(directory: Path, *, fast: bool, say: Say) -> DemoReport:
    """Run the demonstration in a new directory and return what happened.

    Args:
        directory: new or empty; all files go below it.
        fast: a policy-gradient run in plain Python instead of a language model with torch.
        say: takes each line for the reader.

    Raises:
        AnvilNotFound: no Anvil binary; there is no simulated chain to fall back on.
        DemoFailed: a step did not do what it must.
    """
    started = time.monotonic()
    report = DemoReport(directory=str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    config = AnvilConfig(anvil=NodeSettings(port=0))
    with Anvil(config, state_dir=directory / "chain") as node:
        signer = KeySigner(node.accounts[0].key)
        say(f"chain      Anvil on {node.url}, chain {config.anvil.chain_id}")
        ledger_dir = directory / "ledger"
        _make_ledger(ledger_dir, node.url, config.anvil.chain_id, signer.address)
        say(f"ledger     {ledger_dir}")
        with (
            Ledger.open(ledger_dir) as ledger,
            Publisher(ledger, signer, after_mined=node.save_state) as publisher,
        ):
            say(f"contract   {publisher.deploy()} (TreeHeadAnchor, same address on every chain)")
            _train(ledger, publisher, report, fast=fast, say=say)
            if not fast:
                _hack(ledger, report, say)
            log = ledger.find(RUN)
            log.close()
            _anchor(publisher, log, report, say)
            _anchor(publisher, ledger.registry, report, say)
            node.mine(2)  # two blocks later an anchor on this chain is final
            bundle, block = _write_bundle(ledger, log, directory, report, say)
            _verify_apart(directory, report, say)
            place = AnchorTrust(block.chain_id, ledger.chain.contract, signer.address)
            scene = Scene(
                directory=ledger_dir, run=RUN, bundle=bundle, keys=log.verifier_keys,
                anchored=_ask_chain(ledger, log), chain=chain_trust(place, log.log_id, (block,)),
                signer=signer, workspace=directory,
            )  # fmt: skip
        _check_store(ledger_dir, say)
        _attack(scene, report, say)
    report.elapsed_s = round(time.monotonic() - started, 1)
    return report


def _make_ledger(directory: Path, url: str, chain_id: int, publisher: str) -> None:
    Ledger.create(directory, organisation="demo.example").close()
    chain = {
        "rpc_url": url,
        "chain_id": chain_id,
        "contract": load_artifact().address,
        "publisher": publisher,
    }
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in chain.items())
    settings = directory / SETTINGS_FILE
    settings.write_text(f"{settings.read_text('utf-8')}\n[chain]\n{lines}", "utf-8")


def _train(
    ledger: Ledger, publisher: Publisher, report: DemoReport, *, fast: bool, say: Say
) -> None:
    """Train for real while recording, and anchor several tree heads meanwhile."""
    auditor = AuditableRLHF(
        "demo-policy", ledger=ledger, source="simulated", watch_optimizers=not fast
    )
    log = ledger.open_run(RUN)

    def anchor_now() -> None:
        _anchor(publisher, log, report, say)

    if fast:
        from rlhf_audit_trail.demo.bandit import train
    else:
        from rlhf_audit_trail.demo.task import train
    began = time.monotonic()
    summary = train(auditor, RUN, anchor_now)
    elapsed_s = round(time.monotonic() - began, 1)
    recorded = _on_record(log)
    report.training = asdict(summary) | {"elapsed_s": elapsed_s, "on_record": recorded}
    say(
        f"training   {summary.steps} steps in {elapsed_s} s; on record: mean reward "
        f"{recorded['reward_start']:.2f} -> {recorded['reward_end']:.2f}, "
        f"KL to the reference {recorded['kl_end']:.2f}; {log.size:,} entries"
    )
    for prompt, before, after in summary.samples[:2]:
        say(f"             {prompt!r}: before {before!r}, after {after!r}")
    if recorded["reward_end"] < 2 * recorded["reward_start"]:
        raise DemoFailed("the mean reward did not double: the training did not work")
    found = auditor.verify_provenance(
        start_checkpoint=summary.first_checkpoint, end_checkpoint=summary.last_checkpoint
    )
    report.provenance_valid = found.is_valid
    if not found.is_valid:
        raise DemoFailed(f"the run's provenance does not verify: {found.failure}")
    say(
        f"provenance {summary.first_checkpoint} to {summary.last_checkpoint}: valid, "
        f"root {found.merkle_root[:16]}, {found.chain_verification}"
    )


def _hack(ledger: Ledger, report: DemoReport, say: Say) -> None:
    """Let a reward be hacked for real; the detectors must see it, and not in the honest run."""
    from rlhf_audit_trail.demo.hacking import good_minus_bad, train

    auditor = AuditableRLHF("demo-policy", ledger=ledger, source="simulated")
    summary = train(auditor, HACKED_RUN, good_minus_bad, steps=_HACKED_STEPS)
    alerts = check_alerts(ledger.find(HACKED_RUN))
    report.hacking = asdict(summary) | {"alerts": [asdict(alert) for alert in alerts]}
    say(
        f"hacking    a reward that counts words: score {summary.score_start:.2f} -> "
        f"{summary.score_end:.2f}, while an exact annotator says {summary.quality_start:.2f} -> "
        f"{summary.quality_end:.2f}; alerts, computed again from the ledger:"
    )
    for alert in alerts:
        say(f"             step {alert.step:>3}  {alert.severity:<9} {alert.name}: {alert.state}")
    if not any(alert.severity == "critical" and alert.state == REPRODUCED for alert in alerts):
        raise DemoFailed("the reward was hacked, and no detector saw it")
    if check_alerts(ledger.find(RUN)):
        raise DemoFailed("a detector accuses the honest training")


def _on_record(log: Log) -> dict[str, float]:
    """Read back from the ledger how the reward went, as its operator can."""
    values = [log.opened(entry.leaf_index) for entry in log.entries(kind="rollout.scored")]
    return {
        "reward_start": values[0]["reward_mean"],
        "reward_end": fmean(value["reward_mean"] for value in values[-_ENDS_AVERAGED:]),
        "kl_end": fmean(value["kl_mean"] for value in values[-_ENDS_AVERAGED:]),
    }


def _anchor(publisher: Publisher, log: Log, report: DemoReport, say: Say) -> None:
    said = publisher.anchor(log)
    if said is None:
        raise DemoFailed(f"nothing of {log.origin} was anchored")
    report.anchors.append(
        {"origin": log.origin, "tree_size": said.tree_size, "block_number": said.block_number}
    )
    say(f"anchored   {log.origin}, {said.tree_size:,} entries, in block {said.block_number}")


def _ask_chain(ledger: Ledger, log: Log) -> tuple[OnChain, ...]:
    """Ask the node about every anchored size, as an auditor with `--rpc` does."""
    answers = []
    for size in log.anchored_sizes():
        said = read_anchored(
            ledger.chain.rpc_url,
            chain_id=ledger.chain.chain_id,
            contract=ledger.chain.contract,
            publisher=ledger.chain.publisher,
            log_id=log.log_id,
            tree_size=size,
        )
        if said is None:
            raise DemoFailed(f"the chain does not hold the tree head of size {size:,}")
        where = f"block {said.block_number:,} of chain {ledger.chain.chain_id}, {said.state}"
        answers.append(OnChain(said.tree_size, said.root, where))
    return tuple(answers)


def _write_bundle(
    ledger: Ledger, log: Log, directory: Path, report: DemoReport, say: Say
) -> tuple[bytes, TrustedBlock]:
    """Prove the first annotation, an update and the last checkpoint; open the annotation.

    Chain evidence is of one block, whose hash an auditor would take from a source of his own:
    here it is asked from the node apart, and returned.
    """
    chosen = [
        [entry.leaf_index for entry in log.entries(kind=kind)][which]
        for kind, which in (
            ("annotation.recorded", 0), ("policy.update", -1), ("checkpoint.saved", -1),
        )
    ]  # fmt: skip
    with own_reader(ledger) as reader:
        evidence, shown = storage_evidence(reader, ledger.chain.publisher, log.log_id)
        block = confirm_block(
            reader.rpc, chain_id=reader.chain_id, number=shown.block.number, by="the demo's node"
        )
    data = log.bundle(
        chosen,
        opened=["annotator", "reward"],
        anchored_sizes=log.anchored_sizes(),
        chain=bytes(evidence),
    )
    (directory / "demo.bundle").write_bytes(data)
    (directory / "demo.vkey").write_text(ledger.key_file(RUN).read_text("utf-8"), "utf-8")
    policy = {
        "schema": TRUST_SCHEMA,
        "keys": [str(key) for key in log.verifier_keys],
        "anchor": {
            "chain_id": ledger.chain.chain_id,
            "contract": ledger.chain.contract,
            "publisher": ledger.chain.publisher,
        },
    }
    (directory / "demo.trust.json").write_text(json.dumps(policy, indent=2) + "\n", "utf-8")
    report.bundle = str(directory / "demo.bundle")
    report.trusted_block = f"{block.chain_id}:{block.number}:0x{block.hash.hex()}"
    say(
        f"bundle     {report.bundle}: {len(chosen)} entries, {len(data):,} bytes, of them "
        f"{len(bytes(evidence)):,} of chain evidence"
    )
    say(f"block      {report.trusted_block}, as the node says; an auditor asks one of his own")
    return data, block


def _verify_apart(directory: Path, report: DemoReport, say: Say) -> None:
    """Verify in a fresh process in which nothing heavy can be imported, and no socket opened.

    It knows the log's keys, who anchors where, and one block's hash.
    """
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import socket\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = None\n"
        "from rlhf_audit_trail.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "verify", str(directory / "demo.bundle")]
    command += ["--trust-policy", str(directory / "demo.trust.json")]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--trusted-block-hash", report.trusted_block],
        capture_output=True, text=True, check=False, timeout=_VERIFY_TIMEOUT_S,
    )  # fmt: skip
    report.verified_exit_code = done.returncode
    if done.returncode != 0:
        raise DemoFailed(f"the bundle does not verify:\n{done.stdout}{done.stderr}")
    elapsed_ms = 1000 * (time.monotonic() - began)
    say(f"verified   in a process without torch, web3, database or network, {elapsed_ms:.0f} ms:")
    for line in done.stdout.splitlines():
        say(f"             {line}")


def _check_store(directory: Path, say: Say) -> None:
    summary = Summary()
    with open_damaged(directory) as storage:
        for finding in fsck(storage, summary=summary):
            raise DemoFailed(f"fsck finds the honest ledger damaged: {finding}")
    say(f"fsck       sound: {summary.logs} logs, {summary.entries:,} entries")


def _attack(scene: Scene, report: DemoReport, say: Say) -> None:
    say("attacks    on copies, by someone who holds the database and the signing keys:")
    for attack in run_attacks(scene):
        report.attacks.append(asdict(attack))
        say(_attack_line(attack))


def _attack_line(attack: Attack) -> str:
    word = "caught" if attack.caught else "SLIPPED"
    return f"  {word:<8} {attack.name}\n             by {attack.by or 'nothing'}"
