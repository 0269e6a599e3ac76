"""What weights were made from: said by who records them, and by trainers of what they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.capture import InvalidColumn, WrongArgument
from rlhf_audit_trail.cli.main import main
from rlhf_audit_trail.derivation import MadeFrom, derivation_fields
from rlhf_audit_trail.ledger.log import Ledger
from rlhf_audit_trail.weights.base_model import loaded_from
from rlhf_audit_trail.weights.model_weights import digest_model
from tests.train.tiny_trainers import Counted, policy, tokenizer
from tests.train.trl_runs import make, public, train

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
DIGEST = "ab" * 32


def test_one_or_several_and_nothing_empty() -> None:
    assert derivation_fields(None, "cast") == {}
    found = derivation_fields(["acme/base", MadeFrom("x", "main", DIGEST, "o")], "merge")
    assert found == {
        "derivation": "merge",
        "derived_from": [
            {"name": "acme/base"},
            {"name": "x", "revision": "main", "weights_digest": DIGEST, "log": "o"},
        ],
    }


def test_no_place_of_this_machine_gets_into_a_public_entry(tmp_path: Path) -> None:
    (found,) = derivation_fields(str(tmp_path / "base"), "training")["derived_from"]
    assert found == {"name": "base"}


@pytest.mark.parametrize(
    ("given", "how"),
    [
        ("x", "melted"), (3, "cast"), ("", "cast"), ([], "cast"), (["x"] * 65, "cast"),
        ({"name": "x"}, "cast"), (MadeFrom(), "cast"), (MadeFrom("x", weights_digest="AB"), "cast"),
        ("x" * 301, "cast"), (MadeFrom("x", revision=3), "cast"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_says_nothing_is_refused(given: Any, how: str) -> None:
    with pytest.raises((WrongArgument, InvalidColumn)):
        derivation_fields(given, how)


def test_nothing_is_recorded_of_what_is_refused(auditor: AuditableRLHF) -> None:
    model = torch.nn.Linear(2, 2)
    with auditor.track_training("run-1") as run:
        with pytest.raises(WrongArgument):
            run.checkpoint(epoch=0, model=model, derived_from=3)
        with pytest.raises(WrongArgument):
            auditor.model(model, "policy_init", derived_from="x", derivation="melted")
    assert public(run.log, "checkpoint.saved") == public(run.log, "model.registered") == []


def test_a_cast_names_the_checkpoint_it_was_made_of(auditor: AuditableRLHF, ledger: Ledger) -> None:
    model = torch.nn.Linear(2, 2)
    with auditor.track_training("run-1") as run:
        trained = auditor.checkpoint(epoch=3, model=model)
        nothing = run.checkpoint(epoch=4)
        half = {name: tensor.half() for name, tensor in model.state_dict().items()}
        auditor.checkpoint(epoch=3, model=half, derived_from=[trained, nothing], derivation="cast")
    cast = public(run.log, "checkpoint.saved")[-1]
    assert cast["derivation"] == "cast"
    assert cast["derived_from"] == [
        {"name": "epoch_3", "weights_digest": trained.weights_digest},
        {"name": "epoch_4"},
    ]
    told = CliRunner().invoke(
        main, ["checkpoint", "list", "run-1", "--ledger", str(ledger.directory)]
    )
    assert "cast of epoch_3, epoch_4" in told.stdout
    found = CliRunner().invoke(
        main, ["checkpoint", "list", "run-1", "--ledger", str(ledger.directory), "--json"]
    )
    rows = json.loads(found.stdout)["checkpoints"]
    assert [x["derivation"] for x in rows] == ["", "", "cast"]


# --- trainers -------------------------------------------------------------------------------


def models(log: Any) -> dict[str, dict[str, Any]]:
    return {event["role"]: event for event in public(log, "model.registered")}


def test_a_trainer_names_what_its_policy_was_loaded_from(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    model = policy(tokenizer())
    model.config._name_or_path, model.config._commit_hash = "acme/base-7b", "c0ffee"
    log = train(auditor, make("SFT", tmp_path / "out", Counted(), model=model))
    found = models(log)
    assert found["policy_init"]["derivation"] == "loaded"
    assert found["policy_init"]["derived_from"] == [{"name": "acme/base-7b", "revision": "c0ffee"}]
    wanted = [{"name": "policy_init", "weights_digest": found["policy_init"]["weights_digest"]}]
    assert found["policy_final"]["derived_from"] == wanted
    for event in public(log, "checkpoint.saved"):
        assert (event["derivation"], event["derived_from"]) == ("training", wanted)


def test_a_model_from_a_folder_names_no_folder(tmp_path: Path) -> None:
    model = policy(tokenizer())
    for name in ("", str(tmp_path), str(tmp_path / "gone"), "./here", "~/models"):
        model.config._name_or_path = name
        assert loaded_from(model) is None


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_an_adapters_base_has_the_digest_that_it_has_alone(
    auditor: AuditableRLHF, tmp_path: Path
) -> None:
    alone = policy(tokenizer())
    digest = digest_model(alone).digest.hex()
    alone.config._name_or_path = "acme/base-7b"
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(alone, config)
    log = train(auditor, make("SFT", tmp_path / "out", Counted(), model=adapted))
    found = models(log)
    assert found["base"]["weights_digest"] == digest
    assert found["base"]["derived_from"] == [{"name": "acme/base-7b"}]
    wanted = [{"name": "acme/base-7b", "weights_digest": digest}]
    for event in (found["policy_init"], found["policy_final"], *public(log, "checkpoint.saved")):
        assert (event["derivation"], event["derived_from"]) == ("adapter", wanted)
