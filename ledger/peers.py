"""Who remembers how far our logs had grown: witnesses, published copies, and the contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from rlhf_audit_trail.ledger.cosignature import open_cosigned_head
from rlhf_audit_trail.ledger.guard import Peer, PeerHead, open_own_head
from rlhf_audit_trail.ledger.key_trace import trace_keys
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, BadSignature, ProofError
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES
from rlhf_audit_trail.ledger.public_log import DirectoryLog, PublicLog, ServedLog, Source
from rlhf_audit_trail.ledger.reading import StoredLog
from rlhf_audit_trail.ledger.settings import ChainSettings, SettingsError
from rlhf_audit_trail.ledger.signing import SigningLog
from rlhf_audit_trail.ledger.succession import REGISTRY, KeyHistory
from rlhf_audit_trail.ledger.tlog_policy import PolicyWitness, TlogPolicy
from rlhf_audit_trail.ledger.web import BadAddress, Unreachable, parse_url
from rlhf_audit_trail.ledger.witness_client import LyingWitness, held_head, size_cosigned

__all__ = ["LyingMirror", "MirrorPeer", "WitnessPeer", "contract_peers", "mirror_peers",
           "witness_peers"]  # fmt: skip

# Named, not imported: a chain stands above the ledger, and whoever configures none needs no
# part of it. It is still found by itself, since a guard that must be asked for is forgotten.
_CONTRACT_PEER: Final = ("rlhf_audit_trail.ledger.chain.contract.peer", "ContractPeer")


class LyingMirror(AuditTrailError):
    """A published copy shows a tree head that this log did not sign."""


@dataclass(frozen=True)
class WitnessPeer:
    """A witness of the policy, with one key or several behind one address."""

    engine: Engine = field(repr=False)
    keys: tuple[PolicyWitness, ...]

    @property
    def name(self) -> str:
        """The first key's name in the policy."""
        return f"witness {self.keys[0].shown}"

    def newest(self, log: StoredLog, *, timeout_s: float) -> PeerHead | None:
        """Return what the witness holds; less than it is known to have signed is a lie."""
        cosigned = size_cosigned(self.engine, log, self.keys)
        head = held_head(log, self.keys[0].url, timeout_s=timeout_s, peer=self.name)
        if (head.size if head else 0) < cosigned:
            raise LyingWitness(f"the witness shows less than the {cosigned:,} entries it cosigned")
        return head


@dataclass(frozen=True)
class MirrorPeer:
    """A copy of the published logs; `{run}` in its place stands for a log's name."""

    place: str
    shown: str

    @property
    def name(self) -> str:
        """The place as the settings have it."""
        return f"mirror {self.shown}"

    def newest(self, log: StoredLog, *, timeout_s: float) -> PeerHead | None:
        """Return the tree head that is published there."""
        run = log.origin.rpartition("/")[2]
        data = self._source(run, timeout_s).read("checkpoint", MAX_NOTE_BYTES)
        if data is None:
            return None
        try:
            try:
                return open_own_head(log, data, self.name)
            except BadSignature:
                history = self._published_history(log, run, timeout_s)
                size = open_cosigned_head(data.decode(), ()).head.size
                return open_own_head(log, data, self.name, also_by=history.at(size))
        except ProofError as error:
            raise LyingMirror(
                "it shows a tree head that this log did not sign", next_step=error.next_step
            ) from error

    def _published_history(self, log: StoredLog, run: str, timeout_s: float) -> KeyHistory:
        """Return the log's keys as the registry log says that is published here.

        It must lead to them from our own. For a machine that has an old copy of the store, and
        none of the newer secrets.
        """
        registry = PublicLog(self._source(REGISTRY, timeout_s))
        pinned = log.registry_keys() if isinstance(log, SigningLog) else ()
        found = trace_keys(registry, pinned).histories.get(run)
        if found is None or found.origin != log.origin:
            raise BadSignature("the registry log that is published there has no such log")
        return found

    def _source(self, run: str, timeout_s: float) -> Source:
        place = self.place.replace("{run}", run)
        if _is_address(place):
            return ServedLog(place, timeout_s=timeout_s)
        above = Path(self.place.partition("{run}")[0] + "-").parent
        if not above.is_dir():  # a disk that is not there is no mirror that has nothing yet
            raise Unreachable(f"there is no directory {above}")
        return DirectoryLog(Path(place))


def witness_peers(engine: Engine, policy: TlogPolicy) -> Iterator[Peer]:
    """Yield one peer for each address in a policy."""
    by_url: dict[str, list[PolicyWitness]] = {}
    for item in policy.witnesses:
        if item.url:
            by_url.setdefault(item.url, []).append(item)
    yield from (WitnessPeer(engine, tuple(keys)) for keys in by_url.values())


def mirror_peers(places: tuple[str, ...], directory: Path) -> Iterator[Peer]:
    """Yield one peer for each place; a relative path is below `directory`.

    Raises:
        SettingsError: something like an address that is none.
    """
    for place in places:
        if _is_address(place):
            try:
                parse_url(place.replace("{run}", "run"))
            except BadAddress as error:
                raise SettingsError(
                    f"guard.mirrors: {error.message}", next_step=error.next_step
                ) from error
        yield MirrorPeer(place if _is_address(place) else str(directory / place), place)


def contract_peers(chain: ChainSettings, registered: str) -> Iterator[Peer]:
    """Yield the contract, if a chain is configured and somebody has anchored there.

    Args:
        chain: the settings.
        registered: the publisher that the registry log names, used if the settings do not.
    """
    publisher = chain.publisher or registered
    if chain.rpc_url and chain.chain_id and publisher:
        module, name = _CONTRACT_PEER
        peer: Peer = getattr(import_module(module), name).of(chain, publisher)
        yield peer


def _is_address(place: str) -> bool:
    return "://" in place
