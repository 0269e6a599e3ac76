"""Binding a trainer's saved state to the log: the tree head that was durable when it was saved.

The checkpoint's entry digests the state's file, and the file names a tree head of the log. So
neither can be exchanged for that of another run, or of another moment, without the other.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, Inconsistent
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead

__all__ = ["HeadBinding", "InvalidBinding"]


class InvalidBinding(AuditTrailError):
    """What a saved state says about a tree head cannot be read."""


class _Log(Protocol):
    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...
    def root_at(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class HeadBinding:
    """A tree head as a saved state names it; the root is hex, empty for the empty tree."""

    origin: str
    tree_size: int
    root: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Take the text of a tree head, such as a recorder's `tree_head`."""
        origin, size, *rest = text.split("\n")
        root = base64.b64decode(rest[0]).hex() if rest and rest[0] else ""
        return cls(origin, int(size), root)

    @classmethod
    def of_head(cls, head: TreeHead) -> Self:
        """Take a tree head itself."""
        return cls(head.origin, head.size, head.root.hex())

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; raises InvalidBinding for something else."""
        origin, size, root = (said.get(name) for name in ("origin", "tree_size", "root"))
        is_text = isinstance(origin, str) and isinstance(root, str)
        if not is_text or type(size) is not int or size < 0:
            raise InvalidBinding(
                "the saved state does not say which tree head it belongs to",
                next_step="resume from a state that was saved while the run was recorded",
            )
        return cls(str(origin), size, str(root))

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into the state; JSON values only."""
        return {"origin": self.origin, "tree_size": self.tree_size, "root": self.root}

    def check(self, log: _Log) -> None:
        """Compare with the log that is resumed.

        Raises:
            Inconsistent: the state belongs to another log, or to a tree that this log has not.
        """
        if self.origin != log.origin:
            raise Inconsistent(
                "the saved state belongs to another log",
                expected=log.origin,
                actual=self.origin,
            )
        if self.tree_size > log.size:
            raise Inconsistent(
                "the saved state names a larger tree than this log has",
                expected=f"at most {log.size}",
                actual=str(self.tree_size),
            )
        if self.tree_size and log.root_at(self.tree_size).hex() != self.root:
            raise Inconsistent("the saved state names a tree that is not this log's")
