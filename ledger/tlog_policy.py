"""`tlog-policy`: which logs and witnesses somebody trusts, and how many of them he wants.

A policy is a file of lines (c2sp.org/tlog-policy):

    log example.com/log+1a2b3c4d+AdG7...
    witness W1 witness.example/w1+7ee284ae+BM0y... https://witness.example/w1
    witness W2 ...
    group both all W1 W2
    quorum both

Any one of the listed logs' keys is enough, so listing a log's Ed25519 and ML-DSA-44 key
demands one of the two. Whoever wants both pins them: `check_policy(..., pinned=keys)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.cosignature import (
    CosignerKey,
    find_cosignatures,
    open_cosigned_head,
)
from rlhf_audit_trail.ledger.proof.errors import (
    AuditTrailError,
    BadSignature,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.tree_head import SignedTreeHead

__all__ = [
    "Group",
    "InvalidPolicy",
    "PolicyLog",
    "PolicyWitness",
    "TlogPolicy",
    "WitnessedHead",
    "check_policy",
    "format_policy",
    "parse_policy",
    "read_policy",
]

MAX_POLICY_BYTES: Final = 1024 * 1024  # 32 logs and 32 witnesses with ML-DSA keys are 114 kB
NO_QUORUM: Final = "none"
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_COUNT = re.compile(r"[1-9][0-9]{0,5}")


class InvalidPolicy(AuditTrailError):
    """A tlog-policy file does not parse, or says what no policy can."""


@dataclass(frozen=True)
class PolicyLog:
    """A log's key; `url` is where the log is, or empty."""

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True)
class PolicyWitness:
    """A witness under the name that the policy gives it; `url` is its submission prefix."""

    name: str
    key: CosignerKey
    url: str = ""

    @property
    def shown(self) -> str:
        """The name for a terminal: it may hold any bytes."""
        return self.name if self.name.isprintable() else ascii(self.name)


@dataclass(frozen=True)
class Group:
    """At least `threshold` of the members, witnesses or groups, must have witnessed."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class TlogPolicy:
    """A policy, every name in it defined before it is used."""

    logs: tuple[PolicyLog, ...] = ()
    witnesses: tuple[PolicyWitness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NO_QUORUM

    def is_met_by(self, cosigners: Iterable[CosignerKey]) -> bool:
        """Whether cosignatures by these keys make the quorum."""
        if self.quorum == NO_QUORUM:
            return True
        known = set(cosigners)
        witnessed = {item.name for item in self.witnesses if item.key in known}
        for group in self.groups:  # members come first, so one pass is enough at any depth
            if sum(name in witnessed for name in group.members) >= group.threshold:
                witnessed.add(group.name)
        return self.quorum in witnessed


@dataclass(frozen=True)
class WitnessedHead:
    """A tree head that a policy accepts.

    Attributes:
        signed: the head, and the log's keys found to have signed it.
        cosigned_at_s: the policy's witnesses who cosigned it, and when, in POSIX seconds.
    """

    signed: SignedTreeHead
    cosigned_at_s: dict[CosignerKey, int]


def check_policy(
    policy: TlogPolicy, note: str, *, pinned: Iterable[VerifierKey] = ()
) -> WitnessedHead:
    """Show that a signed tree head is by a trusted log and witnessed by the quorum.

    Args:
        policy: what is trusted.
        note: the signed tree head, as served.
        pinned: keys that must all have signed, beside one of the policy's logs if it has any.

    Raises:
        MalformedBundle: the note does not parse.
        BadSignature: a known key's line is bad, or no trusted key of this log signed.
        PolicyUnmet: a pinned key did not sign, too few cosigned, or no log key is known.
    """
    wanted, listed = tuple(pinned), tuple(item.key for item in policy.logs)
    signed = open_cosigned_head(note, dict.fromkeys(wanted + listed))
    _check_log(signed, wanted, listed)
    cosigned = find_cosignatures(signed.note, signed.head, (x.key for x in policy.witnesses))
    if not policy.is_met_by(cosigned):
        names = [item.shown for item in policy.witnesses if item.key in cosigned]
        raise PolicyUnmet(
            "too few witnesses cosigned this tree head",
            expected=f"quorum {policy.quorum!r}",
            actual=f"cosigned by {', '.join(names) or 'none of them'}",
            next_step="ask again later: witnesses may not have seen this head yet",
        )
    return WitnessedHead(signed, cosigned)


def _check_log(
    signed: SignedTreeHead, wanted: tuple[VerifierKey, ...], listed: tuple[VerifierKey, ...]
) -> None:
    if not wanted and not listed:
        raise PolicyUnmet(
            "no key of the log is known", next_step="list the log in the policy, or pin its keys"
        )
    missing = [key for key in wanted if key not in signed.signed_by]
    of_policy = not listed or any(key in signed.signed_by for key in listed)
    if not of_policy or (wanted and len(missing) == len(wanted)):
        raise BadSignature(
            f"no trusted key signed this tree head of {signed.head.origin}",
            next_step="check that the keys belong to this log; else treat it as forged",
        )
    if missing:
        names = ", ".join(f"{key.algorithm.name} {key.key_id.hex()}" for key in missing)
        raise PolicyUnmet(f"pinned keys that did not sign: {names}")


# --- the file ---------------------------------------------------------------------------


def read_policy(path: Path) -> TlogPolicy:
    """Read a policy from its file; raises InvalidPolicy."""
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise InvalidPolicy(
            f"cannot read the policy {path}: {error.strerror}", next_step="check the file's name"
        ) from error


def parse_policy(data: bytes) -> TlogPolicy:
    """Read a policy file.

    Text outside ASCII is opaque: names are compared byte for byte.

    Raises:
        InvalidPolicy: as the name says; the message has the line's number.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise InvalidPolicy(f"a policy is at most {MAX_POLICY_BYTES:,} bytes")
    if _CONTROL.search(data):
        raise InvalidPolicy(
            "a policy has no control characters but tab and newline",
            next_step="save the file with Unix line ends",
        )
    if data and not data.endswith(b"\n"):
        raise InvalidPolicy("the last line of a policy must end with a newline, too")
    draft = _Draft()
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        words = [word for word in re.split("[ \t]+", line) if word]
        if words and not words[0].startswith("#"):
            try:
                draft.take(words)
            except (InvalidPolicy, MalformedBundle) as error:
                raise InvalidPolicy(f"policy line {number}: {error.message}") from error
    return draft.finish()


