"""Plans that hold together, accounts that give nothing back, statements that are complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.dp_sgd import rdp_epsilon
from rlhf_audit_trail.privacy.errors import (
    ConflictingParameters,
    InvalidDelta,
    InvalidParameter,
    UnsafeAccounting,
)
from rlhf_audit_trail.privacy.sampling_accounts import (
    SamplingAccount,
    SgdPlan,
    SgdReport,
    StepsExhausted,
    check_accountant,
    check_agreement,
)


def test_a_plan_needs_a_public_normaliser_and_settings_that_agree(change_plan: Any):
    with pytest.raises(UnsafeAccounting):
        change_plan(normaliser=None)
    for change in ({"clip_norm": 0.0}, {"normaliser": float("inf")}, {"steps_max": 0}):
        with pytest.raises(InvalidParameter):
            change_plan(**change)
    with pytest.raises(InvalidDelta):
        change_plan(dp_delta=0.0)
    planned = change_plan().planned_epsilon()
    assert change_plan(epsilon=planned * 1.005)
    with pytest.raises(ConflictingParameters):
        change_plan(epsilon=planned * 1.02)


def test_a_plan_takes_noise_from_the_run_s_settings():
    config = PrivacyConfig(noise_multiplier=1.1, clip_norm=0.7, delta=1e-7)
    plan = SgdPlan.from_config(config, sample_rate=0.1, normaliser=4.0, steps_max=3)
    assert (plan.noise_multiplier, plan.clip_norm, plan.dp_delta) == (1.1, 0.7, 1e-7)
    with pytest.raises(InvalidParameter):
        SgdPlan.from_config(PrivacyConfig(), sample_rate=0.1, normaliser=4.0, steps_max=3)


def test_an_account_outlives_its_process_and_an_older_checkpoint(tmp_path: Path, change_plan: Any):
    plan, path = change_plan(steps_max=4), tmp_path / "account.json"
    account = SamplingAccount(plan, path)
    account.charge()
    old = account.state()
    for _ in range(2):
        account.charge()
    again = SamplingAccount(plan, path)  # a new process
    again.restore(old)  # that resumes from an older checkpoint
    assert again.steps == 3
    again.charge()
    with pytest.raises(StepsExhausted):
        again.charge()
    assert again.steps == SamplingAccount(plan, path).steps == 4


def test_two_processes_pay_into_one_account(tmp_path: Path, change_plan: Any):
    plan, path = change_plan(steps_max=5), tmp_path / "account.json"
    one, other = SamplingAccount(plan, path), SamplingAccount(plan, path)
    for account in (one, other, one, other, other):
        account.charge()
    for account in (one, other):
        with pytest.raises(StepsExhausted):
            account.charge()
    assert SamplingAccount(plan, path).steps == 5


def test_an_account_of_other_noise_goes_on_beside_the_old(change_plan: Any):
    account = SamplingAccount(change_plan())
    account.charge()
    other = SamplingAccount(change_plan(noise_multiplier=2.0))
    other.restore(account.state())
    other.charge()
    assert [(x.noise_multiplier, x.steps) for x in other.history] == [(1.0, 1), (2.0, 1)]


@pytest.mark.parametrize(
    "content", ["", "{}", '{"version":2,"history":[]}', '{"version":1,"history":[{"steps":1}]}']
)
def test_an_unreadable_account_is_refused_and_not_begun_anew(
    content: str, tmp_path: Path, plan: SgdPlan
):
    path = tmp_path / "account.json"
    path.write_text(content)
    with pytest.raises(UnsafeAccounting):
        SamplingAccount(plan, path)


def test_accountants_that_understate_or_contradict_each_other_are_refused():
    check_accountant("pld")
    for name in ("gdp", "prv"):
        with pytest.raises(UnsafeAccounting):
            check_accountant(name)
    check_agreement(epsilon_pld=1.83, epsilon_rdp=2.10)
    check_agreement(epsilon_pld=0.1, epsilon_rdp=0.4)
    for pld, rdp in ((1.83, 1.80), (1.0, 1.5), (float("inf"), 2.0), (float("nan"), 2.0)):
        with pytest.raises(UnsafeAccounting):
            check_agreement(epsilon_pld=pld, epsilon_rdp=rdp)


def test_statements_name_unit_relation_and_view(change_plan: Any):
    account = SamplingAccount(change_plan(sample_rate=0.01, examples_per_annotator_max=3))
    for _ in range(5):
        account.charge()
    said = SgdReport.of(account, rdp(account), annotators_known=True)
    assert [(x.unit, x.relation, x.view) for x in said.statements] == [
        ("example", "add_remove", "public"),
        ("example", "replace", "public"),
        ("annotator", "add_remove", "public"),
        ("annotator", "replace", "public"),
    ]
    json.dumps(said.to_public_dict(), allow_nan=False)
    share = said.statements[-1].to_guarantee()
    assert share is not None
    assert share.epsilon_units >= (said.epsilon("annotator", "replace") or 0) * 10**12
    assert SgdReport.of(account, rdp(account), annotators_known=False).epsilon("annotator") is None


def rdp(account: SamplingAccount) -> float:
    return rdp_epsilon(account.history, account.plan.dp_delta)
