"""A headless Chromium, driven over a pipe by its own protocol: no driver, no port."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_audit_trail.ledger.chain.contract.build import node_on_path

HERE = Path(__file__).parent

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP ledger.example 127.0.0.1", "--disable-sync", "--disable-default-apps", "--no-default-browser-check",
)  # fmt: skip
# Puts the ends of two pipes to the numbers that the browser expects, then becomes the browser.
BECOME = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(kept[0], 3)
os.dup2(kept[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The browser named by RLHF_AUDIT_CHROMIUM, one on the path, or that of package.json."""
    named = os.environ.get("RLHF_AUDIT_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None) or _unpacked()


def _unpacked() -> str | None:
    """The Chromium that npm has fetched, if it has; unpacked at its first use."""
    folder = HERE / "node_modules"
    program, libraries = folder / ".chromium/chromium", folder / ".chromium/al2023.tar"
    if not (folder / "@sparticuz/chromium").is_dir():
        return None
    if not program.is_file():
        with node_on_path():
            subprocess.run(["node", str(HERE / "unpack_chromium.mjs")], check=True)
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if "not found" in linked.stdout:  # a machine that has never had a browser
        with tarfile.open(libraries) as archive:
            archive.extractall(libraries.parent, filter="data")
    return str(program)


class Tab:
    """One page: commands, and the events that came while waiting for their answers."""

    def __init__(self, browser: Chromium) -> None:
        self.browser = browser
        self.allowed: tuple[str, ...] = ()  # addresses that a test expects to be asked for
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [x for x in self.browser.events if x.get("sessionId") == self.session]

    def named(self, *methods: str) -> list[dict[str, Any]]:
        return [x["params"] for x in self.events if x["method"] in methods]

    def open(self, address: str) -> None:
        """Load a page whole; a page of the same address is loaded anew."""
        before = len(self.named("Page.loadEventFired"))
        if self.call("Page.navigate", url=address).get("loaderId") is None:
            self.call("Page.reload")
        while len(self.named("Page.loadEventFired")) == before:
            self.browser.read()

    def run(self, script: str, **given: Any) -> Any:
        """Run the body of an async function in the page; `given` are its constants."""
        names = "".join(f"const {name} = {json.dumps(x)};\n" for name, x in given.items())
        text = f"(async () => {{ {names}{script} }})()"
        asked = {"expression": text, "awaitPromise": True, "returnByValue": True}
        asked["allowUnsafeEvalBlockedByCSP"] = False  # as the page's own script
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """What the page asked for over the network; data: and blob: stay in the browser."""
        urls = [x["request"]["url"] for x in self.named("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Violations of the policy, exceptions, and whatever else the browser found wrong."""
        entries = [x["entry"]["text"] for x in self.named("Log.entryAdded")]
        thrown = [str(x) for x in self.named("Runtime.exceptionThrown")]
        return entries + thrown + [str(x) for x in self.named("Page.javascriptDialogOpening")]


class Chromium:
    """The browser: one command at a time, each answer waited for."""

    def __init__(self, program: str, profile: str) -> None:
        # the browser reads from its file 3 and writes to its file 4
        reads, self._writes = os.pipe()
        self._reads, writes = os.pipe()
        command = [sys.executable, "-S", "-c", BECOME, str(reads), str(writes)]
        self._process = subprocess.Popen(
            [*command, program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(reads, writes),
            env=os.environ | {"LD_LIBRARY_PATH": str(Path(program).parent / "lib")},
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        message = json.dumps(asked | ({"sessionId": session} if session else {})).encode() + b"\0"
        while message:
            message = message[os.write(self._writes, message) :]
        while self._number not in self._answers:
            self.read()
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def read(self) -> None:
        """Wait for the browser's next messages."""
        data = os.read(self._reads, 1 << 20)
        assert data, "the browser ended"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._reads)
        os.close(self._writes)


@contextlib.contextmanager
def open_chromium(program: str) -> Iterator[Chromium]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(program, profile)
        try:
            yield browser
        finally:
            browser.close()
