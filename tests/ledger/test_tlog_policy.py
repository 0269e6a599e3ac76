"""tlog-policy: read exactly as C2SP has it, and a quorum that cannot be talked into existence."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_audit_trail.ledger.cosignature import Cosigner, CosignerKey
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import BadSignature, PolicyUnmet
from rlhf_audit_trail.ledger.proof.note import Note, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.tlog_policy import (
    Group,
    InvalidPolicy,
    PolicyWitness,
    TlogPolicy,
    check_policy,
    format_policy,
    parse_policy,
)

ORIGIN = "acme.example/rlhf/run42"
HEAD = TreeHead(ORIGIN, 7, bytes(32))
LOG = LogKeys.derive(b"\x01" * 32, ORIGIN)
NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
COSIGNERS = {name: Cosigner.derive(b"\x02" * 32, f"witness.example/{name}") for name in NAMES}
KEY = {name: str(cosigner.keys[0]) for name, cosigner in COSIGNERS.items()}

EXAMPLE = f"""
# the example of the specification
log {LOG.verifier_keys[0]}

witness X1 {KEY["X1"]}
witness X2 {KEY["X2"]}
witness X3 {KEY["X3"]}
group X-witnesses 2 X1 X2 X3

witness Y1 {KEY["Y1"]}
\twitness  Y2\t{KEY["Y2"]} https://witness.example/Y2 \x20
witness Y3 {KEY["Y3"]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def note(*names, keys=LOG):
    signed = parse_note(keys.sign(HEAD, time_s=1))
    lines = [COSIGNERS[name].cosign(HEAD, time_s=5)[0] for name in names]
    return str(Note(HEAD.text, (*lines, *signed.signatures)))


def test_the_example_of_the_specification_wants_what_it_says():
    policy = parse_policy(EXAMPLE.encode())
    assert policy.witnesses[4].url == "https://witness.example/Y2"
    for count in range(7):
        for names in itertools.combinations(NAMES, count):
            of_x = sum(name[0] == "X" for name in names)
            met = policy.is_met_by(COSIGNERS[name].keys[0] for name in names)
            assert met == (of_x >= 2 and of_x < count)


def test_a_head_is_accepted_by_its_log_and_the_quorum_only():
    policy = parse_policy(EXAMPLE.encode())
    found = check_policy(policy, note("X1", "Y3", "X2"))
    assert {key.name[-2:] for key in found.cosigned_at_s} == {"X1", "Y3", "X2"}
    assert found.signed.head.size == 7
    with pytest.raises(PolicyUnmet, match="too few") as error:
        check_policy(policy, note("X1", "Y3"))
    assert error.value.actual == "cosigned by X1, Y3"
    stranger = LogKeys.derive(b"\x09" * 32, ORIGIN)
    with pytest.raises(BadSignature, match="no trusted key"):
        check_policy(policy, note("X1", "X2", "Y1", keys=stranger))
    other_log = EXAMPLE.replace(str(LOG.verifier_keys[0]), str(stranger.verifier_keys[0]))
    with pytest.raises(BadSignature):
        check_policy(parse_policy(other_log.encode()), note("X1", "X2", "Y1"))


def test_one_bad_line_of_a_known_witness_rejects_the_note():
    policy = parse_policy(EXAMPLE.encode())
    good = parse_note(note("X1", "X2", "Y1", "Y2"))
    line = good.signatures[3]
    bad = type(line)(line.name, line.key_id, line.blob[:-1] + bytes([line.blob[-1] ^ 1]))
    lines = (*good.signatures[:3], bad, *good.signatures[4:])
    with pytest.raises(BadSignature):
        check_policy(policy, str(Note(HEAD.text, lines)))


def test_listed_keys_are_alternatives_and_pinned_keys_are_all_wanted():
    ed25519, ml_dsa = LOG.verifier_keys
    policy = parse_policy(f"log {ed25519}\nlog {ml_dsa}\nquorum none\n".encode())
    whole = parse_note(note())
    half = str(Note(HEAD.text, whole.signatures[:1]))
    assert check_policy(policy, half).signed.signed_by == (ed25519,)
    with pytest.raises(PolicyUnmet, match="ML_DSA_44"):
        check_policy(policy, half, pinned=LOG.verifier_keys)
    assert check_policy(policy, str(whole), pinned=LOG.verifier_keys)
    with pytest.raises(PolicyUnmet, match="no key of the log"):
        check_policy(parse_policy(b"quorum none\n"), half)
    assert check_policy(parse_policy(b"quorum none\n"), half, pinned=[ed25519])


W1, W2 = KEY["X1"], KEY["X2"]
BAD = {
    "no quorum": f"witness A {W1}\n",
    "two quorums": "quorum none\nquorum none\n",
    "quorum of nobody": "quorum A\n",
    "quorum before its witness": f"quorum A\nwitness A {W1}\n",
    "quorum of two": f"witness A {W1}\nquorum A A\n",
    "unknown keyword": "quorums none\nquorum none\n",
    "keyword in capitals": "Quorum none\n",
    "log without key": "log\nquorum none\n",
    "log with too much": f"log {LOG.verifier_keys[0]} url more\nquorum none\n",
    "log key of a witness": f"log {W1}\nquorum none\n",
    "witness key of a log": f"witness A {LOG.verifier_keys[0]}\nquorum none\n",
    "log twice": f"log {LOG.verifier_keys[0]}\n" * 2 + "quorum none\n",
    "witness key twice": f"witness A {W1}\nwitness B {W1}\nquorum none\n",
    "witness name twice": f"witness A {W1}\nwitness A {W2}\nquorum none\n",
    "witness named none": f"witness none {W1}\nquorum none\n",
    "group named none": f"witness A {W1}\ngroup none all A\nquorum none\n",
    "group named as witness": f"witness A {W1}\ngroup A all A\nquorum none\n",
    "empty group": f"witness A {W1}\ngroup G all\nquorum none\n",
    "group of itself": "group G all G\nquorum none\n",
    "group of none": "group G all none\nquorum none\n",
    "group before its member": f"group G all A\nwitness A {W1}\nquorum none\n",
    "member twice": f"witness A {W1}\ngroup G any A A\nquorum G\n",
    "member of two groups": f"witness A {W1}\ngroup G all A\ngroup H all A\nquorum none\n",
    "threshold 0": f"witness A {W1}\ngroup G 0 A\nquorum none\n",
    "threshold above": f"witness A {W1}\ngroup G 2 A\nquorum none\n",
    "threshold 01": f"witness A {W1}\ngroup G 01 A\nquorum none\n",
    "threshold +1": f"witness A {W1}\ngroup G +1 A\nquorum none\n",
    "threshold in words": f"witness A {W1}\ngroup G most A\nquorum none\n",
    "threshold in other digits": f"witness A {W1}\ngroup G \u0661 A\nquorum none\n",
    "carriage return": "quorum none\r\n",
    "null": "# \x00\nquorum none\n",
    "delete": "# \x7f\nquorum none\n",
    "vertical tab": "quorum\x0bnone\n",
    "no-break space": "quorum\xa0none\n",
    "last line open": "quorum none",
    "empty": "",
    "comment after": "quorum none # comment\n",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(InvalidPolicy):
        parse_policy(text.encode())


def test_the_message_names_the_line():
    with pytest.raises(InvalidPolicy, match=re.escape("policy line 3: unknown keyword 'x'")):
        parse_policy(b"# one\n\nx\nquorum none\n")


def test_names_are_octets_and_never_folded():
    names = (b"K", "\u212a".encode(), b"\xff", "é".encode(), "e\u0301".encode())  # a Kelvin sign
    lines = [
        b"witness " + n + b" " + KEY[w].encode() + b"\n" for n, w in zip(names, NAMES, strict=False)
    ]
    for name, witness in zip(names, NAMES, strict=False):
        data = b"".join(lines) + b"quorum " + name + b"\n"
        policy = parse_policy(data)
        assert policy.is_met_by([COSIGNERS[witness].keys[0]])
        assert not policy.is_met_by(COSIGNERS[x].keys[0] for x in NAMES if x != witness)
        assert format_policy(policy) == data


def test_a_policy_is_written_and_read_back_the_same():
    policy = parse_policy(EXAMPLE.encode())
    assert parse_policy(format_policy(policy)) == policy
    key = CosignerKey.parse(W1)
    for bad in (
        TlogPolicy(witnesses=(PolicyWitness("a b", key),)),
        TlogPolicy(witnesses=(PolicyWitness("a", key, "u v"),)),
        TlogPolicy(witnesses=(PolicyWitness("a\nquorum", key),)),
        TlogPolicy(witnesses=(PolicyWitness("", key),)),
        TlogPolicy(witnesses=(PolicyWitness("a", key),), groups=(Group("g", 2, ("a",)),)),
        TlogPolicy(quorum="a"),
    ):
        with pytest.raises(InvalidPolicy):
            format_policy(bad)


def test_a_deep_policy_is_judged_without_recursion():
    lines = [f"witness W0 {W1}"] + [f"group W{n + 1} all W{n}" for n in range(20_000)]
    policy = parse_policy("\n".join([*lines, "quorum W20000\n"]).encode())
    assert policy.is_met_by([CosignerKey.parse(W1)])
    assert not policy.is_met_by([])
    with pytest.raises(InvalidPolicy, match="bytes"):
        parse_policy(b"#" * 2**20 + b"\nquorum none\n")


WORDS = st.sampled_from(
    [
        "log",
        "witness",
        "group",
        "quorum",
        "none",
        "all",
        "any",
        "1",
        "2",
        "A",
        "B",
        W1,
        W2,
        str(LOG.verifier_keys[0]),
        "\n",
        "\t",
        "#",
    ]
)


@given(st.lists(WORDS, max_size=24).map(" ".join))
def test_any_words_are_a_policy_that_is_read_back_or_a_typed_error(text):
    try:
        policy = parse_policy(text.encode() + b"\n")
    except InvalidPolicy:
        return
    assert parse_policy(format_policy(policy)) == policy


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_typed_error(data):
    with pytest.raises(InvalidPolicy):
        parse_policy(data)
