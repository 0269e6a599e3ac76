"""What the demo's attacks work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import OnChain, TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.verdict import STEPS, verdict

__all__ = ["ATTACKER_TIME_S", "Scene", "examined"]

ATTACKER_TIME_S = 1_700_000_000


@dataclass(frozen=True)
class Scene:
    """What the attacks work on; never changed by them.

    Attributes:
        directory: the honest ledger, closed or at rest.
        run: the run under attack; its log is anchored to the end.
        bundle: an honest bundle of that run, with opened values.
        keys: what the auditor pinned.
        anchored: what the auditor's own node says.
        chain: which block of which chain the auditor trusts, and whose anchors count.
        signer: the publisher, for offers to the contract.
        workspace: where copies go.
    """

    directory: Path
    run: str
    bundle: bytes
    keys: tuple[VerifierKey, ...]
    anchored: tuple[OnChain, ...]
    chain: ChainTrust
    signer: Signer
    workspace: Path


def examined(scene: Scene, data: bytes, *, ask_chain: bool = False) -> str:
    """Verify as the auditor would; return which step refused it."""
    said = scene.anchored if ask_chain else None
    trust = TrustPolicy(keys=scene.keys, on_chain=said, chain=scene.chain)
    found = examine_bundle(data, trust)
    if found.decisive is None or verdict(found) not in {"FAILED", "UNREADABLE"}:
        return ""
    return f"verify: {verdict(found)} at {STEPS[found.decisive.step - 1]}, {found.decisive.text}"
