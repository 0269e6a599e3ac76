"""Torch weights to digests: all types, tied, scalar and empty tensors, views and files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_audit_trail.ledger.weights.digest import DTYPE_BITS, tensor_record, weights_digest
from rlhf_audit_trail.weights.model_weights import (
    DTYPE_NAMES,
    UnknownDtype,
    digest_model,
    tensor_bytes,
)


def test_the_digest_is_that_of_the_little_endian_bytes() -> None:
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.copy_(torch.tensor([0.5]))
    wanted = weights_digest(
        [
            tensor_record("weight", "F32", (1, 2), struct.pack("<2f", 1.0, -2.0)),
            tensor_record("bias", "F32", (1,), struct.pack("<f", 0.5)),
        ]
    )
    assert digest_model(model).digest == wanted


@pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3)])
def test_every_type_and_shape_has_its_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.arange(1, size + 1, dtype=torch.uint8) % 2
    tensor = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    assert bytes(tensor_bytes(tensor)) == bytes(raw.tolist())
    record = digest_model({"x": tensor}).records[0]
    assert (record.dtype, record.shape, record.size_bytes) == (DTYPE_NAMES[dtype], shape, size)
    assert DTYPE_BITS[record.dtype] == 8 * dtype.itemsize


def test_bfloat16_is_hashed_as_it_is() -> None:
    tensor = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    assert bytes(tensor_bytes(tensor)) == b"\x80\x3f\x00\xc0"


def test_layout_in_memory_does_not_matter() -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    transposed = matrix.T.contiguous().T
    assert transposed.stride() != matrix.stride()
    assert digest_model({"x": transposed}).digest == digest_model({"x": matrix}).digest
    sliced, repeated = torch.arange(6.0)[::2], torch.ones(1).expand(3)
    assert digest_model({"x": sliced}).digest == digest_model({"x": sliced.clone()}).digest
    assert digest_model({"x": repeated}).digest == digest_model({"x": torch.ones(3)}).digest
    conjugate = torch.tensor([1 + 2j]).conj()
    assert (
        digest_model({"x": conjugate}).digest == digest_model({"x": torch.tensor([1 - 2j])}).digest
    )


def test_tied_tensors_are_hashed_once_as_the_saved_file_has_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    found = digest_model(model)
    assert found.aliases == {"lm_head.weight": "transformer.wte.weight"}
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {record.name for record in found.records} == set(saved)
    assert digest_model(saved).digest == found.digest


def test_equal_values_in_two_storages_are_two_tensors() -> None:
    one = torch.ones(3)
    assert len(digest_model({"a": one, "b": one.clone()}).records) == 2
    assert len(digest_model({"a": one, "b": one}).records) == 1
    assert len(digest_model({"a": one, "b": one[:2]}).records) == 2
    nothing = torch.empty(0)
    assert len(digest_model({"a": nothing, "b": nothing}).records) == 2


def test_one_flipped_bit_changes_the_digest() -> None:
    model = torch.nn.Linear(3, 3)
    before = digest_model(model).digest
    with torch.no_grad():
        model.weight.view(torch.int32)[1, 1] ^= 1
    assert digest_model(model).digest != before


def test_reading_leaves_the_model_as_it_is() -> None:
    model = torch.nn.Linear(3, 3)
    versions = [p._version for p in model.parameters()]
    state = torch.get_rng_state()
    digest_model(model)
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_without_a_byte_format_is_refused_by_name() -> None:
    with pytest.raises(UnknownDtype, match="odd"):
        digest_model({"odd": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(UnknownDtype, match="odd"):
        digest_model({"odd": torch.ones(2).to_sparse()})
