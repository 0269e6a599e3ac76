"""The proof kernel: all that a stranger needs to check a ledger; read it beside `FORMAT.md`.

Standard library plus `cryptography`; opens no socket.
"""
