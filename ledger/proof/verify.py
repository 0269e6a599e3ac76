"""The verifier: the numbered steps of `FORMAT.md`, and the verdict they add up to.

`verify_bundle` returns what was proven or raises the gravest finding. `examine_bundle` reports
each step. Neither opens a socket: what the chain says is asked by the caller and handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_audit_trail.ledger.proof.bundle import Bundle, BundledEntry, parse_bundle, parse_json
from rlhf_audit_trail.ledger.proof.commitment import verify_opening
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    NotAnchored,
    PolicyUnmet,
    ProofError,
)
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, open_evidence
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, verify_consistency, verify_inclusion
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, open_tree_head


@dataclass(frozen=True)
class OnChain:
    """What a chain says about one tree head of the log; the caller vouches for having asked.

    Attributes:
        tree_size, root: what the contract accepted; the root is 32 bytes.
        where: for people, for example `block 7 of chain 31337, finalized`.
    """

    tree_size: int
    root: bytes
    where: str


@dataclass(frozen=True)
class TrustPolicy:
    """What the caller trusts, from outside the bundle.

    Attributes:
        keys: keys pinned for the log; all of them must have signed. Empty: nobody is pinned.
        need_anchor: whether an anchor is demanded rather than welcome.
        on_chain: what the chain was found to say; None when it was not asked.
        chain: by what the bundle's own chain evidence is judged; None to leave it aside.
        accept_unpinned: a consistent bundle by nobody in particular is enough.
        accept_unanchored: a demanded anchor that is not shown is forgiven.
    """

    keys: tuple[VerifierKey, ...] = ()
    need_anchor: bool = False
    on_chain: tuple[OnChain, ...] | None = None
    chain: ChainTrust | None = None
    accept_unpinned: bool = False
    accept_unanchored: bool = False


@dataclass
class Proven:
    """What has been shown; complete only when `verify_bundle` returns it.

    Attributes:
        tree_head: parsed, with the keys that signed it.
        entries: leaf index to the entry's exact bytes.
        opened: (leaf index, field) to the committed value's bytes.
        heads: further signed tree heads shown to be of the same history.
        on_chain: statements of the chain shown equal to one of the tree heads.
    """

    tree_head: SignedTreeHead
    entries: dict[int, bytes] = field(default_factory=dict)
    opened: dict[tuple[int, str], bytes] = field(default_factory=dict)
    heads: list[SignedTreeHead] = field(default_factory=list)
    on_chain: list[OnChain] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One step's outcome: passed, failed, unreadable, not_shown or not_asked."""

    step: int
    state: str
    text: str
    finding: ProofError | None = None


@dataclass(frozen=True)
class Examination:
    """All that was found.

    Attributes:
        signer: pinned, partly_pinned, not_pinned, contradicted or not_shown.
        checks: in step order; a step that could not run is absent.
        proven: None when not even a tree head could be read.
    """

    signer: str
    checks: tuple[Check, ...]
    proven: Proven | None

    @property
    def decisive(self) -> Check | None:
        """The check that decides against the bundle: the gravest, and of those the first.

        A contradiction outranks what cannot be read, and that outranks what is missing.
        """
        order = ("failed", "unreadable", "not_shown")
        return next((check for x in order for check in self.checks if check.state == x), None)


def verify_bundle(data: bytes, trust: TrustPolicy) -> Proven:
    """Return what a bundle proves under `trust`, or raise the gravest finding, with its step."""
    found = examine_bundle(data, trust)
    if found.decisive and found.decisive.finding:
        raise found.decisive.finding
    if found.proven is None:  # no finding and nothing proven: never to be read as success
        raise MalformedBundle("nothing was proven")
    return found.proven


