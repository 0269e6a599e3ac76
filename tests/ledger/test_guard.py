"""A store that is not the newest copy takes no entries: told by real witnesses and mirrors."""

from __future__ import annotations

import socket
import threading

import pytest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf_audit_trail.api.app import create_app
from rlhf_audit_trail.ledger.alarm import AlarmUnreadable
from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.export import export_log
from rlhf_audit_trail.ledger.guard import PeersUnreachable, State
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.settings import SettingsError
from rlhf_audit_trail.ledger.tlog_policy import InvalidPolicy
from rlhf_audit_trail.ledger.witness import origin_hash
from rlhf_audit_trail.record.recorder import RunRecorder
from tests.ledger.guarding import (
    RUN,
    WitnessProcess,
    back_up,
    configure,
    damage,
    put_back,
    watched_by,
)

NOTE = Event("alert.raised", {"name": "n", "severity": "warning", "step": 0, "detail": "d"})
NOBODY = "http://127.0.0.1:9"  # the discard service's port: nothing listens there


@pytest.fixture
def witness(directory, tmp_path):
    """A witness process for a ledger that is made here, and closed again."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        process = WitnessProcess(ledger, tmp_path / "witness.db")
    yield process
    process.kill()


def grow(directory, annotation, count, first=0):
    """Append, sign, and wait until the witness has cosigned run and registry log."""
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        log.record_many(annotation(first + number) for number in range(count))
        for item in (log, ledger.registry):
            size = item.publish().head.size
            assert ledger.watch.await_quorum(item.run_id, size, timeout_s=60).is_quorum


@pytest.fixture
def rolled_back(directory, witness, annotation, tmp_path):
    """300 entries where 301 were cosigned; the newest database is kept beside."""
    watched_by(directory, witness.url)
    grow(directory, annotation, 300)
    back_up(directory, tmp_path / "old.db")
    grow(directory, annotation, 1, first=300)
    back_up(directory, tmp_path / "newest.db")
    put_back(tmp_path / "old.db", directory)
    return directory


def assert_read_only(directory, finding):
    """Nothing is appended or signed, whatever is tried; what is there is read and proven."""
    with Ledger.open(directory) as ledger:
        with pytest.raises(finding, match="witness w0 holds") as caught:
            ledger.open_run(RUN)
        assert "rlhf-audit import SOURCE" in caught.value.next_step
        log = ledger.find(RUN)
        size, heads = log.size, log.published_sizes()
        for attempt in (lambda: log.record(NOTE), log.publish, log.close):
            with pytest.raises(finding, match="witness w0 holds"):
                attempt()
        assert type(log.alarm) is finding
        assert (log.size, log.published_sizes(), log.closed) == (size, heads, False)
        assert len(list(log.entries())) == size
        if heads:
            verify_bundle(log.bundle([0]), TrustPolicy(keys=log.verifier_keys))


def test_an_old_backup_takes_no_entries_until_the_newest_copy_is_back(
    rolled_back, witness, annotation, tmp_path
):
    assert_read_only(rolled_back, RolledBack)
    witness.kill()  # what it has shown is not forgotten with it
    with Ledger.open(rolled_back) as ledger, pytest.raises(RolledBack, match="witness w0 holds"):
        ledger.find(RUN).record(annotation(0))
    witness.start()
    watched_by(rolled_back, witness.url)
    put_back(tmp_path / "newest.db", rolled_back)
    grow(rolled_back, annotation, 1)
    assert list((rolled_back / "alarms").iterdir()) == []


def test_a_truncated_store_is_refused_though_no_local_tree_head_tells(rolled_back):
    damage(
        rolled_back,
        "DELETE FROM entry WHERE log_number = 2 AND leaf_index >= 290",
        "DELETE FROM vault WHERE log_number = 2 AND leaf_index >= 290",
        "DELETE FROM tree_head WHERE log_number = 2",
        "DELETE FROM cosignature",
        "UPDATE log SET size = 290 WHERE number = 2",
    )
    assert_read_only(rolled_back, RolledBack)


@pytest.mark.parametrize("count", [1, 5])
def test_another_history_signed_with_our_own_key_is_refused(rolled_back, annotation, count):
    configure(rolled_back)  # whoever rewrites asks nobody
    with Ledger.open(rolled_back) as ledger:
        log = ledger.open_run(RUN)
        log.record_many(annotation(1000 + number) for number in range(count))
        assert log.publish().head.size == 300 + count
    configure(rolled_back, "[witnesses]", 'policy = "witness-policy.txt"')
    assert_read_only(rolled_back, Forked)


def test_an_empty_database_in_the_place_of_the_old_one_begins_no_new_history(rolled_back):
    (rolled_back / "ledger.db").write_bytes(b"")
    with Ledger.open(rolled_back) as ledger:
        assert type(ledger.registry.alarm) is RolledBack
        with pytest.raises(RolledBack):
            ledger.open_run(RUN)
        with pytest.raises(RolledBack):
            ledger.open_run("another")
        assert ledger.registry.size == 0


def test_an_alarm_on_file_that_cannot_be_read_is_an_alarm(rolled_back, annotation):
    with Ledger.open(rolled_back) as ledger, pytest.raises(RolledBack):
        ledger.open_run(RUN)
    path = rolled_back / "alarms" / f"{RUN}.json"
    for text in ("", "{", "[]", "[" * 10_000, path.read_text("utf-8").replace("run42", "run43")):
        path.write_text(text, "utf-8")
        with Ledger.open(rolled_back) as ledger, pytest.raises(AlarmUnreadable, match="alarms"):
            ledger.find(RUN).record(annotation(0))


# --- who answers, and who does not --------------------------------------------------------


def test_while_nobody_answers_entries_are_taken_and_nothing_is_signed(
    directory, witness, annotation
):
    watched_by(directory, witness.url)
    grow(directory, annotation, 3)
    witness.kill()
    with Ledger.open(directory) as ledger:
        log = ledger.open_run(RUN)
        assert log.record(annotation(3)).result() == 3
        for attempt in (log.publish, log.close):
            with pytest.raises(PeersUnreachable, match="witness w0") as caught:
                attempt()
            assert "when_unreachable" in caught.value.next_step
        assert (log.published_sizes(), log.closed, log.alarm) == ([3], False, None)
    watched_by(directory, witness.url, guard='when_unreachable = "publish"')
    with Ledger.open(directory) as ledger:
        assert ledger.find(RUN).publish().head.size == 4
    witness.start()
    watched_by(directory, witness.url)
    grow(directory, annotation, 1, first=4)


def test_a_training_ends_well_while_nobody_answers(directory, ledger, caplog):
    ledger.close()
    watched_by(directory, NOBODY)
    with Ledger.open(directory) as again:
        recorder = RunRecorder(again.open_run(RUN), source="simulated")
        recorder.finish("completed")
        assert (recorder.log.size, recorder.log.published_sizes()) == (1, [])
    assert "is not published: nobody could be asked" in caplog.text


def test_one_of_two_is_enough(directory, witness, annotation):
    watched_by(directory, witness.url, NOBODY)
    grow(directory, annotation, 3)
    with Ledger.open(directory) as ledger:
        log = ledger.find(RUN)
        states = {answer.peer: answer.state for answer in log.compare().answers}
        assert states == {"witness w0": State.AGREES, "witness w1": State.SILENT}
        log.close()
        assert log.closed


def test_without_peers_nobody_is_asked(ledger, annotation):
    log = ledger.open_run(RUN)
    assert ledger.watch.guard.peers == ()
    assert log.compare().answers == ()
    log.record(annotation(0))
    log.publish()
    assert not any(x.name.startswith("ledger-guard") for x in threading.enumerate())


def stranger(log, size):
    head = TreeHead(log.origin, size, bytes(32))
    return LogKeys.derive(b"\x01" * 32, log.origin).sign(head, time_s=1)


def greased(log):
    """Our own signature under a tree head that claims more."""
    text, rest = str(log.published().note).split("\n\n", 1)
    return text.replace("\n3\n", "\n999\n") + "\n\n" + rest


LIES = {
    "a stranger's head": lambda log: Response(stranger(log, 999)),
    "our signature, another size": lambda log: Response(greased(log)),
    "garbage": lambda _: Response(b"\xff\xfe\n\n"),
    "nothing": lambda _: Response(b""),
    "no signature": lambda log: Response(TreeHead(log.origin, 999, bytes(32)).text),
    "no end": lambda _: StreamingResponse(iter(lambda: b"x" * 65_536, b"")),
    "redirect": lambda _: RedirectResponse("/elsewhere"),
    "status 500": lambda _: Response(status_code=500),
}


def test_a_lie_is_no_alarm_and_no_answer(directory, witness, annotation, serve):
    watched_by(directory, witness.url)
    grow(directory, annotation, 3)
    said = {}

    async def show(_):
        return LIES[said["lie"]](said["log"])

    with Ledger.open(directory) as ledger:
        liar = serve(
            Starlette(routes=[Route(f"/{origin_hash(ledger.find(RUN).origin)}/checkpoint", show)])
        )
    for urls, outcome in (((liar,), State.SILENT), ((witness.url, liar), State.AGREES)):
        watched_by(directory, *urls)
        with Ledger.open(directory) as ledger:
            log = said["log"] = ledger.find(RUN)
            for lie in LIES:
                said["lie"] = lie
                found = log.compare()
                assert (found.answers[0].state, found.answers[-1].state) == (outcome, State.SILENT)
                assert log.alarm is None
            log.record(annotation(3)).result()
            if len(urls) == 1:
                with pytest.raises(PeersUnreachable):
                    log.publish()
            else:
                assert log.publish().head.size == log.size


def test_a_witness_that_hangs_is_not_waited_for_and_gathers_no_threads(
    directory, witness, annotation
):
    watched_by(directory, witness.url)
    grow(directory, annotation, 3)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        hanging = f"http://127.0.0.1:{listener.getsockname()[1]}"
        watched_by(directory, witness.url, hanging, guard="timeout_s = 0.2")
        with Ledger.open(directory) as ledger:
            log = ledger.open_run(RUN)
            for _ in range(20):
                found = log.compare()
                assert [x.state for x in found.answers] == [State.AGREES, State.SILENT]
            asking = [x for x in threading.enumerate() if x.name == "ledger-guard"]
            assert len(asking) <= 8
            assert log.record(annotation(3)).result() == 3
            assert log.publish().head.size == 4


def test_a_witness_that_forgot_what_it_cosigned_is_not_believed(
    directory, witness, annotation, tmp_path
):
    watched_by(directory, witness.url)
    grow(directory, annotation, 3)
    witness.kill()
    for path in tmp_path.glob("witness.db*"):
        path.unlink()
    witness.start()
    watched_by(directory, witness.url)
    with Ledger.open(directory) as ledger:
        (answer,) = ledger.find(RUN).compare().answers
        assert (answer.state, type(answer.finding).__name__) == (State.SILENT, "LyingWitness")


# --- mirrors ------------------------------------------------------------------------------


@pytest.fixture
def published(directory, annotation, tmp_path):
    """An old database of 300 entries, 350 in an export, and the newest database."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run(RUN)
        log.record_many(annotation(number) for number in range(300))
        log.publish()
        back_up(directory, tmp_path / "old.db")
        log.record_many(annotation(number) for number in range(50))
        log.publish()
        export_log(log, tmp_path / "public" / RUN)
    back_up(directory, tmp_path / "newest.db")
    return directory


