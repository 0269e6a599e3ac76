"""COSE receipts: a log's proofs as CBOR, for tools that speak RFC 9942. An export only.

A receipt is a COSE_Sign1 whose signature covers a tree's root, and whose unprotected header
carries the proof. That alone binds no position: the tree's size is not signed, and one path
fits several (index, size) pairs. Ours therefore sign origin and size as well (protected
headers 15, CWT claims with the issuer, and `rlhf-audit/tree-size`), and the verifier here
wants them. References: RFC 9942, RFC 9052 section 4.4, RFC 9597.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from rlhf_audit_trail.ledger.cbor import Tag, decode, encode
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import BadSignature, MalformedBundle, PolicyUnmet
from rlhf_audit_trail.ledger.proof.merkle import (
    HASH_BYTES,
    MAX_TREE_SIZE,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.note import Algorithm, VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead

__all__ = [
    "MAX_RECEIPT_BYTES",
    "consistency_receipt",
    "inclusion_receipt",
    "verify_consistency_receipt",
    "verify_inclusion_receipt",
]

MAX_RECEIPT_BYTES: Final = 64 * 1024
MAX_PATH: Final = 64  # no proof in a tree below 2**63 has more hashes
_SIGN1_TAG: Final = 18
_ALG, _KID, _CLAIMS, _VDS, _VDP = 1, 4, 15, 395, 396
_TREE_SIZE: Final = "rlhf-audit/tree-size"
_ISSUER: Final = 1
_RFC9162_SHA256: Final = 1
_INCLUSION, _CONSISTENCY = -1, -2
# -8 is EdDSA, which older tools know; RFC 9864 calls the same signature -19, Ed25519.
_ALGORITHMS: Final = {-8: Algorithm.ED25519, -19: Algorithm.ED25519, -48: Algorithm.ML_DSA_44}
_WRITTEN: Final = {Algorithm.ED25519: -8, Algorithm.ML_DSA_44: -48}


def inclusion_receipt(
    keys: LogKeys,
    head: TreeHead,
    index: int,
    path: tuple[bytes, ...],
    *,
    algorithm: Algorithm = Algorithm.ED25519,
) -> bytes:
    """Make a receipt that the entry at `index` stands in the tree of a published head.

    Args:
        keys: the log's keys.
        head: a tree head that was signed and published; nothing else may be given here.
        index: leaf index, `0 <= index < head.size`.
        path: inclusion proof, leaf to root.
        algorithm: with which of the keys to sign.

    Raises:
        ValueError: a tree of one entry; its empty path has no form in RFC 9942.
    """
    return _receipt(keys, head, _INCLUSION, [head.size, index, list(path)], algorithm)


def consistency_receipt(
    keys: LogKeys,
    old_size: int,
    head: TreeHead,
    path: tuple[bytes, ...],
    *,
    algorithm: Algorithm = Algorithm.ED25519,
) -> bytes:
    """Make a receipt that a published head extends the tree of `old_size`, 1 or more.

    Raises:
        ValueError: equal sizes; an empty path has no form in RFC 9942.
    """
    return _receipt(keys, head, _CONSISTENCY, [old_size, head.size, list(path)], algorithm)


def _receipt(
    keys: LogKeys, head: TreeHead, kind: int, proof: list[Any], algorithm: Algorithm
) -> bytes:
    if not proof[-1]:
        raise ValueError("a receipt cannot hold a proof without hashes")
    key = next(key for key in keys.verifier_keys if key.algorithm is algorithm)
    protected = encode(
        {
            _ALG: _WRITTEN[algorithm],
            _KID: key.key_id,
            _CLAIMS: {_ISSUER: head.origin},
            _VDS: _RFC9162_SHA256,
            _TREE_SIZE: head.size,
        }
    )
    signature = keys.sign_receipt(_to_be_signed(protected, head.root), algorithm)
    unprotected = {_VDP: {kind: [encode(proof)]}}
    return encode(Tag(_SIGN1_TAG, [protected, unprotected, None, signature]))


def _to_be_signed(protected: bytes, root: bytes) -> bytes:
    """Return the Sig_structure; the payload is the root and does not travel."""
    return encode(["Signature1", protected, b"", root])


# --- verify -----------------------------------------------------------------------------


def verify_inclusion_receipt(data: bytes, entry: bytes, key: VerifierKey) -> tuple[int, TreeHead]:
    """Show that `entry` stands in the log of `key`; return its index and the signed tree.

    Raises:
        MalformedBundle: not a receipt of inclusion, or not in deterministic CBOR.
        BadSignature: of another key, or over another tree than this entry's path leads to.
        PolicyUnmet: origin and size are not signed, so no position is proven.
    """
    receipt = _parse(data, _INCLUSION)
    size, index, path = receipt.proof
    root = _root(leaf_hash(entry), index, size, path)
    verify_inclusion(leaf_hash(entry), index, size, path, root)  # shape and hashes, by the kernel
    return index, receipt.verify(key, size, root)


def verify_consistency_receipt(
    data: bytes, old: TreeHead, new: TreeHead, key: VerifierKey
) -> TreeHead:
    """Show that the tree `new` is signed by `key` and extends the tree `old`; return `new`.

    Raises:
        MalformedBundle, BadSignature, PolicyUnmet: as for inclusion.
        Inconsistent: the proof leads to other roots.
    """
    receipt = _parse(data, _CONSISTENCY)
    old_size, new_size, path = receipt.proof
    if (old_size, new_size) != (old.size, new.size):
        raise MalformedBundle("the receipt is about trees of other sizes")
    verify_consistency(old.size, old.root, new.size, new.root, path)
    return receipt.verify(key, new_size, new.root)


@dataclass(frozen=True)
class _Receipt:
    protected: bytes
    headers: dict[Any, Any]
    proof: tuple[int, int, tuple[bytes, ...]]
    signature: bytes

    def verify(self, key: VerifierKey, size: int, root: bytes) -> TreeHead:
        """Check signature, origin and size; return the tree head that was signed."""
        named = self.headers.get(_ALG)
        if not isinstance(named, int) or _ALGORITHMS.get(named) is not key.algorithm:
            raise BadSignature(f"the receipt is not signed with {key.algorithm.name}")
        _verify(key, self.signature, _to_be_signed(self.protected, root))
        claims = self.headers.get(_CLAIMS)
        origin = claims.get(_ISSUER) if isinstance(claims, dict) else None
        if origin is None or _TREE_SIZE not in self.headers:
            raise PolicyUnmet(
                "the receipt signs neither origin nor size: it proves no position",
                next_step="ask for a bundle or a tlog-proof, which do",
            )
        if origin != key.name or self.headers[_TREE_SIZE] != size:
            raise BadSignature("the receipt is of another log, or of a tree of another size")
        return TreeHead(key.name, size, root)


def _verify(key: VerifierKey, signature: bytes, message: bytes) -> None:
    try:
        if key.algorithm is Algorithm.ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
        else:
            MLDSA44PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(
            f"the receipt's signature is not by {key.name} over this tree",
            expected=f"signature by key {key.key_id.hex()}",
            actual="a signature over other bytes, or by another key",
        ) from error
    except UnsupportedAlgorithm as error:
        raise PolicyUnmet(f"this installation cannot check {key.algorithm.name}") from error


def _parse(data: bytes, kind: int) -> _Receipt:
    if len(data) > MAX_RECEIPT_BYTES:
        raise MalformedBundle(f"a receipt is at most {MAX_RECEIPT_BYTES:,} bytes")
    match decode(data):
        case Tag(18, [bytes(protected), dict(unprotected), None, bytes(signature)]):
            headers = decode(protected)
        case _:
            raise MalformedBundle("this is not a COSE_Sign1 without payload")
    match headers:
        case {395: 1}:
            pass
        case _:
            raise MalformedBundle("the receipt is not of an RFC 9162 tree with SHA-256")
    match unprotected:
        case {396: dict(proofs)} if kind in proofs:
            return _Receipt(protected, headers, _proof(proofs[kind]), signature)
        case _:
            raise MalformedBundle("the receipt has no proof of this kind")


def _proof(proofs: Any) -> tuple[int, int, tuple[bytes, ...]]:
    """Read the one proof: an array of one byte string, which holds an array again."""
    match proofs:
        case [bytes(wrapped)]:
            proof = decode(wrapped)
        case _:
            raise MalformedBundle("a receipt here has exactly one proof")
    match proof:
        case [int(first), int(second), list(path)] if 1 <= len(path) <= MAX_PATH:
            if all(isinstance(node, bytes) and len(node) == HASH_BYTES for node in path):
                return first, second, tuple(path)
    raise MalformedBundle("a receipt's proof is two numbers and one or more hashes of 32 bytes")


def _root(leaf: bytes, index: int, size: int, path: tuple[bytes, ...]) -> bytes:
    """Return where an inclusion path leads; RFC 9162 section 2.1.3.2.

    The kernel only compares with a root that was signed; here the root is what is signed.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise MalformedBundle(f"leaf index {index} is outside a tree of {size} entries")
    node, last = leaf, size - 1
    for sibling in path:
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return node
