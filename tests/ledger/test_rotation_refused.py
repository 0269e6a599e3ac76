"""Retired, stolen and forged keys: what they sign, or say about keys, is refused."""

from __future__ import annotations

import pytest

from rlhf_audit_trail.ledger.drafts import draft, encode_draft
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keyring import WrongKey
from rlhf_audit_trail.ledger.keys import KeyMissing, LogKeys, read_secret, write_secret
from rlhf_audit_trail.ledger.log import Forked, Ledger
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.rotation import retire, rotate
from tests.ledger.rotating import begin, execute, findings, grow


@pytest.fixture
def log(ledger, annotation):
    return begin(ledger, annotation)


def test_a_head_signed_by_a_stolen_retired_key_is_refused(ledger, directory, log, annotation):
    rotate(ledger)
    retire(ledger)
    grow(log, annotation)
    log.record(annotation(3)).result()
    ledger.close()
    thief = LogKeys.derive(read_secret(directory / "operator.key"), log.origin)
    head = TreeHead(log.origin, log.size, log.root_at(log.size))
    insert = "INSERT INTO tree_head VALUES (?, ?, ?, ?, ?)"
    execute(directory, insert, log.number, head.size, head.root, thief.sign(head, time_s=1), "")
    (finding,) = findings(directory)
    assert "not signed by all of the log's own keys" in finding
    with Ledger.open(directory) as again, pytest.raises(Forked, match="not signed by this log"):
        again.open_run("run")


@pytest.mark.parametrize("signers", [(1,), (2,)], ids=["old alone", "new alone"])
def test_in_the_overlap_one_generation_alone_is_not_enough(
    ledger, directory, log, annotation, signers
):
    rotate(ledger)
    signed = grow(log, annotation)
    (keys,) = (ledger.key_ring.derive(number, "run") for number in signers)
    change = "UPDATE tree_head SET note = ? WHERE log_number = ? AND tree_size = ?"
    note = keys.sign(signed.head, time_s=1)
    execute(directory, change, note, log.number, signed.head.size)
    assert len(findings(directory)) == 1
    with pytest.raises(Forked):
        log.published()


def test_a_head_of_before_the_rotation_cannot_pass_for_a_later_one(ledger, directory, log):
    """Whoever can write the store moves an old, well-signed note to a size of the new keys."""
    early = log.published(5)
    rotate(ledger)
    change = "UPDATE tree_head SET note = ? WHERE log_number = ? AND tree_size = 6"
    execute(directory, change, str(early.note), log.number)
    with pytest.raises(Forked):
        log.published()
    assert findings(directory)


def forge(directory, log, event):
    """Put an entry into the store as somebody could who has no key."""
    data = encode_draft(draft(event), log.run_id, "f" * 32, 0, "2026-11-20T10:15:00.123456Z", ())
    insert = "INSERT INTO entry VALUES (?, ?, ?, 0, ?, ?, ?)"
    size = log.size
    execute(directory, insert, log.number, size, "f" * 32, event.kind, data, leaf_hash(data))
    execute(directory, "UPDATE log SET size = size + 1 WHERE number = ?", log.number)
    filed = "INSERT OR IGNORE INTO kind_tile VALUES (?, ?, ?)"
    execute(directory, filed, log.number, event.kind, size // 256)


def test_who_can_write_the_store_but_has_no_secret_makes_us_sign_with_no_other_key(
    ledger, directory, log
):
    registry, stranger = ledger.registry, LogKeys.derive(b"s" * 32, ledger.registry.origin)
    registry.publish()
    fields = {"run": "registry", "origin": registry.origin, "generation": 2}
    fields |= {"old_keys": list(map(str, registry.verifier_keys)), "from_size": registry.size + 1}
    fields |= {"new_keys": list(map(str, stranger.verifier_keys))}
    forge(directory, registry, Event("keys.rotated", fields))
    sizes = log.published_sizes(), registry.published_sizes()
    with pytest.raises(KeyMissing):
        registry.publish()
    with pytest.raises(KeyMissing):
        Ledger.open(directory)
    write_secret(directory / "operator-2.key")
    with pytest.raises(WrongKey):
        registry.publish()
    assert (log.published_sizes(), registry.published_sizes()) == sizes


def test_a_changed_entry_about_keys_is_noticed_before_it_is_heeded(ledger, directory):
    rotate(ledger)
    ledger.close()
    ((data,),) = execute(directory, "SELECT data FROM entry WHERE kind = 'keys.rotated'")
    change = "UPDATE entry SET data = ? WHERE kind = 'keys.rotated'"
    execute(directory, change, data.replace(b'"from_size":0', b'"from_size":3'))
    with pytest.raises(Forked, match="not the one that was hashed"):
        Ledger.open(directory)
