"""Keys are exchanged while everything goes on: who signs when, who can follow, who is refused."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from rlhf_audit_trail.ledger.cose import inclusion_receipt, verify_inclusion_receipt
from rlhf_audit_trail.ledger.drafts import draft, encode_draft
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.key_trace import trace_keys
from rlhf_audit_trail.ledger.keyring import WrongKey
from rlhf_audit_trail.ledger.keys import BadKeyFile, KeyMissing, LogKeys, read_secret, write_secret
from rlhf_audit_trail.ledger.log import Forked, Ledger
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, verify_inclusion
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.public_log import DirectoryLog, PublicLog, ServedLog
from rlhf_audit_trail.ledger.rotation import NothingToRetire, retire, rotate
from rlhf_audit_trail.ledger.succession import KeyHistory, Succession

CHILD = Path(__file__).parent / "rotate_until_killed.py"


@pytest.fixture
def log(ledger, annotation):
    """A run with five entries and one signed tree head."""
    run = ledger.open_run("run")
    run.record_many(annotation(number) for number in range(5))
    run.publish()
    return run


def grow(log, annotation):
    log.record(annotation(7))
    return log.publish()


def findings(directory):
    with open_damaged(directory) as storage:
        return [str(finding) for finding in fsck(storage)]


# --- who signs --------------------------------------------------------------------------


def test_old_and_new_keys_sign_together_until_the_old_ones_are_retired(
    ledger, directory, log, annotation
):
    old, number = log.verifier_keys, log.log_id
    change = rotate(ledger)
    assert (change.generation, change.is_overlapping, change.runs) == (2, True, ("registry", "run"))
    both = log.keys_now()
    assert (both[:2], len(set(both))) == (old, 4)
    assert log.published().signed_by == both  # at once: nobody has to wait for the next entry
    assert grow(log, annotation).signed_by == both
    change = retire(ledger)
    assert (change.is_overlapping, change.runs) == (False, ("run", "registry"))
    assert grow(log, annotation).signed_by == both[2:]
    signers = [log.published(size).signed_by for size in log.published_sizes()]
    assert signers == [old, both, both, both[2:], both[2:]]
    assert log.log_id == number
    assert findings(directory) == []
    assert [path.name for path in sorted(directory.glob("operator*.key"))] == [
        "operator-2.key", "operator.key",
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.glob("operator*.key"))


def test_an_auditor_with_the_old_keys_and_one_with_the_new_ones_both_verify(ledger, log):
    old = log.verifier_keys
    before = log.bundle([1])
    rotate(ledger)
    new = log.verifier_keys[2:]
    overlap = log.bundle([1], anchored_sizes=[5])
    for pinned in (old, new, old + new):
        assert verify_bundle(overlap, TrustPolicy(keys=pinned)).entries
    retire(ledger)
    after = log.bundle([1], anchored_sizes=[5, 6])
    assert verify_bundle(after, TrustPolicy(keys=new)).entries
    with pytest.raises(BadSignature):
        verify_bundle(after, TrustPolicy(keys=old))
    assert verify_bundle(before, TrustPolicy(keys=old)).entries


def test_the_files_of_public_keys_follow(ledger, log):
    path, other = ledger.key_file("run"), ledger.key_file("registry")
    lines = path.read_text().splitlines()
    rotate(ledger)
    assert path.read_text().splitlines()[:2] == lines
    assert len(path.read_text().splitlines()) == len(other.read_text().splitlines()) == 4
    retire(ledger)
    assert path.read_text() == "".join(f"{key}\n" for key in log.verifier_keys)
    assert not set(path.read_text().splitlines()) & set(lines)


def test_runs_that_begin_in_the_overlap_have_the_new_keys_only_and_closed_ones_keep_theirs(
    ledger, directory, log, annotation
):
    ended = ledger.open_run("ended")
    ended.record(annotation(1))
    ended.close()
    rotate(ledger)
    begun = ledger.open_run("begun")
    assert len(grow(begun, annotation).signed_by) == 2
    in_between = ledger.open_run("in-between")
    log.close()
    retire(ledger)
    assert [len(x.verifier_keys) for x in (ended, begun, in_between, log)] == [2, 2, 2, 4]
    with Ledger.open(directory) as again:
        pinned = TrustPolicy(keys=again.find("ended").verifier_keys)
        assert verify_bundle(again.find("ended").bundle([0]), pinned).entries
        assert again.find("begun").published().signed_by == begun.verifier_keys
    assert findings(directory) == []


def test_people_are_found_and_their_values_opened_after_a_rotation(ledger, directory, annotation):
    log = ledger.open_run("run")
    first = log.record(annotation(1)).result()
    tag = ledger.vault.subject_tag("annotator-1@example.org", log.origin)
    rotate(ledger)
    retire(ledger)
    second = log.record(annotation(6)).result()  # the same person again
    with Ledger.open(directory) as again:
        assert again.vault.subject_tag("annotator-1@example.org", log.origin) == tag
        found = [again.find("run").opened(index) for index in (first, second)]
        assert found[0]["annotator"] == found[1]["annotator"]
        assert (found[0]["prompt"], found[1]["prompt"]) == ("prompt 1", "prompt 6")


def test_receipts_for_other_tools_go_on_with_the_new_keys(ledger, log):
    rotate(ledger)
    retire(ledger)
    head, (ed25519, _) = log.published().head, log.verifier_keys
    with ledger.engine.connect() as connection:
        (keys,) = log.key_ring.signers(connection)
    receipt = inclusion_receipt(keys, head, 2, log.prove_inclusion(2, head.size))
    assert verify_inclusion_receipt(receipt, log.read(2).data, ed25519) == (2, head)


def test_rotating_again_and_again(ledger, directory, log, annotation):
    for generation in (2, 3, 4):
        assert rotate(ledger).generation == generation
        assert rotate(ledger).runs == ()  # the overlap goes on; nothing new begins
        grow(log, annotation)
        assert retire(ledger).generation == generation
        assert retire(ledger).runs == ()
    assert len({key for era in log.key_history.eras for key in era.keys}) == 8
    assert findings(directory) == []


def test_without_a_rotation_there_is_nothing_to_retire(ledger):
    with pytest.raises(NothingToRetire):
        retire(ledger)


def test_the_entry_that_names_new_keys_stands_under_a_head_that_the_old_keys_signed(ledger, log):
    registry, old = ledger.registry, ledger.registry.verifier_keys
    rotate(ledger)
    for entry in registry.entries(kind="keys.rotated"):
        signed = registry.published()
        assert set(old) <= set(signed.signed_by)
        head, leaf = signed.head, leaf_hash(entry.data)
        path = registry.prove_inclusion(entry.leaf_index, head.size)
        verify_inclusion(leaf, entry.leaf_index, head.size, path, head.root)
    (own,) = log.entries(kind="keys.rotated")
    (_, told) = registry.entries(kind="keys.rotated")
    assert own.event["new_keys"] == told.event["new_keys"] == list(map(str, log.keys_now()[2:]))


# --- other processes, other machines -------------------------------------------------------


def test_a_process_that_has_the_ledger_open_notices(ledger, directory, log, annotation):
    with Ledger.open(directory) as other:
        rotate(other)
        assert len(grow(log, annotation).signed_by) == 4
        assert len(log.verifier_keys) == 4
        retire(other)
        assert log.published().head.size == log.size  # what the other one signed is known as ours
        assert len(grow(log, annotation).signed_by) == 2
        announced = ledger.open_run("later").verifier_keys
        assert announced == other.open_run("later").verifier_keys == ledger.find("later").keys_now()
    assert findings(directory) == []


def test_a_run_announced_while_keys_are_rotated_begins_with_the_new_ones(
    ledger, directory, monkeypatch
):
    announce = type(ledger.registry).announce

    def late(self, event, **options):
        monkeypatch.undo()
        with Ledger.open(directory) as other:
            rotate(other)
            retire(other)
        return announce(self, event, **options)

    monkeypatch.setattr(type(ledger.registry), "announce", late)
    log = ledger.open_run("run")
    (opened,) = ledger.registry.entries(kind="run.opened")
    assert opened.event["log_keys"] == [str(key) for key in log.keys_now()]
    assert opened.event["log_keys"][0] == str(ledger.key_ring.derive(2, "run").verifier_keys[0])
    assert findings(directory) == []


@pytest.fixture
def elsewhere(directory, tmp_path):
    """Another machine's directory: the same databases, and a copy of the first key."""
    path = tmp_path / "elsewhere"
    path.mkdir()
    shutil.copy(directory / "operator.key", path)
    (path / "rlhf-audit.toml").write_text(
        '[ledger]\norganisation = "acme.example"\n'
        f'database = "sqlite:///{directory}/ledger.db"\n'
        f'keys_database = "sqlite:///{directory}/vault-keys.db"\n'
    )
    return path