def test_an_export_remembers_what_an_old_backup_does_not(published, annotation, tmp_path):
    configure(published, "[guard]", 'mirrors = ["../public/{run}"]')
    with Ledger.open(published) as ledger:
        log = ledger.open_run(RUN)
        assert [x.state for x in log.compare().answers] == [State.AGREES]
        assert [x.state for x in ledger.registry.compare().answers] == [State.NOTHING]
    put_back(tmp_path / "old.db", published)
    with Ledger.open(published) as ledger:
        with pytest.raises(RolledBack, match=r"mirror \.\./public/{run} holds a tree of 350"):
            ledger.open_run(RUN)
        with pytest.raises(RolledBack):
            ledger.find(RUN).publish()
    (tmp_path / "public" / RUN / "checkpoint").write_text("forged\n", "utf-8")
    put_back(tmp_path / "newest.db", published)
    with Ledger.open(published) as ledger:
        (answer,) = ledger.find(RUN).compare().answers
        assert (answer.state, type(answer.finding).__name__) == (State.SILENT, "LyingMirror")
    (tmp_path / "public").rename(tmp_path / "unplugged")
    with Ledger.open(published) as ledger:
        log = ledger.open_run(RUN)
        log.record(annotation(0)).result()
        with pytest.raises(PeersUnreachable, match="there is no directory"):
            log.publish()


