"""Has every trainer and every optimizer in this process recorded, without a change of code.

`rlhf-audit run -- python train.py` puts this folder first on PYTHONPATH, and Python imports a
module of this name at its start, in child processes as well. It waits until transformers is
imported, if it ever is, and adds one callback to those that every trainer begins with; and
until torch is, for hooks on optimizers that no trainer steps.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_HERE: Final = str(Path(__file__).parent)


class _Announcing(Loader):
    """Loads a module as its own loader does, and then has it extended."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _AWAITED[module.__name__](module)


def _add_callback(module: Any) -> None:
    from rlhf_audit_trail.trl import AuditCallback  # noqa: PLC0415 - it imports this module

    module.DEFAULT_CALLBACKS.append(AuditCallback)  # what every trainer begins with


def _add_hooks(module: Any) -> None:
    def before(optimizer: Any, *_: Any) -> None:
        from rlhf_audit_trail.launch.loops import before_step  # noqa: PLC0415 - imports torch

        before_step(optimizer)

    def after(optimizer: Any, *_: Any) -> None:
        from rlhf_audit_trail.launch.loops import after_step  # noqa: PLC0415 - imports torch

        after_step(optimizer)

    module.register_optimizer_step_pre_hook(before)
    module.register_optimizer_step_post_hook(after)


_AWAITED: Final[dict[str, Callable[[Any], None]]] = {
    "transformers.trainer": _add_callback,
    "torch.optim.optimizer": _add_hooks,
}


class _Waiting(MetaPathFinder):
    """Finds nothing itself; steps in for the one module that is awaited."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _AWAITED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Announcing(spec.loader)
        return spec


def _run_shadowed() -> None:
    """Run the module of this name that would have been found without this one."""
    elsewhere = [place for place in sys.path if place != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Waiting())
    _run_shadowed()
