"""Asking real witnesses over real sockets, honest ones and every kind of liar."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import struct
import threading
import time
from contextlib import closing

import alembic.command
import pytest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf_audit_trail.api.witness_app import create_witness_app
from rlhf_audit_trail.ledger.cosignature import Cosigner, format_lines, open_cosigned_head
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.note import SignatureLine
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.reading import Forked, NotPublished, RolledBack
from rlhf_audit_trail.ledger.store import database
from rlhf_audit_trail.ledger.store.models import ledger_metadata
from rlhf_audit_trail.ledger.tlog_policy import (
    Group,
    PolicyLog,
    PolicyWitness,
    TlogPolicy,
    check_policy,
)
from rlhf_audit_trail.ledger.web import BadAddress, Unreachable
from rlhf_audit_trail.ledger.witness import Witness, origin_hash
from rlhf_audit_trail.ledger.witness_client import (
    LyingWitness,
    WitnessRefused,
    collect,
    compare,
)
from rlhf_audit_trail.ledger.witness_request import parse_request

COSIGNERS = [Cosigner.derive(bytes([n]) * 32, f"witness.example/w{n}") for n in range(2)]


@pytest.fixture
def log(ledger, annotation):
    opened = ledger.open_run("run42")
    opened.record_many(annotation(number) for number in range(300))
    opened.publish()
    return opened


@pytest.fixture
def witnesses(tmp_path, log):
    opened = [
        Witness(cosigner, log.verifier_keys, tmp_path / f"{n}.db")
        for n, cosigner in enumerate(COSIGNERS)
    ]
    yield opened
    for item in opened:
        item.close()


def policy_of(log, *urls, quorum="both"):
    """Two witnesses with an Ed25519 key each, both wanted."""
    names = [f"w{n}" for n in range(len(urls))]
    listed = [
        PolicyWitness(name, cosigner.keys[0], url)
        for name, cosigner, url in zip(names, COSIGNERS, urls, strict=False)
    ]
    groups = (Group("both", len(names), tuple(names)),)
    logs = tuple(PolicyLog(key) for key in log.verifier_keys)
    return TlogPolicy(logs, tuple(listed), groups, quorum)


def stored(ledger):
    with ledger.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM cosignature").scalar()


def only(outcomes):
    (outcome,) = outcomes
    return outcome


def test_two_witnesses_make_a_quorum_that_strangers_can_check(
    ledger, log, witnesses, serve, tmp_path
):
    policy = policy_of(log, *(serve(create_witness_app(item)) for item in witnesses))
    found = collect(ledger.engine, log, policy)
    assert [x.state for x in found.outcomes] == ["cosigned", "cosigned"]
    assert (found.is_quorum, found.head.size, stored(ledger)) == (True, 300, 2)
    checked = check_policy(policy, log.served_note(), pinned=log.verifier_keys)
    assert len(checked.cosigned_at_s) == 2
    assert (
        log.published().note.signatures
        == open_cosigned_head(log.served_note(), ()).note.signatures[:2]
    )
    export_log(log, tmp_path / "public")
    assert check_policy(policy, (tmp_path / "public" / "checkpoint").read_text("utf-8"))


def test_a_round_goes_on_where_the_last_one_stopped(ledger, log, witnesses, serve, annotation):
    first = serve(create_witness_app(witnesses[0]))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found = collect(ledger.engine, log, policy_of(log, first, nobody), timeout_s=5)
    assert [x.state for x in found.outcomes] == ["cosigned", "pending"]
    assert isinstance(found.outcomes[1].finding, Unreachable)
    assert (found.is_quorum, stored(ledger)) == (False, 1)
    second = serve(create_witness_app(witnesses[1]))
    assert collect(ledger.engine, log, policy_of(log, nobody, second), timeout_s=5).is_quorum
    assert collect(ledger.engine, log, policy_of(log, nobody, nobody), timeout_s=5).is_quorum
    log.record(annotation(0))
    log.publish()
    found = collect(ledger.engine, log, policy_of(log, first, second))
    assert (found.head.size, found.is_quorum, stored(ledger)) == (301, True, 4)


@pytest.mark.parametrize("remembered", [0, 200])
def test_a_witness_that_holds_another_size_is_asked_again_from_there(
    ledger, log, witnesses, serve, annotation, remembered
):
    """What we remember of it is lost or old: the answer 409 tells, and the proof begins there."""
    url = serve(create_witness_app(witnesses[0]))
    collect(ledger.engine, log, policy_of(log, url))
    with ledger.engine.begin() as connection:
        if remembered:
            connection.exec_driver_sql("UPDATE cosignature SET tree_size = 200")
        else:
            connection.exec_driver_sql("DELETE FROM cosignature")
    log.record(annotation(0))
    log.publish()
    assert collect(ledger.engine, log, policy_of(log, url)).is_quorum


def test_both_keys_of_one_witness_are_asked_for_at_once(ledger, log, witnesses, serve):
    bodies = []

    class Counting:
        keys = witnesses[0].keys

        def add_checkpoint(self, body):
            bodies.append(body)
            return witnesses[0].add_checkpoint(body)

    url = serve(create_witness_app(Counting()))
    listed = [PolicyWitness(str(n), key, url) for n, key in enumerate(COSIGNERS[0].keys)]
    policy = TlogPolicy((), tuple(listed), (Group("all", 2, ("0", "1")),), "all")
    assert collect(ledger.engine, log, policy).is_quorum
    (body,) = bodies
    sent = parse_request(body)
    assert (sent.old_size, sent.note) == (0, log.published().note)  # the log's own lines only
    assert len(body) < 16 * 1024


def old_copy(directory, ledger, log, annotation, policy):
    """Return a ledger set back to 300 entries, after 301 were cosigned."""
    shutil.copy(directory / "ledger.db", directory / "old.db")
    log.record(annotation(300))
    log.publish()
    assert collect(ledger.engine, log, policy).is_quorum
    ledger.close()
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (directory / name).unlink(missing_ok=True)
    shutil.copy(directory / "old.db", directory / "ledger.db")
    return Ledger.open(directory)


@pytest.fixture
def rolled_back(directory, ledger, log, witnesses, serve, annotation):
    policy = policy_of(log, serve(create_witness_app(witnesses[0])))
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert collect(ledger.engine, log, policy).is_quorum
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with old_copy(directory, ledger, log, annotation, policy) as restored:
        yield restored, restored.find("run42"), policy


def test_a_witness_sounds_the_alarm_over_an_old_copy(rolled_back):
    ledger, log, policy = rolled_back
    assert log.size == 300
    outcome = only(compare(log, policy))
    assert (outcome.state, type(outcome.finding)) == ("alarm", RolledBack)
    evidence = open_cosigned_head(outcome.evidence, log.verifier_keys)
    assert (evidence.head.size, evidence.signed_by) == (301, log.verifier_keys)
    with ledger.engine.begin() as connection:  # so that it is asked again about this head
        connection.exec_driver_sql("DELETE FROM cosignature")
    found = collect(ledger.engine, log, policy)
    assert (found.is_quorum, type(only(found.alarms).finding)) == (False, RolledBack)


@pytest.mark.parametrize("count", [1, 2])
def test_a_witness_sounds_the_alarm_over_another_history(rolled_back, annotation, count):
    ledger, log, policy = rolled_back
    log.record_many(annotation(1000 + number) for number in range(count))
    log.publish()
    found = collect(ledger.engine, log, policy)
    alarm = only(found.alarms)
    assert (found.is_quorum, type(alarm.finding)) == (False, Forked)
    assert open_cosigned_head(alarm.evidence, log.verifier_keys).head.size == 301
    assert type(only(compare(log, policy)).finding) is Forked


def test_a_witness_that_agrees_gives_no_alarm(ledger, log, witnesses, serve, annotation):
    url = serve(create_witness_app(witnesses[0]))
    policy = policy_of(log, url)
    assert type(only(compare(log, policy)).finding) is WitnessRefused  # it never saw this log
    collect(ledger.engine, log, policy)
    log.record(annotation(0)).result()
    assert only(compare(log, policy)).state == "cosigned"


# --- liars --------------------------------------------------------------------------------


def cosigned(log, *, size=300, time_s=None, by=0, key=0, root=None):
    head = TreeHead(log.origin, size, log.root_at(min(size, 300)) if root is None else root)
    time_s = int(time.time()) if time_s is None else time_s
    return format_lines([COSIGNERS[by].cosign(head, time_s=time_s)[key]])


def spoil(line):
    return line[:-8] + ("A" if line[-8] != "A" else "B") + line[-7:]


def own_note(log, size, root=bytes(32)):
    """A tree head in this log's name, signed by keys that are not its own."""
    return LogKeys.derive(b"\x01" * 32, log.origin).sign(TreeHead(log.origin, size, root), time_s=1)


