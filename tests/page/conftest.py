"""The page's kernel under Node, asked in batches, and what Python's kernel says to the same."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rlhf_audit_trail.cli import verify_command
from rlhf_audit_trail.ledger import verdict
from rlhf_audit_trail.ledger.chain.contract.build import node_on_path
from rlhf_audit_trail.ledger.chain.evidence.trusting import evidence_block, on_trust
from rlhf_audit_trail.ledger.proof.evm.evidence import ChainTrust, TrustedBlock
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.proof.verify import OnChain, TrustPolicy, examine_bundle

HERE = Path(__file__).parent
VECTORS = {
    file.stem: json.loads(file.read_text("utf-8"))
    for file in (HERE.parent / "vectors").glob("*.json")
}


@pytest.fixture(scope="session")
def vectors():
    return VECTORS


@pytest.fixture(scope="session")
def ask():
    """`ask([(kind, input), ...])` returns the JavaScript kernel's answers, in order."""

    def asked(requests):
        lines = "".join(json.dumps({"kind": kind, "input": x}) + "\n" for kind, x in requests)
        with node_on_path():
            command = [str(shutil.which("node")), str(HERE / "run_kernel.mjs")]
        done = subprocess.run(
            command, input=lines, capture_output=True, text=True, check=False, encoding="utf-8"
        )
        assert (done.returncode, done.stderr) == (0, "")
        answers = [json.loads(line) for line in done.stdout.split("\n") if line]
        assert len(answers) == len(requests)
        return answers

    return asked


@pytest.fixture(scope="session")
def judge(ask):
    """`judge([(bytes, trust), ...])`: both kernels' full reports and words, which must be equal."""

    def judged(cases):
        requests = [
            ("bundle", {"data": base64.b64encode(data).decode(), "trust": trust})
            for data, trust in cases
        ]
        answers = ask(requests)
        for (data, trust), answer in zip(cases, answers, strict=True):
            answer["report"] = json.loads(answer["report"])
            assert answer == {"expect": "ok"} | said_by_python(data, trust)
        return answers

    return judged


def unhex(value):
    return bytes.fromhex(value) if isinstance(value, str) else value


def policy_of(trust):
    """A trust policy from a vector's `input`; the other reader of the same is `run_kernel.mjs`."""
    on_chain, chain = trust.get("on_chain"), trust.get("chain")
    if on_chain is not None:
        on_chain = tuple(OnChain(x["tree_size"], unhex(x["root"]), "a test") for x in on_chain)
    if chain is not None:
        blocks = (
            TrustedBlock(x["chain_id"], x["number"], unhex(x["hash"]), "a test")
            for x in chain["blocks"]
        )
        chain = ChainTrust(**{k: unhex(v) for k, v in chain.items()} | {"blocks": tuple(blocks)})
    return TrustPolicy(
        keys=tuple(VerifierKey.parse(key) for key in trust.get("keys", ())),
        need_anchor=trust.get("need_anchor", False),
        on_chain=on_chain,
        chain=chain,
        accept_unpinned=trust.get("accept_unpinned", False),
        accept_unanchored=trust.get("accept_unanchored", False),
    )


def said_by_python(data, trust):
    """The report and the sentences of `rlhf-audit verify`."""
    policy = policy_of(trust)
    found = examine_bundle(data, policy)
    headline, _, both = verify_command._headline(found).partition("\n")
    who = verify_command._WHO[found.signer]
    unchanged = {"passed": "yes", "failed": "NO", "unreadable": "cannot be read"}
    answers = {"unchanged": unchanged[verdict.integrity(found)], "byWhom": who}
    if both:
        assert both == f"  unchanged: {answers['unchanged']}; by whom: {who}"
    taken = on_trust(found, policy.chain, evidence_block(data)) if policy.chain else []
    report = json.loads(json.dumps(verdict.to_json(found)))
    return {"report": report, "headline": headline, "on_trust": taken} | answers


@pytest.fixture(scope="session")
def said():
    return said_by_python


@pytest.fixture(scope="session")
def bundle_cases(vectors):
    """Every vector of a bundle as (name, bytes, trust)."""

    def data(given):
        text = given.get("bundle")
        return text.encode() if text is not None else base64.b64decode(given["bundle_base64"])

    return [
        (name, data(vector["input"]), vector["input"])
        for name, vector in sorted(vectors.items())
        if vector["kind"] == "bundle"
    ]
