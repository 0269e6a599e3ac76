"""Anchoring by itself: when a policy wants it, beside training, through outages."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks._world import World
from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.chain.anchoring.following import Follower
from rlhf_audit_trail.ledger.chain.anchoring.policy import Growth, Timing, Wish
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable
from rlhf_audit_trail.ledger.chain.signing.signer import PUBLISHER_KEY_VARIABLE
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Forked
from rlhf_audit_trail.ledger.settings import AnchorSettings

pytestmark = pytest.mark.chain

DEADLINE_S = 60


def until(is_so, what):
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


@pytest.fixture
def world(tmp_path):
    with World(tmp_path, runs=1) as made:
        yield made


def record(log, count):
    log.record_many(
        Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": 0.5})
        for x in range(count)
    )
    log.flush()


def anchored_size(world, log):
    return world.reader().head(world.signer.address, log.log_id).tree_size


# --- when -------------------------------------------------------------------------------------


def wishes(settings, *growths):
    """What is wanted at each second, given size, anchored size and marks."""
    timing = Timing(settings)
    return [timing.wish(Growth(*growth), second) for second, growth in growths]


N, A, W = Wish.NOTHING, Wish.ALIGNED, Wish.NEWEST


def test_every_n_entries_waits_for_a_whole_tile():
    settings = AnchorSettings(every_entries=300, align_delay_s_max=60.0)
    seen = wishes(settings, (0, (299, 0)), (1, (300, 0)), (2, (600, 256)), (3, (556, 256)))
    assert seen == [N, A, A, A]
    assert wishes(settings, (0, (600, 512)), (1, (812, 512))) == [N, A]


def test_no_longer_than_it_may():
    settings = AnchorSettings(every_entries=100, align_delay_s_max=60.0)
    assert wishes(settings, (0, (100, 0)), (59, (200, 0)), (60, (201, 0))) == [N, N, W]
    assert wishes(dataclasses.replace(settings, align_to=1), (0, (100, 0))) == [W]


def test_every_t_seconds_counts_from_the_oldest_entry_that_waits():
    settings = AnchorSettings(every_s=30.0, align_delay_s_max=0.0)
    growths = [(0, (0, 0)), (100, (5, 0)), (129, (9, 0)), (130, (9, 0)), (131, (9, 9))]
    assert wishes(settings, *growths) == [N, N, N, W, N]


def test_a_checkpoint_is_covered_by_the_anchor():
    settings = AnchorSettings(at_checkpoints=True, align_delay_s_max=60.0)
    growths = [(0, (500, 0)), (1, (500, 0, 300)), (2, (513, 0, 300)), (3, (600, 512, 300))]
    assert wishes(settings, *growths) == [N, N, A, N]


def test_the_end_of_a_run_does_not_wait():
    settings = AnchorSettings(at_run_end=True)
    assert wishes(settings, (0, (500, 0)), (1, (500, 0, 0, 500))) == [N, W]
    assert wishes(settings, (0, (500, 256)), (1, (500, 256, 0, 0, True))) == [N, W]
    assert wishes(AnchorSettings(), (0, (500, 0, 500, 500, True))) == [N], "nothing is set"


# --- sizes ------------------------------------------------------------------------------------


def test_an_aligned_head_is_signed_and_anchored(world):
    (log,) = world.logs
    record(log, 400)
    step = world.publisher.anchor_wishes({log: Wish.ALIGNED}, align_to=256)
    assert step.anchored[log.log_id].tree_size == 256
    assert log.published().head.size == 256
    assert world.publisher.anchor_wishes({log: Wish.ALIGNED}, align_to=256).anchored == {}
    log.publish()  # a larger head was signed: no smaller one is signed after it
    assert log.publish_durable(256) is None
    assert log.published().head.size == log.size
    world.publisher.anchor_wishes({log: Wish.NEWEST}, align_to=256)
    assert anchored_size(world, log) == log.size


# --- beside training --------------------------------------------------------------------------


def test_training_is_anchored_by_itself_through_an_outage(world, monkeypatch):
    monkeypatch.setenv(PUBLISHER_KEY_VARIABLE, world.anvil.accounts[0].key.hex())
    world.ledger.anchoring = AnchorSettings(
        every_entries=10, at_run_end=True, align_delay_s_max=0.0, ether_per_day_max=0.0
    )
    auditor = AuditableRLHF("policy", ledger=world.ledger, source="simulated")
    with auditor.track_training("beside") as run:
        record(run.log, 10)
        until(lambda: anchored_size(world, run.log) >= 10, "nothing was anchored")
        world.proxies[0].mode = "down"
        before = time.monotonic()
        record(run.log, 300)
        took_s = time.monotonic() - before
        world.proxies[0].mode = "pass"
        assert took_s < DEADLINE_S
        until(lambda: anchored_size(world, run.log) >= 310, "the outage was not survived")
    assert anchored_size(world, run.log) == run.log.size, "the end of the run is anchored"
    world.check(from_block=0)


def test_without_a_key_training_goes_on_and_the_log_says_why(world, monkeypatch, caplog):
    monkeypatch.delenv(PUBLISHER_KEY_VARIABLE, raising=False)
    world.ledger.anchoring = AnchorSettings(at_run_end=True)
    with AuditableRLHF("policy", ledger=world.ledger, source="simulated").track_training("r"):
        pass
    assert f"{PUBLISHER_KEY_VARIABLE} is not set" in caplog.text
    assert world.ledger.find("r").published().head.size == world.ledger.find("r").size


def test_a_failure_makes_the_pauses_grow(world):
    world.ledger.anchoring = AnchorSettings(every_entries=1, align_to=1)
    follower = Follower(world.ledger, lambda: world.signer)
    world.proxies[0].mode = "down"
    world.grow()
    pauses = [follower._round() for _ in range(12)]
    assert all(isinstance(found.failure, ChainUnreachable) for found in pauses)
    assert pauses[0].pause_s <= 2
    assert 100 < pauses[-1].pause_s <= 300
    world.proxies[0].mode = "pass"
    assert follower._round().step.anchored
    follower._let_go()


def test_a_fork_stops_its_log_alone(world):
    """The chain holds another tree of one run: an alarm, on file, and the other run goes on."""
    other = world.ledger.open_run("other")
    record(other, 3)
    (log,) = world.logs
    forged = b"\x01" * 32
    real = type(log).root_at

    def root_at(self, tree_size):
        return forged if self is log and tree_size == log_size else real(self, tree_size)

    log_size = anchored_size(world, log)
    record(log, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(log), "root_at", root_at)
        done = world.publisher.anchor_all([log, other])
    assert isinstance(done.findings[log.log_id], Forked)
    assert other.log_id in done.anchored
    with pytest.raises(Forked):
        log.require_writable()
    evidence = json.loads((world.ledger.directory / "alarms" / f"{log.run_id}.json").read_text())
    assert evidence["tree_size"] == log_size
    assert anchored_size(world, log) == log_size, "nothing was overwritten"


# --- as a service -----------------------------------------------------------------------------


def test_the_service_follows_and_ends_in_order(world):
    with (world.ledger.directory / "rlhf-audit.toml").open("a") as file:
        file.write(f'[chain]\nrpc_url = "{world.anvil.url}"\nchain_id = 31337\n')
        file.write("[anchor]\nevery_entries = 5\nalign_to = 1\nether_per_day_max = 0.0\n")
    (log,) = world.logs
    command = [sys.executable, "-m", "rlhf_audit_trail.cli", "anchor", "--follow", "--json"]
    service = subprocess.Popen(
        [*command, "--ledger", str(world.ledger.directory)],
        env=os.environ | {PUBLISHER_KEY_VARIABLE: world.anvil.accounts[0].key.hex()},
        stdout=subprocess.PIPE,
    )
    try:
        record(log, 20)
        until(lambda: anchored_size(world, log) == log.size, "the service anchored nothing")
        service.send_signal(signal.SIGTERM)
        shown, _ = service.communicate(timeout=DEADLINE_S)
    finally:
        service.kill()
        service.wait()
    assert service.returncode == 0
    assert log.origin in shown.decode()
