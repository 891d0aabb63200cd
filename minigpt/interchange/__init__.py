"""Models from and for others: transformers' folders and peft's adapters."""

from minigpt.interchange.loading import load_model

__all__ = ["load_model"]
