"""Model weights as they are: digests, files of every format, copies kept beside a training."""
