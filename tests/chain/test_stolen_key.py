"""Somebody else has the publisher's key: what a ledger sees, and how it goes on.

What the contract lets the thief do is shown in `contracts/test/StolenKey.t.sol`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.abi import MAX_CONTRACT_SIZE
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import anchor
from rlhf_audit_trail.ledger.chain.errors import AnchorRefused, RolledBack
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger, Log
from rlhf_audit_trail.ledger.proof.merkle import node_hash
from rlhf_audit_trail.ledger.settings import SettingsError
from tests.chain_fixtures import fund

pytestmark = pytest.mark.chain

RUN = "run-42"


@pytest.fixture
def directory(anvil: Anvil, publisher: KeySigner, tmp_path: Path) -> Path:
    """A ledger whose run has 8 entries, anchored by the publisher."""
    place = tmp_path / "audit"
    with Ledger.create(place, organisation="acme.example") as ledger:
        ledger.open_run(RUN)
    with (place / "rlhf-audit.toml").open("a") as file:
        file.write(f'[chain]\nrpc_url = "{anvil.url}"\nchain_id = 31337\n')
    with Ledger.open(place) as ledger, Publisher(ledger, publisher) as anchoring:
        log = ledger.find(RUN)
        record(log, 8 - log.size)
        anchoring.anchor(log)
    return place


def record(log: Log, count: int) -> None:
    for number in range(count):
        event = Event(
            "annotation.recorded", {"source": "simulated", "batch": number}, {"reward": 1}
        )
        log.record(event)
    log.flush()


def block_for_ever(reader: AnchorReader, thief: KeySigner, log: Log) -> None:
    """Anchor a tree of 2^64 - 1 leaves that nobody has, which extends the log's own 8."""
    root = log.root_at(8)
    proof = tuple(hashlib.sha256(f"invented {level}".encode()).digest() for level in range(3, 64))
    for sibling in proof:  # the old tree is whole, so all that is new stands to its right
        root = node_hash(root, sibling)
    facts = {"log_id": log.log_id, "tree_size": MAX_CONTRACT_SIZE, "root": root}
    anchor(reader, thief, **facts, proof=proof)


def heads_of(reader: AnchorReader, publisher: KeySigner, log: Log) -> list[tuple[int, bytes]]:
    return [(x.tree_size, x.root) for x in reader.events(publisher.address, log.log_id)]


def test_the_ledger_notices_and_stops(
    reader: AnchorReader, publisher: KeySigner, directory: Path
) -> None:
    with Ledger.open(directory) as ledger:
        log = ledger.find(RUN)
        block_for_ever(reader, publisher, log)
        # what was anchored before stands where it stood
        assert heads_of(reader, publisher, log)[0] == (8, log.root_at(8))
    with Ledger.open(directory) as ledger, Publisher(ledger, publisher) as anchoring:
        log = ledger.find(RUN)
        with pytest.raises(RolledBack, match="18,446,744,073,709,551,615"):
            anchoring.anchor(log)
        with pytest.raises(AnchorRefused, match="StaleTreeSize"):  # nor can anyone get past it
            anchor(
                reader, publisher,
                log_id=log.log_id, tree_size=9, root=bytes(32), proof=(bytes(32),),
            )  # fmt: skip


def test_a_new_publisher_goes_on_and_the_registry_log_says_so(
    reader: AnchorReader, publisher: KeySigner, directory: Path
) -> None:
    with Ledger.open(directory) as ledger:
        block_for_ever(reader, publisher, ledger.find(RUN))
    fresh = KeySigner(hashlib.sha256(publisher.address.encode()).digest())
    fund(reader.rpc, fresh.address)
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}publisher = "{fresh.address}"\n')
    with Ledger.open(directory) as ledger, Publisher(ledger, fresh) as anchoring:
        log = ledger.find(RUN)
        record(log, 4)
        anchoring.anchor(log)
        anchoring.anchor(ledger.registry)
        assert log.alarm is None
        assert heads_of(reader, fresh, log) == [(12, log.root_at(12))]
        said = [entry.event for entry in ledger.registry.entries(kind="chain.registered")]
        assert [event["publisher"] for event in said] == [
            publisher.address.lower(), fresh.address.lower(),
        ]  # fmt: skip
        # the change itself is anchored: nobody can later say that it was never announced
        ((size, root),) = heads_of(reader, fresh, ledger.registry)
        assert root == ledger.registry.root_at(size)
        record(log, 1)
        anchoring.anchor(log)
        assert reader.head(fresh.address, log.log_id).tree_size == 13


def test_the_old_key_is_refused_once_the_settings_name_another(
    anvil: Anvil, publisher: KeySigner, directory: Path
) -> None:
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}publisher = "{anvil.accounts[1].address}"\n')
    with Ledger.open(directory) as ledger:
        shown = re.escape(publisher.address)
        with pytest.raises(SettingsError, match=f"key is that of {shown}, the settings name"):
            Publisher(ledger, publisher)


