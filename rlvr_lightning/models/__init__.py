"""The language model: its folder, its forward pass to token statistics, the bundled one."""