def test_a_machine_without_the_new_secret_signs_nothing_and_says_what_is_missing(
    ledger, directory, log, elsewhere, annotation
):
    with Ledger.open(elsewhere) as other:
        there = other.open_run("run")
        rotate(ledger)
        there.record(annotation(1)).result()
        size = log.published().head.size
        with pytest.raises(KeyMissing, match=r"operator-2\.key is not on this machine"):
            there.publish()
        assert log.published().head.size == size
        with pytest.raises(KeyMissing):
            Ledger.open(elsewhere)
        shutil.copy(directory / "operator-2.key", elsewhere)
        assert there.publish().signed_by == log.keys_now()
    Ledger.open(elsewhere).close()


def test_a_machine_with_another_new_secret_is_refused(ledger, elsewhere):
    write_secret(elsewhere / "operator-2.key")
    rotate(ledger)
    with pytest.raises(WrongKey, match=r"not the keys that the registry log names"):
        Ledger.open(elsewhere)


def test_two_that_rotate_at_once_make_one_rotation(ledger, directory, log):
    with Ledger.open(directory) as other:
        other.find("run")
        failures = []

        def turn(one):
            try:
                rotate(one)
            except BadKeyFile as error:  # both made the new file; one was first
                failures.append(error)

        threads = [Thread(target=turn, args=(one,)) for one in (ledger, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(failures) <= 1
    rotate(ledger)
    assert len(list(ledger.registry.entries(kind="keys.rotated"))) == 2
    assert len(log.keys_now()) == 4
    assert findings(directory) == []


def test_a_secret_that_is_there_is_used_and_none_is_overwritten(ledger, directory):
    made = write_secret(directory / "operator-2.key")
    rotate(ledger)
    assert read_secret(directory / "operator-2.key") == made
    with pytest.raises(BadKeyFile, match="not overwritten"):
        write_secret(directory / "operator-2.key")
    assert ledger.key_ring.derive(2, "registry").verifier_keys == ledger.registry.keys_now()[2:]
    assert not list(directory.glob(".operator*"))


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_ends_in_the_same_state(tmp_path, annotation):
    base = tmp_path / "base"
    with Ledger.create(base, organisation="acme.example") as ledger:
        grow(ledger.open_run("run"), annotation)
    moment, statuses = 0, []
    while not statuses or statuses[-1] != 0:
        moment += 1
        directory = Path(shutil.copytree(base, tmp_path / f"copy{moment}"))
        child = [sys.executable, "-W", "error", CHILD, directory, str(moment)]
        statuses.append(subprocess.run(child, check=False).returncode)
        assert statuses[-1] in {0, -signal.SIGKILL}
        assert findings(directory) == []  # as the kill left it
        with Ledger.open(directory) as ledger:
            if len(ledger.registry.key_history.eras) < 3:  # else it would begin another rotation
                rotate(ledger)
            change = retire(ledger)
            assert (change.generation, change.is_overlapping) == (2, False)
            for run in ("registry", "run"):
                log = ledger.find(run)
                assert log.keys_now() == ledger.key_ring.derive(2, run).verifier_keys
                told = [x.event["run"] for x in log.entries() if x.event["kind"] == "keys.rotated"]
                assert told.count(run) == 1
                assert len(ledger.key_file(run).read_text().splitlines()) == 2
        assert read_secret(directory / "operator.key") == read_secret(base / "operator.key")
        assert findings(directory) == []
        shutil.rmtree(directory)
    assert len(statuses) > 16


# --- who is refused ------------------------------------------------------------------------


def execute(directory, statement, *values):
    with closing(sqlite3.connect(directory / "ledger.db")) as database, database:
        return database.execute(statement, values).fetchall()


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


# --- who can follow ------------------------------------------------------------------------


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
