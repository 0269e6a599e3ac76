"""The contract remembers: an old backup is refused by the commands, and the way out is printed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.guard import PeersUnreachable, State
from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack
from tests.chain_fixtures import FREE_PORT, fund
from tests.ledger.guarding import (
    RUN,
    WitnessProcess,
    back_up,
    configure,
    damage,
    put_back,
    write_policy,
)

TIMEOUT_S = 120
NOBODY = "http://127.0.0.1:9"  # the discard service's port: nothing listens there

pytestmark = pytest.mark.chain


def event(number: int) -> Event:
    fields = {"name": "note", "severity": "warning", "step": number, "detail": "d"}
    return Event("alert.raised", fields)


class Desk:
    """A ledger beside a chain, and the commands run on it as processes of their own."""

    def __init__(self, folder: Path, chain: Anvil, key: bytes) -> None:
        self.directory, self.folder, self.key = folder / "ledger", folder, key
        self.chain = ["[chain]", f'rpc_url = "{chain.url}"', "chain_id = 31337"]
        organisation = f"{folder.name.replace('_', '-')}.example"
        Ledger.create(self.directory, organisation=organisation).close()
        self.configure()

    def configure(self, *more: str) -> None:
        configure(self.directory, *more, *self.chain)

    def record(self, count: int) -> None:
        with Ledger.open(self.directory) as ledger:
            log = ledger.open_run(RUN)
            log.record_many(event(number) for number in range(count))

    def publish(self) -> int:
        with Ledger.open(self.directory) as ledger:
            ledger.registry.publish()
            return ledger.find(RUN).publish().head.size

    def anchor(self) -> None:
        with Ledger.open(self.directory) as ledger, _publisher(ledger, self.key) as publisher:
            for log in (ledger.find(RUN), ledger.registry):
                publisher.anchor(log)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli", *words,
             "--ledger", str(self.directory)],
            cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"RLHF_AUDIT_PUBLISHER_KEY": self.key.hex()},
        )  # fmt: skip


def _publisher(ledger: Ledger, key: bytes) -> Publisher:
    return Publisher(ledger, KeySigner(key))


@pytest.fixture
def desk(tmp_path: Path, anvil: Anvil, rpc: RpcClient) -> Desk:
    """A ledger whose publisher anchors nothing else on the chain that all tests share."""
    key = hashlib.sha256(f"{tmp_path} {os.getpid()}".encode()).digest()
    fund(rpc, KeySigner(key).address)
    return Desk(tmp_path, anvil, key)


@pytest.fixture
def rolled_back(desk: Desk) -> Desk:
    """30 entries where 40 were anchored; the newest database is kept beside."""
    desk.record(30)
    desk.anchor()
    back_up(desk.directory, desk.folder / "old.db")
    desk.record(10)
    desk.anchor()
    back_up(desk.directory, desk.folder / "newest.db")
    put_back(desk.folder / "old.db", desk.directory)
    return desk


def sizes(directory: Path) -> dict[str, tuple[int, list[int]]]:
    with Ledger.open(directory) as ledger:
        logs = [ledger.registry, *map(ledger.find, ledger.runs())]
        return {log.run_id: (log.size, log.published_sizes()) for log in logs}


def test_an_old_backup_is_refused_and_the_way_out_is_printed(rolled_back: Desk) -> None:
    before = sizes(rolled_back.directory)
    done = rolled_back.run("anchor", RUN)
    assert done.returncode == 1
    assert "holds a tree of 40 that was anchored: an old copy is in place" in done.stderr
    assert "next: append nothing; bring back what is missing" in done.stderr
    assert "rlhf-audit import SOURCE" in done.stderr
    with Ledger.open(rolled_back.directory) as ledger, pytest.raises(RolledBack):
        ledger.open_run(RUN)
    assert sizes(rolled_back.directory) == before
    # all that only reads goes on, and says what is wrong
    shown = rolled_back.run("status")
    assert (shown.returncode, "READ-ONLY" in shown.stdout) == (1, True)
    assert "rlhf-audit import SOURCE" in shown.stdout
    logs = {x["run"]: x for x in json.loads(rolled_back.run("status", "--json").stdout)["logs"]}
    assert (logs[RUN]["alarm"]["kind"], logs[RUN]["size"]) == ("RolledBack", 30)
    for words in (("prove", RUN, "3"), ("export", RUN, "public"), ("fsck",)):
        assert rolled_back.run(*words).returncode == 0, words
    put_back(rolled_back.folder / "newest.db", rolled_back.directory)
    assert rolled_back.run("status").returncode == 0
    assert rolled_back.run("anchor").returncode == 0


def test_the_way_out_leads_out(desk: Desk) -> None:
    desk.record(30)
    desk.anchor()
    back_up(desk.directory, desk.folder / "old.db")
    desk.record(10)
    desk.anchor()
    exported = str(desk.folder / "exported")
    assert desk.run("export", "--all", exported).returncode == 0
    put_back(desk.folder / "old.db", desk.directory)
    assert desk.run("anchor").returncode == 1
    done = desk.run("import", exported)
    assert done.returncode == 0, done.stderr
    assert desk.run("status").returncode == 0
    desk.record(1)
    done = desk.run("anchor")
    assert done.returncode == 0, done.stderr
    assert sizes(desk.directory)[RUN] == (41, [30, 40, 41])
    assert list((desk.directory / "alarms").iterdir()) == []
    assert desk.run("fsck").returncode == 0


@pytest.fixture
def behind(desk: Desk) -> Desk:
    """An old backup of 30 entries; 40 were anchored, 45 signed and exported after that."""
    desk.record(30)
    desk.anchor()
    back_up(desk.directory, desk.folder / "old.db")
    desk.record(5)
    assert desk.publish() == 35
    assert desk.run("export", "--all", "shorter").returncode == 0
    desk.record(5)
    desk.anchor()
    desk.record(5)
    assert desk.publish() == 45
    assert desk.run("export", "--all", "longer").returncode == 0
    put_back(desk.folder / "old.db", desk.directory)
    return desk


def test_an_anchored_head_that_no_copy_has_is_passed_by_the_newer_one(behind: Desk) -> None:
    """The copy has the tree head of 45 entries only; that of 40 stands nowhere but on chain."""
    assert behind.run("anchor", RUN).returncode == 1
    done = behind.run("import", "longer")
    assert done.returncode == 0, done.stderr
    assert sizes(behind.directory)[RUN] == (45, [30, 45])
    assert behind.run("status").returncode == 0
    behind.record(3)
    done = behind.run("anchor")
    assert done.returncode == 0, done.stderr
    with Ledger.open(behind.directory) as ledger:
        log = ledger.find(RUN)
        assert log.anchored_sizes() == [30, 48]
        assert {x.state for x in log.compare().answers} == {State.AGREES}
    assert behind.run("fsck").returncode == 0


def test_a_copy_that_ends_before_the_anchored_head_is_not_enough(behind: Desk) -> None:
    done = behind.run("import", "shorter")
    assert done.returncode == 0, done.stderr
    assert sizes(behind.directory)[RUN] == (35, [30, 35])
    done = behind.run("anchor", RUN)
    assert done.returncode == 1
    assert "holds a tree of 40 that was anchored" in done.stderr
    assert "rlhf-audit import SOURCE" in done.stderr
    assert behind.run("import", "longer").returncode == 0
    assert behind.run("anchor").returncode == 0
    assert behind.run("fsck").returncode == 0


def test_tree_heads_lost_while_the_entries_are_there_are_no_rollback(desk: Desk) -> None:
    """The contract is ahead of every stored head, and not of the entries: it is one history."""
    desk.record(30)
    desk.anchor()
    desk.record(10)
    desk.anchor()
    damage(
        desk.directory,
        "DELETE FROM tree_head WHERE log_number = 2 AND tree_size = 40",
        "DELETE FROM anchor WHERE log_number = 2 AND tree_size = 40",
    )
    assert desk.run("status").returncode == 0
    desk.record(2)
    done = desk.run("anchor")
    assert done.returncode == 0, done.stderr
    with Ledger.open(desk.directory) as ledger:
        assert ledger.find(RUN).anchored_sizes() == [30, 42]
    assert desk.run("fsck").returncode == 0


def test_a_store_cut_off_with_all_that_could_tell_is_refused(rolled_back: Desk) -> None:
    number = 2
    damage(
        rolled_back.directory,
        f"DELETE FROM entry WHERE log_number = {number} AND leaf_index >= 20",  # noqa: S608
        f"DELETE FROM tree_head WHERE log_number = {number}",  # noqa: S608
        "DELETE FROM anchor",
        f"UPDATE log SET size = 20 WHERE number = {number}",  # noqa: S608
    )
    assert rolled_back.run("anchor", RUN).returncode == 1
    with Ledger.open(rolled_back.directory) as ledger, pytest.raises(RolledBack, match="40"):
        ledger.find(RUN).publish()


def test_a_store_that_does_not_know_its_publisher_is_told_by_the_publishers_key(
    rolled_back: Desk,
) -> None:
    """The backup is from before the first anchor, and the settings do not name the publisher."""
    damage(
        rolled_back.directory,
        "DELETE FROM anchor",
        "DELETE FROM tree_head",
        "DELETE FROM entry WHERE kind = 'chain.registered'",
        "UPDATE log SET size = 2 WHERE number = 1",
    )
    assert {name: x for name, (x, _) in sizes(rolled_back.directory).items()} == {
        "registry": 2, RUN: 30,
    }  # fmt: skip
    done = rolled_back.run("anchor", RUN)
    assert (done.returncode, "holds a tree of 40" in done.stderr) == (1, True)
    assert sizes(rolled_back.directory)["registry"] == (2, [])


def test_a_fork_signed_with_our_own_keys_is_refused(rolled_back: Desk) -> None:
    configure(rolled_back.directory)  # whoever rewrites asks nobody
    with Ledger.open(rolled_back.directory) as ledger:
        log = ledger.open_run(RUN)
        log.record_many(event(1000 + number) for number in range(20))
        log.publish()
    rolled_back.configure()
    with Ledger.open(rolled_back.directory) as ledger, pytest.raises(Forked, match="another tree"):
        ledger.open_run(RUN)
    done = rolled_back.run("anchor", RUN)
    assert done.returncode == 1
    assert "keep this copy as evidence" in done.stderr


def test_while_the_chain_is_away_entries_are_taken_and_nothing_is_signed(tmp_path: Path) -> None:
    with Anvil(FREE_PORT) as chain:
        desk = Desk(tmp_path, chain, chain.accounts[0].key)
        desk.record(3)
        assert desk.run("anchor", "--deploy").returncode == 0
    with Ledger.open(desk.directory) as ledger:
        log = ledger.open_run(RUN)
        assert log.record(event(3)).result() == 3
        with pytest.raises(PeersUnreachable, match="contract 0x"):
            log.publish()
    shown = desk.run("status")
    assert (shown.returncode, "no answer    contract" in shown.stdout) == (0, True)
    desk.configure("[guard]", 'when_unreachable = "publish"')
    with Ledger.open(desk.directory) as ledger:
        assert ledger.find(RUN).publish().head.size == 4


def test_anchoring_waits_for_the_quorum_and_says_who_is_missing(desk: Desk) -> None:
    with Ledger.open(desk.directory) as ledger:
        witness = WitnessProcess(ledger, desk.folder / "witness.db")
    try:
        write_policy(desk.directory, witness.url, NOBODY)
        desk.configure("[witnesses]", 'policy = "witness-policy.txt"')
        desk.record(5)
        done = desk.run("anchor")
        assert done.returncode == 0, done.stderr
        assert "w1  http://127.0.0.1" in done.stdout
        assert "too few" not in done.stdout
        with Ledger.open(desk.directory) as ledger:
            (run, registry) = (ledger.find(RUN), ledger.registry)
            assert run.anchored_sizes() == [5]
            found = {x.peer.split()[0]: x.state for x in run.compare().answers}
            assert found["contract"] is State.AGREES
            assert len(registry.served_note()) > len(str(registry.published().note))
        desk.record(1)
        witness.kill()
        done = desk.run("anchor", RUN, "--json")
        assert done.returncode == 3, done.stderr
        (item,) = json.loads(done.stdout)["anchors"]
        assert (item["tree_size"], item["new"], item["quorum"]) == (6, True, False)
        assert [x["witness"] for x in item["missing"]] == ["w0", "w1"]
    finally:
        witness.kill()
