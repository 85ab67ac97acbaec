"""Weightings: factors of the surrogate, by what a token's update does to the policy."""
