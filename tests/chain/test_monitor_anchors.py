"""The monitor asks a real chain: what was anchored must be in the log, and not too long ago."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.anchor_watch import AnchorUnknown, AnchorWatch
from rlhf_audit_trail.ledger.chain.contract.anchors import ContractAnchors
from rlhf_audit_trail.ledger.chain.contract.writer import anchor
from rlhf_audit_trail.ledger.chain.errors import NoContractCode, WrongChain
from rlhf_audit_trail.ledger.monitor import Contradiction, Monitor
from rlhf_audit_trail.ledger.proof.errors import Inconsistent
from rlhf_audit_trail.ledger.proof.merkle import consistency_proof, leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.tree_head import log_id
from rlhf_audit_trail.ledger.public_log import DirectoryLog, PublicLog
from tests.ledger.test_monitor import KEYS, ORIGIN, entries, write

pytestmark = pytest.mark.chain

LOG_ID = log_id(KEYS.verifier_keys[0])
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def public(tmp_path):
    return tmp_path / "public"


@pytest.fixture
def anchored(reader, publisher):
    """Anchor the first entries of a history; they must extend what was anchored before."""
    sizes = [0]

    def put(size, history="a"):
        leaves = [leaf_hash(entry) for entry in entries(size, history)]

        def node(level, index):
            return root_hash(leaves[index << level : (index + 1) << level])

        proof = consistency_proof(sizes[-1], size, node) if sizes[-1] else ()
        sizes.append(size)
        anchor(
            reader, publisher, log_id=LOG_ID, tree_size=size, root=root_hash(leaves), proof=proof
        )

    return put


@pytest.fixture
def source(anvil, reader, publisher):
    return ContractAnchors(anvil.url, 31337, reader.contract, publisher.address, LOG_ID)


def watch(directory, source, **options):
    log = PublicLog(DirectoryLog(directory))
    return Monitor(log, KEYS.verifier_keys, anchors=AnchorWatch(source, **options))


def contradiction(monitor):
    with pytest.raises(Contradiction) as caught:
        monitor.look()
    assert isinstance(caught.value.finding, Inconsistent)
    return json.loads(caught.value.evidence)


def test_a_log_that_holds_what_was_anchored_is_sound(public, anchored, source):
    write(public, entries(257))
    monitor = watch(public, source)
    assert monitor.look().anchored.size == 0
    for anchored_size, size in ((257, 257), (300, 600), (600, 600)):
        write(public, entries(size))
        anchored(anchored_size)
        seen = monitor.look()
        assert (seen.head.size, seen.anchored.size, seen.unmet) == (size, anchored_size, None)
    assert watch(public, source).look().anchored.root == seen.head.root


def test_fewer_entries_than_were_anchored(public, anchored, source, publisher, reader):
    anchored(600)
    write(public, entries(400))
    record = contradiction(watch(public, source))
    assert (record["expected"], record["actual"]) == ("at least 600", "400")
    assert record["tree_head"].startswith(f"{ORIGIN}\n400\n")
    shown = record["anchored"]
    assert (shown["chain_id"], shown["contract"]) == (31337, reader.contract)
    assert (shown["publisher"], shown["log_id"]) == (publisher.address, LOG_ID.hex())
    assert shown["root"] == root_hash([leaf_hash(x) for x in entries(600)]).hex()
    assert reader.head(publisher.address, LOG_ID).block_number == shown["block_number"]


@pytest.mark.parametrize("size", [400, 600])
def test_another_history_than_was_anchored(public, anchored, source, size):
    anchored(400, "b")
    write(public, entries(size, "a"))
    record = contradiction(watch(public, source))
    assert record["anchored"]["tree_size"] == 400
    assert record["expected"] == record["anchored"]["root"] != record["actual"]


def test_a_contradiction_is_found_after_earlier_sightings(public, anchored, source):
    write(public, entries(500))
    monitor = watch(public, source)
    assert monitor.look().unmet is None
    anchored(500, "b")
    first, again = contradiction(monitor), contradiction(monitor)
    assert first | {"found_at": ""} == again | {"found_at": ""}


def test_an_anchor_may_be_as_old_as_is_said_while_the_log_grows(public, anchored, source):
    write(public, entries(300))
    assert "not anchored" in watch(public, source, age_s_max=60).look().unmet.message
    anchored(300)
    at_s = source.newest().anchored_at_s
    late = {"age_s_max": 60.0, "now_s": lambda: at_s + 61.0}
    assert watch(public, source, **late).look().unmet is None, "it did not grow"
    write(public, entries(301))
    assert watch(public, source, **late | {"now_s": lambda: at_s + 60.0}).look().unmet is None
    unmet = watch(public, source, **late).look().unmet
    assert "too old" in unmet.message
    assert unmet.actual == "61 s, and 1 entries since"
    assert watch(public, source).look().unmet is None


def test_a_silent_node_does_not_hide_a_contradiction(public, source):
    silent = replace(source, rpc_url=NOWHERE)
    with pytest.raises(AnchorUnknown):
        silent.newest()
    write(public, entries(300))
    seen = watch(public, silent).look()
    assert (seen.head.size, seen.anchored) == (300, None)
    assert "cannot reach" in seen.unmet.message
    write(public, entries(300), root=bytes(32))
    contradiction(watch(public, silent))


def test_another_chain_or_contract_is_no_answer_at_all(public, source):
    write(public, entries(3))
    with pytest.raises(WrongChain):
        watch(public, replace(source, chain_id=1)).look()
    with pytest.raises(NoContractCode):
        watch(public, replace(source, contract=f"0x{'12' * 20}")).look()


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def command(public, anvil, publisher, tmp_path):
    keys = tmp_path / "vkey"
    keys.write_text("".join(f"{key}\n" for key in KEYS.verifier_keys), "utf-8")
    words = ["monitor", str(public), "--once", "--json", "--key", str(keys)]
    words += ["--evidence", str(tmp_path / "evidence.json"), "--state", str(tmp_path / "state")]
    asked = ["--rpc", anvil.url, "--chain-id", "31337", "--publisher", publisher.address]

    def run(*more, chain=tuple(asked)):
        return CliRunner().invoke(main, [*words, *chain, *more])

    return run


def test_exit_codes(public, anchored, command, tmp_path):
    write(public, entries(300))
    result = command("--max-anchor-age", "3600")
    assert (result.exit_code, json.loads(result.stdout)["anchored_size"]) == (3, 0)
    anchored(200)
    result = command("--max-anchor-age", "3600")
    assert (result.exit_code, json.loads(result.stdout)["anchored_size"]) == (0, 200)
    anchored(400)
    assert not (tmp_path / "evidence.json").exists()
    assert command().exit_code == 1
    assert json.loads((tmp_path / "evidence.json").read_bytes())["anchored"]["tree_size"] == 400
    assert json.loads(command(chain=()).stdout)["anchored_size"] is None


def test_options_that_make_no_sense(public, command):
    write(public, entries(3))
    for chain in (
        ("--rpc", NOWHERE),
        ("--rpc", NOWHERE, "--chain-id", "1"),
        ("--chain-id", "1"),
        ("--max-anchor-age", "5"),
        ("--log-id", "ab"),
        ("--rpc", NOWHERE, "--chain-id", "1", "--publisher", "0x12"),
    ):
        code = command(chain=chain).exit_code
        assert code == (4 if chain[-1] == "0x12" else 2), chain


def test_a_silent_node_is_inconclusive(public, command, publisher):
    write(public, entries(3))
    chain = ("--rpc", NOWHERE, "--chain-id", "31337", "--publisher", publisher.address)
    result = command(chain=chain)
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (3, "not_shown")
