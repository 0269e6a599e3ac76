"""Read the largest and worst inputs that each format allows; the kernel ends us if it costs too much.

Started by a test, which sets the limit of processor time; the one of memory is set here, once
everything is imported.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import replace
from pathlib import Path

import hostile

from rlhf_audit_trail.ledger.cose import verify_inclusion_receipt
from rlhf_audit_trail.ledger.monitor import Monitor
from rlhf_audit_trail.ledger.proof.bundle import MAX_BUNDLE_BYTES
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.evm.evidence import (
    MAX_CHAIN_BYTES,
    ChainEvidence,
    verify_evidence,
)
from rlhf_audit_trail.ledger.proof.note import MAX_NOTE_BYTES
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.public_log import PublicLog
from rlhf_audit_trail.ledger.tlog_policy import MAX_POLICY_BYTES, check_policy, parse_policy
from rlhf_audit_trail.ledger.tlog_proof import MAX_PROOF_BYTES, verify_tlog_proof
from rlhf_audit_trail.ledger.witness_request import MAX_REQUEST_BYTES, parse_reply, parse_request

MEMORY_BYTES_MAX = 2**29  # beside what is taken when everything is imported
KEYS = hostile.KEYS.verifier_keys
ENTRY_TILE_BYTES_MAX = 256 * (2 + 65_535)


def fill(piece, bytes_max, begin=b"", end=b""):
    """As many whole pieces as the limit allows."""
    room = bytes_max - len(begin) - len(end)
    return begin + piece * (room // len(piece)) + end


def notes():
    head = hostile.head(9).text.encode() + b"\n"
    lines = hostile.SAMPLES["cosignatures"][0].split(b"\n")[:-1]
    for piece in (b"\n", b"a\n", b"a", "—".encode(), "— a AAAAAAA=\n".encode(), b"\n\n"):
        yield fill(piece, MAX_NOTE_BYTES)
        yield fill(piece, MAX_NOTE_BYTES, head)
    for line in lines:  # a hundred valid ones by the same key, each to be verified
        yield fill(line + b"\n", min(MAX_NOTE_BYTES, len(head) + 100 * (len(line) + 1)), head)
    yield fill(b"0", MAX_NOTE_BYTES, b"acme.example/rlhf/run42\n", b"\n\n")


def bundles():
    sample = hostile.SAMPLES["bundle"][0].rstrip()
    for piece in (b"[", b"]", b"{", b'"', b'\\"', b" ", b"0", b"-", b'{"":'):
        yield fill(piece, MAX_BUNDLE_BYTES)
    for piece in (b"[],", b"{},", b"0,", b"1.5,", b'"ab",', b'{"a":0},', b"99999999999999,"):
        yield fill(piece, MAX_BUNDLE_BYTES, b'{"schema":"rlhf-audit/bundle/v1","entries":[', b"0]}")
    yield sample.replace(b"0.5", b"0" * (MAX_BUNDLE_BYTES - len(sample)))
    at = sample.index(b'"anchored":[') + len(b'"anchored":[')
    end = sample.rindex(b"]")
    yield fill(
        sample[at:end] + b",",
        min(MAX_BUNDLE_BYTES, 1000 * (end - at + 1)),
        sample[:at],
        sample[at:],
    )
    at = sample.index(b'{"index":5')
    end = sample.index(b'],"anchored"')
    yield fill(sample[at:end] + b",", 9_000 * (end - at + 1), sample[:at], sample[at:])


def evidence():
    """As large and as deep as may be: lists in lists, a branch in a branch, one huge value."""
    yield fill(b"\xc1", MAX_CHAIN_BYTES)
    yield fill(b"\xc0", MAX_CHAIN_BYTES, b"\xfa\x01\xff\xfc")
    yield fill(b"\x80", MAX_CHAIN_BYTES, b"\xfa\x01\xff\xfc")
    yield fill(b"\xf9\xff\xff", MAX_CHAIN_BYTES)
    where = ChainEvidence.parse(hostile.CHAIN_EVIDENCE[0])
    branch = [b""] * 17
    for _ in range(60):
        branch = [*[bytes(32)] * 15, branch, b""]
    value = [b"\x20" + bytes(32), bytes(130_000)]
    for trie in (branch, value, [b"\x11", branch]):
        yield bytes(replace(where, storage=trie))
        yield bytes(replace(where, account=trie, storage=b""))


def policies():
    yield fill(b"a ", MAX_POLICY_BYTES, b"group g all ", b"\n")
    yield fill(b"#\n", MAX_POLICY_BYTES)
    yield fill(b" \t", MAX_POLICY_BYTES, b"", b"\n")
    yield fill(b"\xff", MAX_POLICY_BYTES, b"", b"\n")
    witness = hostile.SAMPLES["policy"][0].split(b"\n")[2]
    groups = [b"group g1 any w0", *(b"group g%d 1 g%d" % (n, n - 1) for n in range(2, 45_000))]
    yield b"\n".join([witness, *groups, b"quorum g44999\n"])


def proofs():
    head = b"c2sp.org/tlog-proof@v1\n"
    yield fill(b"A" * 43 + b"=\n", MAX_PROOF_BYTES, head + b"index 5\n")
    yield fill(b"AAAA", MAX_PROOF_BYTES, head + b"extra ", b"\nindex 5\n\n")
    yield fill(b"\n", MAX_PROOF_BYTES, head)
    yield from (head + b"index 5\n\n" + note for note in notes())


def requests():
    for piece in (b"A" * 43 + b"=\n", b"\n", b"old 0\n", "— a AAAAAAA=\n".encode()):
        yield fill(piece, MAX_REQUEST_BYTES, b"old 0\n")
        yield fill(piece, MAX_REQUEST_BYTES)


def receipts():
    for piece in (b"\x80", b"\xa0", b"\x9a\x00\x00\xff\xff", b"\x81", b"\x40", b"\xf6", b"\xc1"):
        for begin in (b"", b"\x99\xff\x00", b"\xb9\x7f\x00"):
            yield fill(piece, 65_536, begin)


def served():
    """Files of a log that serves as much as may be asked for."""

    class Served:
        def read(self, path, bytes_max):
            if path == "checkpoint":
                return hostile.SAMPLES["note"][0]
            return bytes(bytes_max) if self.piece is None else fill(self.piece, bytes_max)

    for piece in (None, b"\xff\xff", b"\0\1a", b"\xff\xff" + b"x" * 65_535):
        source = Served()
        source.piece = piece
        yield source


def readers():
    def judged(data):
        return check_policy(hostile.POLICY, data.decode("utf-8", "replace"), pinned=KEYS)

    yield notes, judged
    yield proofs, lambda x: verify_tlog_proof(x, hostile.ENTRIES[5], hostile.POLICY, pinned=KEYS)
    yield bundles, lambda x: examine_bundle(x, TrustPolicy(keys=KEYS))
    yield (
        evidence,
        lambda x: verify_evidence(ChainEvidence.parse(x), hostile.CHAIN_TRUST),
    )
    yield policies, lambda x: parse_policy(x).is_met_by(())
    yield requests, parse_request
    yield requests, parse_reply
    yield receipts, lambda x: verify_inclusion_receipt(x, b"entry", KEYS[0])
    yield served, lambda x: Monitor(PublicLog(x), KEYS).look()


def main():
    sys.setrecursionlimit(100_000)  # a program that embeds us may have done so
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES_MAX,) * 2)
    count = 0
    for inputs, read in readers():
        for data in inputs():
            count += 1
            with contextlib.suppress(AuditTrailError):
                read(data)
    print(f"{count} inputs, all refused or read")


if __name__ == "__main__":
    main()
