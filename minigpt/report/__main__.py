"""The page of a run: `python -m minigpt.report`, as `minigpt report`."""

from minigpt import cli
from minigpt.report.run_page import main

if __name__ == "__main__":
    cli.run(main)
