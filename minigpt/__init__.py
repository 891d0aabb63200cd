"""A GPT whose forward and backward passes are written by hand, on NumPy or CuPy.

Reading order: `ops` (the mathematics), `model.blocks`, `model.gpt`, `train`; then what serves them.
"""

from minigpt.cli import VERSION as __version__
from minigpt.errors import UserError

__all__ = ["UserError", "__version__"]
