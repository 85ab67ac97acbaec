"""Constraint policies: the surrogate, its clip ranges and the reference KL."""
