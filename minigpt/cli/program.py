"""A program's end: exit codes, and errors of one line."""

import os
import sys

from minigpt.cli.terminal import escape, use_utf8
from minigpt.errors import UserError

# Errors of a GPU at run time, and where CuPy has them. One of memory is a MemoryError.
FAILURES = {
    "CUDARuntimeError": "cupy_backends.cuda.api.runtime",
    "CUDADriverError": "cupy_backends.cuda.api.driver",
    "CUBLASError": "cupy_backends.cuda.libs.cublas",
    "NVRTCError": "cupy_backends.cuda.libs.nvrtc",
    "CompileException": "cupy.cuda.compiler",
}


def device_failures():
    """Return the classes of FAILURES, of what has been imported."""
    modules = ((sys.modules.get(module), name) for name, module in FAILURES.items())
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def one_line(error):
    """Return the text of an exception, or a text, without line breaks and control characters."""
    text = str(error)
    if isinstance(error, MemoryError):
        why = f" ({' '.join(text.split())})" if text else ""
        text = f"out of memory{why}; use a smaller batch, context or model"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, device_failures()):
        line = next(filter(None, text.splitlines()), type(error).__name__)
        text = f"the GPU failed ({line}); check it with `minigpt doctor`"
    return escape(" ".join(text.splitlines()))


def run(main):
    """Call `main` as a program: `if __name__ == "__main__": cli.run(main)`.

    Errors that the user or the machine caused end without a traceback. Exit codes: what main
    returns; 2 after `error: ...` on standard error for a UserError, a lack of memory or a failing
    file or GPU; 130 after Ctrl-C; 141 if the reader of standard output has closed it, as `| head`
    does. Anything else is a bug of the program, and its traceback is shown.
    """
    use_utf8(sys.stdout, sys.stderr)
    try:
        try:
            status = main()
        except SystemExit as leaving:  # from --help and the parser's errors
            status = leaving.code
        sys.stdout.flush()  # here, where a failure can still be reported
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except (UserError, MemoryError, OSError, *device_failures()) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    try:
        sys.stdout.flush()
    except OSError:  # already reported; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
