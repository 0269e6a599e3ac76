"""An old copy of the store knows nothing of newer keys: those who saw them are heard all the same."""

from __future__ import annotations

import shutil

import pytest

from rlhf_audit_trail.ledger.export import update_export
from rlhf_audit_trail.ledger.guard import PeersUnreachable, State
from rlhf_audit_trail.ledger.importing import import_copies
from rlhf_audit_trail.ledger.keys import write_secret
from rlhf_audit_trail.ledger.log import Forked, Ledger, RolledBack, WrongLedger
from rlhf_audit_trail.ledger.rotation import retire, rotate
from tests.ledger.guarding import (
    RUN,
    WitnessProcess,
    back_up,
    configure,
    grow,
    put_back,
    watched_by,
)


@pytest.fixture
def witness(directory, tmp_path):
    with Ledger.create(directory, organisation="acme.example") as ledger:
        process = WitnessProcess(ledger, tmp_path / "witness.db")
    yield process
    process.kill()


@pytest.fixture
def older(directory, witness, annotation, tmp_path):
    """A copy from before the keys were exchanged; its peers have seen new signatures only."""
    watched_by(directory, witness.url)
    grow(directory, annotation, 300)
    back_up(directory, tmp_path / "old.db")
    shutil.copytree(directory, tmp_path / "older")
    with Ledger.open(directory) as ledger:
        rotate(ledger)
        witness.trust(ledger)
        watched_by(directory, witness.url)
    with Ledger.open(directory) as ledger:
        retire(ledger)
    grow(directory, annotation, 310)
    with Ledger.open(directory) as ledger:
        for log in (ledger.registry, ledger.find(RUN)):
            assert len(log.published().signed_by) == 2
            update_export(log, tmp_path / "public" / log.run_id)
    watched_by(tmp_path / "older", witness.url)
    return tmp_path / "older"


def states(directory):
    with Ledger.open(directory) as ledger:
        return {
            (log.run_id, answer.peer): answer.state
            for log in (ledger.registry, ledger.find(RUN))
            for answer in log.compare().answers
        }


def assert_refused(directory, annotation, finding=RolledBack, match="holds a tree of"):
    with Ledger.open(directory) as ledger:
        with pytest.raises(finding, match=match):
            ledger.open_run(RUN)
        log = ledger.find(RUN)
        for attempt in (lambda: log.record(annotation(0)), log.publish, log.close):
            with pytest.raises(finding, match=match) as caught:
                attempt()
            assert "rlhf-audit import SOURCE" in caught.value.next_step
        with pytest.raises(RolledBack):
            ledger.open_run("another")
        assert (log.size, log.published_sizes()) == (300, [300])
        assert log.opened(3)["prompt"] == "prompt 3"


@pytest.mark.slow
def test_with_the_new_secret_beside_it_a_witness_of_new_signatures_only_is_heard(
    older, directory, annotation, tmp_path
):
    assert set(states(older).values()) == {State.SILENT}  # this machine was never told
    shutil.copy(directory / "operator-2.key", older)
    assert set(states(older).values()) == {State.CONTRADICTS}
    assert_refused(older, annotation, match=r"witness w0 holds a tree of 31\d")
    import_copies(older, str(tmp_path / "public"))
    grow(older, annotation, 320)
    assert set(states(older).values()) == {State.AGREES}


@pytest.mark.slow
def test_another_history_under_the_old_keys_is_a_fork(older, directory, annotation):
    configure(older)  # whoever rewrites asks nobody
    grow(older, annotation, 400)
    configure(older, "[witnesses]", 'policy = "witness-policy.txt"')
    shutil.copy(directory / "operator-2.key", older)
    with Ledger.open(older) as ledger, pytest.raises(Forked, match="witness w0 holds"):
        ledger.find(RUN).publish()


@pytest.mark.slow
def test_without_the_new_secret_a_mirror_of_the_registry_log_leads_to_the_new_keys(
    older, annotation, tmp_path
):
    configure(older, "[guard]", 'mirrors = ["../public/{run}"]')
    assert set(states(older).values()) == {State.CONTRADICTS}
    assert_refused(older, annotation, match=r"mirror \.\./public/{run} holds")
    shutil.rmtree(tmp_path / "public/registry")  # then nothing leads there
    shutil.rmtree(older / "alarms")
    with Ledger.open(older) as ledger:
        log = ledger.find(RUN)
        with pytest.raises(PeersUnreachable):
            log.publish()


@pytest.mark.slow
def test_a_secret_of_somebody_else_in_its_place_proves_nothing(older):
    write_secret(older / "operator-2.key")
    assert set(states(older).values()) == {State.SILENT}


def test_files_of_newer_public_keys_tell_of_an_old_copy_though_nobody_else_is_asked(
    ledger, directory, annotation, tmp_path
):
    log = ledger.open_run(RUN)
    log.record_many(annotation(number) for number in range(300))
    log.publish()
    back_up(directory, tmp_path / "old.db")
    rotate(ledger)
    retire(ledger)
    files = {path: path.read_text() for path in (directory / "keys").iterdir()}
    update_export(log, tmp_path / "public" / RUN)
    ledger.registry.publish()
    update_export(ledger.registry, tmp_path / "public/registry")
    ledger.close()
    put_back(tmp_path / "old.db", directory)
    assert_refused(directory, annotation, match="the store is an old copy")
    assert {path: path.read_text() for path in (directory / "keys").iterdir()} == files
    import_copies(directory, str(tmp_path / "public"))
    grow(directory, annotation, 310)
    (directory / "keys" / f"{RUN}.vkey").write_text(files[directory / "keys/registry.vkey"])
    with Ledger.open(directory) as again, pytest.raises(WrongLedger):
        again.find(RUN)
