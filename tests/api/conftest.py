"""One ledger behind the service: heads at 1, 255, 256, 257 and 600, and an unsigned tail."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from rlhf_audit_trail.api import create_app
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow

HEADS = (1, 255, 256, 257, 600)
ANCHORED = ((255, "finalized"), (256, "safe"), (257, "mined"), (257, "mined"), (600, "pending"))
SECRETS = ("a sealed prompt", "a sealed response", "ada@lovelace.example", "0.918273645")


def annotation(number):
    prompt, response, person, reward = SECRETS
    sealed = {"prompt": prompt, "response": response, "annotator": person, "reward": float(reward)}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def anchor(log, size, state, number):
    block = {"block_number": 7, "block_hash": b"\xbb" * 32, "block_timestamp": 1_800_000_000}
    none = dict.fromkeys(block)
    row = {"log_number": log.number, "tree_size": size, "root": log.root_at(size), "chain_id": 1}
    row |= {"contract": "0x" + "c" * 40, "publisher": "0x" + "d" * 40, "nonce": number}
    row |= {"tx_hash": bytes([number]) * 32, "raw_tx": b"raw", "state": state, "reason": ""}
    return row | {"created_at": ""} | (none if state == "pending" else block)


@pytest.fixture(scope="session")
def ledger(tmp_path_factory):
    directory = tmp_path_factory.mktemp("service") / "ledger"
    with Ledger.create(directory, organisation="acme.example") as opened:
        log = opened.open_run("run42")
        for size in HEADS:
            log.record_many(annotation(number) for number in range(log.size, size))[-1].result()
            log.publish()
        log.record_many(annotation(number) for number in range(600, 605))[-1].result()
        opened.open_run("unsigned").record(annotation(0)).result()
        opened.registry.publish()
        rows = [anchor(log, size, state, n) for n, (size, state) in enumerate(ANCHORED)]
        with writing(opened.engine) as connection:
            connection.execute(AnchorRow.__table__.insert(), rows)
        yield opened


@pytest.fixture(scope="session")
def app(ledger):
    return create_app(ledger)


@pytest.fixture(scope="session")
def client(app):
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def keys(client):
    """The log's vkeys; here the test takes them from the service, an auditor would not."""
    return client.get("/rlhf/run42/vkey").text.split()
