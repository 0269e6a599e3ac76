"""Attacks on copies of the demo's ledger and bundle; each must be caught by a named check.

The attacker has all that an operator has: the database, the settings, and the signing keys.
What he has not is the chain's past, and a bundle and key that an auditor already holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_audit_trail.demo import attacks_on_bundle, attacks_on_contract, attacks_on_store
from rlhf_audit_trail.demo.scene import Scene

__all__ = ["Attack", "Scene", "run_attacks"]


@dataclass(frozen=True)
class Attack:
    """One attack's outcome; `by` says which check caught it, empty if none did."""

    name: str
    by: str

    @property
    def caught(self) -> bool:
        """Whether anything caught it."""
        return bool(self.by)


def run_attacks(scene: Scene) -> Iterator[Attack]:
    """Carry out every attack on a fresh copy and report what caught it."""
    attacks: tuple[tuple[str, Callable[[Scene], str]], ...] = (
        ("a value changed in the database", attacks_on_store.value_changed),
        ("an entry changed, and its hash with it", attacks_on_store.entry_and_hash_changed),
        ("a sealed reward replaced in the vault", attacks_on_store.vault_changed),
        ("an entry deleted, the rest moved up", attacks_on_store.entry_deleted),
        ("two entries swapped", attacks_on_store.entries_swapped),
        ("history rewritten, every tree head signed again", attacks_on_store.rewritten),
        ("the rewritten history shown to an auditor", attacks_on_store.rewritten_bundle),
        ("the tail cut off, with the tree heads over it", attacks_on_store.truncated),
        ("another key put into the bundle", attacks_on_bundle.key_swapped),
        ("the tree size in the bundle relabelled", attacks_on_bundle.size_relabelled),
        ("the proof offered for another index", attacks_on_bundle.index_changed),
        ("an opened reward edited in the bundle", attacks_on_bundle.opening_changed),
        ("evidence of another log or block put in", attacks_on_bundle.evidence_swapped),
        ("a forked tree head offered to the contract", attacks_on_contract.fork_offered),
        ("a smaller tree offered to the contract", attacks_on_contract.smaller_offered),
    )
    for name, attack in attacks:
        logging.disable(logging.ERROR)  # what an attacked copy says of itself is its own news
        try:
            found = attack(scene)
        finally:
            logging.disable(logging.NOTSET)
        yield Attack(name, found)
