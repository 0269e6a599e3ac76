"""Train, record and anchor until killed: `train_forever.py LEDGER`.

Each line of output is a receipt that was durable when it was printed: index and digest.
The publisher's key comes on standard input.
"""

from __future__ import annotations

import hashlib
import itertools
import sys

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.digest import tensor_record

key = bytes.fromhex(sys.stdin.readline())
with Ledger.open(sys.argv[1]) as ledger, Publisher(ledger, KeySigner(key)) as publisher:
    publisher.deploy()
    auditor = AuditableRLHF("model", ledger=ledger, source="simulated", watch_optimizers=False)
    with auditor.track_training(experiment_name="endless") as run:
        log = ledger.find("endless")
        for step in itertools.count():
            receipts = run.log_annotations(
                prompts=[f"p{step}-{i}" for i in range(8)],
                responses=["r"] * 8,
                annotator_ids=[f"person-{i}" for i in range(8)],
                rewards=[step / 7] * 8,
            )
            for receipt in receipts:
                index = receipt.result()
                digest = hashlib.sha256(log.read(index).data).hexdigest()
                sys.stdout.write(f"{index} {digest}\n")
                sys.stdout.flush()
            if step % 5 == 0:
                weights = tensor_record("w", "F64", (1,), step.to_bytes(8, "little"))
                run.checkpoint(epoch=step, model=[weights])
                publisher.anchor(log)
