"""Every test here runs against a real Anvil."""

from __future__ import annotations

from tests.chain_fixtures import anvil, log, publisher, reader, rpc

__all__ = ["anvil", "log", "publisher", "reader", "rpc"]
