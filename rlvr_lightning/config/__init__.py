"""From overrides to a run."""
