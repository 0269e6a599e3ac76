"""Trainers of transformers, TRL and DeepSpeed, told in the words of `record`."""
