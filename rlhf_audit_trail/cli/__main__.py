"""`python -m rlhf_audit_trail.cli`: the same as `rlhf-audit`."""

from __future__ import annotations

from rlhf_audit_trail.cli.main import main

main(prog_name="rlhf-audit")
