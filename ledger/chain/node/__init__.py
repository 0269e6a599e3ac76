"""Nodes of a chain over JSON-RPC: one, several that must agree, and the local development chain."""
