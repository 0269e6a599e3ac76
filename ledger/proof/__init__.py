"""The proof kernel: everything a stranger needs to check a ledger, and nothing else.

Standard library plus `cryptography`; opens no socket. Read it beside `FORMAT.md`.
"""
