"""What a program says on standard error, and how it ends: exit codes, errors of one line."""

import contextlib
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
    if isinstance(error, UserError):
        pass  # it says it all
    elif isinstance(error, MemoryError):
        why = f" ({' '.join(text.split())})" if text else ""
        text = f"out of memory{why}; use a smaller batch, context or model"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, device_failures()):
        line = next(filter(None, text.splitlines()), type(error).__name__)
        text = f"the GPU failed ({line}); check it with `minigpt doctor`"
    return escape(" ".join(text.splitlines()))


def say(text, end="\n"):
    """Print a text on standard error; a full disk or a reader that has gone stops no work."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def note(text):
    """Print a line for the user on standard error, as `say`: what is odd, but no error."""
    say(f"note: {one_line(text)}")


@contextlib.contextmanager
def standard_streams():
    """Let what is printed vanish, while this lasts, where there is no standard stream for it.

    Python has None in its place where it was closed from the start, or under pythonw.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nothing)
                stack.callback(setattr, sys, name, stream)
        yield


class Output:
    """Standard output, or what stands for it, whose errors say so."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Write as the stream does."""
        return self.named(self.stream.write, text)

    def flush(self):
        """Flush the stream."""
        self.named(self.stream.flush)

    def named(self, act, *args):
        """Call a function; add the stream's name to an OSError, which keeps its class."""
        try:
            return act(*args)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from None


def open_descriptors():
    """Open the null device in the place of standard streams that are closed.

    Otherwise the next files to be opened would get their numbers, and whatever a library writes
    to standard error, such as a warning of BLAS, would be written into them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


def run(main):
    """Call `main` as a program: `if __name__ == "__main__": cli.run(main)`.

    Errors that the user or the machine caused end without a traceback. Exit codes: what main
    returns; 2 after `error: ...` on standard error for a UserError, a lack of memory or a failing
    file or GPU; 130 after Ctrl-C; 141 if the reader of standard output has closed it, as `| head`
    does. Anything else is a bug of the program, and its traceback is shown. Standard streams may
    be closed; standard input is None then.
    """
    open_descriptors()
    with standard_streams():
        use_utf8(sys.stdout, sys.stderr)
        with contextlib.redirect_stdout(Output(sys.stdout)):
            status = status_of(main)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # already reported; Python would complain again when it flushes at exit
                # A stand-in has no descriptor.
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def exit_code(error):
    """Return what an exception ends a program with, None if it is a bug: see `run`."""
    if isinstance(error, SystemExit):  # from --help and the parser's errors
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141
    return 2 if isinstance(error, (UserError, MemoryError, OSError, *device_failures())) else None


def status_of(main):
    """Call `main` and report its errors; return the exit code."""
    try:
        try:
            status = main()
        except SystemExit as leaving:
            status = leaving.code
        # Here, where a failure can be reported; but after a signal the terminal may be gone.
        if not isinstance(status, int) or status <= 128:
            sys.stdout.flush()
        return status
    except BaseException as error:
        code = exit_code(error)
        if code is None:
            raise
        if code == 2:
            say(f"error: {one_line(error)}")
        return code
