"""fsck of a directory with an exported log: every file that is not as it should be is named."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.ledger.export import export_log, update_export
from rlhf_audit_trail.ledger.exported import ExportCheck, NoExport, exports_in
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.proof.merkle import EMPTY_ROOT
from rlhf_audit_trail.ledger.proof.note import encode_base64


@pytest.fixture(scope="module")
def _export(_sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(_sound, folder / "ledger")
    with Ledger.open(folder / "ledger") as ledger:
        export_log(ledger.find("run42"), folder / "export")
    return folder / "export"


@pytest.fixture
def export(_export, tmp_path):
    return shutil.copytree(_export, tmp_path / "export")


def examine(directory, keys=()):
    check = ExportCheck(directory, keys)
    found = list(check.findings())
    assert all(finding.is_damage and finding.detail for finding in found)
    return [(finding.what, finding.where) for finding in found]


def test_a_sound_export_is_read_to_its_last_file(export):
    check = ExportCheck(export)
    assert list(check.findings()) == []
    assert check.entries == 600
    assert check.files == sum(path.is_file() for path in export.rglob("*"))
    assert check.name == "acme.example/rlhf/run42"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tile/0/001", "file"),
        ("tile/0/002.p/88", "file"),
        ("tile/1/000.p/2", "file"),
        ("tile/entries/001", "file"),
        ("tile/entries/002.p/88", "file"),
        ("vkey", "vkey"),
        ("checkpoint", "tree_head"),
    ],
)
def test_a_missing_file_is_named(export, name, what):
    (export / name).unlink()
    assert (what, name) in examine(export)


def test_a_tile_of_which_both_sides_are_gone_is_named_once_each(export):
    for name in ("tile/0/001", "tile/entries/001"):
        (export / name).unlink()
    assert {where for _, where in examine(export)} == {
        "tile/0/001",
        "tile/entries/001",
        "tile/1/000.p/2",
        "checkpoint",
    }


@pytest.mark.parametrize("name", ["surplus", "tile/0/003", "tile/7/000", "tile/entries/000.p/0"])
def test_a_surplus_file_is_named(export, name):
    path = export / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert examine(export) == [("file", name)]


def test_a_partial_tile_of_an_earlier_size_is_no_damage(export):
    old = export / "tile" / "entries" / "001.p" / "1"
    old.parent.mkdir()
    full = (export / "tile" / "entries" / "001").read_bytes()
    old.write_bytes(full[: 2 + int.from_bytes(full[:2], "big")])
    assert examine(export) == []
    old.write_bytes(b"\x00\x01x")
    assert examine(export) == [("file", "tile/entries/001.p/1")]


def test_an_interrupted_mirror_may_be_ahead_of_its_tree_head(damaged, export, annotation):

    before = (export / "checkpoint").read_bytes()
    with Ledger.open(damaged) as ledger:
        log = ledger.find("run42")
        log.record_many(annotation(number) for number in range(300))
        log.publish()
        update_export(log, export)
    assert examine(export) == []
    (export / ".checkpoint.next").write_bytes((export / "checkpoint").read_bytes())
    (export / "checkpoint").write_bytes(before)
    assert examine(export) == []


def test_a_tree_head_of_a_size_out_of_this_world_ends_soon(export):
    root = encode_base64(EMPTY_ROOT)
    note = (export / "checkpoint").read_text("utf-8").split("\n\n")[1]
    text = f"acme.example/rlhf/run42\n{10**18}\n{root}\n\n{note}"
    (export / "checkpoint").write_text(text, "utf-8")
    found = examine(export)
    assert found[0] == ("tree_head", "checkpoint")
    assert found[-1] == ("file", "tile")
    assert len(found) < 1_100


def test_other_keys_than_those_pinned(export):
    with Ledger.create(export.with_name("other"), organisation="acme.example") as other:
        keys = other.open_run("run42").verifier_keys
    assert set(examine(export, keys)) == {("vkey", "vkey"), ("tree_head", "checkpoint")}


def test_several_exports_below_one_directory(export, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(export, both / "a")
    shutil.copytree(export, both / "b")
    (both / "b" / "tile" / "0" / "000").unlink()
    assert exports_in(both) == [both / "a", both / "b"]
    result = CliRunner().invoke(main, ["fsck", "--export", str(both), "--json"])
    record = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (record["logs"], record["entries"], record["findings"][0]["where"]) == (
        2,
        1200,
        "tile/0/000",
    )


def test_a_directory_without_a_log(tmp_path):
    with pytest.raises(NoExport):
        exports_in(tmp_path)
    assert CliRunner().invoke(main, ["fsck", "--export", str(tmp_path)]).exit_code == 4
