"""Weights of checkpoints, kept by either database: stored, rebuilt, discarded, and cut off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.checkpoints import CheckpointStore
from rlhf_audit_trail.ledger.weights.delta import ChunkPlace, Layout, TensorPlace
from rlhf_audit_trail.ledger.weights.digest import CHUNK_BYTES
from rlhf_audit_trail.ledger.weights.errors import BaseDiscarded
from rlhf_audit_trail.ledger.weights.stored import (
    CheckpointDamaged,
    CheckpointMissing,
    Lineage,
    Predecessor,
    StoredCheckpoint,
)
from rlhf_audit_trail.weights.byte_arithmetic import NUMPY

SIZE = 17 * CHUNK_BYTES + 8  # two segments, one with an odd chunk
NOISE = np.random.default_rng(0).bytes(SIZE)
LAYOUT = Layout([TensorPlace("w", "BF16", (SIZE // 2,), SIZE), TensorPlace("e", "I64", (0,), 0)])


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return "sqlite:///ledger.db"
    made: Callable[[], str] = request.getfixturevalue("new_database")
    return made()


def weights(step: int) -> bytes:
    """What changes by a byte in every chunk."""
    data = bytearray(NOISE)
    data[::CHUNK_BYTES] = bytes([step]) * len(data[::CHUNK_BYTES])
    return bytes(data)


def save(store: CheckpointStore, number: int, lineage: Lineage, step: int) -> StoredCheckpoint:
    data = memoryview(weights(step))

    def read(chunk: ChunkPlace) -> memoryview:
        return data[chunk.start : chunk.start + chunk.size_bytes]

    saved = store.save(
        number, f"epoch_{step}", LAYOUT, read,
        created_at="2026-11-21T00:00:00Z", base=lineage.next_base(),
    )  # fmt: skip
    lineage.add(Predecessor(saved, LAYOUT, read))
    return saved.stored


def test_weights_are_stored_rebuilt_and_discarded(ledger: Ledger) -> None:
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    lineage = Lineage()
    made = [save(store, log.number, lineage, step) for step in range(18)]
    assert store.stored(log.number) == made
    starts = [None if x.base is None else x.base - made[0].number for x in made]
    assert starts == [None, 0, 0, 0, 0, 4, 4, 4, 0, 8, 8, 8, 0, 12, 12, 12, None, 16]
    assert [x.chain_length for x in made[4:7]] == [1, 2, 2]
    for step in (0, 3, 7, 15, 17):
        found = store.find(log.number, f"epoch_{step}")
        assert store.reader(found).tensor("w") == weights(step)
        store.reader(found).restore()
    with pytest.raises(CheckpointDamaged, match="are a difference from these"):
        store.discard([made[12].number])
    assert len(store.stored()) == 18
    assert store.discard([x.number for x in made[12:16]]) > 0
    store.reader(store.find(log.number, "epoch_11")).restore()
    with pytest.raises(CheckpointMissing, match="epoch_15"):
        store.find(log.number, "epoch_15")


def test_what_is_being_stored_holds_what_it_starts_from(ledger: Ledger) -> None:
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    lineage = Lineage()
    first = save(store, log.number, lineage, 0)
    claimed: list[list[StoredCheckpoint]] = []

    def read(chunk: ChunkPlace) -> memoryview:
        if chunk.start == 0:  # somebody discards in the midst of it
            claimed.append(store.claim([first]))
        return memoryview(weights(1))[chunk.start : chunk.start + chunk.size_bytes]

    store.save(
        log.number, "epoch_1", LAYOUT, read,
        created_at="2026-11-21T00:00:00Z", base=lineage.next_base(),
    )  # fmt: skip
    assert claimed
    assert not any(claimed)
    assert len(store.stored()) == 2


def test_nothing_starts_from_what_is_going(ledger: Ledger) -> None:
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    lineage = Lineage()
    made = [save(store, log.number, lineage, step) for step in range(3)]
    assert store.claim(made[:1]) == []  # the others start from it
    assert store.claim([made[0], made[2]]) == [made[2]]
    assert store.claim(made) == made[:2]  # the third is going already
    with pytest.raises(BaseDiscarded):
        save(store, log.number, lineage, 3)
    assert store.unfinished() == []
    assert [x.number for x in store.going(log.number)] == [x.number for x in made]
    assert store.discard(x.number for x in made) > 0


@pytest.mark.parametrize("is_first", [True, False])
def test_both_at_the_same_moment(ledger: Ledger, is_first: bool) -> None:  # noqa: FBT001 - of the test
    """Two transactions of which neither sees the other: one of them looks again."""
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    lineage = Lineage()
    first = save(store, log.number, lineage, 0)
    outcomes: list[str] = []

    def discard() -> None:
        outcomes.append("gone" if store.claim([first]) else "kept")

    def go_on() -> None:
        try:
            save(store, log.number, lineage, 1)
        except BaseDiscarded:
            outcomes.append("refused")
        else:
            outcomes.append("stored")

    threads = [threading.Thread(target=work) for work in (discard, go_on)]
    for thread in threads if is_first else threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) in (["gone", "refused"], ["kept", "stored"])


def test_equal_weights_are_stored_while_others_let_go_of_them(ledger: Ledger) -> None:
    """Both are the same blobs: what one discards the other one is about to need."""
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)
    ended = threading.Event()
    failures: list[BaseException] = []

    def discard() -> None:
        try:
            while not ended.wait(0.01):
                store.discard(x.number for x in store.stored(log.number))
        except BaseException as error:  # noqa: BLE001 - told where it is seen
            failures.append(error)

    thread = threading.Thread(target=discard)
    thread.start()
    try:
        for _ in range(15):
            save(store, log.number, Lineage(), 0)
    finally:
        ended.set()
        thread.join()
    assert failures == []
    save(store, log.number, Lineage(), 0)
    for stored in store.stored():
        store.reader(stored).restore()


def test_a_cut_leaves_what_can_be_discarded(ledger: Ledger, directory: Path) -> None:
    """The weights end early: nothing refers to what was stored of them."""
    log = ledger.open_run("run-1")
    store = CheckpointStore(ledger.engine, ledger.blobs, NUMPY)

    def broken(chunk: ChunkPlace) -> memoryview:
        if chunk.start > CHUNK_BYTES:
            raise OSError(5, "no more")
        return memoryview(weights(1))[chunk.start : chunk.start + chunk.size_bytes]

    with pytest.raises(OSError, match="no more"):
        store.save(log.number, "epoch_0", LAYOUT, broken, created_at="2026-11-21T00:00:00Z")
    assert store.stored() == []
    assert len(store.unfinished()) == 1
    store.discard(store.unfinished())
    assert store.unfinished() == []
    assert [x for x in (directory / "blobs").iterdir() if x.is_file()] == []
