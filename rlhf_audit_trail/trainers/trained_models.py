"""The models of one trainer: their digests, what they were made from, and what is saved of them.

Where FSDP2 has spread weights over processes, each of them calls this, and a tensor at a time is
put together. What the first FSDP or DeepSpeed has spread, nobody here can: it is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rlhf_audit_trail.derivation import MadeFrom
from rlhf_audit_trail.ledger.weights.digest import TensorRecord, weights_digest
from rlhf_audit_trail.movement.sharding import bare, is_sharded, whole_records
from rlhf_audit_trail.record.recorder import RunRecorder
from rlhf_audit_trail.weights.base_model import base_records, loaded_from
from rlhf_audit_trail.weights.model_weights import digest_model

__all__ = ["TrainedModels"]


class TrainedModels:
    """The models of one trainer, as its run records them.

    Attributes:
        made_from: what is trained now, by its digest; None before `begin`.
        how: trained from it, or an adapter to it.
    """

    def __init__(self, trainer: Any) -> None:
        """Look at nothing before training begins."""
        self._trainer = trainer
        self.made_from: MadeFrom | None = None
        self.how = "training"

    @property
    def is_spread(self) -> bool:
        """Whether each process holds a part, and all of them must take part in a digest."""
        if not self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled:
            return False
        # DTensors know how to be whole; what the first FSDP has flattened does not
        return any(hasattr(x, "full_tensor") for x in self._trainer.model.parameters())

    @property
    def is_out_of_reach(self) -> bool:
        """Whether weights lie in parts that cannot be put together here."""
        trainer = self._trainer
        return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled) and not self.is_spread

    def begin(self, run: RunRecorder) -> None:
        """Record policy, reference and reward models; compare the first two."""
        trainer = self._trainer
        is_resumed = trainer.state.global_step > 0
        policy = self._records(run, trainer.model)
        self._policy(run, policy, is_resumed=is_resumed)
        reference = getattr(trainer, "ref_model", None)
        if isinstance(reference, nn.Module):
            found = self._register(run, reference, "reference")
            if run.is_main and not is_resumed and _digest(found) != _digest(policy):
                run.alert("reference_differs", "the reference's weights are not the policy's")
        rewards = getattr(trainer, "reward_funcs", None) or ()
        for model in (x for x in rewards if isinstance(x, nn.Module)):
            self._register(run, model, "reward", derived_from=loaded_from(self._bare(model)))

    def _policy(
        self, run: RunRecorder, policy: Sequence[TensorRecord], *, is_resumed: bool
    ) -> None:
        """Record the policy, and what it is made from; of an adapter also its base by itself."""
        if not run.is_main:
            return
        role = "policy_resumed" if is_resumed else "policy_init"
        model = self._bare(self._trainer.model)
        source, how = loaded_from(model), "training" if is_resumed else "loaded"
        if hasattr(model, "peft_config") and (base := base_records(model, policy)):
            run.register_model(base, "base", derived_from=source, derivation="loaded")
            source, how = (
                replace(source or MadeFrom("base"), weights_digest=_digest(base)),
                "adapter",
            )
            self.made_from, self.how = source, how
        else:
            self.made_from = MadeFrom(role, weights_digest=_digest(policy))
        run.register_model(list(policy), role, derived_from=source, derivation=how)

    def end(self, run: RunRecorder, *, dp: Mapping[str, Any] | None = None) -> None:
        """Record the policy as training left it; `dp` is what a private training may say of it."""
        model = self._bare(self._trainer.model)
        run.register_model(
            model, "policy_final", derived_from=self.made_from, derivation=self.how, dp=dp
        )

    def saved(self) -> Any:
        """Return the tensors as they are saved: of an adapter, only its own."""
        model = self._bare(self._trainer.model)
        if hasattr(model, "peft_config"):
            from peft import get_peft_model_state_dict  # noqa: PLC0415 - only where it is used

            return get_peft_model_state_dict(model)
        return model

    def _register(
        self, run: RunRecorder, model: Any, role: str, *, derived_from: MadeFrom | None = None
    ) -> Sequence[TensorRecord]:
        found = self._records(run, self._bare(model))
        if run.is_main:
            run.register_model(list(found), role, derived_from=derived_from, derivation="loaded")
        return found

    def _records(self, run: RunRecorder, model: Any) -> Sequence[TensorRecord]:
        """Return a model's records; nothing on a process that only holds a part."""
        model = bare(model)
        if is_sharded(model):
            return whole_records(model, is_main=run.is_main)
        return digest_model(model).records if run.is_main else ()

    def _bare(self, model: Any) -> Any:
        return self._trainer.accelerator.unwrap_model(model)


def _digest(records: Sequence[TensorRecord]) -> str:
    return weights_digest(records).hex()
