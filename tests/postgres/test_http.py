"""Two services over one database: whichever a writer reaches, and whichever dies, one history."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.bearer import TOKEN_VARIABLE
from rlhf_audit_trail.ledger.refusals import BadToken, ConflictingEntry, NotPermitted
from rlhf_audit_trail.ledger.remote import RemoteLog
from rlhf_audit_trail.ledger.tokens import WriterTokens
from tests.ledger.http_service import Network, serving

CHILD = Path(__file__).parents[1] / "ledger" / "append_remotely.py"


def receipts(output):
    lines = [line.split() for line in output.splitlines()]
    return {int(index): writer_id for writer_id, index in lines}


@pytest.mark.slow
def test_writers_append_through_two_services_and_one_dies(ledger, directory, sound):
    tokens = WriterTokens(ledger)
    names = [tokens.grant(f"gpu-{number}", "run42") for number in range(4)]
    with serving(directory) as first, serving(directory) as second:
        with closing(Network(first.port)) as one, closing(Network(second.port)) as two:
            one.lose(2, first.process.kill)
            children = [
                subprocess.Popen(
                    [sys.executable, CHILD, network.url, "run42", "300", str(group)],
                    stdout=subprocess.PIPE, text=True, env=os.environ | {TOKEN_VARIABLE: token},
                )
                for token, network, group in zip(names, (one, two, one, two), (1, 10, 30, 50),
                                                 strict=True)
            ]  # fmt: skip
            first.process.wait(60)
            one.port = second.port  # as a balancer does
            found = [receipts(child.communicate(timeout=240)[0]) for child in children]
        assert [child.returncode for child in children] == [0] * 4
        assert one.lost
    assert sorted(index for x in found for index in x) == list(range(1_200))
    log = ledger.find("run42")
    for entry in log.entries():
        assert any(x.get(entry.leaf_index) == entry.event["writer_id"] for x in found)
    assert log.publish().head.size == 1_200
    assert len(tokens.writers()) == 4
    assert sound(directory).entries == 1_200 + ledger.registry.size


@pytest.mark.slow
def test_one_service_knows_what_the_other_was_told(ledger, directory, annotation):
    tokens = WriterTokens(ledger)
    token, other = tokens.grant("gpu-1", "run42"), tokens.grant("gpu-2", "run42")
    with serving(directory) as first, serving(directory) as second:
        log = RemoteLog(first.url, "run42", token)
        assert log.record(annotation(0)).result(timeout_s=60) == 0
        again = RemoteLog(second.url, "run42", token)
        again.writer_id = log.writer_id
        with pytest.raises(ConflictingEntry):
            again.record(annotation(5)).result(timeout_s=60)
        thief = RemoteLog(second.url, "run42", other)
        thief.writer_id, thief._next_seq = log.writer_id, 1
        with pytest.raises(NotPermitted):
            thief.record(annotation(1)).result(timeout_s=60)
        tokens.revoke("gpu-1")
        with pytest.raises(BadToken):
            log.record(annotation(1)).result(timeout_s=60)
        for item in (log, again, thief):
            with pytest.raises(Exception, match=r"revoked|another"):
                item.close()
    assert ledger.find("run42").size == 1