LIES = {
    "nothing": lambda _: Response(b""),
    "garbage": lambda _: Response(b"\xff\xfe\n"),
    "text": lambda _: Response("well done\n"),
    "another witness's line": lambda log: Response(cosigned(log, by=1)),
    "only its other key": lambda log: Response(cosigned(log, key=1)),
    "another size": lambda log: Response(cosigned(log, size=299)),
    "another root": lambda log: Response(cosigned(log, root=bytes(32))),
    "a bit": lambda log: Response(spoil(cosigned(log))),
    "one good, one bad": lambda log: Response(cosigned(log) + spoil(cosigned(log))),
    "time 0": lambda log: Response(cosigned(log, time_s=0)),
    "time to come": lambda log: Response(cosigned(log, time_s=int(time.time()) + 10_000)),
    "time past all": lambda log: Response(cosigned(log, time_s=2**63)),
    "an empty line": lambda log: Response("\n" + cosigned(log)),
    "a note": lambda log: Response(log.served_note() + cosigned(log)),
    "101 lines": lambda log: Response(cosigned(log) * 101),
    "no end": lambda _: StreamingResponse(iter(lambda: b"x" * 65_536, b"")),
    "redirect": lambda _: RedirectResponse("/elsewhere"),
    "status 500": lambda _: Response(status_code=500),
    "status 204": lambda _: Response(status_code=204),
}
REFUSALS = {
    "fork claimed": lambda _: Response(status_code=422),
    "conflict without size": lambda _: Response("conflict", status_code=409),
    "conflict over our own size": lambda _: Response("0\n", status_code=409),
    "conflict over a huge size": lambda _: Response("9223372036854775807\n", status_code=409),
    "conflict over size 07": lambda _: Response("07\n", status_code=409),
}


