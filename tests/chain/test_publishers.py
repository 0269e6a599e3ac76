"""A publisher key is one process's at a time; and what is left to do when it was stolen."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from rlhf_audit_trail.ledger.chain.anchoring.journal import SqlAnchorJournal
from rlhf_audit_trail.ledger.chain.anchoring.lease import PublisherLease
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.anchoring.records import Account, AnchorRecord, Intended, Member
from rlhf_audit_trail.ledger.chain.contract.writer import anchor
from rlhf_audit_trail.ledger.chain.errors import AnchorRefused, PublisherBusy
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.chain.signing.transaction import Fees
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack
from rlhf_audit_trail.ledger.settings import AnchorSettings, ChainSettings
from rlhf_audit_trail.ledger.store.models import PublisherLeaseRow
from tests.chain_fixtures import fund

pytestmark = pytest.mark.chain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger(tmp_path, anvil):
    organisation = f"{tmp_path.name.replace('_', '-')}.example"
    Ledger.create(tmp_path / "ledger", organisation=organisation).close()
    with Ledger.open(tmp_path / "ledger") as opened:
        opened.chain = ChainSettings(rpc_url=anvil.url, chain_id=31337)
        opened.anchoring = AnchorSettings(ether_per_day_max=0.0)
        yield opened


def grow(log, count):
    log.record_many(
        Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": 0.5})
        for x in range(count)
    )
    return log.publish().head


# --- one process at a time --------------------------------------------------------------------


def lease_of(ledger, **options):
    return PublisherLease(ledger.engine, chain_id=1, publisher="0xAB", **options)


def holders(ledger):
    with ledger.engine.connect() as connection:
        return list(connection.execute(select(PublisherLeaseRow.__table__.c.process)))


def test_two_cannot_hold_the_same_key(ledger):
    with lease_of(ledger).held():
        wanted = pytest.raises(PublisherBusy, match=f"process {os.getpid()} on ")
        with wanted, lease_of(ledger).held(wait_s=0.1):
            pass
        with PublisherLease(ledger.engine, chain_id=2, publisher="0xAB").held(wait_s=0):
            pass  # another chain has other nonces
    assert holders(ledger) == []
    with lease_of(ledger).held(wait_s=0):
        pass


CHILD = """
import sys, time
from pathlib import Path
from rlhf_audit_trail.ledger.chain.anchoring.lease import PublisherLease
from rlhf_audit_trail.ledger.log import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    with PublisherLease(ledger.engine, chain_id=1, publisher="0xab").held():
        print("held", flush=True)
        time.sleep(60)
"""


def test_who_was_killed_holds_nothing(ledger):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(ledger.directory)], stdout=subprocess.PIPE, cwd=ROOT
    )
    with child, child.stdout as lines:
        assert lines.readline() == b"held\n"
        wanted = pytest.raises(PublisherBusy, match=f"process {child.pid} ")
        with wanted, lease_of(ledger).held(wait_s=0.1):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    began_s = time.monotonic()
    with lease_of(ledger).held():
        assert time.monotonic() - began_s < 20, "nobody waits for the dead"


def test_a_number_used_again_is_another_process(ledger):
    with lease_of(ledger).held():
        with ledger.engine.begin() as connection:
            row = PublisherLeaseRow.__table__
            connection.execute(row.update().values(process=f"{os.getpid()} 1"))
        with lease_of(ledger).held(wait_s=0):
            pass


def test_who_is_silent_elsewhere_loses_it_and_can_commit_nothing(ledger):
    log = ledger.open_run("run")
    grow(log, 3)
    slow = lease_of(ledger)
    journal = SqlAnchorJournal(ledger.engine, [log], require=slow.require)
    member = Member(log.log_id, 3, log.root_at(3))
    record = AnchorRecord(1, "0x", "0xAB", 0, (member,), Fees(1, 1), b"raw", bytes(32))
    with slow.held():
        with ledger.engine.begin() as connection:
            row = PublisherLeaseRow.__table__
            connection.execute(row.update().values(host="another machine"))
        with lease_of(ledger, silence_s=0.2).held(wait_s=5), pytest.raises(PublisherBusy):
            journal.write([Intended(record)])
    assert journal.unsettled(Account(1, "0x", "0xAB")) == []


# --- stolen -----------------------------------------------------------------------------------


def test_a_stolen_key_blocks_and_a_new_publisher_goes_on(ledger, rpc, reader):
    """The thief extends what is anchored by entries that nobody has; he rewrites nothing."""
    stolen, new = (
        KeySigner(hashlib.sha256(f"{ledger.directory}{x}".encode()).digest()) for x in "ab"
    )
    for signer in (stolen, new):
        fund(rpc, signer.address)
    log = ledger.open_run("run")
    # one that grew by a whole tree: the thief invents its right half, and needs no entry for it
    before = grow(log, 4)
    with Publisher(ledger, stolen) as publisher:
        publisher.anchor(log)
        with pytest.raises(AnchorRefused, match="InconsistentTree"):
            anchor(
                reader, stolen, log_id=log.log_id, tree_size=8, root=bytes(32), proof=(bytes(32),)
            )
        invented = hashlib.sha256(b"\x01" + before.root + bytes(32)).digest()
        anchor(reader, stolen, log_id=log.log_id, tree_size=8, root=invented, proof=(bytes(32),))
        grow_to = 8
        log.record_many(
            Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": 0.5})
            for x in range(grow_to - log.size)
        )
        log.flush()
        for _ in range(2):  # noticed, kept as evidence, and nothing is sent
            with pytest.raises((Forked, RolledBack)):
                publisher.anchor(log)
    assert log.alarm is not None
    directory, chain = ledger.directory, ledger.chain
    ledger.close()
    # the operator takes the evidence away, and another key
    (directory / "alarms" / "run.json").unlink()
    with Ledger.open(directory) as opened:
        opened.chain, opened.anchoring = chain, AnchorSettings(ether_per_day_max=0.0)
        log = opened.find("run")
        with Publisher(opened, new) as publisher:
            done = publisher.anchor_all([log, opened.registry])
        assert not done.findings
        assert done.anchored[log.log_id].sequence == 1, "from the start, with the whole tree"
        told = [entry.event for entry in opened.registry.entries(kind="chain.registered")]
        assert [x["publisher"] for x in told] == [stolen.address.lower(), new.address.lower()]
        head = reader.head(new.address, log.log_id)
        assert (head.tree_size, head.root) == (log.size, log.root_at(log.size))
        # a reader whose trust policy names the new publisher finds it, the old one's lie aside
        assert reader.anchored(new.address, log.log_id, log.size) is not None
        assert reader.head(stolen.address, log.log_id).root == invented
