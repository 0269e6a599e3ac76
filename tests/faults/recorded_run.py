"""What the traced process does with a ledger, and what must hold of it afterwards.

The process tells what it was promised in a file, line by line, each written before it goes
on. The judge then looks at the ledger as the process left it: `fsck` first, next what was
told, with the proof kernel; then it appends and publishes itself, and asks `fsck` again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from itertools import pairwise

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.fsck import fsck, open_damaged
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.errors import AuditTrailError
from rlhf_audit_trail.ledger.proof.merkle import leaf_hash, root_hash, verify_consistency
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head

__all__ = ["BEGUN", "Told", "begin", "event_of", "go_on", "judge", "number_of"]

BEGUN = 250  # entries before the faults: the first tile is completed among them
OLD, NEW = "run42", "begun-{}"
JUDGED = 900_000  # numbers of the judge's own events


def event_of(number):
    """The event with this number, plain or sealed; those of before are all plain."""
    if number % 2 or number < BEGUN:
        fields = {"name": "noticed", "severity": "info", "step": number, "detail": "d" * 300}
        return Event("alert.raised", fields)
    person = f"person-{number // 4}"  # who is new in almost every group
    sealed = {"prompt": f"p{number}", "response": "r", "annotator": person, "reward": number / 8}
    return Event("annotation.recorded", {"source": "simulated", "batch": number}, sealed, person)


def number_of(event):
    """The number of a decoded entry; None for one that is not ours."""
    return event.get("batch", event.get("step"))


def begin(directory):
    """Make the ledger that the faults meet."""
    with Ledger.create(directory, organisation="acme.example") as ledger:
        log = ledger.open_run(OLD)
        log.record_many(event_of(x) for x in range(BEGUN))
        log.publish()
        ledger.registry.publish()


# --- in the traced process ----------------------------------------------------------------


@dataclass
class _Voice:
    """Tells what happened; `heal` is written to where something was seen to fail."""

    report: int
    heal: int

    def say(self, *words):
        os.write(self.report, json.dumps(words).encode() + b"\n")

    def tried(self, name, work):
        """Do a step; an error is told, and the next step is tried all the same."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the judge says which are allowed
            is_typed = isinstance(error, AuditTrailError)
            self.say("error", name, type(error).__name__, is_typed, str(error)[:300])
            os.write(self.heal, b".")
            return None


def go_on(directory, report, heal, first):
    """Append, publish, begin a run and end it; events are numbered from `first`."""
    voice = _Voice(report, heal)
    ledger = voice.tried("open", lambda: Ledger.open(directory))
    if ledger is None:
        return 3
    log = voice.tried("open_run", lambda: ledger.open_run(OLD))
    if log is not None:
        _append(voice, log, first, 1)
        _append(voice, log, first + 1, 2)
        _publish(voice, log)
        _append(voice, log, first + 3, 8)
        _publish(voice, log)
    begun = voice.tried("open_run", lambda: ledger.open_run(NEW.format(first)))
    if begun is not None:
        _append(voice, begun, first + 20, 3)
        voice.tried("close_run", begun.close)
        _publish(voice, begun)
    _publish(voice, ledger.registry)
    voice.tried("close", ledger.close)
    voice.say("end")
    return 0


def _append(voice, log, first, count):
    voice.say("handed", log.run_id, first, count)
    receipts = voice.tried(
        "record", lambda: log.record_many(map(event_of, range(first, first + count)))
    )
    for number, receipt in enumerate(receipts or (), first):
        index = voice.tried("receipt", receipt.result)
        if index is None:
            voice.say("failed", log.run_id, number)
        else:
            voice.say("kept", log.run_id, number, index)


def _publish(voice, log):
    signed = voice.tried("publish", log.publish)
    if signed is not None:
        voice.say("signed", log.run_id, str(signed.note))


# --- afterwards ---------------------------------------------------------------------------


@dataclass
class Told:
    """What a process said before it ended; for each run, where that matters."""

    handed: dict = field(default_factory=dict)
    kept: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)
    signed: dict = field(default_factory=dict)
    errors: list = field(default_factory=list)
    has_ended: bool = False

    def read(self, path):
        """Take what one more process told."""
        self.has_ended = False
        for line in path.read_text("utf-8").splitlines():
            what, *words = json.loads(line)
            if what == "end":
                self.has_ended = True
            elif what == "error":
                self.errors.append(words)
            else:
                run_id, *words = words
                getattr(self, what).setdefault(run_id, []).append(words)

    def numbers(self, what, run_id):
        return [words[0] for words in getattr(self, what).get(run_id, ())]


