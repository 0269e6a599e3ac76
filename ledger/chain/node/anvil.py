"""The local development chain: the real Anvil, started, watched, and kept across restarts."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rlhf_audit_trail.ledger.chain.errors import AnvilFailed, ChainError, PortTaken, WrongChain
from rlhf_audit_trail.ledger.chain.node.anvil_settings import AnvilConfig, find_anvil
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient, parse_data, parse_quantity

__all__ = ["Anvil", "DevAccount"]

START_TIMEOUT_S: Final = 30.0  # Anvil is ready in well under a second; loading a state takes longer
STOP_TIMEOUT_S: Final = 10.0
STATE_TIMEOUT_S: Final = 120.0  # a dump grows with the chain
_WITH_HISTORY: Final = True
_WITHOUT_BODIES: Final = False

# Runs in place of Anvil for a moment: asks the kernel to end this process when its parent does,
# checks that the parent has not gone already, and becomes Anvil under the same process id. A
# `preexec_fn` could do so too, but Python runs that in a forked copy of a threaded process.
_BECOME_ANVIL: Final = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class DevAccount:
    """A funded account of a development chain; its key is public knowledge, yet never printed."""

    address: str
    key: bytes = field(repr=False)


class Anvil:
    """A running Anvil. Use it as a context manager, or call `start` and `stop`.

    With `snapshot` on, `save_state` writes the chain to `state_dir`, and the next start goes on
    from there. Call it after each anchor: Anvil's own saving is lost on SIGKILL, and its periodic
    saving can leave half a file.

    Attributes:
        url: where it listens, such as `http://127.0.0.1:8545`.
        accounts: its funded accounts.
    """

    def __init__(self, config: AnvilConfig | None = None, *, state_dir: Path | None = None) -> None:
        """Prepare; nothing runs yet.

        Args:
            config: settings; the defaults if left out.
            state_dir: folder of the snapshots; `config.state.path` if left out.
        """
        self.config = config or AnvilConfig()
        self.url = ""
        self.accounts: tuple[DevAccount, ...] = ()
        self._store = _Snapshots(
            state_dir or Path(self.config.state.path),
            chain_id=self.config.anvil.chain_id,
            keep=self.config.state.keep,
        )
        self._process: subprocess.Popen[str] | None = None
        self._output: deque[str] = deque(maxlen=400)  # written by the keeper thread only
        self._listening = threading.Event()  # set by the keeper: listening, or ended
        self._keeper: threading.Thread | None = None
        self._start_error: OSError | None = None

    @property
    def pid(self) -> int:
        """Process id of Anvil itself; 0 if it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> Self:
        """Start Anvil and return once it answers with the chain id that was asked for.

        Raises:
            AnvilNotFound: there is no binary.
            AnvilVersion: the binary is of another version.
            PortTaken: another process listens on the port.
            AnvilFailed: it ended, or was not ready in time.
        """
        if self._process is not None:
            raise AnvilFailed("this Anvil was started already", next_step="stop it first")
        command = [str(find_anvil(self.config.binary)), *self.config.anvil.arguments()]
        if self.config.state.snapshot and (snapshot := self._store.newest()):
            command += ["--load-state", str(snapshot)]
        self._output.clear()
        self._listening.clear()
        self._keeper = threading.Thread(
            target=self._keep, args=(command,), name="anvil-keeper", daemon=True
        )
        self._keeper.start()
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def save_state(self) -> None:
        """Write the whole chain to the snapshot folder, whole or not at all.

        Does nothing with `snapshot` off.

        Raises:
            ChainUnreachable: Anvil does not answer.
        """
        if not self.config.state.snapshot:
            return
        with RpcClient(self.url, timeout_s=STATE_TIMEOUT_S) as rpc:
            dump = parse_data(rpc.call("anvil_dumpState", _WITH_HISTORY))
        self._store.write(gzip.decompress(dump))

    def mine(self, count: int = 1) -> None:
        """Add empty blocks, as time would on a real chain; a block is final after two more."""
        with RpcClient(self.url) as rpc:
            rpc.call("anvil_mine", hex(count))

    def stop(self) -> None:
        """End Anvil and wait for it; harmless if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._keeper is not None:
            self._keeper.join(STOP_TIMEOUT_S)
            self._keeper = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _keep(self, command: list[str]) -> None:
        """Start Anvil and read its output until it ends; body of the keeper thread.

        The kernel's parent-death signal fires when the *thread* that started the process ends,
        so the thread that starts it is the one that stays.
        """
        wrapper = [sys.executable, "-I", "-S", "-c", _BECOME_ANVIL, str(os.getpid()), *command]
        try:
            process = subprocess.Popen(
                wrapper,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C goes to us alone, and we stop it in order
            )
        except OSError as error:
            self._start_error = error
            self._listening.set()
            return
        self._process = process
        with process:  # closes the pipe, and waits for the end
            for line in process.stdout or ():
                self._output.append(line.rstrip())
                if line.startswith("Listening on"):
                    self._listening.set()
        self._listening.set()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        self._listening.wait(START_TIMEOUT_S)
        output = list(self._output)
        where = next((line for line in output if line.startswith("Listening on")), None)
        if where is None:
            raise self._failure(output)
        host, _, port = where.removeprefix("Listening on ").rpartition(":")
        self.url = f"http://{host}:{port}"
        self.accounts = _read_accounts(output)
        with RpcClient(self.url, timeout_s=max(1.0, deadline - time.monotonic())) as rpc:
            self._check_chain(rpc)
            self._set_clock(rpc)

    def _check_chain(self, rpc: RpcClient) -> None:
        found = parse_quantity(rpc.call("eth_chainId"))
        if found != self.config.anvil.chain_id:
            raise WrongChain(f"Anvil has chain id {found}, not {self.config.anvil.chain_id}")

    def _set_clock(self, rpc: RpcClient) -> None:
        """Let blocks carry the real time: genesis has a fixed one, and Anvil counts on from it."""
        latest = rpc.call("eth_getBlockByNumber", "latest", _WITHOUT_BODIES)
        # a snapshot may come from a clock ahead of ours, and time must not run backwards
        now = max(int(time.time()), parse_quantity(latest["timestamp"]))
        rpc.call("evm_setTime", hex(now))

    def _failure(self, output: list[str]) -> ChainError:
        text = "\n".join(output)
        if "address already in use" in text.lower():
            return PortTaken(
                f"port {self.config.anvil.port} on {self.config.anvil.host} is taken",
                next_step="stop the other process, or set anvil.port to 0 for any free port",
            )
        if self._start_error is not None:
            return AnvilFailed(f"cannot start Anvil: {self._start_error.strerror}")
        reason = next((line for line in reversed(output) if line.strip()), "no word from it")
        return AnvilFailed(
            f"Anvil did not become ready: {reason}",
            next_step="run it by hand with the settings of anvil.toml to see more",
        )


def _read_accounts(output: list[str]) -> tuple[DevAccount, ...]:
    """Read the funded accounts from Anvil's banner: addresses, then keys, in the same order."""
    text = "\n".join(output)
    addresses = re.findall(r"^\(\d+\) (0x[0-9a-fA-F]{40}) ", text, re.MULTILINE)
    keys = re.findall(r"^\(\d+\) 0x([0-9a-f]{64})$", text, re.MULTILINE)
    if len(addresses) != len(keys):
        raise AnvilFailed("Anvil's list of accounts is not as expected")
    return tuple(
        DevAccount(address, bytes.fromhex(key))
        for address, key in zip(addresses, keys, strict=True)
    )


