"""The kinds of event, and how one becomes the bytes of an entry.

An event has public fields, which stand in the entry, and sealed fields, of which
the entry holds only salted commitments; their values go to the vault. What may be
public is decided here, once, and not by the caller: `KINDS` is the whole list.

An entry is compact UTF-8 JSON, written once and never re-encoded (`FORMAT.md`,
section 3).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from json import encoder as json_encoder
from typing import Any, Final

from rlhf_audit_trail.ledger.proof.errors import AuditTrailError

__all__ = [
    "ENTRY_VERSION",
    "KINDS",
    "MAX_ENTRY_BYTES",
    "RUN_KINDS",
    "EntryTooLarge",
    "Event",
    "InvalidEvent",
    "Kind",
    "encode_text",
    "encode_value",
]

ENTRY_VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 65_535  # entry tiles carry a uint16 length (c2sp.org/tlog-tiles)


class InvalidEvent(AuditTrailError):
    """An event does not fit its kind, or holds a value that JSON cannot carry."""


class EntryTooLarge(AuditTrailError):
    """An entry would exceed 65,535 bytes."""


@dataclass(frozen=True)
class Kind:
    """What an event of one kind holds; a name ending in `?` may be left out."""

    meaning: str
    public: Mapping[str, type | tuple[type, ...]]
    sealed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """A typed record of something that happened.

    Attributes:
        kind: a key of `KINDS`.
        fields: public values, in clear in the entry: str, int, float, bool, None, and
            lists and mappings of these.
        sealed: values that only commitments stand for; same types.
        subject: stable id of the person the sealed values are about; empty for the
            run itself. It never reaches an entry, nor any store in clear.
    """

    kind: str
    fields: Mapping[str, Any]
    sealed: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""


_OPTIONAL_TEXT = (str, type(None))

_LEDGER_KINDS: Final[Mapping[str, Kind]] = {
    # --- registry log -----------------------------------------------------------------
    "ledger.created": Kind("A ledger began.", {"organisation": str, "format": int}),
    "run.opened": Kind(
        "A run's own log began; hiding the run later is visible here.",
        {"run": str, "origin": str, "log_keys": list},
    ),
    "run.closed": Kind(
        "A run's log ended at this size and root.",
        {"run": str, "origin": str, "tree_size": int, "root": str},
    ),
    "log.restored": Kind(
        "Entries were put back from a copy, which holds none of the values that they sealed.",
        {"run": str, "from_size": int, "to_size": int, "source": str},
    ),
    "run.pruned": Kind(
        "The bytes of a closed run's entries were moved to an archive; its tree stays here.",
        {
            "run": str,
            "origin": str,
            "tree_size": int,
            "root": str,
            "archive_digest": str,
            "policy": dict,
        },
    ),
    "checkpoint.discarded": Kind(
        "Stored weights were deleted; the entries and digests of these checkpoints stay.",
        {"run": str, "names": list, "digests": list},
    ),
    "chain.registered": Kind(
        "Tree heads are anchored here from now on; a new publisher supersedes an old one.",
        {"chain_id": int, "contract": str, "publisher": str},
    ),
    "writer.granted": Kind(
        "A token was made with which a named writer may append over HTTP; no run: to every run.",
        {"writer": str, "run": _OPTIONAL_TEXT, "token_digest": str},
    ),
    "writer.revoked": Kind(
        "A writer's token is refused from now on.",
        {"writer": str, "run": _OPTIONAL_TEXT, "token_digest": str},
    ),
    "subject.erased": Kind(
        "Sealed values of one person in one run were destroyed; of whom is written nowhere.",
        {"run": str, "entries": int, "basis": str},
    ),
    "values.expired": Kind(
        "Sealed values that were kept for so many days were destroyed, whosever they were.",
        {"run": str, "entries": int, "of_kind": str, "kept_days": int},
    ),
    "access.read": Kind(
        "Sealed values of an entry were opened to a named reader, in a file with this digest.",
        {
            "run": str,
            "index": int,
            "fields": list,
            "reader": str,
            "digest": str,
            "size_bytes": int,
        },
    ),
    # --- registry log and, about itself, the log concerned ------------------------------
    "keys.rotated": Kind(
        "Tree heads of this size and larger are signed by the new keys as well.",
        {
            "run": str,
            "origin": str,
            "generation": int,  # of the new keys
            "old_keys": list,
            "new_keys": list,
            "from_size": int,
        },
    ),
    "keys.retired": Kind(
        "Tree heads of this size and larger are no longer signed by the old keys.",
        {
            "run": str,
            "origin": str,
            "generation": int,  # of the old keys
            "old_keys": list,
            "from_size": int,
            "tree_head": str,  # signed by both, and holding the log's own keys.rotated
        },
    ),
}

# What a training process records; a writer token allows these and no others.
RUN_KINDS: Final[Mapping[str, Kind]] = {
    "run.started": Kind("Training began.", {"name": str, "model_name": str, "source": str}),
    "run.resumed": Kind(
        "A new process goes on with the run; what the old one did not commit is not here.",
        {"tree_size": int, "reason": str},
    ),
    "run.config": Kind("Settings before the first step.", {"config": dict}, ("seed",)),
    "env.snapshot": Kind(
        "Versions the run uses, and a digest of the code where it is known.",
        {
            "python": str,
            "platform": str,
            "packages": dict,
            "code_digest?": str,  # of the script that was started
            "sources?": int,  # the project's own files that were imported
            "sources_digest?": str,  # of the list of their digests, which is a blob
        },
    ),
    "dataset.registered": Kind(
        "A dataset took part in a role; of a stream neither rows nor root are known.",
        {
            "role": str,
            "rows": (int, type(None)),
            "root": _OPTIONAL_TEXT,  # over salted row commitments
            "fingerprint?": str,
            "id_column?": str,
        },
        ("rows_key",),
    ),
    "model.registered": Kind(
        "A model took part in a role: base, policy_init, policy_resumed, reference, reward, value, "
        "policy_final.",
        {
            "role": str,
            "weights_digest": str,
            "tensors": int,
            "parameters": int,
            "derivation?": str,  # how it was made of others: copy, training, adapter, merge, …
            "derived_from?": list,  # those, each by name, revision, weights_digest and log
            "dp?": dict,  # what a private training may say of it
        },
    ),
    "annotation.recorded": Kind(
        "One preference value by one annotator.",
        {
            "source": str,
            "batch": int,
            "judge_model?": str,
            "import?": str,  # of `annotations.imported`, and there the row
            "row?": int,
        },
        # of a choice between two answers, `response` is the preferred one; then no reward
        ("prompt", "response", "annotator", "reward", "rejected", "details"),
    ),
    "annotation.corrected": Kind(
        "Values that replace those of an earlier annotation; it stays, and readers take these.",
        {"supersedes": int, "source": str, "reason?": str},  # the annotation's leaf index
        ("prompt", "response", "annotator", "reward", "rejected", "details"),
    ),
    "annotations.imported": Kind(
        "All of a file's annotations are recorded, but for those that are counted as left out.",
        {
            "import": str,
            "format": str,
            "file_digest": str,
            "size_bytes": int,
            "rows": int,
            "recorded": int,
            "unattributed": int,
            "sources": dict,
            "left_out": dict,
            "settings": dict,
            "guideline_digest?": str,
            "revision?": str,
            "fingerprint?": str,
        },
        ("left_out_rows",),
    ),
    "rollout.scored": Kind(
        "Completions of the policy were scored.",
        {
            "policy_step": int,
            "completions": int,
            "purpose?": str,  # evaluation, where nobody trains on them
            "trainer_step?": int,
            "rows_root?": str,  # over salted row commitments
            "rows_digest?": str,  # of the blob that holds the encrypted rows
            "observed?": dict,  # the file they were read from, where no trainer recorded them
            "rank?": int,  # of the process they are from, where it is not the recording one
        },
        (
            "reward_mean",
            "reward_min",
            "reward_max",
            "reward_std",
            "kl_mean",
            "entropy_mean",
            "length_mean",
            "figures",
            "rows",
            "rows_key",
        ),
    ),
    "batch.consumed": Kind(
        "Rows were trained on; which ones is sealed.",
        {"policy_step": int, "trainer_step?": int, "rows": int, "unmatched": int, "rank?": int},
        ("rows", "annotations", "completions"),
    ),
    "policy.update": Kind(
        "The optimizer changed the policy.",
        {
            "policy_step": int,
            "updates": int,
            "algorithm": str,
            "delta_norm_kind": str,  # exact, sampled, or absent when no step was seen
            "rows": (int, type(None)),  # null in a private training: how many were drawn is private
            "learning_rate": (int, float, type(None)),
            "trainer_step?": int,  # the trainer's own count: the same again after a resumption
            "dp?": dict,  # of a private training: noise, sampling, account, norm after noise
        },
        ("parameter_delta_norm", "grad_norm_preclip", "grad_norm_applied", "statistics", "batch"),
    ),
    "checkpoint.saved": Kind(
        "A model checkpoint; without weights it says so.",
        {
            "name": str,
            "epoch": int,
            "weights_digest": _OPTIONAL_TEXT,
            "tensors": int,
            "parameters": int,
            "size_bytes": int,
            "path_digest?": str,
            "saved_for?": str,  # resume, or use: why a trainer saved it
            "trainer_step?": int,
            "trainer_state_digest?": str,  # of the file that holds this log's head in turn
            "manifest_digest?": str,  # of the blob that lists tensors, aliases and files
            "derivation?": str,  # as of `model.registered`
            "derived_from?": list,
        },
        ("metrics",),
    ),
    "metrics.logged": Kind("Metrics at a step.", {"step": int}, ("metrics",)),
    "alert.raised": Kind(
        "A detector or the recorder itself found something a reader must know.",
        {"name": str, "severity": str, "step": int, "detail": str, "rule?": dict, "rank?": int},
        ("inputs",),  # what a detector judged by its rule
    ),
    "gap": Kind(
        "Events that were observed but could not be recorded.",
        {"of_writer": str, "first_seq": int, "last_seq": int, "count": int, "reason": str},
    ),
    "run.finished": Kind("Training ended: completed or failed.", {"outcome": str, "error": str}),
}

# What a statistic about annotators costs and shows. Charged in the transaction that stores it, so
# no writer on another machine may record it. Integers that may be large are text; null units
# mean that there is no such guarantee.
_UNITS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "epsilon_units": _OPTIONAL_TEXT,
    "rho_units": _OPTIONAL_TEXT,
    "delta_units": str,
}
_PRIVACY_KINDS: Final[Mapping[str, Kind]] = {
    "dp.mechanism": Kind(
        "By what noise is drawn, and what one use of it costs.",
        {
            "name": str,
            "parameters": dict,
            "unit": str,
            "relation": str,
            **_UNITS,
            "drbg": str,
            "code_digest": str,  # of the samplers' source
        },
    ),
    "dp.noise_root": Kind(
        "Noise slots of a round are settled; its secret is sealed.",
        {"round": int, "slots": int, "root": str},
        ("secret",),
    ),
    "dp.coin": Kind(
        "A coin unknown when the slots were settled; entries before tree_size are covered.",
        {
            "round": int,
            "noise_root": int,  # leaf index
            "tree_size": int,
            "source": str,  # auditor, prevrandao, local
            "value": str,
            "anchor?": dict,  # that holds the slots and the covered entries
            "block?": dict,  # whose randomness it is
        },
    ),
    "dp.spend": Kind(
        "Everybody whose values a statistic takes was charged, before anything was drawn.",
        {
            "round": int,
            "statistic": dict,
            "of": dict,
            "mechanism_ref": int,
            "coin_ref": int,
            "first_index": int,
            "end_index": int,
            "entries": int,
            "left_out": dict,
            "participants": int,
            **_UNITS,
            "is_response": bool,
            "budget": dict,
            "slots": list,
            "parts": int,  # this entry and the dp.participants after it
        },
        ("participants", "accounts"),
    ),
    "dp.participants": Kind(
        "More participants of the dp.spend before it.",
        {"round": int, "part": int, "parts": int},
        ("participants", "accounts"),
    ),
    "dp.labels": Kind(
        "The annotations right after this were charged to their annotators, one label each.",
        {
            "mechanism_ref": int,
            "labels": int,  # so many entries follow, in the same transaction
            **_UNITS,  # of one label
            "is_response": bool,
            "budget": dict,
            "noise": str,  # system: of the operating system, which nobody can draw again
        },
        # one for each label, sorted by themselves
        ("participants", "accounts"),
    ),
    "label.privatised": Kind(
        "What randomised response made of one annotation's value; published only if so chosen.",
        {"labels_ref": int, "of": int, "released?": int},  # leaf indices
        ("annotator", "answer"),
    ),
    "dp.labels_skipped": Kind(
        "Labels that were charged, and that nothing was or will be drawn for.",
        {"labels_ref": int, "labels": int, "reason": str},
    ),
    "dp.release": Kind(
        "A statistic with its noise.",
        {
            "round": int,
            "spend_ref": int,
            "coin_ref": int,
            "slots": list,
            "value": list,
            "estimate": dict,
            "noise": dict,
            "proof?": dict,
        },
    ),
    "dp.skipped": Kind(
        "Noise slots that nothing was or will be drawn from.",
        {"round": int, "slot": int, "count": int, "reason": str, "spend_ref?": int},
    ),
    "dp.unprotected": Kind(
        "A statistic was shown without noise, under the mode minimal; there is no DP claim.",
        {
            "statistic": dict,
            "of": dict,
            "first_index": int,
            "end_index": int,
            "participants": int,
        },
        ("value",),
    ),
}

KINDS: Final[Mapping[str, Kind]] = {**_LEDGER_KINDS, **RUN_KINDS, **_PRIVACY_KINDS}


_MAKE_ENCODER: Any = getattr(json_encoder, "c_make_encoder", None)  # CPython has it


class _Encoder(threading.local):
    """A JSON encoder for each thread, made once: `json.dumps` builds one at every call.

    Not shared between threads: it keeps the containers it is in, to see one inside itself.
    """

    def __init__(self) -> None:
        spelled = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self.encode: Callable[[Any], str] = spelled.encode
        if _MAKE_ENCODER is not None:
            self._inside: dict[int, Any] = {}
            self._chunks = _MAKE_ENCODER(
                self._inside, spelled.default, json_encoder.encode_basestring, None, ":", ",",
                False, False, False,  # noqa: FBT003 - sort keys, skip keys, allow NaN: the C function's order
            )  # fmt: skip
            self.encode = self._encode

    def _encode(self, value: Any) -> str:
        try:
            return "".join(self._chunks(value, 0))
        except BaseException:
            self._inside.clear()
            raise


_ENCODER: Final = _Encoder()


def encode_text(value: Any) -> str:
    """Encode a value as compact JSON text.

    Raises:
        InvalidEvent: the value holds NaN, infinity or a type that JSON has not.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise _unwritable(value) from error


def encode_value(value: Any) -> bytes:
    """Encode a sealed value as the bytes its commitment is made over: compact UTF-8 JSON.

    Raises:
        InvalidEvent: as `encode_text`, or text that UTF-8 has not.
    """
    try:
        return encode_text(value).encode()
    except UnicodeEncodeError as error:
        raise _unwritable(value) from error


def _unwritable(value: Any) -> InvalidEvent:
    # the value itself stays out of the message: it may be personal
    return InvalidEvent(
        f"a value of type {type(value).__name__} cannot be written as JSON",
        next_step="pass finite numbers, text, lists and mappings",
    )
