"""Corrections: weights for the gap between the engine's policy and the one an update starts from."""
