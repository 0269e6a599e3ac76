"""The command line `rlhf-audit`."""
