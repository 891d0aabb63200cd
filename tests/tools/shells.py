"""minigpt in a process of its own, as a shell or a terminal runs it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Without pictures, which take longer than all else.
PROGRAM = """
import sys
sys.modules["matplotlib"] = None
from minigpt.__main__ import program
program()
"""
LOCALE = ("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE", "LC_ALL", "LC_CTYPE", "LANG")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def environment(**env):
    """The environment of this process but for its locale, and with `env`."""
    rest = {name: value for name, value in os.environ.items() if name not in LOCALE}
    return rest | {"PYTHONPATH": str(ROOT)} | env


def minigpt(*args, cwd, stdin=b"", **env):
    """Run a command of minigpt; return (exit code, standard output, standard error) in bytes."""
    words = [sys.executable, "-c", PROGRAM, *args]
    env = environment(**env)
    done = subprocess.run(words, cwd=cwd, env=env, input=stdin, capture_output=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def minigpt_in_terminal(*args, cwd, **env):
    """Run a command of minigpt in a terminal; return (exit code, what the terminal got)."""
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", PROGRAM, *args]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = subprocess.Popen(words, cwd=cwd, env=environment(TERM="xterm", **env), **streams)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO, where the other end has closed it
        while part := os.read(ours, 1 << 16):
            seen += part
    os.close(ours)
    return process.wait(timeout=120), seen
