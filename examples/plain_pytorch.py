"""A plain PyTorch loop, recorded: `python examples/plain_pytorch.py LEDGER`.

LEDGER was made by `rlhf-audit init LEDGER --organisation acme.example`. The preferences are
made up on the spot, and the record says so: `source="simulated"`.
"""

from __future__ import annotations

import sys

import torch

from rlhf_audit_trail import AuditableRLHF

torch.manual_seed(7)
features = torch.randn(64, 8)
preferences = (features[:, 0] > 0).float()  # what a simulated annotator would say
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

auditor = AuditableRLHF("tiny-reward-model", ledger=sys.argv[1], source="simulated", seed=7)
with auditor, auditor.track_training(experiment_name="plain-pytorch"):
    auditor.log_annotations(
        prompts=[f"prompt {row}" for row in range(64)],
        responses=[f"response {row}" for row in range(64)],
        annotator_ids=[f"annotator {row % 4}" for row in range(64)],
        rewards=preferences,
    )
    for epoch in range(3):
        for rows in torch.randperm(64).split(16):
            score = model(features[rows]).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(score, preferences[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        update = auditor.track_policy_update(model=model, optimizer=optimizer, batch=features)
        auditor.checkpoint(epoch=epoch, metrics={"loss": loss.item()}, model=model)
        moved = update.parameter_delta_norm
        print(f"epoch {epoch}: loss {loss.item():.3f}, weights moved {moved:.3f}")

    found = auditor.verify_provenance(start_checkpoint="epoch_0", end_checkpoint="epoch_2")
    print(f"provenance valid: {found.is_valid}, root {found.merkle_root[:16]}")
