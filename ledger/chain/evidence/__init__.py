"""What shows a stranger offline that a tree head is on the chain."""
