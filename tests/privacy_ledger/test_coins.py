"""Coins of a chain: one block, settled beforehand, and only when it is final."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.privacy_command import privacy
from rlhf_audit_trail.ledger.chain.node.rpc import parse_quantity
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.settings import ChainSettings
from rlhf_audit_trail.privacy.coins import COIN_DELAY_BLOCKS, choose_coin
from rlhf_audit_trail.privacy.errors import EarlyCoin, InvalidParameter, NoiseProtocolError
from rlhf_audit_trail.privacy.replay import replay_log
from tests.privacy_ledger.runs import NONCE, anchored, annotate, auditor


def test_the_coin_is_the_randomness_of_the_block_that_was_settled(ledger, directory, anvil, rpc):
    ledger.close()
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}\n[chain]\nrpc_url = "{anvil.url}"\n')
    block = parse_quantity(rpc.call("eth_blockNumber"))
    with auditor(directory, beacon="prevrandao") as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=2)
        size = anchored(audit.ledger, run.log, chain_id=31337, block=block)
        annotate(run, people=5)
        anchored(audit.ledger, run.log, chain_id=31337, block=block + 7)
        with pytest.raises(EarlyCoin, match="not final"):
            run.privacy.coin()
        rpc.call("anvil_mine", hex(COIN_DELAY_BLOCKS + 70))
        coin = run.privacy.coin()
        said = rpc.call("eth_getBlockByNumber", hex(block + COIN_DELAY_BLOCKS), False)  # noqa: FBT003
        assert coin.value.hex() == said["mixHash"][2:]
        assert (coin.tree_size, coin.block["number"]) == (size, block + COIN_DELAY_BLOCKS)
        assert run.privacy.release_mean().participants == 30  # the first anchor's, no others
        replay_log(run.log).check()
        (release,) = audit.get_privacy_report().releases
        assert (release["coin"], release["has_integrity"]) == ("prevrandao", False)


def test_without_a_chain_or_with_a_value_there_is_no_coin_of_a_block(ledger):
    log = ledger.open_run("a")
    chain = ChainSettings()

    def choose(source, value=None):
        return choose_coin(log, 0, source=source, value=value, chain=chain)

    with pytest.raises(EarlyCoin):
        choose("prevrandao")
    log.record_many([Event("metrics.logged", {"step": x}) for x in (0, 1)])[-1].result()
    anchored(ledger, log)
    with pytest.raises(NoiseProtocolError, match="no chain"):
        choose("prevrandao")
    with pytest.raises(InvalidParameter, match="read from the chain"):
        choose("prevrandao", NONCE)
    for value in (b"", bytes(31), "zz" * 32, 7):
        with pytest.raises(InvalidParameter):
            choose("auditor", value)
    with pytest.raises(InvalidParameter):
        choose("lottery", NONCE)
    assert choose("auditor", f"0x{NONCE.hex()}").value == NONCE
    assert len({choose("local").value for _ in range(3)}) == 3


def test_a_coin_of_another_anchor_or_of_no_block_is_refused(ledger, directory, anvil, rpc):
    """The operator waits for an anchor, or makes up a block, whose coin suits him."""
    ledger.close()
    settings = directory / "rlhf-audit.toml"
    settings.write_text(f'{settings.read_text()}\n[chain]\nrpc_url = "{anvil.url}"\n')
    block = parse_quantity(rpc.call("eth_blockNumber"))
    rpc.call("anvil_mine", hex(COIN_DELAY_BLOCKS + 80))
    with auditor(directory, beacon="prevrandao") as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=1)
        anchored(audit.ledger, run.log, chain_id=31337, block=block)
        run.privacy.coin()
    command = ["recompute", "a", "--ledger", str(directory)]
    assert CliRunner().invoke(privacy, [*command, "--chain"]).exit_code == 0
    with auditor(directory, beacon="prevrandao") as audit, audit.track_training("a") as run:
        annotate(run)
        run.log.record(Event("dp.skipped", {"round": 0, "slot": 0, "count": 1, "reason": ""}))
        root = {"round": 1, "slots": 1, "root": "00" * 32}
        index = run.log.record(Event("dp.noise_root", root)).result()
        anchored(audit.ledger, run.log, chain_id=31337, block=block + 1)
        annotate(run)
        size = anchored(audit.ledger, run.log, chain_id=31337, block=block + 7)
        newest = run.log.anchors()[-1]
        said = {"number": block + 7 + COIN_DELAY_BLOCKS, "hash": "11" * 32}
        anchor = {"chain_id": 31337, "contract": newest.contract, "block_number": block + 7}
        coin = {"round": 1, "noise_root": index, "tree_size": size, "source": "prevrandao"}
        coin |= {"value": "22" * 32, "anchor": {**anchor, "tx_hash": newest.tx_hash.hex()}}
        run.log.record(Event("dp.coin", {**coin, "block": said})).result()
    found = CliRunner().invoke(privacy, command)
    assert (found.exit_code, "later anchor than the first" in found.output) == (1, True)
    assert "not the randomness" not in found.output
    assert "not the randomness" in CliRunner().invoke(privacy, [*command, "--chain"]).output
