"""A ledger, a chain and the way between them, all real, and all of it breakable.

The way is a proxy on loopback that can refuse, hang, lie, or lose a reply. Faults are in
`benchmarks/_chain_faults.py`; tests inject each of them once, `benchmarks/faults.py` thousands.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf_audit_trail.ledger.chain.anchoring.anchorer import Step
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.compiled import load_artifact
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.contract.writer import deploy
from rlhf_audit_trail.ledger.chain.node.anvil import Anvil
from rlhf_audit_trail.ledger.chain.node.anvil_settings import (
    AnvilConfig,
    NodeSettings,
    StateSettings,
)
from rlhf_audit_trail.ledger.chain.node.rpc import RpcClient
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger, Log
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.settings import AnchorSettings, ChainSettings

__all__ = ["CHAIN_ID", "Proxy", "World"]

CHAIN_ID = 31337
TIMEOUT_S = 0.5
RECEIPT_TIMEOUT_S = 0.03  # a block takes a few milliseconds, if anything is mined
STEPS_MAX = 40  # until everything is anchored again; a few suffice
ETHER = 10**18

Change = Callable[[str, Any], Any]


class Proxy:
    """A node's other address, which may misbehave.

    Attributes:
        mode: `pass`, `down` (closes each connection) or `hung` (answers nothing).
        change: given a method and its result, returns what to answer instead.
        lost: methods whose requests arrive and whose replies do not.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.mode = "pass"
        self.change: Change = lambda _, result: result
        self.lost: set[str] = set()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def heal(self) -> None:
        self.mode, self.change, self.lost = "pass", lambda _, result: result, set()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: who asked has given up waiting, as some faults want it."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _node: http.client.HTTPConnection | None = None

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        proxy = self.proxy
        if proxy.mode == "hung":
            time.sleep(2 * TIMEOUT_S)
        if proxy.mode != "pass":
            self.close_connection = True
            return
        calls = json.loads(body)
        try:
            reply = json.loads(self._forward(body))
        except OSError:  # the node itself is away
            self.close_connection = True
            return
        pairs = zip(calls, reply, strict=True) if isinstance(calls, list) else [(calls, reply)]
        for call, answer in pairs:
            if call["method"] in proxy.lost:
                self.close_connection = True
                return
            if "result" in answer:
                answer["result"] = proxy.change(call["method"], answer["result"])
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _forward(self, body: bytes) -> bytes:
        where = self.proxy.target.removeprefix("http://")
        if self._node is None or f"{self._node.host}:{self._node.port}" != where:
            self._node = http.client.HTTPConnection(where, timeout=10)
        try:
            self._node.request("POST", "/", body, {"Content-Type": "application/json"})
            return self._node.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            self._node.close()
            self._node = None
            raise ConnectionError from error

    def finish(self) -> None:
        """Let go of both connections."""
        if self._node is not None:
            self._node.close()
        super().finish()


