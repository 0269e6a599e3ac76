"""One run being recorded, in words that no framework owns."""