def examine_bundle(data: bytes, trust: TrustPolicy) -> Examination:
    """Run every step that can run and report all of them; never raises for a bad bundle."""
    checks: list[Check] = []
    try:
        bundle = parse_bundle(data)
        checks.append(Check(1, "passed", f"{len(data):,} bytes, entries: {len(bundle.entries):,}"))
        proven = Proven(_signed_tree_head(bundle, trust))
    except ProofError as error:  # what follows would hang on a size and root that nobody signed
        return Examination("not_shown", (*checks, _found(len(checks) + 1, error)), None)
    head = proven.tree_head.head
    what = f"{head.origin}: {head.size:,} entries, root {head.root.hex()}"
    checks.append(Check(2, "passed", what))
    run = _Run(bundle, proven, trust)
    steps = (run.by_whom, run.inclusion, run.openings, run.consistency, run.anchor, run.file)
    for number, step in enumerate(steps, start=3):
        try:
            checks.append(step())
        except ProofError as error:
            checks.append(_found(number, error))
    return Examination(run.signer, tuple(checks), proven)


def _found(step: int, error: ProofError) -> Check:
    error.step = step
    missing = isinstance(error, NotAnchored | PolicyUnmet)
    otherwise = "unreadable" if isinstance(error, MalformedBundle) else "failed"
    return Check(step, "not_shown" if missing else otherwise, error.message, error)


def _signed_tree_head(bundle: Bundle, trust: TrustPolicy) -> SignedTreeHead:
    """Step 2: the tree head parses, and the keys inside the file have all signed it."""
    keys = [VerifierKey.parse(text) for text in bundle.log_keys]
    signed = open_tree_head(bundle.tree_head, dict.fromkeys((*keys, *trust.keys)))
    strangers = [f"{x.name}+{x.key_id.hex()}" for x in keys if x not in signed.signed_by]
    if strangers:
        wanted = ", ".join(strangers)
        raise BadSignature("keys inside the file did not sign the tree head", expected=wanted)
    return signed


