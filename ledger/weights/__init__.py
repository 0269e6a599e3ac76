"""Model checkpoints in the ledger: digests, differences, restoring; bytes only, never torch."""
