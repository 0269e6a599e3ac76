"""Serve a witness, and die by SIGKILL around its one write; a test starts this process.

Arguments: database, vkeys of the log separated by spaces, and where to die: `before` the
write, `after` it and before the reply, or `never`. Prints the port.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from rlhf_audit_trail.api.witness_app import create_witness_app
from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.witness import Witness


class Dying(Witness):
    where = "never"

    def _swap(self, *arguments):
        if self.where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = super()._swap(*arguments)
        if self.where == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def main(database, vkeys, where):
    cosigner = Cosigner.derive(b"\x05" * 32, "witness.example/w1")
    keys = [VerifierKey.parse(text) for text in vkeys.split()]
    with Dying(cosigner, keys, Path(database)) as witness, socket.socket() as listener:
        witness.where = where
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(create_witness_app(witness), log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
