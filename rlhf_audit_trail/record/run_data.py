"""What a run was fed and what it made: datasets, scored completions, consumed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Final

from rlhf_audit_trail.ledger.events import Event
from rlhf_audit_trail.ledger.log import Log, Receipt
from rlhf_audit_trail.record.dataset_rows import Annotated, DatasetRecord, Decode, committed
from rlhf_audit_trail.record.reward import RewardCall, recorded_reward
from rlhf_audit_trail.record.rollout_rows import scored_rows
from rlhf_audit_trail.record.run_log import RunLog
from rlhf_audit_trail.run_events import rollout_event, sealed_event

__all__ = ["RolloutRecord", "RunData"]

ROWS_BESIDE_ENTRY_BYTES_MAX: Final = 64 * 1024  # larger tables go to the blob store
SENT_BYTES_MAX: Final = 1024 * 1024  # with an entry to another machine, in one request


@dataclass(frozen=True)
class RolloutRecord:
    """What was recorded of scored completions; the root, in hex, names them in later entries."""

    rows_root: str
    completions: int
    receipt: Receipt = field(repr=False)


class RunData(RunLog):
    """The part of a recorder that binds data to a run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what `RunLog` takes."""
        super().__init__(*args, **options)
        self._annotated = Annotated()
        self.reward_calls: list[RewardCall] | None = None  # a list while a trainer records itself

    def dataset(
        self,
        dataset: Any,
        role: str = "train",
        id_column: str | None = None,
        *,
        ending: str = "",
        decode: Decode | None = None,
    ) -> DatasetRecord:
        """Record the root over salted commitments to a dataset's rows; call before step 1.

        Rows whose prompt and response were annotated in this process are linked to their
        annotations by text; other links can stand in a column.

        Args:
            dataset: of Hugging Face, sequence of rows, or mapping of columns; a stream, which
                has no length, is recorded without rows and root.
            role: for example train, eval.
            id_column: a column with an id per row, for example an annotation's leaf index.
            ending: what a trainer appended to responses after they were annotated.
            decode: text of the tokens of a response, where a trainer has left nothing else.

        Raises:
            WrongArgument, InvalidColumn: this is no dataset, or a value has no bytes.
        """
        fields: dict[str, Any] = {"role": role, "rows": None, "root": None}
        fingerprint = getattr(dataset, "_fingerprint", None)
        if isinstance(fingerprint, str):  # of HF datasets; follows from how it was made
            fields["fingerprint"] = fingerprint
        if id_column is not None:
            fields["id_column"] = id_column
        if not isinstance(dataset, Sized):
            receipt = self._record([Event("dataset.registered", fields)])[0]
            return DatasetRecord(role, None, None, (), {}, receipt)
        found = committed(dataset, self._annotated, id_column, ending, decode)
        fields |= {"rows": found.rows, "root": found.root.hex()}
        sealed = {"rows_key": found.key.key.hex()}
        receipt = self._record([Event("dataset.registered", fields, sealed)])[0]
        if found.annotations and isinstance(self._log, Log):
            self._log.flush()  # before the first step: links will be leaf indices
        return DatasetRecord(
            role, found.rows, fields["root"], found.ids, found.annotations, receipt
        )

    def on_rollouts_scored(
        self,
        prompts: Any,
        completions: Any,
        rewards: Mapping[str, Any],
        advantages: Any = None,
        *,
        token_ids: Any = None,
        kl: Any = None,
        entropy: Any = None,
        lengths: Any = None,
        finish_reasons: Any = None,
        weights: Mapping[str, float] | None = None,
        policy_step: int | None = None,
        trainer_step: int | None = None,
        purpose: str = "",
        observed: Mapping[str, Any] | None = None,
    ) -> RolloutRecord:
        """Record scored completions: count, root and figures in the entry, the rows encrypted.

        Args:
            prompts: text or messages per completion.
            completions: text or messages.
            rewards: a reward's name to its value per completion, None where it does not apply.
            advantages: per completion.
            token_ids: of each completion.
            kl: KL divergence to the reference per completion, in nats.
            entropy: mean entropy of the policy per completion, in nats.
            lengths: live tokens per completion; by default as many as `token_ids`.
            finish_reasons: per completion, such as stop or length.
            weights: of the rewards in the total; 1 for those not named.
            policy_step: updates made before; by default as many as were recorded.
            trainer_step: the trainer's own count.
            purpose: `evaluation` where nobody trains on them; detectors leave them out.
            observed: the file they were read from, by who did not score them; public.

        Raises:
            UnequalLengths, InvalidColumn, InvalidMetric: nothing was recorded.
        """
        more = {"kl": kl, "entropy": entropy, "length": lengths, "finish_reason": finish_reasons}
        found = scored_rows(
            prompts,
            completions,
            rewards,
            advantages,
            token_ids=token_ids,
            weights=weights,
            more=more,
        )
        step = self._policy_step if policy_step is None else policy_step
        fields: dict[str, Any] = {"policy_step": step, "completions": len(found.rows)}
        if trainer_step is not None:
            fields["trainer_step"] = trainer_step
        if purpose:
            fields["purpose"] = purpose
        if observed is not None:
            fields["observed"] = dict(observed)
        fields["rows_root"] = found.root
        sealed = dict(found.sealed) | {"rows_key": found.key.key.hex()}
        table, rows = found.table, None
        events: list[Event] = []
        if self._blobs is not None and len(table) > ROWS_BESIDE_ENTRY_BYTES_MAX:
            # first the blob: an entry without it would promise what is not there
            fields["rows_digest"] = self._blobs.put(found.key.encrypt(table))
        elif len(table) <= SENT_BYTES_MAX:
            rows = {"rows": found.rows}
        else:
            events.append(self._too_large(len(found.rows), step))
        scored = sealed_event(
            "rollout.scored", fields, sealed, step=step, plain=rows, odd=found.odd
        )
        receipt = self._record(scored + events)[0]
        return RolloutRecord(fields["rows_root"], len(found.rows), receipt)

    def rollouts_scored(
        self, *, rewards: Any, kl: Any = None, entropy: Any = None, lengths: Any = None
    ) -> Receipt:
        """Record the figures of completions whose rows nobody keeps; all of them sealed.

        Args:
            rewards: number per completion.
            kl: KL divergence to the reference per completion, in nats.
            entropy: mean entropy of the policy per completion, in nats.
            lengths: live tokens per completion.
        """
        means = {"kl_mean": kl, "entropy_mean": entropy, "length_mean": lengths}
        return self._record(
            rollout_event(policy_step=self._policy_step, rewards=rewards, means=means)
        )[0]

    def on_batch_consumed(
        self,
        step: int | None,
        rows: Sequence[Any],
        *,
        dataset: DatasetRecord | None = None,
        completions: Sequence[Any] | None = None,
    ) -> Receipt:
        """Record which rows were trained on; all of it sealed but their number.

        The arguments are those of `consumed_events`.
        """
        events = self.consumed_events(step, rows, dataset=dataset, completions=completions)
        return self._record(events)[0]

    def consumed_events(
        self,
        step: int | None,
        rows: Sequence[Any],
        *,
        dataset: DatasetRecord | None = None,
        completions: Sequence[Any] | None = None,
    ) -> list[Event]:
        """Return what `on_batch_consumed` records.

        Args:
            step: the trainer's own count of the update they are for.
            rows: row numbers or ids, one for each row trained on; None for one that nobody
                could match with a row of a known dataset.
            dataset: what `dataset` returned, to link row numbers to their annotations.
            completions: instead of `rows`, for rollouts: (rows root, row) of each, or None.
        """
        links = list(rows if completions is None else completions)
        fields: dict[str, Any] = {"policy_step": self._policy_step, "rows": len(links)}
        fields["unmatched"] = sum(link is None for link in links)
        if step is not None:
            fields["trainer_step"] = step
        sealed: dict[str, Any] = {"rows" if completions is None else "completions": links}
        if dataset is not None and (dataset.ids or dataset.annotations):
            sealed["annotations"] = [None if x is None else dataset.link(x) for x in links]
        return sealed_event("batch.consumed", fields, sealed, step=self._policy_step)

    def reward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a reward function that records what it returns; see `AuditableRLHF.reward`."""
        return recorded_reward(function, lambda: self)

    def _too_large(self, rows: int, step: int) -> Event:
        detail = f"{rows} rows were too large to send; the entry commits to them by its root"
        fields = {"name": "rows_not_kept", "severity": "warning", "step": step, "detail": detail}
        return Event("alert.raised", fields)
