"""Ledgers that are guarded, and witnesses in processes of their own, for the tests of both."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.tlog_policy import PolicyWitness, TlogPolicy, format_policy

COSIGNER = Cosigner.derive(b"\x05" * 32, "witness.example/w1")  # as serve_witness.py has it
RUN = "run42"
TABLES = ("[witnesses]", "[guard]", "[chain]")
_SERVE = Path(__file__).parent / "serve_witness.py"


class WitnessProcess:
    """A real witness that follows the registry log and the run; it keeps what it saw."""

    def __init__(self, ledger: Ledger, database: Path) -> None:
        origins = [f"{ledger.settings.organisation}/rlhf/{name}" for name in ("registry", RUN)]
        keys = [key for x in origins for key in LogKeys.derive(ledger.secret, x).verifier_keys]
        self._database, self._keys = str(database), list(map(str, keys))
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(_SERVE), self._database, " ".join(self._keys), "never"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"

    def trust(self, ledger: Ledger) -> None:
        """Start again with the keys of all generations, as an operator tells his witnesses."""
        runs = [key.name.rpartition("/")[2] for key in map(VerifierKey.parse, self._keys[::2])]
        newest = ledger.registry.key_ring.ring.seen().generation
        self._keys = [
            str(key)
            for run in dict.fromkeys(runs)
            for generation in range(1, newest + 1)
            for key in ledger.key_ring.derive(generation, run).verifier_keys
        ]
        self.kill()
        self.start()

    def kill(self) -> None:
        """End it as a crash does; what it has stored is there again after `start`."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def configure(directory: Path, *lines: str) -> None:
    """Replace the tables about peers in a ledger's settings."""
    path = directory / SETTINGS_FILE
    kept = path.read_text("utf-8").split("\n" + TABLES[0])[0]
    for table in TABLES[1:]:
        kept = kept.split("\n" + table)[0]
    path.write_text("\n".join([kept.rstrip("\n"), *lines, ""]), "utf-8")


def write_policy(directory: Path, *urls: str, quorum: str = "w0") -> None:
    """Write a policy of one key for each address, all the same witness's but the first's."""
    others = [Cosigner.derive(bytes([n]) * 32, f"witness.example/x{n}") for n in range(len(urls))]
    cosigners = [COSIGNER, *others[1:]]
    witnesses = tuple(
        PolicyWitness(f"w{n}", cosigner.keys[0], url)
        for n, (cosigner, url) in enumerate(zip(cosigners, urls, strict=True))
    )
    policy = TlogPolicy((), witnesses, (), quorum)
    (directory / "witness-policy.txt").write_bytes(format_policy(policy))


def watched_by(directory: Path, *urls: str, guard: str = "timeout_s = 5.0") -> None:
    """Have the ledger ask these witnesses."""
    write_policy(directory, *urls)
    configure(directory, "[witnesses]", 'policy = "witness-policy.txt"', "", "[guard]", guard)


def grow(directory: Path, annotation: Callable[[int], Event], size: int) -> None:
    """Append and sign; where there are witnesses, wait until they have cosigned."""
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        log.record_many(annotation(number) for number in range(log.size, size))
        for item in (log, ledger.registry):
            signed = item.publish().head.size
            found = ledger.watch.await_quorum(item.run_id, signed, timeout_s=60)
            assert found is None or found.is_quorum


def back_up(directory: Path, target: Path) -> None:
    """Copy the ledger's database as `sqlite3 .backup` does."""
    with (
        closing(sqlite3.connect(directory / "ledger.db")) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def put_back(backup: Path, directory: Path) -> None:
    """Replace the database by an older copy, as somebody does who knows of nothing newer."""
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (directory / name).unlink(missing_ok=True)
    shutil.copy(backup, directory / "ledger.db")


def damage(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)