def test_a_served_ledger_remembers_too(published, serve, tmp_path):
    elsewhere = tmp_path / "served"
    elsewhere.mkdir()
    for name in ("rlhf-audit.toml", "operator.key", "vault-keys.db"):
        (elsewhere / name).write_bytes((published / name).read_bytes())
    (elsewhere / "operator.key").chmod(0o600)
    (elsewhere / "ledger.db").write_bytes((tmp_path / "newest.db").read_bytes())
    with Ledger.open(elsewhere) as served:
        place = f"{serve(create_app(served))}/rlhf/{{run}}"
        configure(published, "[guard]", f'mirrors = ["{place}"]')
        with Ledger.open(published) as ledger:
            assert [x.state for x in ledger.find(RUN).compare().answers] == [State.AGREES]
        put_back(tmp_path / "old.db", published)
        with Ledger.open(published) as ledger, pytest.raises(RolledBack, match="350"):
            ledger.open_run(RUN)


# --- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["[guard]", 'mirrors = "x"'], "mirrors is str"),
        (["[guard]", "mirrors = [1]"], "mirrors is list"),
        (["[guard]", 'mirrors = ["published"]'], "where a log's name goes"),
        (["[guard]", 'mirrors = ["ftp://x/{run}"]'], "no address"),
        (["[guard]", 'when_unreachable = "ignore"'], "when_unreachable"),
        (["[guard]", "timeout_s = 0.0"], "timeout_s"),
        (["[guard]", "timeout = 1.0"], "unknown setting"),
        (["[witness]", 'policy = "x"'], "unknown table"),
        (["[witnesses]", "policy = 1"], "policy is int"),
    ],
)
def test_settings_that_say_nothing_useful_are_refused(directory, ledger, lines, words):
    ledger.close()
    configure(directory, *lines)
    with pytest.raises(SettingsError, match=words):
        Ledger.open(directory)


def test_a_policy_that_cannot_be_read_is_refused(directory, ledger):
    ledger.close()
    configure(directory, "[witnesses]", 'policy = "witness-policy.txt"')
    with pytest.raises(InvalidPolicy, match="cannot read"):
        Ledger.open(directory)
    (directory / "witness-policy.txt").write_text("quorum all\n", "utf-8")
    with pytest.raises(InvalidPolicy, match="line 1"):
        Ledger.open(directory)
