"""What the service takes and gives, as OpenAPI describes it. Hashes are lower-case hex."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rlhf_audit_trail.ledger.append_call import REQUEST_EVENTS_MAX

__all__ = [
    "Anchor",
    "AnchorPage",
    "AnchorPolicyBody",
    "AppendRequest",
    "AppendResult",
    "BundleRequest",
    "ConsistencyProof",
    "Entry",
    "EntryPage",
    "EventBody",
    "Health",
    "InclusionProof",
    "LogItem",
    "LogList",
    "RunProgress",
    "TreeHead",
    "TrustPolicyBody",
    "Verdict",
    "VerdictCheck",
    "VerdictHead",
    "VerifyRequest",
]

BUNDLE_ENTRIES_MAX = 1_000
FIELDS_MAX = 64
_HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_ORIGIN = "acme.example/rlhf/run42"

Hash = Annotated[str, Field(description="32 bytes, hex.", examples=[_HASH])]
Origin = Annotated[str, Field(description="The log's name.", examples=[_ORIGIN])]
Size = Annotated[int, Field(description="A count of entries.", examples=[6120])]
Index = Annotated[int, Field(description="Leaf index, from 0.", examples=[3])]
Note = Annotated[
    str,
    Field(
        description="Signed note: origin, size, base64 root, an empty line, signatures.",
        examples=[f"{_ORIGIN}\n6120\n47DEQpj8HBSa...\n\n— {_ORIGIN} xUJt...\n"],
    ),
]


class Health(BaseModel):
    """The service answers and can read its ledger."""

    status: Literal["ok"]
    version: str = Field(examples=["0.1.0"])
    organisation: str = Field(examples=["acme.example"])
    runs: int = Field(examples=[1])


class TreeHead(BaseModel):
    """A signed tree head."""

    size: Size
    root: Hash
    note: Note


class LogItem(BaseModel):
    """One log: a run's, or the registry's, which announces the runs."""

    run: str = Field(examples=["run42"])
    origin: Origin
    path: str = Field(description="Where its static paths begin.", examples=["/rlhf/run42"])
    log_id: Hash
    vkeys: list[str] = Field(description="Ed25519 first, then ML-DSA-44.")
    size: Size = Field(description="Durable entries, signed or not yet.")
    tree_head: TreeHead | None = Field(description="The newest signed one, null before the first.")
    anchored_size: int | None = Field(
        description="Largest size seen in a block, as this ledger's store knows it."
    )
    anchor_lag: int = Field(description="Entries that no anchor covers yet.", examples=[120])


class LogList(BaseModel):
    """All logs, the registry log first, then runs from the oldest on."""

    logs: list[LogItem]


class Entry(BaseModel):
    """An entry: the exact bytes that were hashed, and what they say."""

    index: Index
    entry: str = Field(description="Exact bytes, base64.", examples=["eyJ2IjoxLC4uLn0="])
    leaf_hash: Hash
    event: dict[str, Any] = Field(
        description="The bytes decoded, for display only. `c` holds commitments to sealed values.",
        examples=[{"v": 1, "kind": "alert.raised", "run_id": "run42"}],
    )


class EntryPage(BaseModel):
    """Entries under the newest signed tree head, in index order."""

    origin: Origin
    tree_size: Size = Field(description="Size of the newest signed tree head; 0 before the first.")
    entries: list[Entry]
    next_after: int | None = Field(
        description="Pass it as `after` for the next page; null on the last one.", examples=[49]
    )


class InclusionProof(BaseModel):
    """That an entry stands at its index in the signed tree (RFC 9162, section 2.1.3)."""

    origin: Origin
    index: Index
    leaf_hash: Hash
    path: list[Hash] = Field(description="Leaf to root; size and root come from `tree_head`.")
    tree_head: TreeHead


class ConsistencyProof(BaseModel):
    """That one tree extends another (RFC 9162, section 2.1.4)."""

    origin: Origin
    old_size: Size
    old_root: Hash
    old_note: Note | None = Field(description="The old tree's signed head, if one was signed.")
    new_size: Size
    new_root: Hash
    new_note: Note | None = Field(description="The new tree's signed head, if one was signed.")
    path: list[Hash]


class Anchor(BaseModel):
    """A tree head on its way to the chain, or seen there."""

    tree_size: Size
    root: Hash
    state: str = Field(description="pending, mined, safe or finalized.", examples=["finalized"])
    chain_id: int = Field(examples=[1])
    contract: str
    publisher: str
    tx_hash: Hash
    block_number: int | None
    block_hash: str | None
    block_timestamp: int | None = Field(description="POSIX seconds.")


class AnchorPage(BaseModel):
    """A log's anchors by growing tree size, as this ledger's store knows them: ask a node too."""

    origin: Origin
    anchors: list[Anchor]
    next_after: int | None = Field(description="Pass it as `after` for the next page.")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BundleRequest(_Strict):
    """Which entries to put into one bundle."""

    run: str = Field(description="Run id, or `registry`.", examples=["run42"])
    indices: list[Annotated[int, Field(ge=0, le=2**53 - 1)]] = Field(
        min_length=1,
        max_length=BUNDLE_ENTRIES_MAX,
        description="Leaf indices; order and repetition do not matter.",
        examples=[[3, 700]],
    )


_Name = Annotated[str, Field(max_length=100)]


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)  # the pattern lets a month 13 through
    except ValueError:
        raise ValueError("there is no such time") from None
    return text


class EventBody(_Strict):
    """An event; what its kind has, and what of it is sealed, `ledger/events.py` lists."""

    kind: _Name = Field(examples=["annotation.recorded"])
    fields: dict[_Name, Any] = Field(
        max_length=FIELDS_MAX,
        description="Public values; they stand in the entry.",
        examples=[{"source": "human", "batch": 3}],
    )
    sealed: dict[_Name, Any] = Field(
        default_factory=dict,
        max_length=FIELDS_MAX,
        description="Values that the entry only commits to; they are kept encrypted.",
        examples=[{"prompt": "...", "response": "...", "annotator": "", "reward": 0.5}],
    )
    subject: str = Field(
        default="",
        max_length=1_000,
        description="Stable id of the person whom the sealed values are about; never in an entry.",
        examples=["annotator-17"],
    )


class AppendRequest(_Strict):
    """Events of one writer with consecutive numbers; sent again, they are the same."""

    writer_id: str = Field(
        pattern="^[0-9a-f]{32}$",
        description="16 random bytes in hex, new for each start of the writing process.",
        examples=["9f86d081884c7d659a2feaa0c55ad015"],
    )
    first_seq: int = Field(
        ge=0, le=2**53 - 1, description="Number of the first event; a writer counts from 0."
    )
    recorded_at: Annotated[str, AfterValidator(_time)] = Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$",
        description="The writer's clock, RFC 3339 in UTC; the same when sent again.",
        examples=["2026-11-20T10:15:00.1Z"],
    )
    events: list[EventBody] = Field(min_length=1, max_length=REQUEST_EVENTS_MAX)


class AppendResult(BaseModel):
    """The events are durable."""

    indices: list[Index] = Field(description="Leaf indices, in the order of the events.")
    size: Size = Field(description="Durable entries of the log now, signed or not yet.")


class RunProgress(BaseModel):
    """Where a run stands, for a training that goes on with it."""

    size: Size = Field(description="Durable entries of the log now, signed or not yet.")
    is_closed: bool = Field(description="Whether it takes no more entries.")
    policy_step: int = Field(ge=0, description="Policy updates recorded so far.", examples=[12])
    batch: int = Field(ge=0, description="Batches of annotations recorded so far.", examples=[3])
    tree_head: str = Field(
        description="Text of the newest signed tree head; of the empty tree if there is none."
    )


class AnchorPolicyBody(_Strict):
    """Where the caller expects the log's anchors."""

    chain_id: int = Field(ge=1, le=2**53 - 1, description="Of the chain.", examples=[1])
    publisher: str = Field(description="Address of who anchors the log.")
    contract: str | None = Field(
        default=None, description="Address of TreeHeadAnchor; its well-known one if left out."
    )
    log_id: str | None = Field(
        default=None, description="The log's id, 64 hex digits, if the keys are not its first."
    )


