"""Who signs anchors: the publisher's key, from the environment, a keystore file, or elsewhere.

A signer gives an address and signs digests, no more, so that a key held by a remote service
fits as well as one in memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from rlhf_audit_trail.ledger.chain.errors import SignerError

__all__ = [
    "PUBLISHER_KEY_VARIABLE",
    "KeySigner",
    "Signature",
    "Signer",
    "signer_from_environment",
    "signer_from_keystore",
]

PUBLISHER_KEY_VARIABLE: Final = "RLHF_AUDIT_PUBLISHER_KEY"

_KEY_BYTES: Final = 32
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True)
class Signature:
    """A secp256k1 signature with low s.

    Attributes:
        y_parity: 0 or 1, which of the two points with that x.
        r: below the group order.
        s: at most half the group order (EIP-2).
    """

    y_parity: int
    r: int
    s: int


class Signer(Protocol):
    """Signs for one address."""

    @property
    def address(self) -> str:
        """The account's address with its checksum case."""
        ...

    def sign_digest(self, digest: bytes) -> Signature:
        """Sign a digest of 32 bytes.

        Raises:
            SignerError: the key cannot be used now.
        """
        ...


class KeySigner:
    """A signer with its private key in memory; neither `repr` nor any message shows it."""

    def __init__(self, key: bytes) -> None:
        """Take a private key of 32 bytes.

        Raises:
            SignerError: it is not a private key.
        """
        from eth_account import Account  # noqa: PLC0415 (1 s of import)

        if len(key) != _KEY_BYTES:
            raise SignerError(f"a publisher key is {_KEY_BYTES} bytes, this one is {len(key)}")
        try:
            self._account = Account.from_key(key)
        except Exception:  # noqa: BLE001 (the libraries below quote the key in theirs)
            raise SignerError("the publisher key is not a private key of secp256k1") from None
        self._number = int.from_bytes(key)
        self._key = ec.derive_private_key(self._number, ec.SECP256K1())
        self._scheme = _deterministic()

    @property
    def address(self) -> str:
        """The account's address with its checksum case."""
        return str(self._account.address)

    def sign_digest(self, digest: bytes) -> Signature:
        """Sign a digest of 32 bytes; deterministic, RFC 6979.

        By OpenSSL: in Python alone it takes ten times as long. What it does not tell, which of
        the two points has that r, the signature's nonce tells, and the key gives the nonce.
        """
        if self._scheme is None:
            signed = self._account.unsafe_sign_hash(digest)
            return Signature(y_parity=int(signed.v) - 27, r=int(signed.r), s=int(signed.s))
        r, s = decode_dss_signature(self._key.sign(digest, self._scheme))
        nonce = pow(s, -1, _ORDER) * (int.from_bytes(digest) + r * self._number) % _ORDER
        point = ec.derive_private_key(nonce, ec.SECP256K1()).public_key().public_numbers()
        is_high = s > _ORDER // 2
        return Signature((point.y & 1) ^ is_high, r, _ORDER - s if is_high else s)

    def __repr__(self) -> str:
        return f"KeySigner({self.address})"


def _deterministic() -> ec.ECDSA | None:
    """Return the way of signing, or None where OpenSSL is too old for it (before 3.2)."""
    try:
        return ec.ECDSA(Prehashed(SHA256()), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return None


def signer_from_environment(environment: Mapping[str, str] | None = None) -> KeySigner:
    """Make a signer from `RLHF_AUDIT_PUBLISHER_KEY`: 64 hex digits, with or without 0x.

    Raises:
        SignerError: the variable is missing, or holds no private key.
    """
    text = (os.environ if environment is None else environment).get(PUBLISHER_KEY_VARIABLE, "")
    if not text:
        raise SignerError(
            f"no publisher key: {PUBLISHER_KEY_VARIABLE} is not set",
            next_step="set it to the key's 64 hex digits, or name a keystore file",
        )
    digits = text.strip().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        raise SignerError(
            f"{PUBLISHER_KEY_VARIABLE} does not hold 64 hex digits",
            next_step="set it to the private key of the publisher account",
        )
    return KeySigner(bytes.fromhex(digits))


def signer_from_keystore(path: Path, password: str) -> KeySigner:
    """Make a signer from a version 3 keystore file, such as geth and Foundry write.

    Raises:
        SignerError: the file cannot be read, is no keystore, or the password is wrong.
    """
    from eth_account import Account  # noqa: PLC0415 (1 s of import)

    try:
        keystore = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise SignerError(f"{path} is not a readable keystore file") from None
    try:
        key = bytes(Account.decrypt(keystore, password))
    except Exception:  # noqa: BLE001 (what is raised depends on the cipher; none of it is shown)
        raise SignerError(
            f"{path} does not open", next_step="check the password, and that it is a version 3 file"
        ) from None
    return KeySigner(key)
