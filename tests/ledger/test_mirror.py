"""A mirror takes what an honest log grows by, byte for byte, and nothing from one that is not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.api.app import create_app
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.export import export_log, static_files, update_export
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.mirror import (
    DirectoryInUse,
    DirectoryTaken,
    Mirror,
    MirrorDamaged,
    SourceContradiction,
)
from rlhf_audit_trail.ledger.monitor import EVIDENCE_SCHEMA, Monitor
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.tree_head import open_tree_head
from rlhf_audit_trail.ledger.public_log import (
    DirectoryLog,
    NotServed,
    PublicLog,
    ServedLog,
)
from rlhf_audit_trail.ledger.web import Unreachable

CHILD = Path(__file__).parent / "run_until_killed.py"
SIZES = (1, 255, 256, 257, 600, 1100)


def grow(log, annotation, size):
    log.record_many(annotation(number) for number in range(log.size, size))
    log.publish()


def files(directory):
    return {
        str(x.relative_to(directory)): x.read_bytes() for x in directory.rglob("*") if x.is_file()
    }


def is_sound(directory, keys, size):
    seen = Monitor(PublicLog(DirectoryLog(directory)), keys).look()
    return (seen.head.size, seen.unmet) == (size, None)


class Recording:
    """A real source that notes what was read from it."""

    def __init__(self, directory):
        self.source = DirectoryLog(directory)
        self.paths = []

    def read(self, path, bytes_max):
        self.paths.append(path)
        return self.source.read(path, bytes_max)


def mirror(source, target, keys):
    return Mirror(PublicLog(DirectoryLog(source)), target, keys)


@pytest.fixture
def log(ledger):
    return ledger.open_run("run42")


@pytest.fixture
def forked(directory, tmp_path, log, annotation, ledger):
    """Two continuations of one log of 300 entries, signed by the same keys: 600 entries each."""
    grow(log, annotation, 300)
    ledger.registry.publish()
    shutil.copytree(directory, tmp_path / "other")
    places = tmp_path / "a", tmp_path / "b"
    grow(log, annotation, 600)
    export_log(log, places[0])
    with Ledger.open(tmp_path / "other") as other:
        grow(other.open_run("run42"), lambda number: annotation(number + 1), 600)
        export_log(other.find("run42"), places[1])
    return places


def test_over_http_every_ragged_edge_arrives_with_the_same_bytes(
    ledger, log, annotation, serve, tmp_path
):
    place = f"{serve(create_app(ledger))}/rlhf/run42"
    follower = Mirror(PublicLog(ServedLog(place)), tmp_path / "m", log.verifier_keys)
    before = 0
    for size in SIZES:
        grow(log, annotation, size)
        synced = follower.sync()
        assert (synced.head.size, synced.new_entries) == (size, size - before)
        there, wanted = files(tmp_path / "m"), dict(static_files(log))
        assert wanted.items() <= there.items()
        # what is there besides are partial tiles of older heads whose full tile is not there
        for name in there.keys() - wanted.keys():
            assert ".p/" in name
            assert name.split(".p/")[0] not in there
        assert is_sound(tmp_path / "m", log.verifier_keys, size)
        assert follower.sync().files == 0
        before = size
    export_log(log, tmp_path / "exported")
    assert mirror(tmp_path / "m", tmp_path / "n", log.verifier_keys).sync().head.size == before
    assert files(tmp_path / "n") == files(tmp_path / "exported")


def test_only_what_is_new_is_fetched(log, annotation, tmp_path):
    grow(log, annotation, 600)
    update_export(log, tmp_path / "out")
    source = Recording(tmp_path / "out")
    follower = Mirror(PublicLog(source), tmp_path / "m", log.verifier_keys)
    follower.sync()
    source.paths.clear()
    follower.sync()
    assert source.paths == ["checkpoint"]
    grow(log, annotation, 800)
    update_export(log, tmp_path / "out")
    source.paths.clear()
    assert follower.sync().new_entries == 200
    assert sorted(source.paths) == [
        "checkpoint",
        "tile/0/002",
        "tile/0/003.p/32",
        "tile/1/000.p/3",
        "tile/entries/002",
        "tile/entries/003.p/32",
    ]


def alarm(follower):
    with pytest.raises(SourceContradiction) as caught:
        follower.sync()
    record = json.loads(caught.value.file.read_text("utf-8"))
    assert record["schema"] == EVIDENCE_SCHEMA
    assert caught.value.file.parent == follower._directory.parent
    return caught.value.finding, record


def test_a_fork_is_refused_and_both_notes_are_kept(forked, log, tmp_path):
    ours, theirs = forked
    mirror(ours, tmp_path / "m", log.verifier_keys).sync()
    before = files(tmp_path / "m")
    for _ in range(2):  # the second look finds it again, and keeps it once
        finding, record = alarm(mirror(theirs, tmp_path / "m", log.verifier_keys))
        assert type(finding) is Inconsistent
    heads = [
        open_tree_head(record[name], log.verifier_keys)
        for name in ("tree_head_seen_before", "tree_head")
    ]
    assert [x.signed_by == log.verifier_keys and x.head.size for x in heads] == [600, 600]
    assert heads[0].head.root != heads[1].head.root
    assert files(tmp_path / "m") == before
    assert len(list(tmp_path.glob("m.evidence-*.json"))) == 1


def test_a_longer_fork_is_refused(forked, log, tmp_path, annotation):
    _, theirs = forked
    grow(log, annotation, 601)
    update_export(log, tmp_path / "a")
    mirror(theirs, tmp_path / "m", log.verifier_keys).sync()
    finding, _ = alarm(mirror(tmp_path / "a", tmp_path / "m", log.verifier_keys))
    assert "another tree of 600" in finding.message
    assert is_sound(tmp_path / "m", log.verifier_keys, 600)


def test_a_source_that_shrinks_is_refused(log, annotation, tmp_path):
    grow(log, annotation, 300)
    export_log(log, tmp_path / "old")
    grow(log, annotation, 600)
    export_log(log, tmp_path / "new")
    mirror(tmp_path / "new", tmp_path / "m", log.verifier_keys).sync()
    finding, _ = alarm(mirror(tmp_path / "old", tmp_path / "m", log.verifier_keys))
    assert "fewer" in finding.message
    assert is_sound(tmp_path / "m", log.verifier_keys, 600)


def test_a_head_once_accepted_is_not_forgotten_by_a_kill(forked, log, tmp_path):
    """Killed before the tree head was written, the mirror still refuses the other history."""
    ours, theirs = forked
    mirror(ours, tmp_path / "m", log.verifier_keys).sync()
    (tmp_path / "m/checkpoint").rename(tmp_path / "m/.checkpoint.next")
    alarm(mirror(theirs, tmp_path / "m", log.verifier_keys))
    assert mirror(ours, tmp_path / "m", log.verifier_keys).sync().head.size == 600
    assert not (tmp_path / "m/.checkpoint.next").exists()


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_no_flipped_bit_of_the_source_is_ever_taken(log, annotation, tmp_path):
    grow(log, annotation, 300)
    export_log(log, tmp_path / "old")
    grow(log, annotation, 600)
    export_log(log, tmp_path / "new")
    chosen = random.Random(1)
    names = [name for name in files(tmp_path / "new") if name != "vkey"]
    for name in names:
        shutil.copytree(tmp_path / "new", tmp_path / "bad")
        flip(tmp_path / "bad" / name, chosen.randrange(1 << 30))
        mirror(tmp_path / "old", tmp_path / "m", log.verifier_keys).sync()
        try:  # what the mirror has from before is not fetched again
            size = mirror(tmp_path / "bad", tmp_path / "m", log.verifier_keys).sync().head.size
            assert name in {"tile/0/000", "tile/entries/000"}
        except (SourceContradiction, MalformedBundle):
            size = 300
        assert is_sound(tmp_path / "m", log.verifier_keys, size)
        shutil.rmtree(tmp_path / "bad")
        shutil.rmtree(tmp_path / "m")


def test_what_cannot_be_read_changes_nothing_and_is_taken_later(log, annotation, tmp_path):
    grow(log, annotation, 600)
    export_log(log, tmp_path / "out")
    follower = mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys)
    for name in ("checkpoint", "tile/1/000.p/2", "tile/0/001", "tile/entries/002.p/88"):
        (tmp_path / "out" / name).rename(tmp_path / "hidden")
        with pytest.raises(NotServed):
            follower.sync()
        assert not (tmp_path / "m/checkpoint").exists()
        (tmp_path / "hidden").rename(tmp_path / "out" / name)
    assert follower.sync().new_entries == 600
    assert files(tmp_path / "m") == files(tmp_path / "out")
    with pytest.raises(Unreachable):
        Mirror(PublicLog(ServedLog("http://127.0.0.1:9")), tmp_path / "m", log.verifier_keys).sync()


def test_only_all_pinned_keys_together_are_believed(log, annotation, tmp_path, ledger):
    grow(log, annotation, 3)
    export_log(log, tmp_path / "out")
    ledger.registry.publish()
    with pytest.raises(PolicyUnmet):
        mirror(
            tmp_path / "out", tmp_path / "m", (*log.verifier_keys, *ledger.registry.verifier_keys)
        ).sync()
    finding, record = alarm(mirror(tmp_path / "out", tmp_path / "m", ledger.registry.verifier_keys))
    assert (type(finding), record["tree_head_seen_before"]) == (BadSignature, None)
    assert files(tmp_path / "m") == {}


@pytest.mark.parametrize("name", ["tile/0/001", "tile/entries/001", "tile/entries/002.p/88"])
def test_a_full_tile_is_never_overwritten(log, annotation, tmp_path, name):
    grow(log, annotation, 600)
    export_log(log, tmp_path / "out")
    mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync()
    (tmp_path / "m/checkpoint").rename(tmp_path / "m/.checkpoint.next")
    flip(tmp_path / "m" / name, 5)
    before = files(tmp_path / "m")
    with pytest.raises(MirrorDamaged, match=name):
        mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync()
    assert files(tmp_path / "m") == before
    (tmp_path / "m" / name).unlink()
    mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync()
    assert files(tmp_path / "m") == files(tmp_path / "out")


def test_a_directory_that_is_taken_or_in_use_is_left_alone(log, annotation, tmp_path):
    grow(log, annotation, 3)
    export_log(log, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(DirectoryTaken):
        mirror(tmp_path / "out", tmp_path / "mine", log.verifier_keys).sync()
    (tmp_path / "m").mkdir()
    handle = os.open(tmp_path / "m", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DirectoryInUse):
        mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync()
    os.close(handle)
    assert mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync().head.size == 3
    (tmp_path / "m/checkpoint").write_text("hello", "utf-8")
    with pytest.raises(MirrorDamaged):
        mirror(tmp_path / "out", tmp_path / "m", log.verifier_keys).sync()


@pytest.mark.slow
def test_killed_at_any_moment_it_is_a_sound_log_and_ends_the_same(log, annotation, tmp_path):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    grow(log, annotation, 700)
    export_log(log, tmp_path / "old")
    for target in ("m", "undisturbed"):
        mirror(tmp_path / "old", tmp_path / target, log.verifier_keys).sync()
    grow(log, annotation, 6_000)
    export_log(log, tmp_path / "new")
    mirror(tmp_path / "new", tmp_path / "undisturbed", log.verifier_keys).sync()
    key = tmp_path / "vkey"
    key.write_text("".join(f"{x}\n" for x in log.verifier_keys), "utf-8")
    command = [sys.executable, CHILD, "mirror", tmp_path / "new", tmp_path / "m", "--key", key]
    killed = 0
    for wanted in sorted(chosen.sample(range(12, 48), 6)):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None and sum(1 for x in (tmp_path / "m").rglob("*")) < wanted:
            pass
        child.kill()
        child.wait()
        killed += child.returncode == -9
        note = (tmp_path / "m/checkpoint").read_text("utf-8")
        size = open_tree_head(note, log.verifier_keys).head.size
        assert size in {700, 6_000}
        assert is_sound(tmp_path / "m", log.verifier_keys, size)
    assert killed
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=True).returncode == 0
    assert files(tmp_path / "m") == files(tmp_path / "undisturbed")


def test_the_command_has_an_exit_code_for_each_outcome(forked, log, tmp_path, monkeypatch):
    ours, theirs = forked
    monkeypatch.chdir(tmp_path)
    Path("log.vkey").write_text("".join(f"{x}\n" for x in log.verifier_keys), "utf-8")

    def run(*arguments):
        result = CliRunner().invoke(main, ["mirror", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    assert run(ours, "m").exit_code == 2  # no key is pinned
    assert run(ours, "m", "--key", "log.vkey", "--once", "--every", "3").exit_code == 2
    result = run(ours, "m", "--key", "log.vkey")
    assert (result.exit_code, "600 entries, 600 new" in result.output) == (0, True)
    result = run(ours, "m", "--json")  # the keys are those it was made with
    assert (result.exit_code, json.loads(result.output)["new_entries"]) == (0, 0)
    result = run(theirs, "m", "--every", "1")
    assert (result.exit_code, "FAILED" in result.output) == (1, True)
    assert json.loads(run(theirs, "m", "--json").output)["state"] == "contradiction"
    assert run("http://127.0.0.1:9", "m").exit_code == 5
    (ours / "checkpoint").write_text("hello", "utf-8")
    assert run(ours, "m").exit_code == 4
    (ours / "checkpoint").unlink()
    assert run(ours, "m").exit_code == 3
