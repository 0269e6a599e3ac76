"""One annotator of 1,000 is erased from an anchored run that released aggregates about them.

On a real chain: values are in no file any more, nor do they follow from what is left, while every
proof and anchor holds, and every sum is what it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest

from rlhf_audit_trail.auditor import AuditableRLHF
from rlhf_audit_trail.ledger.budgets import Budgets
from rlhf_audit_trail.ledger.chain.anchoring.publishing import Publisher
from rlhf_audit_trail.ledger.chain.contract.reader import AnchorReader
from rlhf_audit_trail.ledger.chain.evidence.making import storage_evidence
from rlhf_audit_trail.ledger.chain.evidence.trusting import chain_trust
from rlhf_audit_trail.ledger.chain.node.confirming import ask_nodes, confirm_block
from rlhf_audit_trail.ledger.chain.signing.signer import KeySigner
from rlhf_audit_trail.ledger.noise_secrets import exposing
from rlhf_audit_trail.ledger.proof.verify import TrustPolicy, verify_bundle
from rlhf_audit_trail.ledger.retention import expire
from rlhf_audit_trail.ledger.settings import AnchorSettings, RetentionSettings
from rlhf_audit_trail.ledger.subjects import erase_subject, find_subject
from rlhf_audit_trail.ledger.trust import AnchorTrust
from rlhf_audit_trail.ledger.vault import Erased
from rlhf_audit_trail.privacy.config import PrivacyConfig
from rlhf_audit_trail.privacy.covered_values import Of, covered
from rlhf_audit_trail.privacy.errors import NoiseProtocolError
from rlhf_audit_trail.privacy.replay import replay_log
from rlhf_audit_trail.privacy.slots import NoiseSlots
from tests.chain_fixtures import fund
from tests.privacy_ledger.charging import accounts_of
from tests.privacy_ledger.runs import annotate, auditor

CHAIN_ID = 31337
WHO = "annotator-417@example.org"
SLOTS = 4
OUT_OF_BLOCKS = 70  # a block is final on Anvil when 64 are above it

pytestmark = pytest.mark.chain


def final_anchor(publisher, chain, *logs):
    publisher.anchor_all(logs)
    chain.mine(OUT_OF_BLOCKS)
    publisher.anchor_all(logs)


def files_with(directory, needles):
    data = {x.name: x.read_bytes() for x in directory.rglob("*") if x.is_file()}
    return {name for name, held in data.items() if any(needle in held for needle in needles)}


def all_that_tells(ledger, log, value):
    """The person's entry, that of the noise, and all bytes that give the value back."""
    subject = find_subject(ledger, WHO)
    (index,) = subject.runs[0].indices
    root = next(iter(log.entries(kind="dp.noise_root")))
    secret = bytes.fromhex(log.opened(root.leaf_index)["secret"])
    slots = NoiseSlots(secret, SLOTS)
    tags = [subject.tag, *exposing(ledger, log, [index])]
    with ledger.vault.keys.connect() as keys:
        query = "SELECT secret FROM subject_key WHERE subject = ?"
        own = [bytes(keys.exec_driver_sql(query, (tag,)).scalar()) for tag in tags]
    with ledger.engine.connect() as stored:
        query = "SELECT ciphertext FROM vault WHERE log_number = ? AND subject = ?"
        sealed = [bytes(stored.exec_driver_sql(query, (log.number, x)).scalar()) for x in tags]
    assert len(own) == len(sealed) == 2
    found = [*own, *sealed, *tags, secret, WHO.encode(), value.encode()]
    found += [x.salt for x in log.openings(index)] + [slots.open(x).seed for x in range(SLOTS)]
    found += [subject.runs[0].pseudonym.encode()]
    return index, root, [*found, *(x.hex().encode() for x in found)]


