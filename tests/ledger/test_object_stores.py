"""Blobs by URL: one shared suite over a directory, S3, Google Cloud Storage and Azure, on real
servers of this machine.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from rlhf_audit_trail.ledger.blobs import BlobDamaged, BlobMissing, BlobStore
from rlhf_audit_trail.ledger.chain.contract.build import node_on_path
from rlhf_audit_trail.ledger.log import SETTINGS_FILE, Ledger
from rlhf_audit_trail.ledger.object_stores import (
    InvalidPlace,
    ObjectPlace,
    ObjectStoreFailed,
    place_of,
)
from rlhf_audit_trail.ledger.store.transactions import transact
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.delta import Layout, TensorPlace
from tests.ledger import gcs_front

SECRET = "never-to-be-shown"
LARGE = b"large" * 50_000
AZURITE = Path(__file__).parents[1] / "emulators/node_modules/azurite/dist/src/blob/main.js"
AZURE_KEY = (  # the well-known one of the emulator
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


def with_checksum_named(app: Callable[..., Any]) -> Callable[..., Any]:
    """Have moto see a checksum where it looks: in the header by which AWS's own SDKs name one.

    S3 itself takes the checksum's own header, which is what is sent, for enough.
    """

    def named(environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_X_AMZ_CHECKSUM_SHA256" in environ:
            environ["HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM"] = "SHA256"
        return app(environ, start_response)

    return named


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    app = with_checksum_named(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1",
        aws_access_key_id="key", aws_secret_access_key=SECRET,
    )  # fmt: skip
    client.create_bucket(Bucket="bucket")
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    client.put_object_lock_configuration(
        Bucket="locked",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}},
        },
    )
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return "s3://bucket/pre/fix"


@pytest.fixture(scope="module")
def azure_server() -> Iterator[str]:
    if not AZURITE.is_file():
        pytest.skip("azurite is not installed: make tools")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with node_on_path():
        node = str(shutil.which("node"))
    command = [node, str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}/devstoreaccount1"
        try:
            make_container(address)
            yield address
        finally:
            process.terminate()


def make_container(address: str) -> None:
    """Make the container `box`, when the emulator has begun to answer."""
    now = dt.datetime.now(dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06"}
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    signed = "PUT" + "\n" * 12 + lines + "/devstoreaccount1/devstoreaccount1/box\nrestype:container"
    mac = hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey devstoreaccount1:{base64.b64encode(mac).decode()}"
    for _ in range(100):
        try:
            request = urllib.request.Request(  # noqa: S310 - of this machine
                f"{address}/box?restype=container", method="PUT", headers=headers
            )
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        except URLError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("azurite does not answer")


@pytest.fixture
def azure(azure_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1", "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": azure_server, "AZURE_ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return "az://box/pre/fix"


@pytest.fixture(scope="module")
def gcs_server() -> Iterator[str]:
    with gcs_front.gcs() as address:
        yield address


@pytest.fixture
def gcp(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    key = {"gcs_base_url": gcs_server, "disable_oauth": True}
    key |= {"client_email": "", "private_key": SECRET, "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    return f"gs://{gcs_front.BUCKET}/pre/fix"


@pytest.fixture(params=["local", "s3", "gcp", "azure"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "local" else str(request.getfixturevalue(request.param))


@pytest.fixture
def blobs(ledger: Ledger, url: str) -> BlobStore:
    return BlobStore(ledger.engine, ledger.directory / "blobs", url)


def unique(request: pytest.FixtureRequest) -> bytes:
    return LARGE + request.node.name.encode()


def test_what_goes_in_comes_out(blobs, ledger, request) -> None:
    data = unique(request)
    digest = blobs.put(data)
    assert blobs.put(data) == digest
    assert blobs.get(digest) == data
    assert blobs.check(digest) == len(data)
    # wherever it lies, the ledger's own store finds it by the place that its row names
    assert ledger.blobs.get(digest) == data
    files = [x.name for x in (ledger.directory / "blobs").iterdir()]
    assert files == ([] if blobs.url else [digest])


def test_a_put_never_replaces_what_stands_there(blobs, url, ledger, request) -> None:
    place = ObjectPlace(ledger.directory / "blobs", url)
    data = unique(request)
    digest = hashlib.sha256(data).hexdigest()
    assert place.create(digest, b"half")
    assert not place.create(digest, data)
    assert b"".join(place.chunks(digest)) == b"half"
    with pytest.raises(BlobDamaged):
        blobs.put(data)
    place.delete(digest)
    place.delete(digest)  # what is gone is gone
    assert blobs.put(data) == digest
    place.delete(digest)
    with pytest.raises(BlobMissing):
        blobs.get(digest)


def test_what_a_killed_process_left_of_a_put_is_deleted_with_it(ledger) -> None:
    digest, folder = BlobStore.digest_of(LARGE), ledger.directory / "blobs"
    for names in ([f"{digest}#1"], [digest], [digest, f"{digest}#1", f"{digest}#2"]):
        for name in names:  # none has a row yet: that comes after the object
            (folder / name).write_bytes(LARGE)
        (folder / f"{'0' * 64}#1").write_bytes(b"of another put")
        transact(ledger.engine, lambda connection: ledger.blobs.discard(connection, digest))
        assert [x.name for x in folder.iterdir()] == [f"{'0' * 64}#1"]


@pytest.mark.parametrize("backend", ["s3", "gcp", "azure"])
def test_no_error_repeats_a_secret(
    backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = request.getfixturevalue(backend)
    missing = good.replace("bucket", "no-such-bucket").replace("box", "no-such-box")
    with pytest.raises(ObjectStoreFailed) as found:
        ObjectPlace(tmp_path, missing).create("x", b"y")
    assert "no-such-bo" in str(found.value) or "no-such-bucket" in str(found.value)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{address}/devstoreaccount1")
        key = {"gcs_base_url": address, "disable_oauth": True, "client_email": ""}
        key |= {"private_key": SECRET, "private_key_id": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
        with pytest.raises(ObjectStoreFailed) as unreachable:
            ObjectPlace(tmp_path, good).create("x", b"y")
    for error in (found, unreachable):
        assert SECRET not in str(error.value)
        assert AZURE_KEY not in str(error.value)
        assert error.value.__cause__ is None


# --- what may not be deleted ---------------------------------------------------------------


@pytest.fixture
def locked(s3: str, s3_server: str) -> Any:  # noqa: ARG001 - where the address is read
    """The provider's own client; of its bucket `locked` nobody deletes an object for a day."""
    return boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")


