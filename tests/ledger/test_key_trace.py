"""Who has old keys of a log is led to the new ones, and by nobody else."""

from __future__ import annotations

import json

import pytest

from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.key_trace import trace_keys
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head
from rlhf_audit_trail.ledger.public_log import DirectoryLog, PublicLog, ServedLog
from rlhf_audit_trail.ledger.rotation import retire, rotate
from rlhf_audit_trail.ledger.succession import KeyHistory, Succession
from tests.ledger.rotating import begin, grow


@pytest.fixture
def log(ledger, annotation):
    return begin(ledger, annotation)


def exported(log, path):
    export_log(log, path)
    return PublicLog(DirectoryLog(path))


def test_from_the_registry_logs_old_key_all_present_keys_are_found(
    ledger, log, annotation, tmp_path
):
    pinned, old = ledger.registry.verifier_keys, log.verifier_keys
    for number in range(3):
        rotate(ledger)
        grow(log, annotation)
        found = trace_keys(exported(ledger.registry, tmp_path / f"{number}-overlap"), pinned)
        assert (found.rotations, found.histories["run"].now) == (number + 1, log.keys_now())
        retire(ledger)
        ledger.open_run(f"run{number}")
        ledger.registry.publish()
        found = trace_keys(exported(ledger.registry, tmp_path / f"{number}"), (*pinned, *old))
        assert found.rotations == number + 1
        assert found.histories == {
            run: ledger.find(run).key_history for run in ("registry", *ledger.runs())
        }
        trace_keys(PublicLog(DirectoryLog(tmp_path / f"{number}")), found.histories["registry"].now)
    between = ledger.registry.key_history.eras[3].keys  # the second and the third generation
    assert trace_keys(PublicLog(DirectoryLog(tmp_path / "2")), between).rotations == 2


def test_a_runs_own_log_leads_from_its_old_key_to_its_new_one(
    ledger, log, annotation, tmp_path, serve
):
    from rlhf_audit_trail.api.app import create_app

    pinned = log.verifier_keys
    assert trace_keys(exported(log, tmp_path / "before"), pinned[:1]).rotations == 0
    rotate(ledger)
    retire(ledger)
    grow(log, annotation)
    for source in (
        exported(log, tmp_path / "after"),
        PublicLog(ServedLog(f"{serve(create_app(ledger))}/rlhf/run")),
    ):
        for given in (pinned, pinned[:1], pinned[1:]):
            found = trace_keys(source, given)
            assert (found.rotations, found.histories) == (1, {"run": log.key_history})


def test_who_pinned_a_strangers_key_or_none_of_this_log_is_told(ledger, log, tmp_path):
    rotate(ledger)
    public = exported(ledger.registry, tmp_path / "public")
    with pytest.raises(PolicyUnmet, match="none of the keys is one of"):
        trace_keys(public, log.verifier_keys)
    stranger = LogKeys.derive(b"s" * 32, ledger.registry.origin).verifier_keys
    with pytest.raises(BadSignature, match="ever was its own"):
        trace_keys(public, stranger)
    other = LogKeys.derive(b"s" * 32, log.origin).verifier_keys
    with pytest.raises(BadSignature, match="does not know the key"):
        trace_keys(public, (*ledger.registry.verifier_keys, *other))


class Rewritten:
    """A public log of given entries, signed as its maker likes."""

    def __init__(self, entries, origin, *signers):
        from rlhf_audit_trail.ledger.tiles import GrowingTree

        self._entries, self._tree = entries, GrowingTree()
        self._tree.append(map(leaf_hash, entries))
        self.head = TreeHead(origin, len(entries), self._tree.root())
        note = [open_tree_head(x.sign(self.head, time_s=1), ()).note for x in signers]
        lines = tuple(line for item in note for line in item.signatures)
        self._note = str(type(note[0])(self.head.text, lines))

    def tree_head(self):
        return self._note

    def hash_tile(self, level, tile_index, width):
        assert (level, tile_index) == (0, 0)
        return b"".join(map(leaf_hash, self._entries[:width]))

    def entries(self, tile_index, width):
        assert tile_index == 0
        return tuple(self._entries[:width])


