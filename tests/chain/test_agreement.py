"""Several nodes asked as one: enough of them are believed, and a liar among them is named."""

from __future__ import annotations

import time

import pytest

from benchmarks._world import Proxy
from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Anchorer
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.errors import ChainUnreachable, EndpointsDisagree, RpcError
from rlhf_audit_trail.ledger.chain.node.agreement import AgreeingRpc, connect
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.settings import ChainSettings, SettingsError
from tests.chain_fixtures import FileJournal

pytestmark = pytest.mark.chain

ON, OFF = True, False


@pytest.fixture
def proxies(anvil):
    made = [Proxy(anvil.url) for _ in range(3)]
    yield made
    for proxy in made:
        proxy.close()


@pytest.fixture
def agreeing(proxies):
    clients = [RpcClient(proxy.url, timeout_s=0.5) for proxy in proxies]
    with AgreeingRpc(clients, needed=2) as rpc:
        yield rpc


@pytest.fixture
def anchorer(agreeing, reader, publisher, tmp_path):
    pinned = AnchorReader(agreeing, chain_id=31337, contract=reader.contract)
    return Anchorer(pinned, publisher, FileJournal(tmp_path / "journal"), receipt_timeout_s=2)


def test_honest_nodes_anchor_as_one(anchorer, reader, log):
    for count in (1, 5):
        done = anchorer.step([log.grow(count)])
        assert done.anchored[log.log_id].tree_size == log.size
    assert reader.head(anchorer.signer.address, log.log_id).sequence == 2
    assert anchorer.reader.rpc.dissenters == {}


LIES = {
    "eth_chainId": "0x5",
    "eth_getCode": "0x",
    "eth_call": "0x" + "77" * 160,
    "eth_getTransactionCount": "0xffff",
    "eth_blockNumber": "0xffffff",
    "eth_maxPriorityFeePerGas": hex(10**18),
    "eth_estimateGas": "0xffffff",
    "eth_getBalance": "0x0",
    "eth_sendRawTransaction": "0x" + "00" * 32,
}


@pytest.mark.parametrize("method", LIES)
@pytest.mark.parametrize("liar", [0, 2])
def test_one_liar_changes_nothing(anchorer, proxies, log, method, liar):
    proxies[liar].change = lambda name, result: LIES[name] if name == method else result
    done = anchorer.step([log.grow(2)])
    assert done.anchored[log.log_id].tree_size == 2
    assert not done.findings


@pytest.mark.parametrize("method", ["eth_chainId", "eth_getCode", "eth_call"])
def test_a_liar_is_named(anchorer, proxies, log, caplog, method):
    proxies[1].change = lambda name, result: LIES[name] if name == method else result
    anchorer.step([log.grow(2)])
    assert anchorer.reader.rpc.dissenters == {proxies[1].url: method}
    assert f"{proxies[1].url} contradicts the other nodes in {method}" in caplog.text


def test_a_receipt_that_one_node_invents_is_not_believed(anchorer, proxies, rpc, log):
    def invent(name, result):
        if name != "eth_getTransactionReceipt":
            return result
        return {"status": "0x1", "blockHash": "0x" + "11" * 32, "blockNumber": "0x1", "logs": []}

    proxies[0].change = invent
    rpc.call("evm_setAutomine", OFF)
    try:
        assert anchorer.step([log.grow(2)]).waiting is not None
    finally:
        rpc.call("evm_setAutomine", ON)
        rpc.call("anvil_mine", "0x1")
    assert anchorer.step([log]).anchored[log.log_id].tree_size == 2


@pytest.mark.parametrize("mode", ["down", "hung"])
def test_one_node_that_is_away_is_done_without(anchorer, proxies, log, mode):
    proxies[0].mode = mode
    began_s = time.monotonic()
    assert anchorer.step([log.grow(2)]).anchored[log.log_id].tree_size == 2
    assert time.monotonic() - began_s < 30, "a node that hangs is not waited for each time"


def test_too_few_are_no_answer(agreeing, proxies):
    proxies[0].mode = proxies[2].mode = "down"
    with pytest.raises(ChainUnreachable, match="1 of 3 nodes answer, 2 are needed") as caught:
        agreeing.call("eth_chainId")
    assert proxies[0].url in str(caught.value)
    assert proxies[1].url not in str(caught.value)


def test_three_opinions_are_none(agreeing, proxies):
    for number, proxy in enumerate(proxies):
        proxy.change = lambda _, __, number=number: hex(number + 1)
    with pytest.raises(EndpointsDisagree, match="fewer than 2 of 3 nodes say the same"):
        agreeing.call("eth_chainId")


def test_what_enough_refuse_is_refused(agreeing):
    with pytest.raises(RpcError):
        agreeing.call("eth_noSuchMethod")


def test_the_settings_decide_who_is_asked(proxies):
    urls = [proxy.url for proxy in proxies]
    with connect(ChainSettings(rpc_url=urls[0], chain_id=31337)) as alone:
        assert not isinstance(alone, AgreeingRpc)
    settings = ChainSettings(rpc_url=urls[0], more_rpc_urls=tuple(urls[1:]), chain_id=31337)
    with connect(settings) as rpc:
        assert rpc.call("eth_chainId") == hex(31337)
        assert rpc._needed == 2
    with pytest.raises(SettingsError, match="named twice"):
        connect(ChainSettings(rpc_url=urls[0], more_rpc_urls=(urls[0],)))
    with pytest.raises(SettingsError, match="there are 2 endpoints"):
        ChainSettings(rpc_url=urls[0], more_rpc_urls=(urls[1],), rpc_agreement=3)
