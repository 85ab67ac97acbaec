"""Regularizers: summands beside the surrogate."""
