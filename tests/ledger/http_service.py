"""The service in a process of its own, and a network before it that loses answers."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress


class Service:
    """`rlhf-audit serve`, which can be killed and started again."""

    def __init__(self, directory):
        self._directory = directory
        self.start()

    def start(self):
        command = [sys.executable, "-m", "rlhf_audit_trail.cli", "serve", "--port", "0"]
        command += ["--ledger", str(self._directory)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line
        self.url, self.port = found[0], int(found[1])

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@contextmanager
def serving(directory):
    service = Service(directory)
    try:
        yield service
    finally:
        service.kill()


class Network:
    """Passes bytes on to the service; loses answers when told to, and may kill it then.

    An answer is lost after it came from the service: what it tells is durable, and who
    asked does not know.
    """

    def __init__(self, port):
        self.port = port
        self.lost = 0
        self._to_lose = 0
        self._then = lambda: None
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, count, then=lambda: None):
        """Lose the next answers; call `then` with the first of them in hand."""
        with self._lock:
            self._to_lose, self._then = count, then

    def close(self):
        # closing alone would not wake who accepts
        _shut(self._listener)

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        upstream = socket.socket()
        try:
            upstream.connect(("127.0.0.1", self.port))
        except OSError:
            _shut(client, upstream)
            return
        threading.Thread(target=self._send, args=(client, upstream), daemon=True).start()
        with suppress(OSError):
            while data := upstream.recv(1 << 16):
                if data.startswith(b"HTTP/1.1 200") and self._loses():
                    break
                client.sendall(data)
        _shut(client, upstream)

    def _loses(self):
        with self._lock:
            if not self._to_lose:
                return False
            self._to_lose -= 1
            self.lost += 1
            then, self._then = self._then, lambda: None
        then()
        return True

    @staticmethod
    def _send(client, upstream):
        with suppress(OSError):
            while data := client.recv(1 << 16):
                upstream.sendall(data)


def _shut(*sockets):
    for item in sockets:
        with suppress(OSError):
            item.shutdown(socket.SHUT_RDWR)
        item.close()
