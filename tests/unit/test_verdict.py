"""The verdict: one word, one exit code, one JSON, whatever was found."""

from __future__ import annotations

import json

import pytest
from sample_log import SampleLog

from rlhf_audit_trail.ledger.proof.bundle import encode_bundle
from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle, PolicyUnmet
from rlhf_audit_trail.ledger.proof.verify import Check, Examination, TrustPolicy, examine_bundle
from rlhf_audit_trail.ledger.verdict import (
    EXIT_CODES,
    STEPS,
    exit_code,
    integrity,
    to_json,
    verdict,
)

FAILED = Check(6, "failed", "a fork", Inconsistent("a fork"))
UNREADABLE = Check(8, "unreadable", "damaged", MalformedBundle("damaged"))
MISSING = Check(3, "not_shown", "no key", PolicyUnmet("no key"))
PASSED = Check(4, "passed", "good")


@pytest.mark.parametrize(
    ("checks", "wanted", "whole"),
    [
        ((PASSED,), "VERIFIED", "passed"),
        ((MISSING, PASSED), "INCONCLUSIVE", "passed"),
        ((MISSING, PASSED, UNREADABLE), "UNREADABLE", "unreadable"),
        ((MISSING, PASSED, FAILED, UNREADABLE), "FAILED", "failed"),
    ],
)
def test_the_gravest_finding_decides(checks: tuple[Check, ...], wanted: str, whole: str) -> None:
    found = Examination("not_pinned", checks, None)
    assert verdict(found) == wanted
    assert exit_code(found) == EXIT_CODES[wanted]
    assert integrity(found) == whole


def test_of_equal_findings_the_first_decides() -> None:
    later = Check(7, "failed", "later", Inconsistent("later"))
    assert Examination("pinned", (FAILED, later), None).decisive is FAILED


def test_exit_codes_are_fixed() -> None:
    assert EXIT_CODES == {"VERIFIED": 0, "FAILED": 1, "INCONCLUSIVE": 3, "UNREADABLE": 4}
    assert len(STEPS) == 8


def test_json_of_a_good_bundle(log: SampleLog) -> None:
    data = encode_bundle(log.bundle((1, 5)))
    said = to_json(examine_bundle(data, TrustPolicy(keys=log.keys.verifier_keys)))
    assert said["schema"] == "rlhf-audit/verify-result/v1"
    assert (said["verdict"], said["exit_code"]) == ("verified", 0)
    assert (said["integrity"], said["signer"]) == ("passed", "pinned")
    assert [(check["step"], check["id"]) for check in said["checks"]] == list(enumerate(STEPS, 1))
    assert said["tree_head"] == {
        "origin": log.origin,
        "size": 8,
        "root": log.head(8).root.hex(),
    }
    assert said["entries"] == [1, 5]
    assert said["next"] == ""
    assert json.loads(json.dumps(said)) == said


def test_integrity_and_signer_are_two_answers(log: SampleLog) -> None:
    """A bundle by the wrong signer may be unchanged all the same, and both are said."""
    other = SampleLog(origin="example.com/other").keys.verifier_keys
    said = to_json(examine_bundle(encode_bundle(log.bundle()), TrustPolicy(keys=other)))
    assert (said["verdict"], said["integrity"], said["signer"]) == (
        "failed",
        "passed",
        "contradicted",
    )
    (failed,) = (check for check in said["checks"] if check["state"] == "failed")
    assert failed["id"] == "signer"
    assert failed["reason"] == "BadSignature"
    assert said["next"]


def test_json_of_what_is_no_bundle() -> None:
    said = to_json(examine_bundle(b"nothing", TrustPolicy()))
    assert (said["verdict"], said["exit_code"], said["integrity"]) == (
        "unreadable",
        4,
        "unreadable",
    )
    assert said["tree_head"] is None
    assert said["entries"] == []
    assert said["signer"] == "not_shown"
