"""`rlhf-audit anvil`: a chain that is still there after SIGKILL."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 30

pytestmark = pytest.mark.chain


@contextmanager
def chain(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address it printed."""
    command = [sys.executable, "-u", "-m", "rlhf_audit_trail.cli", "anvil", "--port", "0"]
    command += ["--config", str(folder / "anvil.toml")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            match = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert match
            yield process, match[0]
        finally:
            process.kill()


def test_what_was_deployed_survives_a_kill(tmp_path: Path) -> None:
    settings = (PROJECT / "anvil.toml").read_text("utf-8")
    state = tmp_path / "state"
    (tmp_path / "anvil.toml").write_text(settings.replace('"build/anvil"', f'"{state}"'), "utf-8")
    with chain(tmp_path) as (process, url):
        with RpcClient(url) as rpc:
            for _ in range(DEADLINE_S * 10):
                if (state / "publisher.key").exists() and (state / "publisher.key").read_text():
                    break
                time.sleep(0.1)
            signer = KeySigner(bytes.fromhex((state / "publisher.key").read_text()))
            before = (
                (state / "chain-31337.json").stat().st_mtime_ns if any(state.glob("*.json")) else 0
            )
            address = deploy(rpc, signer, chain_id=31337)
        for _ in range(DEADLINE_S * 10):
            saved = state / "chain-31337.json"
            if saved.exists() and saved.stat().st_mtime_ns > before:
                break
            time.sleep(0.1)
        time.sleep(1.5)  # the save that follows the newest block
        process.send_signal(signal.SIGKILL)
        process.wait()
    with chain(tmp_path) as (process, url), RpcClient(url) as rpc:
        AnchorReader(rpc, chain_id=31337, contract=address).check()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