SHOWN = {
    "nothing": lambda _: Response(status_code=404),
    "garbage": lambda _: Response(b"\xff\n\n"),
    "a stranger's head": lambda log: Response(own_note(log, 999)),
    "an unsigned head": lambda log: Response(
        TreeHead(log.origin, 999, bytes(32)).text + "\n— x AAAAAAAA\n"
    ),
}
CASES = [(lie, "nothing") for lie in LIES] + [(lie, shown) for lie in REFUSALS for shown in SHOWN]


def test_a_lie_is_a_finding_and_never_a_cosignature_nor_an_alarm(ledger, log, serve):
    said = {}

    async def add(_):
        return (LIES | REFUSALS)[said["lie"]](log)

    async def show(_):
        return SHOWN[said["shown"]](log)

    app = Starlette(routes=[
        Route("/add-checkpoint", add, methods=["POST"]),
        Route(f"/{origin_hash(log.origin)}/checkpoint", show),
    ])  # fmt: skip
    policy, believed = policy_of(log, serve(app)), []
    for lie, shown in CASES:
        said |= {"lie": lie, "shown": shown}
        found = collect(ledger.engine, log, policy, timeout_s=20)
        outcome = only(found.outcomes)
        refused = isinstance(outcome.finding, LyingWitness | WitnessRefused | Unreachable)
        if (outcome.state, found.is_quorum, stored(ledger), refused) != ("pending", False, 0, True):
            believed.append((lie, shown, outcome))
    assert believed == []


def test_a_witness_that_always_names_another_size_is_asked_three_times(ledger, log, serve):
    sizes = iter(range(1, 100))

    async def add(_):
        return Response(f"{next(sizes)}\n", status_code=409)

    app = Starlette(routes=[Route("/add-checkpoint", add, methods=["POST"])])
    found = collect(ledger.engine, log, policy_of(log, serve(app)))
    assert isinstance(only(found.outcomes).finding, WitnessRefused)
    assert next(sizes) == 4


