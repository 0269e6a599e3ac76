"""Keys are rotated on one machine while others append to and sign the same logs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.keys import KeyMissing
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.rotation import retire, rotate

CHILD = Path(__file__).parent / "appender.py"


@pytest.fixture
def machines(tmp_path, new_database):
    """Two directories with the same settings and operator key, over one server."""
    here, there = tmp_path / "here", tmp_path / "there"
    databases = {"database": new_database(), "keys_database": new_database()}
    Ledger.create(here, organisation="acme.example", **databases).close()
    there.mkdir()
    for name in ("rlhf-audit.toml", "operator.key"):
        shutil.copy(here / name, there)
    return here, there


def test_the_new_secret_must_be_copied_to_every_machine(machines, annotation, sound):
    here, there = machines
    with Ledger.open(here) as ledger, Ledger.open(there) as other:
        log, same = ledger.open_run("run42"), other.open_run("run42")
        index = same.record(annotation(1)).result()
        old = same.publish().signed_by
        rotate(ledger)
        same.record(annotation(2)).result()
        with pytest.raises(KeyMissing):
            same.publish()
        with pytest.raises(KeyMissing):
            Ledger.open(there)
        assert log.publish().signed_by[:2] == old
        shutil.copy(here / "operator-2.key", there)
        same.record(annotation(3)).result()
        assert same.publish().signed_by == log.keys_now()
        retire(other)
        log.record(annotation(4)).result()
        assert log.publish().signed_by == same.keys_now() == log.keys_now()
        assert not set(log.keys_now()) & set(old)
        assert same.opened(index)["prompt"] == "prompt 1"
    for directory in machines:
        Ledger.open(directory).close()
        assert sound(directory).tree_heads


@pytest.mark.slow
def test_while_others_append_and_sign_every_head_is_by_the_keys_of_its_size(
    machines, annotation, sound
):
    here, there = machines
    with Ledger.open(here) as ledger:
        log = ledger.open_run("run42")
        log.record(annotation(0)).result()
        ledger.key_ring.secrets.prepare(2)  # made in advance, so that the others have it
        shutil.copy(here / "operator-2.key", there)
        arguments = [sys.executable, CHILD, there, "run42", "400", "4"]
        children = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(2)]
        done = []
        while any(child.poll() is None for child in children):
            log.publish()
            if log.size > 200 and not done:
                done.append(rotate(ledger))
            if log.size > 500 and len(done) == 1:
                done.append(retire(ledger))
        assert [child.returncode for child in children] == [0, 0]
        assert [change.is_overlapping for change in done] == [True, False]
        log.publish()
        for size in log.published_sizes():
            signed = open_tree_head(log.served_note(size), log.key_history.at(size))
            assert signed.signed_by == log.key_history.at(size)
            assert len(signed.note.signatures) == len(signed.signed_by)
        assert log.size == 803  # and two entries about the keys
    sound(here)
