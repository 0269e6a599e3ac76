"""The signer that the settings name: a key in the environment, in a file, or in a key service."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.chain.errors import SignerError
from rlhf_audit_trail.ledger.chain.signing.remote_signer import HttpKey, RemoteSigner
from rlhf_audit_trail.ledger.chain.signing.signer import (
    Signer,
    signer_from_environment,
    signer_from_keystore,
)
from rlhf_audit_trail.ledger.settings import KEYSTORE, REMOTE, AnchorSettings

__all__ = ["KEYSTORE_PASSWORD_VARIABLE", "make_signer"]

KEYSTORE_PASSWORD_VARIABLE: Final = "RLHF_AUDIT_KEYSTORE_PASSWORD"  # noqa: S105 - a name, no password


def make_signer(
    settings: AnchorSettings,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ask_password: Callable[[], str] | None = None,
) -> Signer:
    """Open the publisher's key.

    Args:
        settings: say where it is.
        directory: the ledger's; a relative keystore path is below it.
        environment: the process's own if left out.
        ask_password: asks a person for the keystore's, where the environment has none.

    Raises:
        SignerError: it cannot be used now.
    """
    environment = os.environ if environment is None else environment
    if settings.signer == REMOTE:
        return RemoteSigner(HttpKey(settings.remote_signer, environment=environment))
    if settings.signer != KEYSTORE:
        return signer_from_environment(environment)
    password = environment.get(KEYSTORE_PASSWORD_VARIABLE)
    if password is None and ask_password is not None:
        password = ask_password()
    if password is None:
        raise SignerError(
            f"no password for the keystore: {KEYSTORE_PASSWORD_VARIABLE} is not set",
            next_step="set it where anchoring runs without a person",
        )
    return signer_from_keystore(directory / settings.keystore, password)