def test_retained_objects_outlive_what_discards_them(locked, ledger) -> None:
    blobs = BlobStore(ledger.engine, ledger.directory / "blobs", "s3://locked/x")
    digest = blobs.put(LARGE + b"retained")
    (version,) = locked.list_object_versions(Bucket="locked")["Versions"]
    found = locked.head_object(Bucket="locked", Key=f"x/{digest}")
    assert found["ObjectLockMode"] == "COMPLIANCE"
    place = ObjectPlace(ledger.directory / "blobs", "s3://locked/x")
    assert not place.create(digest, b"other")
    with pytest.raises(ClientError, match="AccessDenied"):
        locked.delete_object(Bucket="locked", Key=f"x/{digest}", VersionId=version["VersionId"])
    transact(ledger.engine, lambda connection: blobs.discard(connection, digest))
    with pytest.raises(BlobMissing):
        blobs.get(digest)
    kept = locked.get_object(Bucket="locked", Key=f"x/{digest}", VersionId=version["VersionId"])
    assert kept["Body"].read() == LARGE + b"retained"
    assert blobs.put(LARGE + b"retained") == digest  # and it can be stored again


def test_weights_in_a_locked_bucket_are_restored_and_let_go(locked, ledger) -> None:
    log = ledger.open_run("run-1")
    blobs = BlobStore(ledger.engine, ledger.directory / "blobs", "s3://locked/weights")
    store = CheckpointStore(ledger.engine, blobs)
    data = random.Random(0).randbytes(100_000)
    layout = Layout([TensorPlace("w", "U8", (len(data),), len(data))])
    saved = store.save(
        log.number, "epoch_0", layout, lambda x: data[x.start : x.start + x.size_bytes],
        created_at="2026-11-21T00:00:00Z",
    )  # fmt: skip
    assert store.reader(saved.stored).tensor("w") == data
    before = locked.list_object_versions(Bucket="locked", Prefix="weights/")["Versions"]
    store.discard([saved.stored.number])
    after = locked.list_object_versions(Bucket="locked", Prefix="weights/")
    assert store.stored() == []
    assert [x["VersionId"] for x in after["Versions"]] == [x["VersionId"] for x in before]
    assert len(after["DeleteMarkers"]) == len(before) == 1


def test_a_ledger_keeps_large_blobs_where_its_settings_say(tmp_path: Path, s3: str) -> None:
    directory = tmp_path / "ledger"
    Ledger.create(directory, organisation="acme.example").close()
    with Ledger.open(directory) as ledger:
        before = ledger.blobs.put(LARGE + b"before")
    with (directory / SETTINGS_FILE).open("a") as file:
        file.write(f'\n[blobs]\nurl = "{s3}"\n')
    with Ledger.open(directory) as ledger:
        after = ledger.blobs.put(LARGE + b"after")
        assert ledger.blobs.get(before) == LARGE + b"before"
        assert ledger.blobs.get(after) == LARGE + b"after"
    assert [x.name for x in (directory / "blobs").iterdir()] == [before]


@pytest.mark.parametrize(
    ("backend", "configured", "wanted"),
    [
        ("local", "s3://bucket/x", ""),
        ("s3", "s3://bucket/x/", "s3://bucket/x"),
        ("gcp", "gs://bucket", "gs://bucket"),
        ("azure", "az://box/x", "az://box/x"),
        ("azure", "abfss://box@acme.dfs.core.windows.net/x",
         "abfss://box@acme.dfs.core.windows.net/x"),
        ("gs://bucket/x", "", "gs://bucket/x"),
    ],
)  # fmt: skip
def test_the_words_of_the_first_proposal(backend: str, configured: str, wanted: str) -> None:
    assert place_of(backend, configured) == wanted


@pytest.mark.parametrize("backend", ["gcp", "s3", "azure", "", "disk", "https://bucket/x"])
def test_a_word_without_a_bucket_is_refused(backend: str) -> None:
    configured = "az://box" if backend != "azure" else "gs://bucket"
    wrong: Callable[[], str] = lambda: place_of(backend, configured)  # noqa: E731
    if backend == "":
        assert wrong() == ""
        return
    with pytest.raises(InvalidPlace):
        wrong()
