"""What is measured: held-out problems, token statistics for the logs."""
