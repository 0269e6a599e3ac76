"""The publisher's key, wherever it is kept, and transactions signed with it."""
