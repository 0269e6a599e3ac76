"""Opening noise slots to an auditor: a disclosure, of which the registry log tells first.

Whoever gets a slot and what was drawn from it knows the raw statistic: no epsilon binds that
reader. Unused slots are opened only when they were given up, as a test of the tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.ledger.disclosing import Disclosure, DisclosureRefused
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.files import write_whole
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.privacy import rounds
from rlhf_audit_trail.privacy.errors import NoiseProtocolError
from rlhf_audit_trail.privacy.slots import NoiseSlots

__all__ = ["open_slots"]

_READER_CHARACTERS_MAX: Final = 200


def open_slots(
    ledger: Ledger, run_id: str, number: int, slots: Sequence[int], *, reader: str, target: Path
) -> Disclosure:
    """Write a new file with the openings of some slots, a line each, and record who gets it.

    Args:
        ledger: open.
        run_id: of the run.
        number: of the round.
        slots: that were used or given up.
        reader: who gets them; the name stands in the public registry log.
        target: a new file, which only who runs this may read.

    Raises:
        NoiseProtocolError: there is no such round, or a slot that may still be drawn from.
        DisclosureRefused: no slot, no reader, or the file is there already.
        LedgerMissing, Erased, VaultDamaged: as reading the run.
    """
    name, chosen = reader.strip(), sorted(set(slots))
    if not chosen or not 0 < len(name) <= _READER_CHARACTERS_MAX or not name.isprintable():
        raise DisclosureRefused("a disclosure needs slots, and a reader's name on one line")
    if target.exists() or target.is_symlink():
        raise DisclosureRefused(f"{target} is there already", next_step="name a new file")
    log = ledger.find(run_id)
    known = rounds.read(log).rounds
    if not 0 <= number < len(known):
        raise NoiseProtocolError("this run has no such round")
    into = known[number]
    pending = {spend.slot for spend in into.spends if spend.is_pending}
    if not 0 <= chosen[0] <= chosen[-1] < into.used or pending & set(chosen):
        raise NoiseProtocolError(
            "a slot is opened only when it is not used any more",
            next_step="release what was charged for, or give the slot up by skip()",
        )
    secret = bytes.fromhex(log.opened(into.root_index)["secret"])
    made = NoiseSlots(secret, into.slots)
    data = "".join(f"{made.open(slot).to_json()}\n" for slot in chosen).encode()
    digest = hashlib.sha256(data).hexdigest()
    fields: dict[str, Any] = {"run": run_id, "index": into.root_index, "reader": name}
    fields |= {"fields": [f"slot/{slot}" for slot in chosen]}
    fields |= {"digest": digest, "size_bytes": len(data)}
    index = ledger.registry.record(Event("access.read", fields)).result()
    write_whole(target, data, mode=0o600)
    return Disclosure(index, digest, len(data))
