"""The manifest of a model checkpoint: its tensors, their aliases, its files, how it is stored.

A blob of JSON whose digest stands in the checkpoint's entry beside the weights digest. The
weights digest alone says whether weights are these; the manifest says which tensors differ.

Spec: FORMAT.md, section 20.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.bundle import parse_json
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.weights.digest import (
    InvalidTensor,
    TensorRecord,
    check_record,
    weights_digest,
)

__all__ = ["FileRecord", "MalformedManifest", "Manifest", "Storage", "parse_manifest"]

_SCHEMA: Final = "rlhf-audit/checkpoint-manifest/v1"
_FIELDS: Final = ("schema", "weights_digest", "tensors", "aliases", "files", "storage")
_MANIFEST_BYTES_MAX: Final = 256 * 1024 * 1024


class MalformedManifest(AuditTrailError):
    """The bytes are no manifest, or not of the weights that its entry names."""


@dataclass(frozen=True)
class FileRecord:
    """A file beside or with the weights; for transport, since equal weights can lie in others."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Storage:
    """The weight delta that was stored: digests, hex, of its header and segments."""

    base: str | None
    header: str
    segments: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """See the module.

    Attributes:
        tensors: in UTF-8 order of names.
        aliases: further name of a storage to the name under which it is listed.
        files: sorted by path.
        storage: None where the weights were not stored.
    """

    tensors: tuple[TensorRecord, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()
    storage: Storage | None = None

    @property
    def weights_digest(self) -> bytes:
        """Of the tensors."""
        return weights_digest(self.tensors)

    def encode(self) -> bytes:
        """Return compact JSON, tensors, aliases and files in order of their names' bytes."""
        ordered = sorted(self.tensors, key=lambda x: x.name.encode())
        storage = self.storage and {
            "base": self.storage.base,
            "header": self.storage.header,
            "segments": list(self.storage.segments),
        }
        values: tuple[Any, ...] = (
            _SCHEMA,
            self.weights_digest.hex(),
            [[x.name, x.dtype, list(x.shape), x.root.hex()] for x in ordered],
            {name: self.aliases[name] for name in sorted(self.aliases, key=str.encode)},
            [[x.path, x.size_bytes, x.sha256] for x in sorted(self.files, key=_path_of)],
            storage,
        )
        found = dict(zip(_FIELDS, values, strict=True))
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _path_of(file: FileRecord) -> bytes:
    return file.path.encode()


def parse_manifest(data: bytes, wanted: str) -> Manifest:
    """Read a manifest whose blob digest was checked.

    Args:
        data: its bytes.
        wanted: the weights digest, hex, of the entry that names it.

    Raises:
        MalformedManifest: other fields or types, or tensors that do not have that digest.
    """
    if len(data) > _MANIFEST_BYTES_MAX:
        raise MalformedManifest("a manifest is impossibly long")
    try:
        found = parse_json(data)
        manifest = _manifest(found)
    except (ValueError, TypeError, KeyError, InvalidTensor, MalformedBundle) as error:
        raise MalformedManifest("a manifest does not hold what it must") from error
    if manifest.weights_digest.hex() != wanted or manifest.encode() != data:
        raise MalformedManifest("a manifest lists other tensors than its entry's digest stands for")
    return manifest


def _manifest(found: Any) -> Manifest:
    if not isinstance(found, dict) or tuple(found) != _FIELDS or found["schema"] != _SCHEMA:
        raise MalformedManifest("this is no manifest of version 1")
    tensors = [
        check_record(name, dtype, shape, bytes.fromhex(root))
        for name, dtype, shape, root in found["tensors"]
    ]
    files = [
        FileRecord(_text(path), _size(size), _text(digest)) for path, size, digest in found["files"]
    ]
    aliases = {_text(name): _text(first) for name, first in found["aliases"].items()}
    return Manifest(tuple(tensors), aliases, tuple(files), _storage(found["storage"]))


def _storage(found: Any) -> Storage | None:
    if found is None:
        return None
    segments: Sequence[Any] = found["segments"]
    base = None if found["base"] is None else _text(found["base"])
    return Storage(base, _text(found["header"]), tuple(_text(item) for item in segments))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value
