"""A real chain for the commands that need one."""

from __future__ import annotations

from tests.chain_fixtures import anvil

__all__ = ["anvil"]
