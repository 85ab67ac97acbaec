"""What draws responses from a copy of the policy."""
