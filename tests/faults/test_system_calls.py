"""Every write, fsync, rename and commit on the way of an entry, failed once and killed once.

A recording run counts the calls that change the ledger's files; then each trial spoils one of
them, in one of the ways of `system_calls.WAYS`, and the judge of `recorded_run` looks at what
is left. By default a spread subset is tried, which meets every kind of call and file in every
way; all of them take about ten minutes on two cores:

    RLHF_AUDIT_FAULTS=all python -m pytest tests/faults/test_system_calls.py
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby

import pytest
import recorded_run
from system_calls import WAYS, Fault, why_not
from trial import in_fork, prepare, try_out

ALL = os.environ.get("RLHF_AUDIT_FAULTS") == "all"
EACH = 10  # trials of a way, where not all are wanted
TWICE = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("faults")
    if reason := why_not(made):
        pytest.skip(reason)
    return made


@pytest.fixture(scope="module")
def pool(place):  # noqa: ARG001 - which skips where nothing can be traced
    """Two workers that have imported everything, and fork for each process of a trial."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=prepare) as opened:
        yield opened


@pytest.fixture(scope="module")
def template(place, pool):
    directory = place / "template"
    assert pool.submit(in_fork_begin, directory, place / "begun").result() == ()
    return directory


def in_fork_begin(directory, result):
    return in_fork(lambda: recorded_run.begin(directory), result)


@pytest.fixture(scope="module")
def calls(pool, template):
    """The calls of a run in which nothing goes wrong."""
    verdict = pool.submit(try_out, template, [None]).result()
    assert (verdict.statuses, verdict.errors, verdict.wrong) == ((0,), (), ())
    return verdict.calls[0]


def in_one_word(call):
    """A call without the random part of a draft's name."""
    name = re.sub(r"\.[\w.-]+-\w{8}$|writers/.*", "(draft)", call.path)
    return call.name, name


def numbers_of(calls, way):
    """The calls to be spoilt in this way: all, or of each run of equal ones some."""
    suited = [n for n, call in enumerate(calls, 1) if call.suits(way)]
    if ALL:
        return suited
    runs = [list(run) for _, run in groupby(suited, key=lambda n: in_one_word(calls[n - 1]))]
    begin = list(WAYS).index(way)
    chosen = [run[(begin + place) % len(run)] for place, run in enumerate(runs)]
    step = max(1, len(chosen) // EACH)
    return chosen[begin % step :: step]


def verdicts(pool, template, faults):
    found = list(pool.map(try_out, [template] * len(faults), faults))
    for verdict in found:
        if verdict.wrong:
            print(verdict)
    assert [str(verdict) for verdict in found if verdict.wrong] == []
    raised = {error[:2] for x in found for error in x.errors if error[0] in {"record", "receipt"}}
    assert raised <= {("record", "AppendFailed"), ("receipt", "AppendFailed")}
    return found


def test_the_judge_sees_what_it_is_there_for(template, place):
    def lie(run_id, **said):
        told = recorded_run.Told(has_ended=True)
        for what, words in said.items():
            getattr(told, what)[run_id] = [words]
        copy = shutil.copytree(template, place / f"judged-{len(list(place.iterdir()))}")
        return in_fork(lambda: recorded_run.judge(copy, told), place / "judgement")

    run_id, number = recorded_run.OLD, recorded_run.BEGUN
    assert lie(run_id) == ()
    assert "receipt says so" in lie(run_id, kept=[number, number])[0]
    assert "receipt says so" in lie(run_id, kept=[3, 4])[0]
    assert "gaps tell of 0" in lie(run_id, failed=[number])[0]
    assert "it is gone" in lie("another", handed=[1, 1], kept=[1, 0])[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_one_call_goes_wrong(pool, template, calls, way):
    faults = [[Fault(number, way)] for number in numbers_of(calls, way)]
    found = verdicts(pool, template, faults)
    assert sum(bool(verdict.spoilt[0]) for verdict in found) >= 0.9 * len(found)
    is_killed = way in {"killed before", "killed after", "torn"}
    assert {verdict.statuses for verdict in found if verdict.spoilt[0]} <= (
        {(9,)} if is_killed else {(0,), (3 << 8,)}
    )


@pytest.mark.slow
def test_a_second_process_dies_while_it_puts_right_what_the_first_one_left(pool, template, calls):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    ways = ["killed before", "killed after", "torn"]
    faults = [
        [Fault(chosen.randint(1, len(calls)), chosen.choice(ways)) for _ in range(2)]
        for _ in range(20 * TWICE if ALL else TWICE)
    ]
    verdicts(pool, template, faults)


def test_the_calls_are_those_of_the_append_and_publish_path(calls):
    """What is counted is written down here, so that a call that comes new is thought about."""
    found = {in_one_word(call) for call in calls}
    expected = {
        ("pwrite64", "ledger.db-wal"), ("fdatasync", "ledger.db-wal"), ("pwrite64", "ledger.db"),
        ("fdatasync", "ledger.db"), ("pwrite64", "vault-keys.db-wal"), ("write", "keys/(draft)"),
        ("fdatasync", "vault-keys.db-wal"), ("rename", "keys/(draft)"), ("fsync", "keys/(draft)"),
        ("fsync", "keys"), ("unlink", "ledger.db-wal"),
    }  # fmt: skip
    assert expected <= found
