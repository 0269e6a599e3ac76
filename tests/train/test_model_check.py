"""Whose weights are these: real files of a real model, whole, sharded, cast, damaged, hostile."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.ledger.weights.safetensors_file import UnreadableModel, read_safetensors
from rlhf_audit_trail.weights.ledger_weights import LedgerWeights
from rlhf_audit_trail.weights.model_check import ModelVerdict, check_model
from rlhf_audit_trail.weights.model_files import read_model
from rlhf_audit_trail.weights.model_weights import digest_model

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 as transformers saves it, tied weights and all."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    folder = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> Iterator[Ledger]:
    place = tmp_path_factory.mktemp("ledger") / "ledger"
    model = GPT2LMHeadModel.from_pretrained(saved)
    with Ledger.create(place, organisation="acme.example") as made:
        auditor = AuditableRLHF("tiny", ledger=made, source="simulated", storage_backend="local")
        with auditor.track_training("run-1") as run:
            run.checkpoint(epoch=0, model=model, path=saved).receipt.result()
            with torch.no_grad():
                model.transformer.h[0].mlp.c_fc.weight.add_(0.5)
            run.checkpoint(epoch=1, model=model).receipt.result()
        yield made


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def checked(ledger: Ledger, path: Path, checkpoint: str = "") -> ModelVerdict:
    return check_model(LedgerWeights(ledger), read_model(path), checkpoint=checkpoint)


def test_the_saved_model_is_the_recorded_one(ledger: Ledger, saved: Path) -> None:
    for path in (saved, saved / "model.safetensors"):
        found = checked(ledger, path)
        assert found.state == "recorded"
        assert [x.name for x in found.matches] == ["epoch_0"]
        assert not found.changed


def test_a_resharded_copy_is_the_same_model(ledger: Ledger, saved: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(saved)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = checked(ledger, tmp_path)
    assert (found.state, read_model(tmp_path).form) == ("recorded", "sharded safetensors")
    next(iter(tmp_path.glob("model-00002*"))).unlink()
    found = checked(ledger, tmp_path)
    assert found.state == "near"
    assert found.nearest is not None
    assert found.nearest.name == "epoch_0"
    assert [x[:11] for x in found.missing] == ["model-00002"]
    assert {x.kind for x in found.differences} == {"missing"}


def test_other_forms_are_the_same_model(ledger: Ledger, saved: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(saved)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save({"model_state_dict": model.state_dict(), "step": 3}, tmp_path / "trainer.pt")
    torch.save(model.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "untied.safetensors")  # a tied tensor twice
    for name in ("model.pt", "trainer.pt", "old.bin", "untied.safetensors"):
        assert checked(ledger, tmp_path / name).state == "recorded", name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_the_same_model(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    dcp.save({"model": tensors, "step": 3}, checkpoint_id=tmp_path / "nested")
    dcp.save(dict(tensors), checkpoint_id=tmp_path / "flat")
    wanted = digest_model(tensors).digest
    for name in ("nested", "flat"):
        found = read_model(tmp_path / name)
        assert (found.form, found.digest()) == ("torch.distributed.checkpoint", wanted)


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.made,)


def test_nothing_is_ever_executed(tmp_path: Path) -> None:
    made = tmp_path / "executed"
    torch.save({"a": torch.ones(2), "b": Hostile(made)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Hostile(made), protocol=2))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".metadata").write_bytes(pickle.dumps(Hostile(made)))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".metadata").write_bytes(b"\x80\x04garbage")
    for name in ("a.pt", "b.pt", "c", "d"):
        with pytest.raises(UnreadableModel):
            read_model(tmp_path / name)
    assert not made.exists()


def test_one_flipped_bit_is_found(ledger: Ledger, copy: Path) -> None:
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    tensor = next(x for x in read_safetensors(file) if x.name == "transformer.wpe.weight")
    header = json.loads(data[8:begin])
    at = begin + header[tensor.name]["data_offsets"][0] + 13
    del tensor
    data[at] ^= 1 << 5
    file.write_bytes(data)
    found = checked(ledger, copy)
    assert (found.state, found.equal, found.tensors) == ("near", 27, 28)
    (difference,) = found.differences
    assert (difference.tensor, difference.kind) == ("transformer.wpe.weight", "bits")
    assert difference.what == "differs in 1 bit: bit 5 of byte 13"
    assert checked(ledger, copy, "epoch_0").state == "differs"


def test_swapped_tensors_are_told_by_what_they_hold(ledger: Ledger, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    one, two = (f"transformer.h.{n}.attn.c_attn.weight" for n in (0, 1))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, copy / "model.safetensors")
    found = checked(ledger, copy)
    assert {(x.tensor, x.kind, x.what) for x in found.differences} == {
        (one, "swapped", f"holds what was recorded as {two}"),
        (two, "swapped", f"holds what was recorded as {one}"),
    }


def test_a_cast_is_told_from_other_values(ledger: Ledger, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({x: y.bfloat16() for x, y in tensors.items()}, copy / "model.safetensors")
    assert checked(ledger, copy).state == "unknown"
    found = checked(ledger, copy, "epoch_0")
    assert (found.state, found.equal) == ("differs", 0)
    assert {x.kind for x in found.differences} == {"dtype"}
    assert found.differences[0].what == "is BF16, recorded was F32: cast, and so other weights"


def test_changes_beside_equal_weights_are_named(ledger: Ledger, copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ other }}")
    (copy / "tokenizer.json").write_text("{}")
    found = checked(ledger, copy)
    assert (found.state, found.changed) == ("recorded", ["chat_template.jinja", "tokenizer.json"])
    assert checked(ledger, copy, "epoch_0").state == "differs"


def test_missing_added_and_reshaped_tensors(ledger: Ledger, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["extra"] = torch.zeros(2)
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].reshape(2, 4)
    save_file(tensors, copy / "model.safetensors")
    found = checked(ledger, copy)
    assert {x.tensor: x.kind for x in found.differences} == {
        "extra": "added",
        "transformer.ln_f.bias": "missing",
        "transformer.ln_f.weight": "shape",
    }


def header_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_hostile_safetensors_are_refused(tmp_path: Path) -> None:
    def one(begin: int, end: int, dtype: str = "U8", shape: object = None) -> dict[str, object]:
        return {"dtype": dtype, "shape": shape or [4], "data_offsets": [begin, end]}

    path = tmp_path / "x.safetensors"
    assert len(read_model(header_file(path, {"a": one(0, 4)}, b"abcd")).tensors) == 1
    hostile: list[tuple[object, bytes]] = [
        ({"a": one(0, 4), "b": one(2, 6)}, b"abcdef"),  # overlap
        ({"a": one(0, 4), "b": one(5, 9)}, b"abcdefghi"),  # hole
        ({"a": one(0, 4)}, b"abcde"),  # bytes of nobody
        ({"a": one(0, 4)}, b"abc"),
        ({"a": one(0, 3)}, b"abc"),  # not what the shape demands
        ({"a": one(-4, 0)}, b""),
        ({"a": one(4, 0)}, b"abcd"),
        ({"a": one(0, 4, shape=[2**63, 2**63])}, b"abcd"),
        ({"a": one(0, 4, shape=[-2, -2])}, b"abcd"),
        ({"a": one(0, 4, dtype="U7")}, b"abcd"),
        ({"a": {**one(0, 4), "more": 1}}, b"abcd"),
        ({"a": [], "__metadata__": {}}, b""),
        ({"__metadata__": []}, b""),
        ([], b""),
        (b"{" + b",".join([b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'] * 2) + b"}", b""),
        (b"[" * 100_000, b""),
        (b"\xff\xfe", b""),
        ({}, b""),
    ]  # fmt: skip
    for header, data in hostile:
        with pytest.raises(UnreadableModel):
            read_model(header_file(path, header, data))
    for raw in (b"", b"\0" * 7, struct.pack("<Q", 1 << 60) + b"{}"):
        path.write_bytes(raw)
        with pytest.raises(UnreadableModel):
            read_model(path)


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path, saved: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": str(saved / "model.safetensors")}}))
    with pytest.raises(UnreadableModel, match="other folders"):
        read_model(tmp_path)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(UnreadableModel, match="no index"):
        read_model(index)
