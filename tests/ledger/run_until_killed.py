"""Run the command line; a test kills this process. Arguments: those of `rlhf-audit`."""

from __future__ import annotations

from rlhf_audit_trail.cli.main import main

if __name__ == "__main__":
    main()
