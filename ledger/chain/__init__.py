"""Anchoring to an Ethereum-compatible chain; the only importer of web3 and eth_account."""