@dataclass
class _Run:
    """Steps 3 to 8 of one verification; each adds to `proven` what it shows, or raises."""

    bundle: Bundle
    proven: Proven
    trust: TrustPolicy
    signer: str = "not_shown"

    def by_whom(self) -> Check:
        """Step 3: by whom; only keys that the caller pinned answer it."""
        signed, pinned = self.proven.tree_head, self.trust.keys
        missing = [key for key in pinned if key not in signed.signed_by]
        if not pinned:
            self.signer = "not_pinned"
            text = "no key was pinned, so nothing shows who made this file"
            if self.trust.accept_unpinned:
                return Check(3, "not_asked", text)
            raise PolicyUnmet(
                text, next_step="get the log's key from a place you trust and pass it with --key"
            )
        if len(missing) == len(pinned):
            self.signer = "contradicted"
            raise BadSignature(
                "no pinned key signed this tree head",
                expected=", ".join(f"{key.name}+{key.key_id.hex()}" for key in pinned),
                actual=f"{signed.head.origin}, keys in the file: {len(self.bundle.log_keys)}",
                next_step="check that the key belongs to this log; else treat the file as forged",
            )
        if missing:
            self.signer = "partly_pinned"
            names = ", ".join(f"{key.algorithm.name} {key.key_id.hex()}" for key in missing)
            raise PolicyUnmet(
                f"pinned keys that did not sign: {names}",
                next_step="ask for a bundle that carries all of the log's signatures",
            )
        self.signer = "pinned"
        names = " + ".join(key.algorithm.name.replace("_", "-") for key in pinned)
        return Check(3, "passed", f"signed by {signed.head.origin} ({names}), pinned by you")

    def inclusion(self) -> Check:
        """Step 4: each entry leads to the signed root; index and signed size give the shape."""
        head, entries = self.proven.tree_head.head, self.bundle.entries
        for item in entries:
            try:
                verify_inclusion(leaf_hash(item.entry), item.index, head.size, item.path, head.root)
            except ProofError as error:
                error.message = f"entry {item.index:,}: {error.message}"
                error.next_step = f"ask for a fresh bundle of entry {item.index:,}"
                raise
            self.proven.entries[item.index] = item.entry
        text = f"{len(entries):,} of {head.size:,} entries shown to stand in the signed tree"
        return Check(4, "passed", f"{text}, unchanged")

    def openings(self) -> Check:
        """Step 5: opened values are those that the entries committed to."""
        opened = self.proven.opened
        for item in self.bundle.entries:
            commitments = _commitments(item) if item.openings else {}
            for x in item.openings:
                if x.path not in commitments:
                    raise Inconsistent(f"entry {item.index:,} has no sealed {x.path[:80]!r}")
                opened[item.index, x.path] = verify_opening(commitments[x.path], x)
        if opened:
            return Check(5, "passed", f"{len(opened):,} opened values are the committed ones")
        return Check(5, "not_asked", "no sealed value is opened in this file")

    def consistency(self) -> Check:
        """Step 6: further tree heads have the same signers, and all are of one history."""
        own, newest, heads = self.proven.tree_head, self.proven.tree_head.head, self.proven.heads
        for item in self.bundle.anchored:
            other = open_tree_head(item.tree_head, own.signed_by)
            if other.signed_by != own.signed_by:
                raise BadSignature("an anchored tree head is not signed by the log's own keys")
            if heads and other.head.size <= heads[-1].head.size:
                raise MalformedBundle("anchored tree heads must stand in growing order of size")
            # Two heads that both extend a third may still be a fork: compare with the newest.
            old, newest = sorted((other.head, newest), key=lambda head: head.size)
            verify_consistency(old.size, old.root, newest.size, newest.root, item.path)
            heads.append(other)
        if heads:
            sizes = ", ".join(f"{signed.head.size:,}" for signed in heads)
            return Check(6, "passed", f"one append-only history with the heads of size {sizes}")
        return Check(6, "not_asked", "no other tree head in this file")

    def anchor(self) -> Check:
        """Step 7: a tree head of this history is the one the chain was found to hold."""
        trust, on_chain = self.trust, self.proven.on_chain
        heads = {x.head.size: x.head for x in (self.proven.tree_head, *self.proven.heads)}
        statements, why = [*(trust.on_chain or ())], None
        if self.bundle.chain:
            shown, why = open_evidence(self.bundle.chain, trust.chain)
            statements += [OnChain(x.tree_size, x.root, x.where) for x in shown]
        for said in statements:
            head = heads.get(said.tree_size)
            if head and head.root != said.root:
                raise Inconsistent(
                    f"the chain holds another root at size {said.tree_size:,}: a forked history",
                    expected=said.root.hex(),
                    actual=head.root.hex(),
                    next_step="keep this file as evidence and ask the operator to explain",
                )
            if head:
                on_chain.append(said)
        last = self.bundle.entries[-1].index  # a smaller tree says nothing about this entry
        covering = sorted((x.tree_size, x.where) for x in on_chain if x.tree_size > last)
        for size, where in covering[:1]:
            return Check(7, "passed", f"the head of size {size:,} is in {where}")
        asked = trust.on_chain is not None or trust.chain is not None
        text = "no tree head on the chain covers all entries" if asked else "no chain was asked"
        missing = why or NotAnchored(text, next_step="ask for a bundle made after the next anchor")
        if (asked or trust.need_anchor) and not trust.accept_unanchored:
            raise missing
        return Check(7, "not_asked", missing.message)

    def file(self) -> Check:
        """Step 8: no byte changed on the way, not even one that no signature covers."""
        if not self.bundle.digest_matches:
            raise MalformedBundle(
                "the file's own digest does not fit: it was damaged or edited on the way",
                next_step="fetch the file again",
            )
        return Check(8, "passed", "the file is as it was written")


def _commitments(item: BundledEntry) -> dict[str, bytes]:
    """Read an entry's commitments; the only place where the kernel looks into an entry."""
    record = parse_json(item.entry)
    fields = record.get("c") if isinstance(record, dict) else None
    try:
        return {name: bytes.fromhex(value) for name, value in (fields or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise MalformedBundle(f"entry {item.index:,} has unreadable commitments") from error
