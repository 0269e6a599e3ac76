"""Proofs and bundles: what a stranger takes away to check elsewhere.

No opening travels in what is made here: sealed values never leave by the public service.
"""

# ruff: noqa: FAST003 - the dependency `LogOfPath` reads `run`; ruff cannot see into another file

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rlhf_audit_trail.api.asking import LeafIndex, LedgerOfApp, LogOfPath, covering, find_log
from rlhf_audit_trail.api.chain_parts import ChainParts, ChainUnavailable, EvidenceKind
from rlhf_audit_trail.api.logs import tree_head
from rlhf_audit_trail.api.models import BundleRequest, ConsistencyProof, InclusionProof
from rlhf_audit_trail.api.problems import BadRequest, describe
from rlhf_audit_trail.ledger.chain.evidence.making import NoEvidence
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.proof.bundle import BUNDLE_SCHEMA, MAX_INDEX
from rlhf_audit_trail.ledger.reading import NotPublished

__all__ = ["BUNDLE_TYPE", "CHAIN_HEADER", "COSE_TYPE", "router"]

BUNDLE_TYPE: Final = "application/vnd.rlhf-audit.bundle+json"
COSE_TYPE: Final = 'application/cose; cose-type="cose-sign1"'
CHAIN_HEADER: Final = "RLHF-Audit-Chain"
_BUNDLE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": f"A bundle file, `{BUNDLE_SCHEMA}`: keep its bytes as they are.",
        "headers": {
            CHAIN_HEADER: {
                "description": "The block that the chain evidence is of, CHAIN:NUMBER:HASH: take "
                "its hash from a source of your own. Or `none; reason=...`: not_asked, "
                "not_anchored, no_evidence (no final anchor covers the entries) or "
                "chain_unavailable.",
                "schema": {"type": "string"},
            }
        },
        "content": {BUNDLE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_TLOG: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The proof; as text it is a c2sp.org/tlog-proof file.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}

router = APIRouter(prefix="/api/v1", tags=["proofs"])

WantedEvidence = Annotated[
    EvidenceKind,
    Query(
        description="Chain evidence as of the newest final block: `auto` adds it where there is "
        "some, `storage` demands it, `none` leaves it out."
    ),
]


def _chain_parts(request: Request) -> ChainParts:
    parts: ChainParts = request.app.state.chain_parts
    return parts


ChainPartsOfApp = Annotated[ChainParts, Depends(_chain_parts)]
TreeSize = Annotated[int, Query(ge=1, le=MAX_INDEX, description="A tree's size, from 1.")]


@router.get(
    "/logs/{run}/entries/{index}/proof",
    summary="Inclusion proof",
    response_model=InclusionProof,
    responses={**_TLOG, **describe(404, NotPublished)},
)
def inclusion(
    log: LogOfPath,
    index: LeafIndex,
    accept: Annotated[
        str, Header(description="`text/plain` asks for a tlog-proof file, else it is JSON.")
    ] = "",
) -> Response:
    """Prove that an entry is in the newest signed tree."""
    signed = covering(log, index)
    if "text/plain" in accept and "application/json" not in accept:
        answer: Response = PlainTextResponse(log.tlog_proof(index))
    else:
        proof = InclusionProof(
            origin=log.origin,
            index=index,
            leaf_hash=log.leaf_at(index).hex(),
            path=[node.hex() for node in log.prove_inclusion(index, signed.head.size)],
            tree_head=tree_head(signed),
        )
        answer = JSONResponse(proof.model_dump())
    answer.headers["Vary"] = "Accept"
    return answer


@router.get(
    "/logs/{run}/entries/{index}/proof.tlog-proof",
    summary="Inclusion proof as a tlog-proof file",
    response_class=PlainTextResponse,
    responses={200: {"description": "c2sp.org/tlog-proof."}, **describe(404, NotPublished)},
)
def inclusion_file(log: LogOfPath, index: LeafIndex) -> PlainTextResponse:
    """Prove that an entry is in the newest signed tree, in the format of C2SP."""
    return PlainTextResponse(log.tlog_proof(index))


@router.get(
    "/logs/{run}/entries/{index}/receipt.cose",
    summary="COSE receipt of inclusion",
    response_class=Response,
    responses={
        200: {"description": "RFC 9942.", "content": {COSE_TYPE: {}}},
        **describe(404, NotPublished),
    },
)
def receipt(log: LogOfPath, index: LeafIndex) -> Response:
    """Prove that an entry is in the newest signed tree, as a COSE receipt."""
    return Response(log.cose_receipt(index), media_type=COSE_TYPE)


@router.get(
    "/logs/{run}/consistency", summary="Consistency proof", responses=describe(404, NotPublished)
)
def consistency(log: LogOfPath, old: TreeSize, new: TreeSize) -> ConsistencyProof:
    """Prove that the tree of size `new` extends the tree of size `old`."""
    if old > new:
        raise BadRequest(f"old is {old}, larger than new, which is {new}")
    covering(log, new - 1)
    old_head, new_head = log.published(old), log.published(new)
    return ConsistencyProof(
        origin=log.origin,
        old_size=old,
        old_root=log.root_at(old).hex(),
        old_note=str(old_head.note) if old_head else None,
        new_size=new,
        new_root=log.root_at(new).hex(),
        new_note=str(new_head.note) if new_head else None,
        path=[node.hex() for node in log.prove_consistency(old, new)],
    )


@router.get(
    "/logs/{run}/entries/{index}/bundle",
    summary="Bundle of one entry",
    response_class=Response,
    responses={**_BUNDLE, **describe(404, NotPublished, NoEvidence, 410, ChainUnavailable)},
)
def bundle(
    log: LogOfPath, index: LeafIndex, parts: ChainPartsOfApp, chain: WantedEvidence = "auto"
) -> Response:
    """Return one file that proves one entry, to be checked offline."""
    return _bundle(log, [index], parts, chain, f"{log.run_id}-{index}.bundle")


@router.post(
    "/bundles",
    summary="Bundle of many entries",
    response_class=Response,
    responses={**_BUNDLE, **describe(404, NotPublished, NoEvidence, 410, 413, ChainUnavailable)},
)
def bundles(
    ledger: LedgerOfApp,
    wanted: BundleRequest,
    parts: ChainPartsOfApp,
    chain: WantedEvidence = "auto",
) -> Response:
    """Return one file that proves many entries of one log."""
    log = find_log(ledger, wanted.run)
    name = f"{log.run_id}-{len(set(wanted.indices))}-entries.bundle"
    return _bundle(log, wanted.indices, parts, chain, name)


def _bundle(
    log: Log, indices: list[int], parts: ChainParts, kind: EvidenceKind, name: str
) -> Response:
    covering(log, max(indices))
    part = parts.of(log, max(indices), kind)
    # the first anchor that covers all of them dates them best; the newest is checked easiest
    covered = [size for size in log.anchored_sizes() if size > max(indices)]
    heads = {*covered[:1], *covered[-1:], *([part.tree_size] if part.data else [])}
    data = log.bundle(indices, anchored_sizes=heads, chain=part.data)
    headers = {"Content-Disposition": f'attachment; filename="{name}"', CHAIN_HEADER: part.said}
    return Response(data, media_type=BUNDLE_TYPE, headers=headers)
