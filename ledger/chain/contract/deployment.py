"""The contract's place: derived offline, looked at on a chain, and filled where it is empty.

The address follows from the compiled code alone (CREATE2, EIP-1014), so it is the same on every
chain, known before anything is deployed, and anyone may deploy. Looking needs the standard
library only; signing needs the extra `chain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rlhf_audit_trail.ledger.chain.contract.compiled import (
    CREATE2_FACTORY,
    CREATE2_SALT,
    load_artifact,
)
from rlhf_audit_trail.ledger.chain.errors import (
    FactoryMissing,
    InsufficientFunds,
    TransactionFailed,
    WrongChain,
    WrongContractCode,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity
from rlhf_audit_trail.ledger.chain.signing.signer import Signer
from rlhf_audit_trail.ledger.chain.signing.transaction import (
    Fees,
    await_receipt,
    broadcast,
    chain_nonce,
    sign,
    suggest_fees,
)
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256

__all__ = [
    "FACTORY_FUNDS_WEI",
    "FACTORY_SIGNER",
    "FACTORY_TRANSACTION",
    "CodeState",
    "Deployment",
    "DeploymentPlan",
    "Derivation",
    "FoundCode",
    "carry_out",
    "deploy",
    "derive_address",
    "look_at_code",
    "plan_deployment",
]

FACTORY_TRANSACTION: Final = bytes.fromhex(
    "f8a58085174876e800830186a08080b853604580600e600039806000f350fe7f" + "ff" * 31 + "e0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
    "1ba0" + "22" * 32 + "a0" + "22" * 32
)
"""The factory's one deployment, valid on every chain: its signature was chosen, not made, so
nobody has the signer's key and nothing else can ever stand at that address (EIP-7997)."""

FACTORY_SIGNER: Final = "0x3fAB184622Dc19b6109349B94811493BF2a45362"
FACTORY_FUNDS_WEI: Final = 10**16
"""What that transaction may cost: 100,000 gas at 100 gwei."""


@dataclass(frozen=True)
class Derivation:
    """How the address follows from the committed artifact; no chain is asked.

    Attributes:
        factory: who creates the contract, the same account on nearly every chain.
        salt: 32 bytes.
        init_code_hash: Keccak-256 of the creation code, 32 bytes.
        address: last 20 bytes of keccak256(0xff || factory || salt || init_code_hash).
        runtime_code_hash: Keccak-256 of the code that then stands there, 32 bytes.
    """

    factory: str
    salt: bytes
    init_code_hash: bytes
    address: str
    runtime_code_hash: bytes


class CodeState(StrEnum):
    """What stands at the contract's address."""

    SAME = "same"
    MISSING = "missing"
    OTHER = "other"


@dataclass(frozen=True)
class FoundCode:
    """What a node shows at an address.

    Attributes:
        chain_id: of the chain the node serves.
        address: lower-case hex.
        state: compared with the artifact's runtime code, byte for byte.
        size_bytes: of the code found.
        code_hash: Keccak-256 of the code found, 32 bytes.
    """

    chain_id: int
    address: str
    state: CodeState
    size_bytes: int
    code_hash: bytes


@dataclass(frozen=True)
class DeploymentPlan:
    """What a deployment would do and cost; made without signing or sending anything.

    Attributes:
        chain_id: the chain.
        address: where the contract goes.
        balance_wei: of the account that would pay; None if no account was named.
        is_needed: False if it stands there already; nothing that follows is then set.
        gas: what it will use, by the node's estimate.
        gas_limit: what it may use, an eighth more.
        fees: caps per unit of gas.
        expected_wei: the cost at the present price.
        cost_wei_max: the cost if limit and cap are used up; the balance must cover it.
    """

    chain_id: int
    address: str
    balance_wei: int | None
    is_needed: bool
    gas: int = 0
    gas_limit: int = 0
    fees: Fees | None = None
    expected_wei: int = 0
    cost_wei_max: int = 0


@dataclass(frozen=True)
class Deployment:
    """What a deployment did; without a transaction it did nothing.

    Attributes:
        address: of the contract.
        tx_hash: 32 bytes; None if the contract stood there already.
        gas_used: by that transaction.
        cost_wei: what it cost.
        block_number: where it stands.
    """

    address: str
    tx_hash: bytes | None = None
    gas_used: int = 0
    cost_wei: int = 0
    block_number: int | None = None


def derive_address() -> Derivation:
    """Compute the contract's address from the artifact alone; EIP-1014."""
    artifact = load_artifact()
    factory, init_code_hash = bytes.fromhex(CREATE2_FACTORY[2:]), keccak256(artifact.creation)
    digest = keccak256(b"\xff" + factory + CREATE2_SALT + init_code_hash)
    return Derivation(
        factory=CREATE2_FACTORY,
        salt=CREATE2_SALT,
        init_code_hash=init_code_hash,
        address=f"0x{digest[12:].hex()}",
        runtime_code_hash=keccak256(artifact.runtime),
    )


