"""Where a candidate program runs: kinds of confinement, the strongest that works here first."""
