"""Keys are exchanged while everything goes on: who signs when, on which machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from rlhf_audit_trail.ledger.cose import inclusion_receipt, verify_inclusion_receipt
from rlhf_audit_trail.ledger.keyring import WrongKey
from rlhf_audit_trail.ledger.keys import BadKeyFile, KeyMissing, read_secret, write_secret
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
)
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, verify_inclusion
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.rotation import NothingToRetire, retire, rotate
from tests.ledger.rotating import begin, findings, grow

CHILD = Path(__file__).parent / "rotate_until_killed.py"


@pytest.fixture
def log(ledger, annotation):
    return begin(ledger, annotation)


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
