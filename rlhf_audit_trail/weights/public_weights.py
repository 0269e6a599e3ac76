"""Weights as outsiders find them recorded: in a public log, or in a bundle, under pinned keys.

Nothing is believed that does not lead to a tree head which the pinned keys signed. A public log
holds one digest for all of a model's weights; which tensors differ is told by the manifest that
an entry names, where its holder handed that out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from rlhf_audit_trail.ledger.exported import exports_in
from rlhf_audit_trail.ledger.proof.bundle import Bundle, BundledEntry, encode_bundle, parse_json
from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead, TreeHead, open_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.public_log import PublicLog, open_source
from rlhf_audit_trail.ledger.tiles import TILE_WIDTH
from rlhf_audit_trail.ledger.verified_log import VerifiedLog, open_pinned
from rlhf_audit_trail.ledger.weights.manifest import Manifest, parse_manifest
from rlhf_audit_trail.weights.recorded_weights import Place, Recorded, recorded_of

__all__ = ["Manifests", "PublicWeights", "bundled_weights", "logged_weights"]

_MARK: Final = b'"weights_digest"'  # entries without it need not be parsed


class Manifests:
    """Manifests from anybody, found by the digest that an entry gives."""

    def __init__(self, files: Iterable[bytes] = ()) -> None:
        """Take the files' bytes."""
        self._files = {hashlib.sha256(data).hexdigest(): data for data in files}
        self.used: set[str] = set()

    def find(self, listed: str, digest: str) -> Manifest | None:
        """Return the manifest that an entry names, None where it is not among the files.

        Raises:
            MalformedManifest: it is, and lists other weights than those of the entry.
        """
        data = self._files.get(listed)
        if data is None:
            return None
        self.used.add(listed)
        return parse_manifest(data, digest)

    @property
    def unused(self) -> int:
        """How many of the files no entry named."""
        return len(self._files.keys() - self.used)


class _Entries(Protocol):
    """Entries of one log, shown to stand under a signed tree head."""

    @property
    def head(self) -> TreeHead: ...
    def read(self) -> Iterator[tuple[int, bytes]]: ...
    def prove(self, leaf_index: int, /) -> bytes: ...


class PublicWeights:
    """What public logs recorded.

    Attributes:
        heads: of the logs that are searched.
        manifests: of checkpoints, as they were given.
        left_out: origins of logs of which no key was pinned; nothing of them is believed.
    """

    def __init__(
        self, logs: Sequence[_Entries], manifests: Manifests, *, left_out: Sequence[str] = ()
    ) -> None:
        """Use `logged_weights` or `bundled_weights` instead."""
        self._logs = {log.head.origin: log for log in logs}
        self.manifests = manifests
        self.heads = tuple(log.head for log in logs)
        self.left_out = tuple(left_out)

    def recorded(self) -> Iterator[Recorded]:
        """Yield every entry with a weights digest, oldest first in each log.

        Raises:
            Inconsistent: an entry, or a tile, does not lead to the signed root.
            NotServed, MalformedBundle, Unreachable: it cannot be read.
            MalformedManifest: a manifest lists other weights than its entry.
        """
        for origin, log in self._logs.items():
            for index, data in log.read():
                known = recorded_of(
                    _parsed(data),
                    run=origin.rpartition("/")[2],
                    origin=origin,
                    leaf_index=index,
                    manifest=self.manifests.find,
                )
                if known is not None:
                    yield known

    def tensors(self, recorded: Recorded) -> None:
        """Return None: the weights themselves are not public."""
        del recorded

    def place(self, recorded: Recorded) -> Place:
        """Return the tree head that the entry was shown to lead to."""
        head = self._logs[recorded.origin].head
        return Place(head.size, head.root.hex(), "not asked")

    def prove(self, recorded: Recorded) -> bytes:
        """Return a bundle of the entry, for `rlhf-audit verify`."""
        return self._logs[recorded.origin].prove(recorded.leaf_index)


