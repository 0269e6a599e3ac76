"""The verifier as a service: the same steps and the same verdict as the command line."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from rlhf_audit_trail.api.asking import LedgerOfApp
from rlhf_audit_trail.api.models import TrustPolicyBody, Verdict, VerifyRequest
from rlhf_audit_trail.api.problems import describe, problem_response
from rlhf_audit_trail.ledger import verdict
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.evidence.trusting import (
    chain_trust,
    evidence_block,
    on_trust,
    parse_block,
    read_headers,
)
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.trust import InvalidTrust, Trust, anchor_trust, log_id_of

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["verifier"])


@router.post(
    "/verify",
    summary="Verify a bundle",
    response_model=Verdict,
    response_model_exclude_unset=True,
    responses=describe(400, 413),
)
def verify(request: VerifyRequest, ledger: LedgerOfApp) -> Any:
    """Judge a bundle: 200 with the verdict, `failed` included; 400 with it if unreadable.

    A verdict from the party under check proves less than one made on your own machine.
    """
    # a lone surrogate has no UTF-8: let the verifier refuse it like any other bad byte
    data = request.bundle.encode("utf-8", "surrogatepass")
    trust = _trust(request.trust_policy, ledger)
    found = examine_bundle(data, trust)
    result = verdict.to_json(found)
    if trust.chain and (taken := on_trust(found, trust.chain, evidence_block(data))):
        result["on_trust"] = taken
    if found.decisive is not None and found.decisive.state == "unreadable":
        unreadable = MalformedBundle(found.decisive.text, next_step=result["next"])
        return problem_response(unreadable, **result)
    return result


def _trust(policy: TrustPolicyBody, ledger: Ledger) -> TrustPolicy:
    try:
        keys = tuple(VerifierKey.parse(text) for text in policy.keys)
    except MalformedBundle as error:
        raise InvalidTrust(
            f"trust_policy.keys: {error.message}", next_step="pass vkeys, name+id+key each"
        ) from error
    return TrustPolicy(
        keys,
        need_anchor=policy.need_anchor,
        chain=_chain(policy, keys, ledger),
        accept_unpinned=policy.accept_unpinned,
    )


def _chain(
    policy: TrustPolicyBody, keys: tuple[VerifierKey, ...], ledger: Ledger
) -> ChainTrust | None:
    """Return by what chain evidence is judged; the caller's blocks beside those configured."""
    if policy.anchor is None:
        if policy.trusted_blocks:
            raise InvalidTrust(
                "trust_policy.trusted_blocks without trust_policy.anchor",
                next_step="say which publisher anchors the log, on which chain",
            )
        return None
    anchor = anchor_trust(
        chain_id=policy.anchor.chain_id,
        contract=policy.anchor.contract or load_artifact().address,
        publisher=policy.anchor.publisher,
        log_id=policy.anchor.log_id,
    )
    name = log_id_of(Trust(keys, anchor))
    if name is None:
        raise InvalidTrust(
            "trust_policy.anchor needs the log's Ed25519 key, or its log_id",
            next_step="pin the key in trust_policy.keys",
        )
    blocks = [parse_block(text, by="the caller gave its hash") for text in policy.trusted_blocks]
    if ledger.chain.trusted_headers:
        path = ledger.directory / ledger.chain.trusted_headers
        blocks += read_headers(path, by="this service was told its hash")
    return chain_trust(anchor, name, tuple(blocks))
