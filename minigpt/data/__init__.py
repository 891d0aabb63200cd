"""Texts and pairs: from a file to batches of token ids."""
