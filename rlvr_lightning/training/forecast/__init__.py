"""What a run will need, by arithmetic alone: memory of each rank and host, disk, tokens and operations."""