def test_a_thief_cannot_show_another_succession(ledger):
    """He makes a log in which the old keys are said to name his own."""
    registry, pinned = ledger.registry, ledger.registry.verifier_keys
    rotate(ledger)
    retire(ledger)
    entries = [entry.data for entry in registry.entries()]
    thief = LogKeys.derive(b"t" * 32, registry.origin)
    new = ledger.key_ring.derive(2, "registry")
    forged = [
        data.replace(str(mine).encode(), str(his).encode())
        for data in entries
        for mine, his in [(new.verifier_keys[0], thief.verifier_keys[0])]
    ]
    assert trace_keys(Rewritten(entries, registry.origin, new), pinned).rotations == 1
    with pytest.raises(BadSignature):  # only he signed it
        trace_keys(Rewritten(entries, registry.origin, thief), pinned)
    with pytest.raises(Inconsistent, match="that the old keys signed is not in this log"):
        trace_keys(Rewritten(forged, registry.origin, thief, new), pinned)
    cut = [data for data in entries if b'"kind":"keys.retired"' not in data]
    with pytest.raises(BadSignature):  # as if the overlap went on
        trace_keys(Rewritten(cut, registry.origin, new), pinned)


def changed(data, **fields):
    record = json.loads(data)
    return json.dumps(record | fields, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_head_that_does_not_hold_the_entry_proves_nothing(ledger):
    registry, pinned = ledger.registry, ledger.registry.verifier_keys
    early = registry.publish()
    rotate(ledger)
    retire(ledger)
    new = ledger.key_ring.derive(2, "registry")
    entries = [entry.data for entry in registry.entries()]
    entries[-1] = changed(entries[-1], tree_head=str(early.note))
    with pytest.raises(BadSignature, match="no tree head that holds entry"):
        trace_keys(Rewritten(entries, registry.origin, new), pinned)


NEW = [str(x) for x in LogKeys.derive(b"2" * 32, "acme.example/rlhf/registry").verifier_keys]
SPOILT = {
    "a generation left out": (Inconsistent, {"generation": 3}),
    "an old key that never was one": (Inconsistent, {"old_keys": NEW}),
    "a size before the last change": (Inconsistent, {"from_size": 0}),
    "a size that is none": (MalformedBundle, {"from_size": True}),
    "a key that is none": (MalformedBundle, {"new_keys": ["acme.example/rlhf/registry+00+"]}),
    "no keys": (MalformedBundle, {"new_keys": []}),
    "a run that was never opened": (Inconsistent, {"run": "other"}),
    "another run's origin": (Inconsistent, {"origin": "acme.example/rlhf/other"}),
    "no generation": (Inconsistent, {"generation": None}),
}


@pytest.mark.parametrize(("error", "fields"), SPOILT.values(), ids=SPOILT)
def test_what_a_registry_log_says_about_keys_must_follow_from_what_it_said_before(error, fields):
    origin = "acme.example/rlhf/registry"
    old, new = (LogKeys.derive(secret * 32, origin).verifier_keys for secret in (b"1", b"2"))
    history = KeyHistory.begin(origin, old)
    record = {"kind": "keys.rotated", "run": "registry", "origin": origin, "generation": 2}
    record |= {"old_keys": list(map(str, old)), "new_keys": list(map(str, new)), "from_size": 4}
    sound = Succession.begin(origin, old)
    sound.see(3, record)
    assert sound.histories["registry"].at(3) == history.now
    assert sound.histories["registry"].at(4) == (*old, *new)
    assert sound.generations == (1, 2)
    again = record | {"generation": 3, "old_keys": record["new_keys"], "from_size": 9}
    with pytest.raises(Inconsistent):  # before the first one is retired
        sound.see(5, again)
    spoilt = Succession.begin(origin, old)
    if fields.get("from_size") == 0 and error is Inconsistent:
        spoilt.histories["registry"] = KeyHistory.begin(origin, old).add(
            type(history.eras[0])(2, (1,), old)
        )
    with pytest.raises(error):
        spoilt.see(3, record | fields)
