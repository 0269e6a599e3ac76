"""Fetching: tensors come to the host together, so that a step waits for its device once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["fetch", "fetched"]


def fetch(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors on the host, in order; those that are there already as they are.

    The copies of one device are all under way before its stream is waited for, once.
    """
    host = torch.device("cpu")
    found = [x if x.device == host else x.detach().to(host, non_blocking=True) for x in tensors]
    for device in {x.device for x in tensors if x.device != host}:
        # without this wait the copies, which go into page-locked memory, would not be there yet
        torch.accelerator.current_stream(device).synchronize()
    return found


def fetched(values: Sequence[Any]) -> list[Any]:
    """Return values as they are, tensors among them on the host; the device is waited for once."""
    tensors = iter(fetch([x for x in values if isinstance(x, torch.Tensor)]))
    return [next(tensors) if isinstance(x, torch.Tensor) else x for x in values]
