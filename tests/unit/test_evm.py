"""Keccak, RLP and tries of the kernel, judged by the libraries that Ethereum clients use."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import rlp as foreign_rlp
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st
from trie import HexaryTrie

from rlhf_audit_trail.ledger.chain.evidence.trie import Trie, cut_down
from rlhf_audit_trail.ledger.proof.errors import Inconsistent, MalformedBundle, ProofError
from rlhf_audit_trail.ledger.proof.evm import evidence as evm_evidence
from rlhf_audit_trail.ledger.proof.evm.keccak import keccak256
from rlhf_audit_trail.ledger.proof.evm.rlp import decode, encode, read_number, write_number
from rlhf_audit_trail.ledger.proof.evm.trie import look_up

ITEMS = st.recursive(
    st.binary(max_size=70), lambda inner: st.lists(inner, max_size=20), max_leaves=60
)
KEYS = st.binary(min_size=32, max_size=32)
VALUES = st.binary(min_size=1, max_size=120)


def test_known_hashes():
    """Of the Keccak team's ShortMsgKAT_256 and, known from everywhere, of nothing."""
    assert keccak256(b"").hex() == (
        "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    )
    assert keccak256(b"\xcc").hex() == (
        "eead6dbfc7340a56caedc044696a168870549a6a7f6f56961e84a54bd9970b8a"
    )
    assert keccak256(b"") != hashlib.sha3_256(b"").digest()


def test_every_length_around_the_blocks():
    for length in range(420):
        data = bytes(n * 7 % 256 for n in range(length))
        assert keccak256(data) == keccak(data), length


@given(st.binary(max_size=2000))
def test_any_bytes_hash_as_elsewhere(data):
    assert keccak256(data) == keccak(data)


@given(ITEMS)
def test_rlp_is_written_and_read_as_elsewhere(item):
    data = foreign_rlp.encode(item)
    assert encode(item) == data
    assert decode(data) == item


@pytest.mark.parametrize("length", [0, 1, 54, 55, 56, 255, 256, 65_535, 65_536])
def test_rlp_around_the_lengths_where_its_form_changes(length):
    for item in (b"\x80" * length, [b""] * length):
        data = foreign_rlp.encode(item)
        assert encode(item) == data
        assert decode(data) == item


@given(st.binary(max_size=60))
def test_what_rlp_reads_it_writes_back_and_so_does_the_other_library(data):
    try:
        item = decode(data)
    except MalformedBundle:
        with pytest.raises(foreign_rlp.DecodingError):
            foreign_rlp.decode(data, strict=True)
    else:
        assert encode(item) == data
        assert foreign_rlp.decode(data, strict=True) == item


def test_every_rlp_of_two_bytes_agrees():
    """And of three that begin a list or a long form; deep nesting is refused by us alone."""
    samples = itertools.chain(
        itertools.product(range(256), range(256)),
        itertools.product((0x82, 0xB8, 0xC2, 0xF8), range(256), (0, 1, 0x7F, 0x80, 0xC0, 0xFF)),
    )
    read = 0
    for data in map(bytes, samples):
        try:
            item = decode(data)
        except MalformedBundle:
            with pytest.raises(foreign_rlp.DecodingError):
                foreign_rlp.decode(data, strict=True)
        else:
            read += 1
            assert foreign_rlp.decode(data, strict=True) == item
    assert read > 500


def test_rlp_nested_to_the_limit_and_beyond():
    item: list = []
    for _ in range(71):
        item = [item]
    assert decode(encode(item)) == item
    with pytest.raises(MalformedBundle, match="nested too deep"):
        decode(encode([item]))
    with pytest.raises(MalformedBundle):
        decode(b"\xf9\xff\xfd" * 1_000)


@pytest.mark.parametrize("item", [b"\0", b"\0\1", bytes(32), b"\1" * 33, [], [b"\1"]])
def test_what_is_no_number(item):
    with pytest.raises(MalformedBundle):
        read_number(item, size_bytes=32)
    assert read_number(write_number(2**256 - 1), size_bytes=32) == 2**256 - 1
    assert read_number(b"", size_bytes=32) == 0


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=40), st.data())
def test_tries_of_another_library(items, data):
    """It builds the trie and gives the nodes; ours cuts them down, and the kernel looks up."""
    theirs = HexaryTrie({}, prune=False)
    for key, value in items.items():
        theirs[key] = value
    assert Trie(items).root == theirs.root_hash
    chosen = data.draw(
        st.lists(st.sampled_from(sorted(items)), min_size=1, max_size=3, unique=True)
    )
    nodes = list(dict.fromkeys(foreign_rlp.encode(x) for k in chosen for x in theirs.get_proof(k)))
    proof = cut_down(nodes, chosen)
    assert look_up(theirs.root_hash, proof, chosen) == [items[key] for key in chosen]
    assert Trie(items).prove(chosen) == proof
    absent = data.draw(KEYS.filter(lambda key: key not in items))
    path = cut_down([foreign_rlp.encode(x) for x in theirs.get_proof(absent)], [absent])
    with pytest.raises(Inconsistent, match="holds nothing there"):
        look_up(theirs.root_hash, path, [absent])


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=3), st.binary(min_size=1, max_size=4), min_size=2
    )
)
def test_small_nodes_that_stand_inside_their_parents(items):
    """Short keys and values; keys that begin others get the value of a branch."""
    theirs = HexaryTrie({}, prune=False)
    for key, value in items.items():
        theirs[key] = value
    for key, value in items.items():
        nodes = [foreign_rlp.encode(node) for node in theirs.get_proof(key)]
        assert look_up(theirs.root_hash, cut_down(nodes, [key]), [key]) == [value]


