"""Attention maps of a trained model: `python -m minigpt.report`, as `minigpt attention`."""

from minigpt import cli
from minigpt.report.attention import main

if __name__ == "__main__":
    cli.run(main)
