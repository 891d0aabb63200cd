"""Models from and for others: transformers' folders and peft's adapters."""
