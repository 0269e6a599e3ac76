"""Record evidence of the sample log from a real Anvil: `python tests/vectors/record_anvil.py`.

Run once; the result is kept in `inputs/`, since timestamps differ with each run. Two anchors of
other logs share the block of ours, and 40 further logs the contract's storage.
"""

from __future__ import annotations

import hashlib
import json

from sample_log import NOTES, SampleLog, read_notes

from rlhf_audit_trail.ledger.chain.contract.abi import encode_anchor
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.evidence.making import receipt_evidence, storage_evidence
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.proof.tree_head import log_id

RECORDED = NOTES.with_name("anvil_evidence.json")
CHAIN_ID = 31337
ON, OFF = True, False


def main() -> None:
    log = SampleLog(notes=read_notes())
    name, head = log_id(log.ed25519), log.head(8)
    others = [hashlib.sha256(b"other log %d" % n).digest() for n in range(40)]
    settings = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings(snapshot=False))
    with Anvil(settings) as chain, RpcClient(chain.url) as rpc:
        contract = deploy(rpc, KeySigner(chain.accounts[0].key), chain_id=CHAIN_ID)
        account = chain.accounts[1].address
        reader = AnchorReader(rpc, chain_id=CHAIN_ID, contract=contract)
        rpc.call("evm_setAutomine", OFF)
        heads = [(x, 5, x) for x in others[:2]] + [(name, 8, head.root)]
        for other, size, root in (*heads, *((x, 5, x) for x in others[2:])):
            data = encode_anchor(other, size, root, ())
            call = {"from": account, "to": contract, "gas": hex(200_000), "data": f"0x{data.hex()}"}
            rpc.call("eth_sendTransaction", call)
        rpc.call("evm_mine")
        rpc.call("evm_setAutomine", ON)
        rpc.call("anvil_mine", "0x3")
        storage, state = storage_evidence(reader, account, name)
        (event,) = reader.events(account, name)
        receipt, mined = receipt_evidence(reader, event)
    blocks = [
        {"chain_id": CHAIN_ID, "number": x.block.number, "hash": x.block.hash.hex()}
        for x in (state, mined)
    ]
    trust = {
        "chain_id": CHAIN_ID,
        "contract": contract[2:].lower(),
        "publisher": account[2:].lower(),
        "log_id": name.hex(),
        "code_hash": load_artifact().code_hash.hex(),
        "address_binds_code": True,
        "blocks": blocks,
    }
    record = {"storage": bytes(storage).hex(), "receipt": bytes(receipt).hex(), "chain": trust}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