class _Snapshots:
    """Whole states of one chain in a folder; the newest has no number, older ones count up.

    A state does not hold its chain id, so the file's name does.
    """

    def __init__(self, folder: Path, *, chain_id: int, keep: int) -> None:
        self._folder = folder
        self._stem = f"chain-{chain_id}.json"
        self._keep = keep

    def write(self, state: bytes) -> None:
        """Put a new newest: written aside, synced, and renamed, so that a crash leaves the old."""
        json.loads(state)  # what does not read back is not worth keeping
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f"{self._stem}.new"
        with aside.open("wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        for age in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                if age == 1:  # the newest stays in place until the rename below
                    _link_over(self._path(0), self._path(1))
                else:
                    self._path(age - 1).replace(self._path(age))
        aside.replace(self._path(0))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def newest(self) -> Path | None:
        """Return the newest that reads as JSON, or None if there never was one.

        Raises:
            AnvilFailed: there are snapshots, and none can be read.
        """
        found = [path for age in range(self._keep) if (path := self._path(age)).exists()]
        for path in found:
            with contextlib.suppress(ValueError, OSError):
                json.loads(path.read_bytes())
                return path
        if found:
            raise AnvilFailed(
                f"no snapshot in {self._folder} can be read",
                next_step="move that folder away to begin a new chain",
            )
        return None

    def _path(self, age: int) -> Path:
        return self._folder / (f"{self._stem}.{age}" if age else self._stem)


def _link_over(source: Path, target: Path) -> None:
    """Give a file a second name, replacing whatever had it."""
    target.unlink(missing_ok=True)
    os.link(source, target)
