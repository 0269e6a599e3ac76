"""Chain evidence: what a block of an Ethereum chain says, shown by nothing but its hash.

Read `evidence.py` beside `FORMAT.md`, section 9. Standard library only; opens no socket.
"""