class World:
    """A ledger with a few runs beside a chain of its own; use it as a context manager."""

    def __init__(self, directory: Path, *, runs: int = 3, proxies: int = 1) -> None:
        self.directory = directory
        config = AnvilConfig(anvil=NodeSettings(port=0), state=StateSettings())
        self.anvil = Anvil(config, state_dir=directory / "chain")
        self.anvil.start()
        self.signer = KeySigner(self.anvil.accounts[0].key)
        self.compared = 0  # anchors seen on the chain and compared with their logs
        self.rpc = RpcClient(self.anvil.url)
        self.contract = deploy(self.rpc, self.signer, chain_id=CHAIN_ID)
        self.proxies = [Proxy(self.anvil.url) for _ in range(proxies)]
        ledger = directory / "ledger"
        Ledger.create(ledger, organisation="faults.example").close()
        with (ledger / SETTINGS_FILE).open("a") as file:  # heads are signed while nobody answers
            file.write(f'[guard]\nwhen_unreachable = "publish"\ntimeout_s = {TIMEOUT_S}\n')
        self.ledger = Ledger.open(ledger)
        self.ledger.chain = ChainSettings(
            rpc_url=self.proxies[0].url,
            more_rpc_urls=tuple(proxy.url for proxy in self.proxies[1:]),
            rpc_timeout_s=TIMEOUT_S,
            chain_id=CHAIN_ID,
        )
        self.publisher = self.new_publisher()
        self.allow()
        self.logs: list[Log] = [self.ledger.open_run(f"run-{n}") for n in range(runs)]
        self.grow(3)
        self.settle()

    # --- the ledger -------------------------------------------------------------------

    def grow(self, count: int = 1, *logs: Log) -> None:
        """Append to the logs, and sign them: what was signed must end up on the chain."""
        for log in logs or self.logs:
            log.record_many(
                Event("annotation.recorded", {"source": "simulated", "batch": x}, {"reward": 0.5})
                for x in range(count)
            )
            log.publish()

    def allow(self, **changes: Any) -> None:
        """Set what anchors may cost and when they are replaced."""
        allowed: dict[str, Any] = {"replace_after_s": RECEIPT_TIMEOUT_S, "ether_per_day_max": 0.0}
        settings = AnchorSettings(**(allowed | changes))
        if settings != self.ledger.anchoring:
            self.ledger.anchoring = settings
            self.restart()

    def new_publisher(self) -> Publisher:
        """One that knows only what is stored, as after a start."""
        return Publisher(
            self.ledger, self.signer, receipt_timeout_s=RECEIPT_TIMEOUT_S, witness_wait_s=0.0
        )

    def restart(self) -> None:
        self.publisher.close()
        self.publisher = self.new_publisher()

    def step(self) -> Step:
        return self.publisher.anchor_all([*self.logs, self.ledger.registry])

    def fails(self, *errors: type[AuditTrailError]) -> AuditTrailError:
        """Step, and return the error or finding that must come of it."""
        try:
            done = self.step()
        except errors as error:
            return error
        for finding in done.findings.values():
            if isinstance(finding, errors):
                return finding
        raise AssertionError(f"the step should have failed with one of {errors}, got {done}")

    # --- the chain --------------------------------------------------------------------

    def heal(self) -> None:
        """Put everything right but what was lost."""
        for proxy in self.proxies:
            proxy.heal()
        self.allow()
        self.rpc.call("evm_setAutomine", True)  # noqa: FBT003 - JSON
        if not self.rpc.call("eth_getCode", self.contract, "latest").removeprefix("0x"):
            code = load_artifact().runtime.hex()  # a reset takes the factory away, too
            self.rpc.call("anvil_setCode", self.contract, f"0x{code}")
        self.rpc.call("anvil_setBalance", self.signer.address, hex(1000 * ETHER))
        self.rpc.call("anvil_mine", "0x1")

    def restart_node(self) -> None:
        """Start the node again, from its newest snapshot."""
        self.rpc.close()
        self.anvil.stop()
        self.anvil.start()
        self.rpc = RpcClient(self.anvil.url)
        for proxy in self.proxies:
            proxy.target = self.anvil.url

    def settle(self) -> float:
        """Step until every signed head stands on the chain, and check; return the seconds."""
        began_s = time.monotonic()
        for _ in range(STEPS_MAX):
            try:
                done = self.step()
            except AuditTrailError as error:
                last: object = error
                continue
            last = done
            if not done.findings and done.waiting is None and self.is_anchored():
                elapsed_s = time.monotonic() - began_s
                self.check()
                return elapsed_s
            self.rpc.call("anvil_mine", "0x1")
        raise AssertionError(f"not anchored after {STEPS_MAX} steps; the last one: {last}")

    def reader(self) -> AnchorReader:
        return AnchorReader(self.rpc, chain_id=CHAIN_ID, contract=self.contract)

    def is_anchored(self) -> bool:
        """Whether the chain holds every signed head, or one that extends it: nothing is lost."""
        reader = self.reader()
        for log in self.logs:
            signed = log.published()
            head = reader.head(self.signer.address, log.log_id)
            if signed is None or head.tree_size < signed.head.size:
                return False
        return True

    def check(self, from_block: int | None = None) -> None:
        """Make sure that no head was anchored twice or overwritten, by the chain's own events."""
        reader = self.reader()
        newest = int(self.rpc.call("eth_blockNumber"), 16)
        start = max(0, newest - 200) if from_block is None else from_block
        for log in (*self.logs, self.ledger.registry):
            events = reader.events(self.signer.address, log.log_id, from_block=start)
            sizes = [event.tree_size for event in events]
            assert sizes == sorted(set(sizes)), f"{log.origin} was anchored twice: {sizes}"
            sequences = [event.sequence for event in events]
            assert (
                sequences == list(range(sequences[0], sequences[0] + len(events))) if events else 1
            )
            for event in events:
                assert event.root == log.root_at(event.tree_size), "another tree was anchored"
            self.compared += len(events)
            head = reader.head(self.signer.address, log.log_id)
            assert not events or head.tree_size == sizes[-1], "a head was overwritten"

    def close(self) -> None:
        self.publisher.close()
        self.ledger.close()
        for proxy in self.proxies:
            proxy.close()
        self.rpc.close()
        self.anvil.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
