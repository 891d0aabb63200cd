"""Optimizers: gradients in one buffer, their norm, clipping, AdamW, Muon, the learning rate."""
