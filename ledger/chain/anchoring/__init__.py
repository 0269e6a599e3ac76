"""Bringing tree heads onto the chain, and never losing or doubling one."""
