"""What can go wrong between a ledger and a chain, each as a function that makes it happen.

A fault gets a sound world and a source of randomness. It may assert what the anchorer says
meanwhile; that all comes right afterwards is for the caller to check.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from unittest import mock

from benchmarks._world import CHAIN_ID, World
from rlhf_audit_trail.ledger.chain.anchoring import offers
from rlhf_audit_trail.ledger.chain.errors import (
    ChainUnreachable,
    InsufficientFunds,
    NoContractCode,
    WrongChain,
)
from rlhf_audit_trail.ledger.chain.signing.transaction import (
    Fees,
    broadcast,
    chain_nonce,
    sign,
    suggest_fees,
)

__all__ = ["FAULTS", "LIES", "RARE", "Fault"]

Fault = Callable[[World, random.Random], None]
ON, OFF = True, False
GWEI = 10**9


# --- the node -----------------------------------------------------------------------------


def node_down(world: World, _rng: random.Random) -> None:
    world.proxies[0].mode = "down"
    world.grow()
    world.fails(ChainUnreachable)


def node_hung(world: World, _rng: random.Random) -> None:
    os.kill(world.anvil.pid, signal.SIGSTOP)
    try:
        world.grow(1, world.logs[0])  # each log waits for an answer
        world.fails(ChainUnreachable)
    finally:
        os.kill(world.anvil.pid, signal.SIGCONT)


def node_killed(world: World, rng: random.Random) -> None:
    """Gone with all it did not save: the chain comes back shorter."""
    if rng.random() < 0.5:
        world.anvil.save_state()
    world.grow()
    world.step()
    os.kill(world.anvil.pid, signal.SIGKILL)
    world.fails(ChainUnreachable)
    world.restart_node()


def reply_lost(world: World, _rng: random.Random) -> None:
    """The transaction arrives; nobody hears so."""
    world.proxies[0].lost = {"eth_sendRawTransaction"}
    world.grow()
    world.fails(ChainUnreachable)


def receipt_late(world: World, _rng: random.Random) -> None:
    """The node shows the new nonce, and not yet the receipt."""

    def hide(method: str, result: object) -> object:
        return None if method == "eth_getTransactionReceipt" else result

    world.proxies[0].change = hide
    world.grow()
    world.step()


def wrong_chain(world: World, _rng: random.Random) -> None:
    world.proxies[0].change = lambda method, x: hex(5) if method == "eth_chainId" else x
    world.grow()
    nonce = chain_nonce(world.rpc, world.signer.address)
    world.fails(WrongChain)
    assert chain_nonce(world.rpc, world.signer.address) == nonce, "something was sent"


# --- transactions -------------------------------------------------------------------------


def dropped(world: World, _rng: random.Random) -> None:
    world.rpc.call("evm_setAutomine", OFF)
    world.allow(replace_after_s=60.0)
    world.grow()
    world.step()
    world.rpc.call("anvil_dropAllTransactions")


def stuck(world: World, rng: random.Random) -> None:
    """Offers go unmined, and are replaced by higher ones with newer heads."""
    world.rpc.call("evm_setAutomine", OFF)
    for _ in range(rng.randint(1, 4)):
        world.grow()
        assert world.step().waiting is not None


def fee_spike(world: World, rng: random.Random) -> None:
    """The base fee jumps above the offer, and the node forgets what offers less."""
    world.rpc.call("evm_setAutomine", OFF)
    world.grow()
    world.step()
    world.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(rng.randint(5, 40) * GWEI))
    world.rpc.call("anvil_mine", "0x1")
    world.step()


def above_cap(world: World, _rng: random.Random) -> None:
    """Fees stay above what may be paid: nothing goes through, until they fall."""
    world.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(50 * GWEI))
    world.rpc.call("anvil_mine", "0x1")
    world.allow(fee_gwei_max=10.0)
    world.grow()
    for _ in range(2):
        assert world.step().held_back is not None
    world.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    world.rpc.call("anvil_mine", "0x1")


def day_spent(world: World, _rng: random.Random) -> None:
    world.allow(ether_per_day_max=1e-9)
    world.grow()
    assert world.step().held_back is not None


def no_funds(world: World, rng: random.Random) -> None:
    world.grow()
    if rng.random() < 0.5:  # one is in flight already, and must be sent again
        world.rpc.call("evm_setAutomine", OFF)
        world.step()
        world.rpc.call("anvil_dropAllTransactions")
        world.grow()
    world.rpc.call("anvil_setBalance", world.signer.address, "0x0")
    world.fails(InsufficientFunds)


def nonce_used(world: World, rng: random.Random) -> None:
    """The key is used elsewhere: the nonce of what is in flight is taken."""
    world.rpc.call("evm_setAutomine", OFF)
    world.grow()
    if rng.random() < 0.5:
        world.step()
        world.rpc.call("anvil_dropAllTransactions")
    _send_elsewhere(world, ahead=0)
    world.rpc.call("anvil_mine", "0x1")


def nonce_gap(world: World, _rng: random.Random) -> None:
    """The key is used elsewhere, with a nonce that is not due: it waits in the pool."""
    _send_elsewhere(world, ahead=3)
    world.grow()
    world.step()


def _send_elsewhere(world: World, *, ahead: int) -> None:
    fees = suggest_fees(world.rpc)
    signed = sign(
        world.signer,
        chain_id=CHAIN_ID,
        nonce=chain_nonce(world.rpc, world.signer.address) + ahead,
        fees=Fees(2 * fees.max_fee_wei, 2 * fees.tip_wei),
        gas=21_000,
        to=world.signer.address,
        data=b"",
    )
    broadcast(world.rpc, signed.raw)


# --- the chain ----------------------------------------------------------------------------


def reorganised(world: World, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        world.grow()
        world.step()
    world.rpc.call("anvil_reorg", rng.randint(1, 3), [])


def rolled_back(world: World, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        world.grow()
        world.step()
    world.rpc.call("anvil_rollback", rng.randint(1, 3))


def reverted(world: World, rng: random.Random) -> None:
    """The chain returns to a state before several anchors."""
    snapshot = world.rpc.call("evm_snapshot")
    for _ in range(rng.randint(1, 3)):
        world.grow()
        world.step()
    assert world.rpc.call("evm_revert", snapshot)


def reset(world: World, _rng: random.Random) -> None:
    """A chain that starts anew: there is no contract, and nothing may be sent."""
    world.rpc.call("anvil_reset")
    world.grow()
    world.fails(NoContractCode)


def contract_gone(world: World, _rng: random.Random) -> None:
    code = world.rpc.call("eth_getCode", world.contract, "latest")
    world.rpc.call("anvil_setCode", world.contract, "0x")
    world.grow()
    world.fails(NoContractCode)
    world.rpc.call("anvil_setCode", world.contract, code)


# --- this side ----------------------------------------------------------------------------


def clock_skewed(world: World, rng: random.Random) -> None:
    """This machine's clock is wrong by up to a year, or the chain's runs ahead."""
    if rng.random() < 0.5:
        world.rpc.call("evm_increaseTime", rng.randint(1, 10_000))
    now_s = time.time() + rng.randint(-31_536_000, 31_536_000)
    world.grow()
    with mock.patch("time.time", return_value=now_s):
        world.step()


def restarted(world: World, _rng: random.Random) -> None:
    world.rpc.call("evm_setAutomine", OFF)
    world.grow()
    world.step()
    world.restart()


def killed_before_broadcast(world: World, _rng: random.Random) -> None:
    _killed(world, before=True)


def killed_after_broadcast(world: World, _rng: random.Random) -> None:
    _killed(world, before=False)


def _killed(world: World, *, before: bool) -> None:
    """A process of its own is killed beside its own broadcast, by SIGKILL."""
    world.grow()
    child = os.fork()
    if child == 0:
        try:
            _anchor_and_die(world, before=before)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child should have been killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _anchor_and_die(world: World, *, before: bool) -> None:
    real = offers.broadcast

    def die(*arguments: object) -> None:
        if not before:
            real(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(offers, "broadcast", die):
        world.publisher = world.new_publisher()
        world.step()


def two_processes(world: World, _rng: random.Random) -> None:
    """Another process anchors with the same key at the same time; both must come through."""
    world.grow()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            world.publisher = world.new_publisher()
            world.step()
            code = 0
        except BaseException as error:  # noqa: BLE001 - the parent sees the code
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    try:
        world.step()
    finally:
        _, status = os.waitpid(child, 0)
    assert status == 0, "the other process failed"


# --- endpoints ----------------------------------------------------------------------------


def lying_endpoint(world: World, rng: random.Random) -> None:
    """One of three nodes lies about heads, receipts or nonces, and is outvoted."""
    liar = rng.choice(world.proxies)
    answers: dict[str, object] = {
        "eth_call": "0x" + rng.randbytes(32).hex() + (f"{rng.getrandbits(40):064x}" * 4),
        "eth_getTransactionReceipt": None,
        "eth_getTransactionCount": hex(rng.getrandbits(20)),
        "eth_blockNumber": hex(rng.getrandbits(30)),
        "eth_chainId": "0x5",
        "eth_getCode": "0x",
        "eth_estimateGas": hex(rng.getrandbits(30)),
        "eth_sendRawTransaction": "0x" + "00" * 32,
    }
    told = rng.sample(sorted(answers), rng.randint(1, len(answers)))
    liar.change = lambda method, x: answers[method] if method in told else x
    world.grow()
    world.settle()


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        node_down, node_hung, node_killed, reply_lost, receipt_late, wrong_chain,
        dropped, stuck, fee_spike, above_cap, day_spent, no_funds, nonce_used, nonce_gap,
        reorganised, rolled_back, reverted, reset, contract_gone,
        clock_skewed, restarted, killed_before_broadcast, killed_after_broadcast, two_processes,
    )
}  # fmt: skip
"""All faults of a world with one endpoint."""

LIES: dict[str, Fault] = {lying_endpoint.__name__: lying_endpoint}
"""Those of a world with three."""

RARE: dict[str, float] = {"node_killed": 0.1, "node_hung": 0.2, "reset": 0.2}
"""How often, compared with the others, the slow ones come in a soak."""
