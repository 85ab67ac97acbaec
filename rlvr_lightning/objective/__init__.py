"""The loss: composition, token statistics, the whole optimizer step."""
