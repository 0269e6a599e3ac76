"""A publisher key that never leaves a key service: it signs digests, we make transactions of them.

Key services (AWS KMS, Google Cloud KMS, Azure Key Vault, an HSM behind PKCS #11) sign with
secp256k1, but not as Ethereum writes signatures: they answer in DER, with either of the two
values of s, and do not say which of the two points they mean. `RemoteSigner` turns that into a
signature, and refuses one that is not by the key it was made for.

What stands between us and a service is `DigestKey`, two functions. `HttpKey` calls them over
HTTP, so that a few lines beside any vendor's client will do:

    GET  {address}/public-key   -> the DER SubjectPublicKeyInfo (RFC 5480), application/octet-stream
    POST {address}/sign         <- the 32 bytes of the digest
                                -> the DER signature (RFC 3279, section 2.2.3)

Both carry `Authorization: Bearer` with RLHF_AUDIT_SIGNER_TOKEN, if that is set.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from rlhf_audit_trail.ledger.chain.errors import SignerError
from rlhf_audit_trail.ledger.chain.signing.signer import Signature
from rlhf_audit_trail.ledger.chain.signing.transaction import keccak256
from rlhf_audit_trail.ledger.settings import SettingsError

__all__ = ["SIGNER_TOKEN_VARIABLE", "DigestKey", "HttpKey", "RemoteSigner"]

SIGNER_TOKEN_VARIABLE: Final = "RLHF_AUDIT_SIGNER_TOKEN"  # noqa: S105 - a name, not a token

_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_COORDINATE_BYTES: Final = 32
_ANSWER_BYTES_MAX: Final = 1024  # both answers have about a hundred
_OK: Final = 200


class DigestKey(Protocol):
    """One secp256k1 key of a key service."""

    def public_key(self) -> bytes:
        """Return the DER SubjectPublicKeyInfo.

        Raises:
            SignerError: the service does not answer, or refuses.
        """
        ...

    def sign(self, digest: bytes) -> bytes:
        """Sign a digest of 32 bytes as it is, without hashing it again; return DER.

        Raises:
            SignerError: the service does not answer, or refuses.
        """
        ...


class RemoteSigner:
    """A `Signer` whose key is elsewhere."""

    def __init__(self, key: DigestKey) -> None:
        """Fetch the public key, once.

        Raises:
            SignerError: there is none, or it is of another kind.
        """
        self._key = key
        self._address = _address_of(key.public_key())

    @property
    def address(self) -> str:
        """The account's address with its checksum case."""
        return self._address

    def sign_digest(self, digest: bytes) -> Signature:
        """Have a digest of 32 bytes signed, and make sure that this key did it.

        Raises:
            SignerError: no answer, or one that is no signature by this key.
        """
        r, s = _read_signature(self._key.sign(digest))
        s = min(s, _ORDER - s)  # of the two, the one that Ethereum takes (EIP-2)
        for y_parity in (0, 1):
            if _recovered(digest, y_parity, r, s) == self._address:
                return Signature(y_parity=y_parity, r=r, s=s)
        raise SignerError(
            "the key service answered with a signature by another key, or over something else",
            next_step=f"have it sign digests as they are, with the key of {self.address}",
        )

    def __repr__(self) -> str:
        return f"RemoteSigner({self.address})"


class HttpKey:
    """A key behind the two calls above; opens a connection for each."""

    def __init__(
        self,
        address: str,
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Remember where it is; nothing is opened.

        Raises:
            SettingsError: no http or https address.
        """
        self._url = urlsplit(address)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise SettingsError(
                "the remote signer's address must look like https://signer.internal:8443",
                next_step="correct anchor.remote_signer in rlhf-audit.toml",
            )
        token = (os.environ if environment is None else environment).get(SIGNER_TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s

    def public_key(self) -> bytes:
        """See `DigestKey`."""
        return self._exchange("GET", "/public-key", None)

    def sign(self, digest: bytes) -> bytes:
        """See `DigestKey`."""
        return self._exchange("POST", "/sign", digest)

    def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        secure, host = self._url.scheme == "https", self._url.hostname or ""
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, self._url.port, timeout=self._timeout_s)
        shown = f"{self._url.scheme}://{host}"
        headers = self._headers | {"Content-Type": "application/octet-stream"}
        try:
            connection.request(method, self._url.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            data = answer.read(_ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise SignerError(
                f"the key service at {shown} does not answer: {type(error).__name__}",
                next_step="start it, or correct anchor.remote_signer; signed tree heads are kept",
            ) from error
        finally:
            connection.close()
        if answer.status != _OK or len(data) > _ANSWER_BYTES_MAX:
            raise SignerError(
                f"the key service at {shown} refuses: status {answer.status}",
                next_step=f"look into its own log, and at {SIGNER_TOKEN_VARIABLE}",
            )
        return data


def _address_of(spki: bytes) -> str:
    """Return the account of a public key: the end of the hash of its point; Yellow Paper F."""
    from eth_utils.address import to_checksum_address  # noqa: PLC0415 (not needed to read a chain)

    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise SignerError("the key service's public key is no SubjectPublicKeyInfo") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256K1):
        raise SignerError(
            "the key service's key is not of the curve secp256k1",
            next_step="make one of that curve, for signing; AWS calls it ECC_SECG_P256K1",
        )
    point = key.public_numbers()
    data = point.x.to_bytes(_COORDINATE_BYTES) + point.y.to_bytes(_COORDINATE_BYTES)
    return str(to_checksum_address(keccak256(data)[12:]))


def _read_signature(der: bytes) -> tuple[int, int]:
    try:
        r, s = decode_dss_signature(der)
    except ValueError:
        raise SignerError("the key service's answer is no DER signature") from None
    if not (0 < r < _ORDER and 0 < s < _ORDER):
        raise SignerError("the key service's answer is no signature of secp256k1")
    return r, s


def _recovered(digest: bytes, y_parity: int, r: int, s: int) -> str:
    """Return the account whose signature this is; empty if it is nobody's."""
    from eth_keys.datatypes import Signature as Point  # noqa: PLC0415 (not needed to read a chain)
    from eth_keys.exceptions import BadSignature  # noqa: PLC0415
    from eth_utils.exceptions import ValidationError  # noqa: PLC0415

    try:
        key = Point(vrs=(y_parity, r, s)).recover_public_key_from_msg_hash(digest)
    except (BadSignature, ValidationError):
        return ""
    return str(key.to_checksum_address())
