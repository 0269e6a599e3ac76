"""The monitor follows honest logs quietly, and reports the first contradiction with evidence."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from rlhf_audit_trail.api.app import create_app
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.cosignature import Cosigner
from rlhf_audit_trail.ledger.export import export_log, static_files
from rlhf_audit_trail.ledger.keys import LogKeys
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.monitor import EVIDENCE_SCHEMA, Contradiction, Monitor
from rlhf_audit_trail.ledger.proof.errors import (
    BadSignature,
    Inconsistent,
    MalformedBundle,
    PolicyUnmet,
)
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT, leaf_hash, root_hash
from rlhf_audit_trail.ledger.proof.note import Note
from rlhf_audit_trail.ledger.proof.tree_head import TreeHead, open_tree_head
from rlhf_audit_trail.ledger.public_log import (
    DirectoryLog,
    NotServed,
    PublicLog,
    ServedLog,
    open_source,
)
from rlhf_audit_trail.ledger.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    GrowingTree,
    encode_entry_tile,
    tile_path,
    tile_widths,
)
from rlhf_audit_trail.ledger.tlog_policy import (
    PolicyLog,
    PolicyWitness,
    TlogPolicy,
    format_policy,
)
from rlhf_audit_trail.ledger.web import BadAddress, Unreachable

ORIGIN = "acme.example/rlhf/run42"
KEYS = LogKeys.derive(b"\x01" * 32, ORIGIN)
COSIGNER = Cosigner.derive(b"\x02" * 32, "witness.example/w1")
SIZES = (0, 1, 255, 256, 257, 600)


def entry(number, history="a"):
    return f"entry {number} of history {history}".encode()


def entries(size, history="a"):
    """The first 300 entries are the same in every history."""
    return [entry(number, history if number >= 300 else "a") for number in range(size)]


def write(directory, data, *, keys=KEYS, root=None, cosigners=(), size=None):
    """Write a static log as tlog-tiles has it; made here, without the code that exports."""
    leaves, tree, size = (
        list(map(leaf_hash, data)),
        GrowingTree(),
        len(data) if size is None else size,
    )
    files = {}
    for tile in tree.append(leaves):
        files[tile_path(tile.level, tile.tile_index, TILE_WIDTH)] = tile.hashes
    level = 0
    while len(data) >> (TILE_HEIGHT * level):
        full, width = tile_widths(level, len(data))
        if width:
            files[tile_path(level, full, width)] = tree.edge(level)
        level += 1
    for first in range(0, len(data), TILE_WIDTH):
        part = data[first : first + TILE_WIDTH]
        files[tile_path("entries", first // TILE_WIDTH, len(part))] = encode_entry_tile(part)
    head = TreeHead(
        ORIGIN, size, (root_hash(leaves) if leaves else EMPTY_ROOT) if root is None else root
    )
    lines = [line for cosigner in cosigners for line in cosigner.cosign(head, time_s=5)]
    signed = open_tree_head(keys.sign(head, time_s=1), ()).note
    files["checkpoint"] = str(Note(head.text, (*signed.signatures, *lines))).encode()
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def public(tmp_path):
    return tmp_path / "public"


def watch(directory, **options):
    return Monitor(PublicLog(DirectoryLog(directory)), KEYS.verifier_keys, **options)


def contradiction(monitor):
    with pytest.raises(Contradiction) as caught:
        monitor.look()
    record = json.loads(caught.value.evidence)
    assert record["schema"] == EVIDENCE_SCHEMA
    assert record["finding"] == type(caught.value.finding).__name__
    return caught.value.finding, record


def test_a_growing_log_is_followed_through_every_ragged_edge(public):
    monitor, before = None, 0
    for size in SIZES:
        write(public, entries(size))
        monitor = monitor or watch(public)
        seen = monitor.look()
        assert (seen.head.size, seen.new_entries, seen.unmet) == (size, size - before, None)
        assert monitor.look().new_entries == 0
        before = size


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_monitor_that_starts_anew_goes_on_from_the_head_it_kept(public, size):
    write(public, entries(size))
    note = watch(public).look().note
    assert watch(public, last_note=note).look().new_entries == 0
    for partial in public.glob("tile/**/*.p"):  # the full tile stands for it from now on
        shutil.rmtree(partial)
    write(public, entries(700))
    assert watch(public, last_note=note).look().new_entries == 700 - size


def test_two_heads_of_one_size_are_a_fork_and_the_evidence_convicts(public):
    write(public, entries(600))
    monitor = watch(public)
    note = monitor.look().note
    shutil.rmtree(public)
    write(public, entries(600, "b"))
    for again in (monitor, monitor, watch(public, last_note=note)):
        finding, record = contradiction(again)
        assert type(finding) is Inconsistent
        assert "signed two trees of 600" in finding.message
    heads = [
        open_tree_head(record[name], KEYS.verifier_keys)
        for name in ("tree_head_seen_before", "tree_head")
    ]
    assert all(x.signed_by == KEYS.verifier_keys and x.head.size == 600 for x in heads)
    assert heads[0].head.root != heads[1].head.root


@pytest.mark.parametrize("size", [601, 700, 800])
def test_a_log_that_grew_from_another_history_is_caught(public, size):
    write(public, entries(600))
    monitor = watch(public)
    note = monitor.look().note
    shutil.rmtree(public)
    write(public, entries(size, "b"))
    assert type(contradiction(monitor)[0]) is Inconsistent
    assert type(contradiction(watch(public, last_note=note))[0]) is Inconsistent


def test_an_old_entry_that_is_served_otherwise_is_caught(public):
    """Its tile is rewritten to match, and the signed root is right: only what was seen tells."""
    write(public, entries(600))
    monitor = watch(public)
    monitor.look()
    write(public, entries(601))
    changed = entries(601)
    changed[590] = b"another entry"
    (public / "tile/entries/002.p/89").write_bytes(encode_entry_tile(changed[512:]))
    hashes = b"".join(leaf_hash(entry) for entry in changed[512:])
    (public / "tile/0/002.p/89").write_bytes(hashes)
    finding, _ = contradiction(monitor)
    assert "tile/entries/002.p/89" in finding.message


@pytest.mark.parametrize("size", [1, 600])
def test_a_signed_root_that_the_entries_do_not_lead_to_is_caught(public, size):
    write(public, entries(size), root=bytes(32))
    finding, _ = contradiction(watch(public))
    assert (type(finding), finding.expected) == (Inconsistent, bytes(32).hex())


def test_a_log_that_shrinks_is_caught(public):
    write(public, entries(600))
    monitor = watch(public)
    monitor.look()
    write(public, entries(599))
    finding, _ = contradiction(monitor)
    assert "fewer" in finding.message


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_any_bit_of_any_file_is_caught_at_the_first_look(public, tmp_path):
    """Every file of a log of 600, a bit each at both ends and at a place drawn by chance."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    write(public, entries(600))
    names = sorted(x.relative_to(public) for x in public.rglob("*") if x.is_file())
    assert len(names) == 1 + 3 + 1 + 3
    for name in names:
        for at in (0, -1, chosen.randrange(1 << 30)):
            copy = tmp_path / "copy"
            shutil.copytree(public, copy)
            flip(copy / name, at)
            with pytest.raises((Contradiction, MalformedBundle)):
                watch(copy).look()
            shutil.rmtree(copy)


