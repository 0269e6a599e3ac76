"""The verifiable ledger: kernel, store, log, chain."""
