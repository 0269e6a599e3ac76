"""Our witness over real sockets: the order of its checks, its memory, and what it catches."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_audit_trail.api.witness_app import create_witness_app
from rlhf_audit_trail.ledger.cosignature import Cosigner, find_cosignatures, open_cosigned_head
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError, MalformedBundle
from rlhf_audit_trail.ledger.proof.merkle import (
    EMPTY_ROOT,
    consistency_proof,
    leaf_hash,
    root_hash,
    verify_consistency,
)
from rlhf_audit_trail.ledger.proof.note import Note, SignatureLine, encode_base64, parse_note
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.witness import (
    Stale,
    Untrusted,
    Witness,
    WitnessStoreError,
    origin_hash,
)
from rlhf_audit_trail.ledger.witness_request import (
    AddCheckpoint,
    encode_request,
    parse_reply,
    parse_request,
    parse_size,
)

ORIGIN = "acme.example/rlhf/run42"
KEYS = LogKeys.derive(b"\x01" * 32, ORIGIN)
COSIGNER = Cosigner.derive(b"\x05" * 32, "witness.example/w1")
LEAVES = [leaf_hash(b"%d" % number) for number in range(40)]
OTHER = [*LEAVES[:5], leaf_hash(b"other"), *LEAVES[6:]]


def signed(size, leaves=LEAVES, keys=KEYS, root=None):
    head = TreeHead(keys.origin, size, root_hash(leaves[:size]) if root is None else root)
    return keys.sign(head, time_s=1)


def proof(old, new, leaves=LEAVES):
    def node(level, index):
        return root_hash(leaves[index << level : (index + 1) << level])

    return consistency_proof(old, new, node) if old else ()


def body(old, new, leaves=LEAVES, note=None, path=None):
    path = proof(old, new, leaves) if path is None else path
    return encode_request(AddCheckpoint(old, tuple(path), parse_note(note or signed(new, leaves))))


@pytest.fixture
def witness(tmp_path):
    with Witness(
        COSIGNER, KEYS.verifier_keys, tmp_path / "w.db", clock=lambda: 1_800_000_000
    ) as opened:
        yield opened


class Current:
    """Whichever witness the running test has; one server is enough for all."""

    witness = None

    def add_checkpoint(self, body):
        return self.witness.add_checkpoint(body)

    def latest(self, name):
        return self.witness.latest(name)


@pytest.fixture(scope="module")
def server(serve_long):
    current = Current()
    with httpx.Client(base_url=serve_long(create_witness_app(current)), timeout=60) as opened:
        yield current, opened


@pytest.fixture
def client(witness, server):
    server[0].witness = witness
    return server[1]


def post(client, content):
    return client.post("/add-checkpoint", content=content)


def test_a_log_that_grows_is_cosigned_by_both_keys(client):
    sizes = (0, 0, 1, 1, 7, 8, 31, 40)
    for old, new in itertools.pairwise((0, *sizes)):
        answer = post(client, body(old, new))
        assert answer.status_code == 200, answer.text
        lines = parse_reply(answer.content)
        head = open_cosigned_head(signed(new), ()).head
        assert len(lines) == 2
        found = find_cosignatures(Note(head.text, lines), head, COSIGNER.keys)
        assert found == dict.fromkeys(COSIGNER.keys, 1_800_000_000)


def test_the_head_held_is_shown_to_monitors_with_the_lines_of_both(client):
    address = f"/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint"
    assert client.get(address).status_code == 404
    stranger = SignatureLine("stranger.example", b"1234", b"x" * 64)
    note = parse_note(signed(7))
    post(client, body(0, 7, note=str(Note(note.text, (stranger, *note.signatures)))))
    answer = client.get(address)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    shown = open_cosigned_head(answer.text, KEYS.verifier_keys)
    assert shown.signed_by == KEYS.verifier_keys
    assert len(find_cosignatures(shown.note, shown.head, COSIGNER.keys)) == 2
    assert len(shown.note.signatures) == 4
    for other in (
        "/x/checkpoint",
        f"/{origin_hash('other')}/checkpoint",
        "/checkpoint",
        address + "/",
    ):
        assert client.get(other).status_code == 404
    assert client.get("/add-checkpoint").status_code == 405


HELD = 8
OTHER_LOG = LogKeys.derive(b"\x01" * 32, "acme.example/rlhf/other")
STRANGER = LogKeys.derive(b"\x09" * 32, ORIGIN)


def stripped(note, *keep):
    parsed = parse_note(note)
    return str(Note(parsed.text, tuple(parsed.signatures[at] for at in keep)))


def spoilt(note):
    parsed = parse_note(note)
    bad = SignatureLine(ORIGIN, parsed.signatures[0].key_id, b"\x00" * 64)
    return str(Note(parsed.text, (*parsed.signatures[1:], bad)))


# What is wrong at several places is answered by the first check that finds it.
REFUSED = {
    "not a request": (b"hello", 400),
    "nothing": (b"", 400),
    "old in another spelling": (body(8, 9).replace(b"old 8", b"old 08"), 400),
    "old missing": (body(8, 9).removeprefix(b"old 8\n"), 400),
    "old too large": (body(8, 9).replace(b"old 8", b"old 9223372036854775808"), 400),
    "64 proof lines": (body(8, 9, path=[bytes(32)] * 64), 400),
    "proof line short": (body(8, 9, path=[bytes(31)]), 400),
    "proof line not canonical": (body(8, 9).replace(b"=\n", b"\n", 1), 400),
    "no empty line": (body(8, 9).replace(b"\n\n", b"\n"), 400),
    "not UTF-8": (body(8, 9) + b"\xff\n", 400),
    "head of two lines": (body(8, 9, note=str(Note("a\n1\n", parse_note(signed(9)).signatures))), 400),
    "unknown origin": (body(8, 9, note=signed(9, keys=OTHER_LOG)), 404),
    "unknown origin before bad proof": (body(9, 8, note=signed(8, keys=OTHER_LOG), path=[]), 404),
    "signed by a stranger": (body(8, 9, note=signed(9, keys=STRANGER)), 403),
    "a known key's line is bad": (body(8, 9, note=spoilt(signed(9))), 403),
    "unsigned before old above size": (body(9, 8, note=signed(8, keys=STRANGER), path=[]), 403),
    "old above size": (body(10, 9, path=[]), 400),
    "old above size before stale": (body(40, 9, path=[]), 400),
    "stale": (body(7, 9), 409),
    "too new": (body(9, 10), 409),
    "from zero": (body(0, 9), 409),
    "stale before a bad proof": (body(7, 9, path=[bytes(32)] * 3), 409),
    "stale before another root": (body(7, 8, OTHER), 409),
    "same size, another root": (body(8, 8, OTHER), 422),
    "same size, some proof": (body(8, 8, path=[bytes(32)]), 422),
    "no proof": (body(8, 9, path=[]), 422),
    "bad proof": (body(8, 9, path=[bytes(32)] * len(proof(8, 9))), 422),
    "proof too long": (body(8, 9, path=[*proof(8, 9), bytes(32)]), 422),
    "another history": (body(8, 20, OTHER), 422),
}  # fmt: skip


@pytest.mark.parametrize(("content", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_the_first_check_that_fails_gives_the_status(client, content, status):
    assert post(client, body(0, HELD)).status_code == 200
    answer = post(client, content)
    assert answer.status_code == status, answer.text
    if status == 409:
        assert answer.headers["content-type"] == "text/x.tlog.size"
        assert answer.content == b"8\n"
        assert parse_size(answer.content) == 8
    assert post(client, body(HELD, 9)).status_code == 200  # nothing was changed by it


@pytest.mark.parametrize("held", [None, 0])
def test_an_empty_tree_has_one_root_and_needs_no_proof(client, held):
    if held is not None:
        assert post(client, body(0, 0)).status_code == 200
    assert post(client, body(0, 0, note=signed(0, root=bytes(32)))).status_code == 422
    assert post(client, body(0, 3, path=[bytes(32)])).status_code == 422
    assert post(client, body(0, 0, note=signed(0, root=EMPTY_ROOT))).status_code == 200
    assert post(client, body(0, 3)).status_code == 200


def test_one_of_the_logs_keys_is_enough(client):
    assert post(client, body(0, 3, note=stripped(signed(3), 0))).status_code == 200
    assert post(client, body(3, 4, note=stripped(signed(4), 1))).status_code == 200


def test_a_body_above_the_limit_is_cut_off(client):
    assert post(client, b"old 0\n" + b"x" * 200_000).status_code == 413
    assert post(client, (b"x" * 65_536 for _ in range(4))).status_code == 413
    assert post(client, body(0, 1)).status_code == 200


def test_equivocation_is_kept_as_evidence_that_convicts(witness, client):
    post(client, body(0, 8))
    assert post(client, body(8, 8, OTHER)).status_code == 422
    assert post(client, body(3, 8, OTHER)).status_code == 409  # the same again, seen all the same
    (found,) = witness.evidence()
    assert (found.origin, found.kind, found.size) == (ORIGIN, "fork", 8)
    held, offered = (
        open_cosigned_head(note, KEYS.verifier_keys) for note in (found.held, found.offered)
    )
    assert held.signed_by == offered.signed_by == KEYS.verifier_keys
    assert (held.head.origin, held.head.size) == (offered.head.origin, offered.head.size)
    assert held.head.root != offered.head.root


def test_what_was_not_proven_is_kept_once_and_bounded(witness, client, monkeypatch):
    monkeypatch.setattr("rlhf_audit_trail.ledger.witness.EVIDENCE_ROWS_MAX", 3)
    post(client, body(0, 8))
    for new in (20, 20, 21, 22, 23, 24):
        assert post(client, body(8, new, OTHER)).status_code == 422
    assert [(x.kind, x.size) for x in witness.evidence()] == [("unproven", x) for x in (20, 21, 22)]
    post(client, body(8, 8, OTHER))
    assert "fork" in {x.kind for x in witness.evidence()}


def test_extension_lines_of_other_logs_are_cosigned_too(client):
    head = TreeHead(ORIGIN, 3, root_hash(LEAVES[:3]))
    text = head.text + "an extension\n"
    line = SignatureLine(ORIGIN, KEYS.verifier_keys[0].key_id, KEYS._ed25519.sign(text.encode()))
    answer = post(client, body(0, 3, note=str(Note(text, (line,)))))
    assert answer.status_code == 200
    cosigned = open_cosigned_head(str(Note(text, parse_reply(answer.content))), ())
    assert len(find_cosignatures(cosigned.note, cosigned.head, COSIGNER.keys)) == 2


def test_a_clock_that_stands_at_zero_gives_no_time_zero(tmp_path):
    with Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "w.db", clock=lambda: 0) as witness:
        lines = parse_reply(witness.add_checkpoint(body(0, 1)).encode())
        assert all(line.blob[:8] == (1).to_bytes(8, "big") for line in lines)


def test_many_at_once_on_one_database_see_one_history(tmp_path):
    """Two witnesses on one database, eight threads, two histories: one of them is cosigned."""
    database, cosigned = tmp_path / "w.db", []
    witnesses = [Witness(COSIGNER, KEYS.verifier_keys, database) for _ in range(2)]
    assert witnesses[0].add_checkpoint(body(0, 5))
    requests = {(new, x): (new, (LEAVES, OTHER)[x]) for new in range(6, 40) for x in (0, 1)}
    notes = {name: signed(*what) for name, what in requests.items()}

    def grow(witness, which):
        old = 5
        for new in range(6, 40):
            leaves = requests[new, which][1]
            if old > new:
                continue
            try:
                content = body(old, new, leaves, note=notes[new, which])
                witness.add_checkpoint(content)
                cosigned.append((new, root_hash(leaves[:new])))
                old = new
            except Stale as error:
                old = error.size
            except AuditTrailError:
                return

    threads = [threading.Thread(target=grow, args=(witnesses[n % 2], n // 4)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cosigned
    histories = [{(n, root_hash(x[:n])) for n in range(6, 40)} for x in (LEAVES, OTHER)]
    assert any(set(cosigned) <= history for history in histories)
    for witness in witnesses:
        witness.close()


def test_a_larger_head_that_came_in_between_is_not_overwritten(tmp_path):
    """The clock is read between check and write: there another process is faster."""
    with Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "w.db") as faster:
        faster.add_checkpoint(body(0, 5))

        def clock():
            if faster.latest(origin_hash(ORIGIN)).split("\n")[1] == "5":
                faster.add_checkpoint(body(5, 9))
            return 1_800_000_000

        with Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "w.db", clock=clock) as slower:
            with pytest.raises(Stale) as stale:
                slower.add_checkpoint(body(5, 7))
            assert stale.value.size == 9
            assert slower.latest(origin_hash(ORIGIN)).startswith(f"{ORIGIN}\n9\n")


def test_every_answer_is_durable(witness):
    for name, value in (("synchronous", 2), ("journal_mode", "wal")):
        assert witness._connection.execute(f"PRAGMA {name}").fetchone() == (value,)


def test_what_was_cosigned_is_remembered_after_a_restart(tmp_path):
    for old, new in itertools.pairwise((0, 3, 7, 8)):
        with Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "w.db") as witness:
            if old:
                with pytest.raises(Stale) as stale:
                    witness.add_checkpoint(body(0, new))
                assert stale.value.size == old
            witness.add_checkpoint(body(old, new))
    with Witness(COSIGNER, (), tmp_path / "w.db") as witness:  # the log is followed no more
        assert witness.latest(origin_hash(ORIGIN)) is None


def test_a_damaged_store_is_refused_with_a_typed_error(tmp_path, client, server):
    (tmp_path / "bad.db").write_bytes(b"not a database" * 100)
    with pytest.raises(WitnessStoreError):
        Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "bad.db")
    with Witness(COSIGNER, KEYS.verifier_keys, tmp_path / "w.db") as witness:
        witness._connection.execute("DELETE FROM seen")
        server[0].witness = witness
        assert post(client, body(0, 1)).status_code == 503


def start(database, where):
    script = Path(__file__).parent / "serve_witness.py"
    keys = " ".join(map(str, KEYS.verifier_keys))
    child = subprocess.Popen(
        [sys.executable, script, database, keys, where], stdout=subprocess.PIPE, text=True
    )
    return child, httpx.Client(
        base_url=f"http://127.0.0.1:{int(child.stdout.readline())}", timeout=60
    )


def stop(child, client):
    client.close()
    child.kill()
    child.communicate()


@pytest.mark.slow
def test_killed_around_its_one_write_it_never_cosigns_two_histories(tmp_path):
    database = tmp_path / "w.db"
    child, client = start(database, "never")
    assert post(client, body(0, 8)).status_code == 200
    stop(child, client)
    for where, held in (("before", b"8\n"), ("after", b"20\n")):
        child, client = start(database, where)
        with pytest.raises(httpx.TransportError):
            post(client, body(8, 20))
        assert child.wait() == -9
        stop(child, client)
        child, client = start(database, "never")
        answer = post(client, body(0, 21))
        assert (answer.status_code, answer.content) == (409, held)
        stop(child, client)
    child, client = start(database, "never")
    assert post(client, body(8, 20, OTHER)).status_code == 409
    assert post(client, body(20, 20, OTHER)).status_code == 422
    assert post(client, body(20, 20)).status_code == 200  # the reply that was lost, again
    stop(child, client)


def test_a_request_is_written_as_the_specification_shows_it():
    note = signed(9)
    lines = ["old 8", *map(encode_base64, proof(8, 9)), "", note]
    assert body(8, 9, note=note) == "\n".join(lines).encode()
    assert parse_request(body(8, 9, note=note)) == AddCheckpoint(8, proof(8, 9), parse_note(note))
    verify_consistency(8, root_hash(LEAVES[:8]), 9, root_hash(LEAVES[:9]), proof(8, 9))


LINES = st.sampled_from(
    [b"old 0", b"old 8", b"A" * 43 + b"=", b"", *signed(9).encode().split(b"\n"), b"\xff", b"x"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=400), st.lists(LINES, max_size=12).map(b"\n".join)))
def test_any_request_is_cosigned_or_refused_with_a_typed_error(witness, data):
    try:
        witness.add_checkpoint(data)
    except (MalformedBundle, Untrusted, Stale):
        assert witness.evidence() == []


@given(st.binary(max_size=400))
def test_any_reply_is_refused_with_a_typed_error(data):
    for read in (parse_reply, parse_size):
        try:
            assert read(data) is not None
        except MalformedBundle:
            continue
        assert read is parse_size