@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
@pytest.mark.parametrize(
    "name", ["tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/002.p/88"]
)
def test_a_tile_of_another_length_is_caught(public, name, change):
    write(public, entries(600))
    data = (public / name).read_bytes()
    changed = {"cut": data[:-1], "longer": data + b"x", "empty": b""}[change]
    (public / name).write_bytes(changed)
    with pytest.raises((Contradiction, Unreachable)):
        watch(public).look()


def test_what_is_not_served_is_not_shown_and_looked_for_again(public):
    write(public, entries(600))
    monitor = watch(public)
    for name in ("tile/0/001", "tile/entries/002.p/88", "tile/1/000.p/2", "checkpoint"):
        hidden = (public / name).rename(public / "hidden")
        with pytest.raises(NotServed):
            monitor.look()
        hidden.rename(public / name)
    assert monitor.look().new_entries == 600


def test_a_head_by_strangers_or_by_half_of_the_keys(public):
    write(public, entries(3), keys=LogKeys.derive(b"\x09" * 32, ORIGIN))
    finding, record = contradiction(watch(public))
    assert type(finding) is BadSignature
    assert record["tree_head_seen_before"] is None
    write(public, entries(3))
    note = open_tree_head((public / "checkpoint").read_text("utf-8"), ()).note
    (public / "checkpoint").write_text(str(Note(note.text, note.signatures[:1])), "utf-8")
    seen = watch(public).look()
    assert (seen.head.size, type(seen.unmet)) == (3, PolicyUnmet)
    (public / "checkpoint").write_text("hello", "utf-8")
    with pytest.raises(MalformedBundle):
        watch(public).look()
    with pytest.raises(PolicyUnmet, match="no key"):
        Monitor(PublicLog(DirectoryLog(public)), (), last_note=str(note))


POLICY = TlogPolicy(
    (PolicyLog(KEYS.verifier_keys[0]),), (PolicyWitness("w1", COSIGNER.keys[0]),), (), "w1"
)