def test_one_of_a_thousand_is_gone_and_nothing_else_is(ledger, directory, anvil, rpc, findings):
    signer = KeySigner(hashlib.sha256(str(directory).encode()).digest())
    fund(rpc, signer.address)
    ledger.chain = replace(ledger.chain, rpc_url=anvil.url, chain_id=CHAIN_ID)
    ledger.anchoring = AnchorSettings(ether_per_day_max=0.0)
    config = PrivacyConfig(reward_bounds=(0.0, 1.0), beacon="prevrandao")
    audit = AuditableRLHF(
        "policy", ledger=ledger, source="simulated", watch_optimizers=False, privacy_config=config
    )
    values = [0.123456789 + number / 1_700 for number in range(1_000)]
    with Publisher(ledger, signer) as publisher, audit.track_training("a") as run:
        where = AnchorTrust(CHAIN_ID, publisher.deploy(), signer.address)
        annotate(run, people=1_000, reward=values)
        run.privacy.open_round(slots=SLOTS)
        final_anchor(publisher, anvil, run.log, ledger.registry)
        anvil.mine(128)
        run.privacy.coin()
        released = [run.privacy.release_mean(), run.privacy.release_histogram(levels=4)]
        assert [x.participants for x in released] == [1_000, 1_000]
        final_anchor(publisher, anvil, run.log, ledger.registry)
        log, size = run.log, run.log.size

        index, root, needles = all_that_tells(ledger, log, json.dumps(values[417]))
        before = replay_log(log).check()
        account = accounts_of(ledger, WHO)
        charged = Budgets(ledger.engine).spent(account)
        roots = {x.tree_size: x.root for x in log.anchors()}
        assert files_with(directory, needles) != set()

        done = erase_subject(ledger, WHO, basis="request")
        assert (done.entries, done.leftovers) == ({"a": 1}, [])
        assert files_with(directory, needles) == set()
        with pytest.raises(Erased):
            log.openings(index)
        with pytest.raises(Erased):  # or the value were the sum, less all others
            log.opened(root.leaf_index)
        left = covered(log, 0, size, Of())
        assert (len(left.values), left.left_out) == (999, {"erased": 1})

        final_anchor(publisher, anvil, log, ledger.registry)
        reader = AnchorReader(rpc, chain_id=CHAIN_ID, contract=where.contract)
        evidence, head = storage_evidence(reader, signer.address, log.log_id)
        with ask_nodes([anvil.url], needed=1) as node:
            block = confirm_block(node, chain_id=CHAIN_ID, number=head.block.number, by="a node")
        events = reader.events(signer.address, log.log_id, from_block=0)
        for event in events:
            assert event.root == log.root_at(event.tree_size) == roots[event.tree_size]
        assert len(events) == 2
        trust = TrustPolicy(
            log.verifier_keys, chain=chain_trust(where, log.log_id, (block,)), need_anchor=True
        )
        bundle = log.bundle(
            [x.leaf_index for x in log.entries(kind="annotation.recorded")],
            anchored_sizes=[head.tree_size], chain=bytes(evidence),
        )  # fmt: skip
        assert len(verify_bundle(bundle, trust).entries) == 1_000
        after = replay_log(log).check()
        assert (after.sums, after.charges, after.releases) == (before.sums, before.charges, 2)
        assert Budgets(ledger.engine).spent(account) == charged
    ledger.close()
    assert findings(directory) == []
    assert files_with(directory, needles) == set()


def test_a_round_whose_noise_was_erased_charges_nobody_any_more(ledger, directory, findings):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        mean = run.privacy.release_mean()
        erase_subject(audit.ledger, "annotator-3@example.org", basis="request")
        charges = len(list(run.log.entries(kind="dp.spend")))
        with pytest.raises(NoiseProtocolError, match="erased"):
            run.privacy.release_histogram(levels=2)
        assert run.privacy.release_mean() == mean  # what is public stays
        assert len(list(run.log.entries(kind="dp.spend"))) == charges
        annotate(run, people=40)
        run.privacy.open_round()
        run.privacy.coin()
        assert run.privacy.release_mean().participants == 40
        assert replay_log(run.log).check().releases == 2
    assert findings(directory) == []


def test_who_is_in_no_release_takes_no_noise_along(ledger, directory):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        run.privacy.release_mean()
        annotate(run, people=31)  # of the next round
        erase_subject(audit.ledger, "annotator-30@example.org", basis="request")
        assert run.privacy.release_histogram(levels=2).participants == 30


def test_a_sum_without_noise_is_erased_with_anybody_who_is_in_it(ledger, directory, findings):
    ledger.close()
    with (
        auditor(directory, annotator_privacy_mode="minimal") as audit,
        audit.track_training("a") as run,
    ):
        annotate(run, reward=0.5)
        assert run.privacy.release_mean().estimate == Fraction(1, 2)
        (shown,) = run.log.entries(kind="dp.unprotected")
        assert run.log.opened(shown.leaf_index)
        erase_subject(audit.ledger, "annotator-3@example.org", basis="request")
        with pytest.raises(Erased):
            run.log.opened(shown.leaf_index)
    assert findings(directory) == []


def test_values_whose_time_is_over_take_their_noise_along(ledger, directory, findings):
    ledger.close()
    with auditor(directory) as audit, audit.track_training("a") as run:
        annotate(run)
        run.privacy.open_round(slots=4)
        run.privacy.coin()
        run.privacy.release_mean()
        root = next(iter(run.log.entries(kind="dp.noise_root"))).leaf_index
        settings, later = RetentionSettings(("annotation.recorded=1d",)), timedelta(days=2)
        moment = datetime.now(UTC) + later
        assert expire(audit.ledger, settings, now=moment, is_dry=True).entries
        assert run.log.opened(root)
        done = expire(audit.ledger, settings, now=moment)
        assert done.entries == {("a", "annotation.recorded"): 30}
        with pytest.raises(Erased):
            run.log.opened(root)
        assert replay_log(run.log).check().releases == 1
    assert findings(directory) == []
