"""A ledger to record into, and the one that fsck tests damage copies of."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.store.database import writing
from rlhf_audit_trail.ledger.store.models import AnchorRow
from rlhf_audit_trail.ledger.tokens import WriterTokens
from tests.ledger.anchoring import anchor_rows


def _annotation(number: int) -> Event:
    person = f"annotator-{number % 5}@example.org"
    sealed = {"prompt": f"prompt {number}", "response": "r", "annotator": person, "reward": 0.5}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


@pytest.fixture(scope="session")
def annotation() -> Callable[[int], Event]:
    return _annotation


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(directory: Path) -> Iterator[Ledger]:
    with Ledger.create(directory, organisation="acme.example") as opened:
        yield opened


@pytest.fixture(scope="session")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one closed; heads at 100, 300 and 600; a ragged edge; blobs; anchors; tokens."""
    directory = tmp_path_factory.mktemp("sound") / "ledger"
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run("run42")
        for begin, end in ((0, 100), (100, 300), (300, 600)):
            log.record_many(_annotation(number) for number in range(begin, end))
            log.publish()
        ended = ledger.open_run("ended")
        ended.record_many(_annotation(number) for number in range(3))
        ended.close()
        tokens = WriterTokens(ledger)
        for writer in ("gpu-1", "gpu-2"):
            token = tokens.authenticate(tokens.grant(writer, "run42"))
            tokens.admit(token, log, writer[-1] * 32)
        tokens.revoke("gpu-2")
        ledger.registry.publish()
        rows = [*anchor_rows(log, ended, nonce=3), *anchor_rows(log, nonce=4, state="pending")]
        with writing(ledger.engine) as connection:
            for row in rows:
                connection.execute(AnchorRow.__table__.insert(), row)
        ledger.blobs.put(b"small")
        ledger.blobs.put(b"large" * 20_000)
    return directory


@pytest.fixture
def damaged(_sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound ledger, to be damaged."""
    return Path(shutil.copytree(_sound, tmp_path / "copy"))


def _examine(directory: Path) -> tuple[set[tuple[str, str, str]], Summary]:
    summary = Summary()
    with open_damaged(directory) as storage:
        findings = list(fsck(storage, summary=summary))
    assert summary.findings == len(findings)
    assert all(finding.detail and str(finding) for finding in findings)
    return {(x.log, x.what, x.where) for x in findings}, summary


@pytest.fixture(scope="session")
def examine() -> Callable[[Path], tuple[set[tuple[str, str, str]], Summary]]:
    """Run fsck on a directory: findings as (log, what, where), and what was counted."""
    return _examine


@contextmanager
def _serve(app: Any) -> Iterator[str]:
    options = {"host": "127.0.0.1", "port": 0, "log_level": "warning", "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve ASGI apps on real sockets until the test ends; returns each one's address."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(_serve(app))


@pytest.fixture(scope="module")
def serve_long() -> Iterator[Callable[[Any], str]]:
    """Serve ASGI apps until the file's last test ends."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(_serve(app))