def drip(listener, piece, stop):
    """Answer every connection with one byte now and then, for ever."""
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while not stop.wait(0.05):
                try:
                    connection.sendall(piece)
                except OSError:
                    break


@pytest.mark.parametrize("piece", [b"", b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nx"])
def test_a_witness_that_stalls_holds_up_neither_the_round_nor_the_appender(
    ledger, log, witnesses, serve, annotation, piece
):
    good, stop = serve(create_witness_app(witnesses[0])), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        slow = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=drip, args=(listener, piece, stop), daemon=True).start()
        rounds = []
        policy = policy_of(log, good, slow)
        asking = threading.Thread(
            target=lambda: rounds.append(collect(ledger.engine, log, policy, timeout_s=2))
        )
        asking.start()
        assert log.record(annotation(0)).result(30) == 300
        assert log.publish().head.size == 301
        asking.join(60)
        stop.set()
    assert [x.state for x in only(rounds).outcomes] == ["cosigned", "pending"]
    assert isinstance(only(rounds).outcomes[1].finding, Unreachable | LyingWitness)


def test_what_cannot_be_asked_is_said(ledger, log):
    found = collect(ledger.engine, log, policy_of(log, ""))
    assert "no address" in only(found.outcomes).finding.message
    for url in ("ftp://x", "http://", "http://x:99999/", "http://ä/", "x", "http://x/ y"):
        found = collect(ledger.engine, log, policy_of(log, url))
        assert isinstance(only(found.outcomes).finding, BadAddress), url
    with pytest.raises(NotPublished):
        collect(ledger.engine, ledger.open_run("empty"), policy_of(log, ""))


def test_without_witnesses_there_is_nothing_to_ask(ledger, log):
    assert collect(ledger.engine, log, TlogPolicy()).is_quorum
    assert compare(log, TlogPolicy()) == ()


def test_a_line_is_kept_as_the_witness_made_it(ledger, log, witnesses, serve):
    collect(ledger.engine, log, policy_of(log, serve(create_witness_app(witnesses[0]))))
    line = open_cosigned_head(log.served_note(), ()).note.signatures[2]
    assert isinstance(line, SignatureLine)
    with ledger.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT * FROM cosignature").one()
    assert (row.witness, bytes.fromhex(row.key_id), row.blob) == (line.name, line.key_id, line.blob)
    assert struct.unpack(">Q", row.blob[:8]) == (row.cosigned_at_s,)


@pytest.mark.parametrize(
    "damage",
    ["blob = flip(blob)", "vkey = flip(vkey)", "witness = flip(witness)", "key_id = flip(key_id)",
     "cosigned_at_s = cosigned_at_s + 1", "tree_size = 299", "blob = x''", "vkey = x'ff'",
     "log_number = 77"],
)  # fmt: skip
def test_fsck_verifies_cosignatures_again(
    directory, ledger, log, witnesses, serve, examine, damage
):
    urls = [serve(create_witness_app(item)) for item in witnesses]
    assert collect(ledger.engine, log, policy_of(log, *urls)).is_quorum
    ledger.registry.publish()
    ledger.close()
    assert examine(directory)[0] == set()
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        connection.create_function("flip", 1, flip)
        statement = f"UPDATE cosignature SET {damage} WHERE witness LIKE '%w1'"  # noqa: S608 - written above
        done = connection.execute(statement)
        assert done.rowcount == 1
    (found,) = examine(directory)[0]
    assert (
        found[1:] == ("log", "table cosignature") if "77" in damage else found[1] == "cosignature"
    )


@pytest.mark.usefixtures("log")
def test_a_ledger_from_before_witnesses_is_upgraded(directory, ledger):
    config = database._config("ledger_versions")
    with database.writing(ledger.engine, is_migration=True) as connection:
        config.attributes |= {"connection": connection, "metadata": ledger_metadata}
        alembic.command.downgrade(config, "0001_first")
    ledger.close()
    with Ledger.open(directory) as again:
        found = again.find("run42")
        assert found.served_note() == str(found.published().note)
        assert stored(again) == 0


def flip(value):
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[len(data) // 2] ^= 1
    return data.decode("latin-1") if isinstance(value, str) else bytes(data)
