"""A GPT whose forward and backward passes are written by hand, on NumPy or CuPy.

Reading order: `ops` (the mathematics), `blocks`, `gpt`, `train`; then what serves them.
"""

__version__ = "0.1.0"


class UserError(ValueError):
    """Input that cannot be used. Its text is the one line that the user sees.

    It says where the fault is, what came, what is needed and what to do. Command lines end with
    exit code 2 on it, without a traceback.
    """
