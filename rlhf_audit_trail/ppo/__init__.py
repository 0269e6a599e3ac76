"""PPO of our own, which records itself."""