def _parsed(data: bytes) -> Any:
    if _MARK not in data:
        return None
    try:
        return parse_json(data)
    except MalformedBundle:  # a log may hold what it likes; this is no event of ours
        return None


# --- a public log ---------------------------------------------------------------------------


class _LogEntries:
    """A log that is served, or lies in the directory of an export or mirror."""

    def __init__(self, log: PublicLog, signed: SignedTreeHead) -> None:
        self._log = VerifiedLog(log, signed.head)
        self._signed = signed

    @property
    def head(self) -> TreeHead:
        return self._signed.head

    def read(self) -> Iterator[tuple[int, bytes]]:
        for tile_index, width in self._log.tiles(0):
            entries = self._log.entries(tile_index, width)
            yield from enumerate(entries, start=tile_index * TILE_WIDTH)

    def prove(self, leaf_index: int) -> bytes:
        tile_index, within = divmod(leaf_index, TILE_WIDTH)
        width = min(TILE_WIDTH, self.head.size - tile_index * TILE_WIDTH)  # as it is served
        entry = self._log.entries(tile_index, width)[within]
        item = BundledEntry(leaf_index, entry, self._log.prove_inclusion(leaf_index))
        keys = tuple(str(key) for key in self._signed.signed_by)
        return encode_bundle(Bundle(keys, str(self._signed.note), (item,)))


def logged_weights(
    places: Iterable[str], keys: Sequence[VerifierKey], manifests: Manifests
) -> PublicWeights:
    """Open public logs, each under those of the pinned keys that bear its name.

    Args:
        places: addresses, or directories of exports and mirrors; one may hold several logs.
        keys: pinned ones, of any of the logs.
        manifests: of checkpoints.

    Raises:
        BadSignature: a log is not signed by the pinned keys, or none of the logs is theirs.
        PolicyUnmet: some of a log's pinned keys did not sign.
        Inconsistent: the tiles do not lead to the signed root.
        NotServed, MalformedBundle, Unreachable, NoExport: a log cannot be read.
    """
    found, left_out = [], []
    for place in places:
        for source in _sources(place):
            log = PublicLog(open_source(source))
            note = log.tree_head()
            origin = open_tree_head(note, ()).head.origin
            own = [key for key in keys if key.name == origin]
            if own:
                found.append(_LogEntries(log, open_pinned(note, own)))
            else:
                left_out.append(origin)
    if not found:
        raise BadSignature(
            "no pinned key is of any of these logs",
            expected=", ".join(sorted({key.name for key in keys})),
            actual=", ".join(left_out),
            next_step="check that the key belongs to this log; else treat the log as forged",
        )
    return PublicWeights(found, manifests, left_out=left_out)


def _sources(place: str) -> list[str]:
    if "://" in place or not Path(place).is_dir():
        return [place]
    return [str(path) for path in exports_in(Path(place))]


# --- a bundle -------------------------------------------------------------------------------


class _BundledEntries:
    """The entries of a verified bundle."""

    def __init__(self, head: TreeHead, entries: dict[int, bytes], data: bytes) -> None:
        self.head = head
        self._entries, self._data = entries, data

    def read(self) -> Iterator[tuple[int, bytes]]:
        yield from sorted(self._entries.items())

    def prove(self, leaf_index: int) -> bytes:
        del leaf_index
        return self._data


def bundled_weights(
    data: bytes, keys: Sequence[VerifierKey], manifests: Manifests
) -> PublicWeights:
    """Verify a bundle, and look for weights in its entries; it is its own proof.

    Raises:
        ProofError: what the verifier finds, as `verify_bundle`.
    """
    proven = verify_bundle(data, TrustPolicy(keys=tuple(keys)))
    entries = _BundledEntries(proven.tree_head.head, proven.entries, data)
    return PublicWeights([entries], manifests)
