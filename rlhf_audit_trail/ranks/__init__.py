"""Several processes of one training: who records, and how the others are heard."""
