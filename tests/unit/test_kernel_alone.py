"""The kernel stands alone: a clean process without heavy packages verifies a bundle."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sample_log import SampleLog

from rlhf_audit_trail.ledger import proof
from rlhf_audit_trail.ledger.proof.bundle import encode_bundle

HEAVY = (
    "torch", "transformers", "safetensors", "opacus", "numpy", "web3", "eth_account", "solcx",
    "sqlmodel", "sqlalchemy", "alembic", "obstore", "fastapi", "uvicorn", "pydantic",
)  # fmt: skip
PROGRAM = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None  # importing it, or anything below it, now fails

import socket
def refuse(*_, **__):
    raise AssertionError("the verifier opened a socket")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse

import json, pathlib
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, TrustedBlock
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.verdict import to_json

data = pathlib.Path(sys.argv[1]).read_bytes()
said = json.loads(pathlib.Path("trust").read_text())
block = said.pop("blocks")[0]
block = TrustedBlock(block["chain_id"], block["number"], bytes.fromhex(block["hash"]), "a test")
said = {{k: bytes.fromhex(v) if isinstance(v, str) else v for k, v in said.items()}}
keys = tuple(map(VerifierKey.parse, sys.argv[2:]))
found = examine_bundle(data, TrustPolicy(keys, chain=ChainTrust(**said, blocks=(block,))))
loaded = sorted(name for name, module in sys.modules.items() if module is not None)
print(json.dumps({{"report": to_json(found), "loaded": loaded}}))
"""


def test_a_clean_process_verifies_a_bundle(tmp_path: Path, log: SampleLog) -> None:
    """Chain evidence as well, under a block hash that is trusted."""
    from chain_scenarios import Scene

    file, scene = tmp_path / "proof.bundle", Scene(log)
    bundle = log.bundle((1, 5), opened=("reward",), anchored=(4,))
    file.write_bytes(encode_bundle(replace(bundle, chain=bytes(scene.good))))
    (tmp_path / "trust").write_text(json.dumps(scene.trust["chain"]))
    command = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), str(file)]
    command += [str(key) for key in log.keys.verifier_keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["report"]["verdict"] == "verified"
    assert {x["id"]: x["state"] for x in said["report"]["checks"]}["anchor"] == "passed"
    packages = {name.partition(".")[0] for name in said["loaded"]}
    foreign = packages - sys.stdlib_module_names - {"__main__", "rlhf_audit_trail"}
    assert {name for name in foreign if "finder" not in name.lower()} <= {
        "cryptography", "_openssl", "_cffi_backend", "cffi", "_distutils_hack",
    }  # fmt: skip
    inside = {name for name in said["loaded"] if name.startswith("rlhf_audit_trail.")}
    assert {name for name in inside if ".ledger.proof" not in name} == {
        "rlhf_audit_trail.ledger",
        "rlhf_audit_trail.ledger.verdict",
    }


def test_the_kernel_imports_nothing_else() -> None:
    """Read from the source: even inside functions."""
    allowed = {"cryptography", "rlhf_audit_trail"} | sys.stdlib_module_names
    for file in kernel_files():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in allowed, (file.name, name)
                assert not name.startswith("rlhf_audit_trail.") or ".ledger.proof." in name
                assert name.partition(".")[0] not in {"socket", "ssl", "urllib", "http"}


def test_the_kernel_can_be_read_in_an_afternoon() -> None:
    """Chain evidence has a budget of its own: who asks no chain need not read it.

    A sixth of that is Keccak, whose round is written out 25 lanes wide for speed.
    """

    def lines(files: list[Path]) -> int:
        return sum(len(file.read_text("utf-8").splitlines()) for file in files)

    evm = [file for file in kernel_files() if file.parent.name == "evm"]
    assert lines([file for file in kernel_files() if file not in evm]) < 1200
    assert 100 < lines(evm) < 650


def kernel_files() -> list[Path]:
    return sorted(Path(proof.__file__).parent.rglob("*.py"))
