"""The error that reports bad input to the user."""


class UserError(ValueError):
    """Input that cannot be used. Its text is the one line that the user sees.

    It says where the fault is, what was found, what is needed and what to do. Command lines end
    with exit code 2 on it, without a traceback.
    """