def test_until_the_settings_name_the_new_publisher_the_alarm_stands(
    reader: AnchorReader, publisher: KeySigner, directory: Path
) -> None:
    with Ledger.open(directory) as ledger:
        block_for_ever(reader, publisher, ledger.find(RUN))
    fresh = KeySigner(hashlib.sha256(publisher.address.encode()).digest())
    fund(reader.rpc, fresh.address)
    with Ledger.open(directory) as ledger, Publisher(ledger, fresh) as anchoring:
        log = ledger.find(RUN)
        with pytest.raises(RolledBack):
            anchoring.anchor(log)


def command(directory: Path, signer: KeySigner, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `rlhf-audit` beside the ledger's directory, as an operator with this key."""
    key = signer._account.key.hex()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rlhf_audit_trail.cli", *words],
        cwd=directory.parent, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"RLHF_AUDIT_PUBLISHER_KEY": key},
    )  # fmt: skip
    assert key not in done.stdout + done.stderr, "the publisher's key was printed"
    return done


def test_an_operator_finds_out_and_goes_on_by_commands_alone(
    anvil: Anvil, reader: AnchorReader, publisher: KeySigner, directory: Path
) -> None:
    """As OPERATING.md says, from the alarm to a reader who accepts the new publisher alone."""
    with Ledger.open(directory) as ledger:
        log_id, runs_log = ledger.find(RUN).log_id, ledger.find(RUN)
        block_for_ever(reader, publisher, runs_log)
    ledger_at = ("--ledger", directory.name)

    found = command(directory, publisher, "anchor", *ledger_at)
    assert found.returncode == 1, found.stderr
    assert "set chain.publisher in rlhf-audit.toml" in found.stderr
    evidence = directory / "alarms" / f"{RUN}.json"
    alarm = json.loads(evidence.read_text())
    assert alarm["publisher"] == publisher.address.lower()
    with Ledger.open(directory) as ledger, pytest.raises(RolledBack):
        record(ledger.find(RUN), 1)  # read-only, in every process

    fresh = KeySigner(hashlib.sha256(publisher.address.encode()).digest())
    fund(reader.rpc, fresh.address)
    assert command(directory, fresh, "anchor", *ledger_at).returncode == 1, "not by a key alone"
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}publisher = "{fresh.address}"\n')
    done = command(directory, fresh, "anchor", *ledger_at)
    assert done.returncode == 0, done.stderr
    assert not evidence.exists()
    kept = directory / "alarms" / "settled" / f"{RUN}-1.json"
    assert json.loads(kept.read_text()) == alarm, "it is kept, word for word"
    assert reader.head(fresh.address, log_id).tree_size == 8
    with Ledger.open(directory) as ledger:
        said = [entry.event for entry in ledger.registry.entries(kind="chain.registered")]
        assert said[-1]["publisher"] == fresh.address.lower()
    assert command(directory, fresh, "fsck", *ledger_at).returncode == 0

    anvil.mine(3)
    told = command(directory, fresh, "prove", RUN, "5", *ledger_at)
    assert told.returncode == 0, told.stderr
    block = re.search(r"--trusted-block-hash (\S+)", told.stdout)[1]
    place = ("--key", f"{directory.name}/keys/{RUN}.vkey", "--trusted-block-hash", block)
    place += ("--chain-id", "31337", "--publisher")
    verify = ("verify", f"{RUN}.bundle", *place)
    accepted = command(directory, fresh, *verify, fresh.address)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    refused = command(directory, fresh, *verify, publisher.address)
    assert refused.returncode in (1, 3), "the old publisher's trust policy refuses"


def test_an_alarm_by_another_way_stays_whoever_publishes(
    publisher: KeySigner, directory: Path
) -> None:
    """Naming a new publisher settles what the contract said of the old one, and nothing else."""
    with Ledger.open(directory) as ledger:
        log = ledger.find(RUN)
        note = str(log.published().note)
    alarm = {
        "schema": "rlhf-audit/alarm/v1", "origin": log.origin, "peer": "witness w1",
        "tree_size": 9, "root": "00" * 32, "note": note, "publisher": "",
    }  # fmt: skip
    (directory / "alarms").mkdir(exist_ok=True)
    (directory / "alarms" / f"{RUN}.json").write_text(json.dumps(alarm))
    fresh = KeySigner(hashlib.sha256(publisher.address.encode()).digest())
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}publisher = "{fresh.address}"\n')
    with Ledger.open(directory) as ledger, pytest.raises(RolledBack):
        record(ledger.find(RUN), 1)
    assert (directory / "alarms" / f"{RUN}.json").exists()
