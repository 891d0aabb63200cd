"""A training run: its options, its steps, its folder."""