class TrustPolicyBody(_Strict):
    """What the caller trusts, from elsewhere than the bundle."""

    keys: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="vkeys that must all have signed; none: the verdict is INCONCLUSIVE.",
    )
    need_anchor: bool = Field(
        default=False,
        description="Demand an anchor: chain evidence in the bundle, of a block that is trusted.",
    )
    anchor: AnchorPolicyBody | None = Field(
        default=None, description="By what the bundle's own chain evidence is judged."
    )
    trusted_blocks: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Blocks as CHAIN:NUMBER:HASH, beside those that this service was told of. "
        "It asks no chain itself.",
    )
    accept_unpinned: bool = Field(default=False, description="Do without a pinned key.")


class VerifyRequest(_Strict):
    """A bundle and what to trust."""

    bundle: str = Field(
        description="The bundle file's text, unchanged, as one JSON string.",
        examples=['{"schema":"rlhf-audit/bundle/v1", ...}'],
    )
    trust_policy: TrustPolicyBody = Field(default_factory=TrustPolicyBody)


class VerdictCheck(BaseModel):
    """One numbered step of the verification."""

    step: int = Field(examples=[4])
    id: str = Field(examples=["inclusion"])
    state: str = Field(description="passed, failed, unreadable, not_shown, not_asked.")
    text: str
    reason: str | None = Field(default=None, description="The error's name, if not passed.")
    expected: str | None = None
    actual: str | None = None


class VerdictHead(BaseModel):
    """The tree head that was judged."""

    origin: Origin
    size: Size
    root: Hash


class Verdict(BaseModel):
    """The same verdict that the command line prints; `rlhf-audit/verify-result/v1`."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(alias="schema", examples=["rlhf-audit/verify-result/v1"])
    verdict: str = Field(description="verified, failed, inconclusive or unreadable.")
    exit_code: int = Field(description="0, 1, 3 or 4, as the command line exits.", examples=[0])
    integrity: str = Field(description="Unchanged? passed, failed or unreadable.")
    signer: str = Field(
        description="By whom? pinned, partly_pinned, not_pinned, contradicted or not_shown."
    )
    checks: list[VerdictCheck]
    tree_head: VerdictHead | None
    entries: list[int] = Field(description="Leaf indices that were shown to be in the tree.")
    limits: list[str] = Field(description="What no verification can tell.")
    next: str = Field(description="What to do about it; may be empty.")
    on_trust: list[str] = Field(
        default_factory=list, description="Blocks whose hashes were taken on trust, and whose word."
    )
