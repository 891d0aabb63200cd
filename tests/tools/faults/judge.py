"""Run commands in this process, and judge whether they end cleanly.

Cleanly: with exit code 0, or with 2 and one line of the command's own. No traceback, no hang, not
much more memory than the process has, nothing executed but modules.
"""

import contextlib
import io
import os
import resource
import signal
import sys
import traceback

from minigpt import cli

LIMIT_S = 20.0  # for a command that takes some milliseconds
MEMORY = 2**29  # bytes of address space, beside what the process has at the beginning
EXECUTES = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"}
EXECUTES |= {"pickle.find_class"}
ASIDE = ("note: ", "step ", "lines to answer")  # lines that come beside an error


class Hang(BaseException):
    """Ends a command that takes too long; nobody catches it."""


class Judge:
    """Runs commands and says what is wrong with how they end.

    Attributes
    ----------
    refused : int
        Commands that ended with exit code 2.
    """

    def __init__(self):
        self.refused, self.executed, self.watching = 0, [], False
        sys.addaudithook(self.note)
        signal.signal(signal.SIGALRM, self.hang)
        sys.modules["matplotlib.figure"] = None

    def confine(self):
        """Limit the memory of this process from now on."""
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))

    def note(self, event, args):
        """Remember what is executed: of code, what is in no file."""
        if not self.watching:
            return
        file = {"exec": lambda: args[0].co_filename, "compile": lambda: args[1]}.get(event)
        if event in EXECUTES or file and not os.path.isfile(file()):  # modules are in files
            self.executed.append(f"{event} {args!r:.80}")

    def hang(self, *_):
        """End the command, since its time is up."""
        raise Hang

    def ended(self, main, argv):
        """Run a command; return (exit code or None, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(b""))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.run(lambda: main(argv))
        except SystemExit as leaving:
            return leaving.code or 0, err.getvalue()
        except Hang:
            return None, f"no end within {LIMIT_S} s"
        except BaseException:
            self.watching = False
            return None, traceback.format_exc(limit=-3)
        finally:
            sys.stdin = stdin
        raise AssertionError("cli.run always leaves by SystemExit")

    def __call__(self, main, argv):
        """Run a command; return what is wrong with how it ended, or None."""
        self.executed.clear()
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        self.watching = True
        try:
            code, err = self.ended(main, argv)
        finally:
            self.watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        lines = [line for line in err.splitlines() if not line.startswith(ASIDE)]
        self.refused += code == 2
        if self.executed:
            return f"executed: {self.executed}"
        if code == 0 or code == 2 and len(lines) == 1 and "error: " in err and "memory" not in err:
            return None
        return f"exit code {code}: {err.strip()}"
