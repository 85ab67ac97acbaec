"""What an optimizer step needs besides its loss: optimizer, sharding, checkpoints, signals."""
