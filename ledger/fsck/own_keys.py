"""The keys that the operator's own secrets give: what the registry log names is held against them.

Else whoever writes the store could announce keys of his own, and sign by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf_audit_trail.ledger.findings import Finding
from rlhf_audit_trail.ledger.keys import BadKeyFile, LogKeys, OperatorSecrets
from rlhf_audit_trail.ledger.log import GENERATED_KEY
from rlhf_audit_trail.ledger.proof.note import VerifierKey
from rlhf_audit_trail.ledger.succession import REGISTRY, KeyHistory, Succession

__all__ = ["OwnKeys"]


class OwnKeys:
    """Derives keys from the secrets that are in the ledger's directory."""

    def __init__(self, directory: Path, organisation: str) -> None:
        """Read the first generation's secret; raises BadKeyFile."""
        self._secrets = OperatorSecrets(directory / GENERATED_KEY)
        self._organisation = organisation

    def begin(self) -> Succession:
        """Return the beginning of the registry log, which says the rest."""
        return Succession.begin(self._origin(REGISTRY), self._derive(1, REGISTRY))

    def history(self, run_id: str, told: Succession) -> KeyHistory:
        """Return a log's keys: as the registry log tells, if our secrets give them all."""
        known = told.histories.get(run_id)
        if known is not None and self._is_ours(run_id, known):
            return known
        return KeyHistory.begin(self._origin(run_id), self._derive(1, run_id))

    def findings(self, told: Succession) -> Iterator[Finding]:
        """Yield each log whose keys, as the registry log tells them, are not ours."""
        for run_id, known in told.histories.items():
            if not self._is_ours(run_id, known):
                generations = dict.fromkeys(x for era in known.eras for x in era.generations)
                files = ", ".join(self._secrets.path(number).name for number in generations)
                detail = f"it names keys for {run_id!r:.120} that {files} do not give"
                yield Finding(REGISTRY, "registry", "keys", detail)

    def _is_ours(self, run_id: str, known: KeyHistory) -> bool:
        try:
            return known.origin == self._origin(run_id) and all(
                era.keys == tuple(x for g in era.generations for x in self._derive(g, run_id))
                for era in known.eras
            )
        except BadKeyFile:  # without the secret nobody knows whose they are
            return False

    def _derive(self, generation: int, run_id: str) -> tuple[VerifierKey, ...]:
        return LogKeys.derive(self._secrets.of(generation), self._origin(run_id)).verifier_keys

    def _origin(self, run_id: str) -> str:
        return f"{self._organisation}/rlhf/{run_id}"
