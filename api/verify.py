"""The verifier as a service: the same steps and the same verdict as the command line."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from rlhf_audit_trail.api.models import TrustPolicyBody, Verdict, VerifyRequest
from rlhf_audit_trail.api.problems import describe, problem_response
from rlhf_audit_trail.ledger import verdict
from rlhf_audit_trail.ledger.proof.errors import MalformedBundle
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.trust import InvalidTrust

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["verifier"])


@router.post(
    "/verify",
    summary="Verify a bundle",
    response_model=Verdict,
    response_model_exclude_unset=True,
    responses=describe(400, 413),
)
def verify(request: VerifyRequest) -> Any:
    """Judge a bundle: 200 with the verdict, `failed` included; 400 with it if unreadable.

    A verdict from the party under check proves less than one made on your own machine.
    """
    # a lone surrogate has no UTF-8: let the verifier refuse it like any other bad byte
    data = request.bundle.encode("utf-8", "surrogatepass")
    found = examine_bundle(data, _trust(request.trust_policy))
    result = verdict.to_json(found)
    if found.decisive is not None and found.decisive.state == "unreadable":
        unreadable = MalformedBundle(found.decisive.text, next_step=result["next"])
        return problem_response(unreadable, **result)
    return result


def _trust(policy: TrustPolicyBody) -> TrustPolicy:
    try:
        keys = tuple(VerifierKey.parse(text) for text in policy.keys)
    except MalformedBundle as error:
        raise InvalidTrust(
            f"trust_policy.keys: {error.message}", next_step="pass vkeys, name+id+key each"
        ) from error
    return TrustPolicy(keys, need_anchor=policy.need_anchor, accept_unpinned=policy.accept_unpinned)