def look_at_code(rpc: RpcClient, *, chain_id: int = 0, address: str = "") -> FoundCode:
    """Compare the code at the address, by default the derived one, with the artifact's.

    Raises:
        WrongChain: the node serves another chain than `chain_id`, unless that is 0.
        ChainUnreachable: no usable answer.
    """
    found_id = _require_chain(rpc, chain_id)
    address = (address or derive_address().address).lower()
    code = parse_data(rpc.call("eth_getCode", address, "latest"))
    if code == load_artifact().runtime:
        state = CodeState.SAME
    else:
        state = CodeState.OTHER if code else CodeState.MISSING
    return FoundCode(found_id, address, state, len(code), keccak256(code))


def plan_deployment(rpc: RpcClient, payer: str | None, *, chain_id: int) -> DeploymentPlan:
    """Say what deploying would cost; `payer` is the account that would pay, if it is known.

    Raises:
        WrongChain: the node serves another chain.
        WrongContractCode: something else stands at the address.
        FactoryMissing: the chain lacks the factory.
    """
    found = look_at_code(rpc, chain_id=chain_id)
    if found.state is CodeState.OTHER:  # only on a chain whose rules differ from Ethereum's
        raise WrongContractCode(
            f"the code at {found.address} on chain {chain_id} is not TreeHeadAnchor",
            next_step="do not anchor on this chain",
        )
    balance = None if payer is None else _balance(rpc, payer)
    if found.state is CodeState.SAME:
        return DeploymentPlan(chain_id, found.address, balance, is_needed=False)
    _require_factory(rpc, chain_id)
    call = {"to": CREATE2_FACTORY, "data": f"0x{_call_of_factory().hex()}"}
    gas = parse_quantity(rpc.call("eth_estimateGas", call))
    limit, fees = gas + gas // 8, suggest_fees(rpc)
    return DeploymentPlan(
        chain_id=chain_id,
        address=found.address,
        balance_wei=balance,
        is_needed=True,
        gas=gas,
        gas_limit=limit,
        fees=fees,
        expected_wei=gas * parse_quantity(rpc.call("eth_gasPrice")),
        cost_wei_max=limit * fees.max_fee_wei,
    )


def carry_out(rpc: RpcClient, signer: Signer, plan: DeploymentPlan) -> Deployment:
    """Do what a plan says, and wait until it is mined; nothing if nothing is needed.

    Raises:
        InsufficientFunds: the signer cannot pay for it; nothing was sent.
        NotConfirmed: it was sent, and is not mined in time.
        TransactionFailed: it was mined, and the contract is not there.
    """
    if not plan.is_needed or plan.fees is None:
        return Deployment(plan.address)
    balance = _balance(rpc, signer.address)
    if balance < plan.cost_wei_max:
        raise InsufficientFunds(
            f"{signer.address} has {balance:,} wei on chain {plan.chain_id}, "
            f"and the deployment may cost {plan.cost_wei_max:,}",
            next_step="send ether to that account, or wait for a lower price",
        )
    signed = sign(
        signer,
        chain_id=plan.chain_id,
        nonce=chain_nonce(rpc, signer.address),
        fees=plan.fees,
        gas=plan.gas_limit,
        to=CREATE2_FACTORY,
        data=_call_of_factory(),
    )
    broadcast(rpc, signed.raw)
    receipt = await_receipt(rpc, signed.tx_hash)
    # the code decides, not the status: someone else may have been faster by a block
    if look_at_code(rpc, chain_id=plan.chain_id).state is not CodeState.SAME:
        raise TransactionFailed("the deployment of TreeHeadAnchor was mined and failed")
    gas_used = parse_quantity(receipt.get("gasUsed"))
    return Deployment(
        plan.address,
        tx_hash=signed.tx_hash,
        gas_used=gas_used,
        cost_wei=gas_used * parse_quantity(receipt.get("effectiveGasPrice")),
        block_number=parse_quantity(receipt.get("blockNumber")),
    )


def deploy(rpc: RpcClient, signer: Signer, *, chain_id: int) -> Deployment:
    """Put the contract at its address on this chain, unless it stands there.

    Raises:
        WrongChain, WrongContractCode, FactoryMissing: see `plan_deployment`; nothing is sent.
        InsufficientFunds, NotConfirmed, TransactionFailed: see `carry_out`.
    """
    return carry_out(rpc, signer, plan_deployment(rpc, signer.address, chain_id=chain_id))


def _require_chain(rpc: RpcClient, chain_id: int) -> int:
    """Return the node's chain id, which must be the one given unless that is 0."""
    found = parse_quantity(rpc.call("eth_chainId"))
    if chain_id not in (0, found):
        raise WrongChain(
            f"the node serves chain {found}, not the pinned chain {chain_id}",
            next_step="point the RPC address at a node of the pinned chain",
        )
    return found


def _balance(rpc: RpcClient, account: str) -> int:
    return parse_quantity(rpc.call("eth_getBalance", account, "latest"))


def _require_factory(rpc: RpcClient, chain_id: int) -> None:
    if parse_data(rpc.call("eth_getCode", CREATE2_FACTORY, "latest")):
        return
    raise FactoryMissing(
        f"chain {chain_id} has no deployment factory at {CREATE2_FACTORY}",
        next_step=f"send {FACTORY_FUNDS_WEI / 10**18:g} ether to {FACTORY_SIGNER}, then broadcast "
        "the factory's own transaction, which contracts/README.md shows",
    )


def _call_of_factory() -> bytes:
    """Its call data is the salt and then what to run; it has no functions."""
    return CREATE2_SALT + load_artifact().creation
