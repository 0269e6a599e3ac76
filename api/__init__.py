"""The public verifier service (FastAPI)."""

from __future__ import annotations

from rlhf_audit_trail.api.app import create_app

__all__ = ["create_app"]
