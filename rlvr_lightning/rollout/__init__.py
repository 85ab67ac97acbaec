"""Rollout engines and weight synchronisation."""