def judge(directory, told):
    """Return what is wrong with a ledger whose process ended, in words; nothing if all is well."""
    wrong = [f"fsck at first: {x}" for x in _fsck(directory)]
    with Ledger.open(directory) as ledger:
        runs = [OLD, *(x for x in told.handed if x != OLD)]
        for run_id in runs:
            if run_id not in ledger.runs():
                if told.kept.get(run_id):
                    wrong.append(f"{run_id}: it is gone, with what was kept in it")
                continue
            log = ledger.find(run_id)
            wrong += _history(log, told)
            if not log.closed:
                log.record_many(map(event_of, range(JUDGED, JUDGED + 3)))
                if log.publish().head.size != log.size:
                    wrong.append(f"{run_id}: not all of it is signed")
            wrong += [f"{run_id}: {x}" for x in _heads(log, told)]
        ledger.registry.publish()
        wrong += [f"registry: {x}" for x in _heads(ledger.registry, told)]
    return wrong + [f"fsck in the end: {x}" for x in _fsck(directory)]


def _fsck(directory):
    with open_damaged(directory) as storage:
        return [str(finding) for finding in fsck(storage)]


def _history(log, told):
    """Everything kept is there once, at its place and as it was; what failed is told."""
    entries = [(x, number_of(x.event)) for x in log.entries() if number_of(x.event) is not None]
    at = {number: entry for entry, number in entries}
    numbers = [number for _, number in entries]
    begun = [*range(BEGUN)] if log.run_id == OLD else []
    handed = [
        number
        for first, count in told.handed.get(log.run_id, ())
        for number in range(first, first + count)
    ]
    if sorted(set(numbers)) != sorted(numbers):
        yield f"{log.run_id}: an event is there twice"
    if numbers != [x for x in begun + handed if x in at]:
        yield f"{log.run_id}: the events are in another order, or strange ones among them"
    for number in begun:
        if number not in at:
            yield f"{log.run_id}: event {number} of before is gone"
    for number, index in told.kept.get(log.run_id, ()):
        if number not in at or at[number].leaf_index != index:
            yield f"{log.run_id}: event {number} is not at {index}, though its receipt says so"
    for number in set(handed) & at.keys():
        yield from _content(log, at[number], event_of(number))
    missing = [x for x in told.numbers("failed", log.run_id) if x not in at]
    gaps = sum(x.event["count"] for x in log.entries(kind="gap"))
    if told.has_ended and len(missing) > gaps:
        yield f"{log.run_id}: {len(missing)} events failed, and gaps tell of {gaps}"


def _content(log, entry, expected):
    fields = {name: entry.event.get(name) for name in expected.fields}
    opened = log.opened(entry.leaf_index)
    pseudonym = opened.pop("annotator", None)
    sealed = {name: value for name, value in expected.sealed.items() if name != "annotator"}
    if (entry.event["kind"], fields, opened) != (expected.kind, expected.fields, sealed):
        yield f"{log.run_id}: entry {entry.leaf_index} is not what was handed over"
    if (pseudonym is None) != ("annotator" not in expected.sealed):
        yield f"{log.run_id}: entry {entry.leaf_index} has another person"


def _heads(log, told):
    """Every head that was ever signed is of the one history that the entries have."""
    leaves = [leaf_hash(entry.data) for entry in log.entries()]
    notes = [log.published(size).note for size in log.published_sizes()]
    said = [note for (note,) in told.signed.get(log.run_id, ())]
    if missing := [x for x in said if x not in map(str, notes)]:
        yield f"{len(missing)} signed heads are not stored"
    heads = []
    for note in {*map(str, notes), *said}:
        signed = open_tree_head(note, log.verifier_keys)
        if signed.signed_by != log.verifier_keys:
            yield "a head is not signed by all of the log's keys"
        heads.append(signed.head)
    heads.sort(key=lambda head: head.size)
    for old, new in pairwise(heads):
        if old.size:
            proof = log.prove_consistency(old.size, new.size)
            verify_consistency(old.size, old.root, new.size, new.root, proof)
    for head in heads:
        if head.root != root_hash(leaves[: head.size]) or head.size > len(leaves):
            yield f"the head of {head.size} is not that of the entries"