@dataclass
class _Draft:
    """A policy while its lines are read."""

    logs: list[PolicyLog] = field(default_factory=list)
    witnesses: list[PolicyWitness] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    quorum: str | None = None
    defined: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    log_keys: set[bytes] = field(default_factory=set)
    witness_keys: set[bytes] = field(default_factory=set)

    def take(self, words: list[str]) -> None:
        """Take one line that is neither empty nor a comment."""
        keyword, *rest = words
        lines: dict[str, tuple[Callable[..., None], int, int]] = {
            "log": (self._log, 1, 2),
            "witness": (self._witness, 2, 3),
            "group": (self._group, 3, len(rest)),
            "quorum": (self._quorum, 1, 1),
        }
        if keyword not in lines:
            raise InvalidPolicy(f"unknown keyword {keyword[:40]!r}")
        read, least, most = lines[keyword]
        if not least <= len(rest) <= most:
            raise InvalidPolicy(f"a {keyword} line has too few or too many parts")
        read(*rest)

    def _log(self, vkey: str, url: str = "") -> None:
        key = VerifierKey.parse(vkey)
        _once(key.public, self.log_keys)
        self.logs.append(PolicyLog(key, url))

    def _witness(self, name: str, vkey: str, url: str = "") -> None:
        key = CosignerKey.parse(vkey)
        _once(key.public, self.witness_keys)
        self._define(name)
        self.witnesses.append(PolicyWitness(name, key, url))

    def _group(self, name: str, count: str, *members: str) -> None:
        for member in members:
            self._require(member)
            if member in self.members:
                raise InvalidPolicy(f"{member[:80]!r} is a member already")
            self.members.add(member)
        self._define(name)
        words = {"all": len(members), "any": 1}
        threshold = int(count) if _COUNT.fullmatch(count) else words.get(count, 0)
        if not 1 <= threshold <= len(members):
            raise InvalidPolicy(f"a group wants all, any, or 1 to {len(members)} of its members")
        self.groups.append(Group(name, threshold, members))

    def _quorum(self, name: str) -> None:
        if self.quorum is not None:
            raise InvalidPolicy("there is one quorum line only")
        if name != NO_QUORUM:
            self._require(name)
        self.quorum = name

    def _define(self, name: str) -> None:
        if name in self.defined or name == NO_QUORUM:
            raise InvalidPolicy(f"the name {name[:80]!r} is taken")
        self.defined.add(name)

    def _require(self, name: str) -> None:
        if name not in self.defined:
            raise InvalidPolicy(f"{name[:80]!r} is not defined on a line before")

    def finish(self) -> TlogPolicy:
        """Return the policy."""
        if self.quorum is None:
            raise InvalidPolicy("a policy must have a quorum line")
        return TlogPolicy(tuple(self.logs), tuple(self.witnesses), tuple(self.groups), self.quorum)


def _once(public: bytes, known: set[bytes]) -> None:
    if public in known:
        raise InvalidPolicy("this public key is on an earlier line, perhaps under another name")
    known.add(public)


def format_policy(policy: TlogPolicy) -> bytes:
    """Write a policy as its file; reading it back gives the same policy.

    Raises:
        InvalidPolicy: it says what no policy file can.
    """
    lines = [f"log {item.key} {item.url}" for item in policy.logs]
    lines += [f"witness {item.name} {item.key} {item.url}" for item in policy.witnesses]
    for group in policy.groups:
        count = "all" if group.threshold == len(group.members) else str(group.threshold)
        lines.append(f"group {group.name} {count} {' '.join(group.members)}")
    lines.append(f"quorum {policy.quorum}")
    text = "".join(line.rstrip(" ") + "\n" for line in lines)
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidPolicy("a name or address in a policy has no bytes") from error
    if parse_policy(data) != policy:
        raise InvalidPolicy("a name or address in a policy would be read back as another")
    return data