def test_all_receipt_indices_of_a_block():
    items = {encode(write_number(n)): b"receipt %d" % n for n in range(300)}
    theirs = HexaryTrie({}, prune=False)
    for key, value in items.items():
        theirs[key] = value
    ours = Trie(items)
    assert ours.root == theirs.root_hash
    for key, value in items.items():
        assert look_up(ours.root, ours.prove([key]), [key]) == [value]


def test_an_empty_trie_holds_nothing():
    with pytest.raises(Inconsistent, match="holds nothing there"):
        look_up(keccak256(b"\x80"), b"", [bytes(32)])
    with pytest.raises(Inconsistent, match="do not lead to the root"):
        look_up(bytes(32), b"", [bytes(32)])


@pytest.fixture(scope="module")
def grown():
    items = {keccak256(bytes([n])): encode(write_number(1 << n)) for n in range(100)}
    return Trie(items), items


def test_no_changed_byte_of_a_proof_shows_another_value(grown):
    """Each byte of a cut-down trie, changed in each of two ways: refused, with a typed error."""
    trie, items = grown
    key = min(items)
    data = encode(trie.prove([key]))
    for at, change in itertools.product(range(len(data)), (0x01, 0x80)):
        spoilt = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
        with pytest.raises(ProofError):
            look_up(trie.root, decode(spoilt), [key])


def test_a_proof_is_of_its_keys_and_of_no_others(grown):
    trie, items = grown
    one, two, three = sorted(items)[:3]
    assert look_up(trie.root, trie.prove([two, one]), [one, two]) == [items[one], items[two]]
    with pytest.raises(MalformedBundle, match="a node that no key needs"):
        look_up(trie.root, trie.prove([one, three]), [one])
    with pytest.raises(MalformedBundle, match="a node is missing"):
        look_up(trie.root, trie.prove([one]), [one, three])
    with pytest.raises(MalformedBundle, match=r"missing|no key needs"):
        look_up(trie.root, trie.prove([one]), [three])


def test_a_small_node_named_by_its_hash_is_refused():
    """Below 32 bytes a node stands inside; hashed all the same, the root is another one."""
    leaf = [b"\x31\x23\x45", b"v"]
    branch = [keccak256(encode(leaf)), *[b""] * 15, b"w"]
    with pytest.raises(MalformedBundle, match="a node is missing"):
        look_up(keccak256(encode(branch)), branch, [bytes.fromhex("0123450a")])
    written_out = [leaf, *branch[1:]]
    with pytest.raises(Inconsistent, match="do not lead to the root"):
        look_up(keccak256(encode(branch)), written_out, [bytes.fromhex("012345")])


def test_a_leaf_never_shows_a_list(grown):
    trie, _ = grown
    leaf = [b"\x20" + bytes(32), [b"a", b"b"]]
    with pytest.raises(MalformedBundle, match="no bytes"):
        look_up(trie.root, leaf, [bytes(32)])


def test_roots_with_leading_zeros_are_padded_on_the_left():
    """Storage leaves out leading zeros; a root may begin with several."""
    from chain_world import CONTRACT, PUBLISHER, World

    log_id = bytes(range(32))
    for zeros in (1, 2, 31):
        root = bytes(zeros) + b"\7" * (32 - zeros)
        found = World({log_id: (9, root)}).evidence(log_id)
        trust = evm_evidence.ChainTrust(
            31337, CONTRACT, PUBLISHER, log_id, hashlib.sha256(b"code").digest()
        )
        shown = evm_evidence.verify_evidence(evm_evidence.ChainEvidence.parse(bytes(found)), trust)
        assert (shown.tree_size, shown.root, shown.trusted) == (9, root, None)
        assert shown.time_s == 1_794_700_900


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_evidence(data):
    with pytest.raises(MalformedBundle):
        evm_evidence.ChainEvidence.parse(data)


def test_evidence_has_a_limit():
    with pytest.raises(MalformedBundle, match="131,072"):
        evm_evidence.ChainEvidence.parse(bytes(131_073))
