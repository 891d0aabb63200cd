"""The error that reports bad input to the user, and that of a lack of memory."""

import contextlib
import errno
import traceback

SMALLER_DATA = "give a smaller file, or a part of it, by --data"
SMALLER_MODEL = (
    "use a smaller model (--n-layer, --n-embd, --block-size); --dry-run shows what is needed"
)


class UserError(ValueError):
    """Input that cannot be used. Its text is the one line that the user sees.

    It says where the fault is, what was found, what is needed and what to do. Command lines end
    with exit code 2 on it, without a traceback.
    """


class OutOfMemory(UserError, MemoryError):
    """A lack of memory, with what it was needed for and what needs less."""


@contextlib.contextmanager
def memory_for(what, less):
    """Say of a lack of memory in this context what it was needed for; also a decorator.

    Parameters
    ----------
    what : str
        "while the text was read".
    less : str or function that returns one
        What the user can do.
    """
    try:
        yield
    except OutOfMemory:
        raise  # from a context within this one
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays that took the memory
        text = error.strerror if isinstance(error, OSError) else str(error)
        why = " ".join(text.split()) or "no more is free"
        less = less if isinstance(less, str) else less()
        raise OutOfMemory(f"out of memory {what} ({why}); {less}") from None
