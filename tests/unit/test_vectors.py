"""The vectors of tests/vectors: each must end exactly as it says, and for that reason."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_audit_trail.ledger.proof.commitment import Opening, verify_opening
from rlhf_audit_trail.ledger.proof.errors import ProofError
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, TrustedBlock
from rlhf_audit_trail.ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_from_nodes,
    root_hash,
    verify_consistency,
    verify_inclusion,
)
from rlhf_audit_trail.ledger.proof.note import VerifierKey, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head, parse_tree_head
from rlhf_audit_trail.ledger.proof.verify import OnChain, TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.verdict import exit_code, verdict

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = {file.stem: json.loads(file.read_text("utf-8")) for file in FOLDER.glob("*.json")}


def of_kind(*kinds: str) -> list[str]:
    return sorted(name for name, vector in VECTORS.items() if vector["kind"] in kinds)


def check(vector: dict[str, Any]) -> dict[str, Any]:
    """Run one vector of the smaller kinds; return what the kernel says beyond "ok"."""
    given, found = vector["input"], {}
    match vector["kind"]:
        case "root":
            assert root_hash(unhex(given["leaves"])).hex() == given["root"]
        case "inclusion":
            leaf, path, root = (unhex(given[name]) for name in ("leaf", "path", "root"))
            verify_inclusion(leaf, given["index"], given["size"], path, root)
        case "consistency":
            old, new, path = (unhex(given[name]) for name in ("old_root", "new_root", "path"))
            verify_consistency(given["old_size"], old, given["new_size"], new, path)
        case "commitment":
            opening = Opening(given["path"], unhex(given["salt"]), unhex(given["value"]))
            assert verify_opening(unhex(given["commitment"]), opening) == opening.value
        case "note":
            assert str(parse_note(given["note"])) == given["note"]
        case "vkey":
            assert str(VerifierKey.parse(given["vkey"])) == given["vkey"]
        case "tree_head":
            assert parse_tree_head(given["text"]).text == given["text"]
        case "signed_tree_head":
            signed = open_tree_head(given["note"], map(VerifierKey.parse, given["keys"]))
            found = {"signed_by": [key.key_id.hex() for key in signed.signed_by]}
        case other:
            pytest.fail(f"a vector of unknown kind {other}")
    return found


def unhex(value: Any) -> Any:
    return [bytes.fromhex(x) for x in value] if isinstance(value, list) else bytes.fromhex(value)


@pytest.mark.parametrize(
    "name",
    of_kind(
        "root", "inclusion", "consistency", "commitment",
        "note", "vkey", "tree_head", "signed_tree_head",
    ),
)  # fmt: skip
def test_vector(name: str) -> None:
    vector = VECTORS[name]
    try:
        found = {"expect": "ok"} | check(vector)
    except ProofError as error:
        found = {"expect": type(error).__name__}
    assert found == {key: vector[key] for key in found}


@pytest.mark.parametrize("name", of_kind("bundle"))
def test_bundle_vector(name: str) -> None:
    vector = VECTORS[name]
    given = vector["input"]
    text = given.get("bundle")
    data = text.encode() if text is not None else base64.b64decode(given["bundle_base64"])
    on_chain = given.get("on_chain")
    if on_chain is not None:
        on_chain = tuple(OnChain(x["tree_size"], unhex(x["root"]), "a test") for x in on_chain)
    chain = given.get("chain")
    if chain is not None:
        blocks = [
            TrustedBlock(x["chain_id"], x["number"], unhex(x["hash"]), "a test")
            for x in chain["blocks"]
        ]
        whole = {k: unhex(v) if isinstance(v, str) else v for k, v in chain.items()}
        chain = ChainTrust(**whole | {"blocks": tuple(blocks)})
    found = examine_bundle(
        data,
        TrustPolicy(
            keys=tuple(VerifierKey.parse(key) for key in given["keys"]),
            need_anchor=given.get("need_anchor", False),
            on_chain=on_chain,
            chain=chain,
            accept_unpinned=given.get("accept_unpinned", False),
            accept_unanchored=given.get("accept_unanchored", False),
        ),
    )
    said: dict[str, Any] = {"verdict": verdict(found), "exit_code": exit_code(found)}
    if found.decisive and found.decisive.finding:
        said |= {"step": found.decisive.step, "error": type(found.decisive.finding).__name__}
    assert said == vector["expect"]


def test_accumulated_vector() -> None:
    """Every proof of every size: the kernel builds those of the slow reference, and accepts them."""
    (vector,) = (VECTORS[name] for name in of_kind("accumulated"))
    largest = vector["input"]["largest_size"]
    leaves = [leaf_hash(bytes([index])) for index in range(largest)]
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        if (level, index) not in nodes:
            nodes[level, index] = root_hash(leaves[index << level : (index + 1) << level])
        return nodes[level, index]

    roots = [root_from_nodes(size, read) for size in range(largest + 1)]

    def items() -> Iterator[bytes]:
        for size in range(1, largest + 1):
            yield roots[size]
            for index in range(size):
                path = inclusion_proof(index, size, read)
                verify_inclusion(leaves[index], index, size, path, roots[size])
                yield b"".join(path)
            for old in range(1, size + 1):
                path = consistency_proof(old, size, read)
                verify_consistency(old, roots[old], size, roots[size], path)
                yield b"".join(path)

    assert generator().accumulate(items()).hex() == vector["sha256"]
    assert generator().slow_accumulation(largest).hex() == vector["sha256"]


def generator() -> Any:
    """The generator as a module; its folder is no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import generate  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    return generate


def test_generating_again_gives_the_same_bytes() -> None:
    command = [sys.executable, str(FOLDER / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_most_vectors_must_fail() -> None:
    good = sum(
        v["expect"] in ("ok", {"verdict": "VERIFIED", "exit_code": 0}) for v in VECTORS.values()
    )
    assert len(VECTORS) >= 100
    assert good * 3 < len(VECTORS)


def test_every_error_and_every_step_has_a_vector() -> None:
    expected = [vector["expect"] for vector in VECTORS.values()]
    errors = {item if isinstance(item, str) else item.get("error", "ok") for item in expected}
    steps = Counter(item.get("step") for item in expected if isinstance(item, dict))
    assert errors == {"ok"} | {error.__name__ for error in ProofError.__subclasses__()}
    assert set(steps) == {None, 1, 2, 3, 4, 5, 6, 7, 8}
