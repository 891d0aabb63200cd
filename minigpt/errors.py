"""The error of the user's making."""


class UserError(ValueError):
    """Input that cannot be used. Its text is the one line that the user sees.

    It says where the fault is, what came, what is needed and what to do. Command lines end with
    exit code 2 on it, without a traceback.
    """