def test_a_quorum_is_wanted_but_a_contradiction_outranks_it(public):
    write(public, entries(600))
    monitor = watch(public, policy=POLICY)
    seen = monitor.look()
    assert (seen.new_entries, type(seen.unmet)) == (600, PolicyUnmet)
    write(public, entries(600), cosigners=[COSIGNER])
    seen = monitor.look()
    assert (seen.new_entries, seen.unmet, list(seen.cosigned_at_s.values())) == (0, None, [5])
    assert Monitor(PublicLog(DirectoryLog(public)), (), policy=POLICY).look().unmet is None
    shutil.rmtree(public)
    write(public, entries(601, "b"))
    assert type(contradiction(monitor)[0]) is Inconsistent


def test_a_log_served_by_our_own_service_and_by_a_file_server(ledger, annotation, serve, tmp_path):
    log = ledger.open_run("run42")
    api = f"{serve(create_app(ledger))}/rlhf/run42"
    (tmp_path / "served").mkdir()
    files = serve(Starlette())  # nothing is there yet
    monitor = Monitor(PublicLog(ServedLog(api)), log.verifier_keys)
    with pytest.raises(NotServed):
        monitor.look()
    for size in (1, 255, 256, 257, 600):
        log.record_many(annotation(number) for number in range(log.size, size))
        log.publish()
        assert monitor.look().head.size == size
    with pytest.raises(NotServed):
        Monitor(PublicLog(ServedLog(files)), log.verifier_keys).look()
    export_log(log, tmp_path / "served" / "log")
    files = serve(_files(tmp_path / "served"))
    seen = Monitor(PublicLog(ServedLog(f"{files}/log/")), log.verifier_keys).look()
    assert seen.head == monitor.look().head
    assert dict(static_files(log))["checkpoint"].decode() == seen.note


def _files(directory):
    app = Starlette()
    app.mount("/", StaticFiles(directory=directory))
    return app


def test_places_that_are_none(tmp_path):
    for place in ("ftp://example.org", "http://", "https://x y/"):
        with pytest.raises(BadAddress):
            open_source(place)
    with pytest.raises(Unreachable):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(Unreachable):
        PublicLog(open_source("http://127.0.0.1:9", timeout_s=2)).tree_head()
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(Unreachable):
        watch(tmp_path).look()


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("log.vkey").write_text("".join(f"{key}\n" for key in KEYS.verifier_keys), "utf-8")
    Path("policy").write_bytes(format_policy(POLICY))

    def invoke(*arguments):
        result = CliRunner().invoke(main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_the_command_has_an_exit_code_for_each_outcome(run, public):
    look = ("monitor", str(public), "--key", "log.vkey", "--state", "state", "--once")
    assert run(*look).exit_code == 5
    write(public, entries(300))
    assert "300 entries, 300 new" in run(*look).output
    write(public, entries(600))
    result = run(*look, "--json")
    assert (result.exit_code, json.loads(result.output)["new_entries"]) == (0, 300)
    result = run(*look, "--policy", "policy")
    assert (result.exit_code, "too few" in result.output) == (3, True)
    (public / "tile/0/001").rename(public / "hidden")
    assert run("monitor", str(public), "--key", "log.vkey", "--once").exit_code == 3
    shutil.rmtree(public)
    write(public, entries(700, "b"))
    result = run(*look)
    assert (result.exit_code, "FAILED" in result.output) == (1, True)
    evidence = json.loads(Path("monitor-evidence.json").read_text("utf-8"))
    assert evidence["tree_head_seen_before"] == Path("state").read_text("utf-8")
    (public / "checkpoint").write_text("hello", "utf-8")
    assert run(*look).exit_code == 4
    Path("state").write_text("hello", "utf-8")
    assert run(*look).exit_code == 4
    assert run("monitor", str(public), "--once").exit_code == 2
    assert run("monitor", "ftp://x", "--key", "log.vkey", "--once").exit_code == 2


def test_without_once_it_stops_at_a_contradiction_only(run, public, monkeypatch):
    write(public, entries(300))
    changes = [lambda: write(public, entries(600)), lambda: write(public, entries(599))]
    monkeypatch.setattr("time.sleep", lambda _: changes.pop(0)())
    result = run("monitor", str(public), "--key", "log.vkey", "--interval", "1")
    assert (result.exit_code, changes) == (1, [])
    assert result.output.count("sound") == 2


def test_a_registry_log_is_followed_too(ledger, directory):
    ledger.registry.publish()
    ledger.close()
    with Ledger.open(directory) as again:
        export_log(again.registry, directory.parent / "exported")
        source = PublicLog(DirectoryLog(directory.parent / "exported"))
        assert Monitor(source, again.registry.verifier_keys).look().head.size == again.registry.size
