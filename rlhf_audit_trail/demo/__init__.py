"""The demonstration: the whole path on this machine, and attacks that must be caught."""
