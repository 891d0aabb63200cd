"""What the benches print, write and draw: the record of the machine, tables, JSON, pictures."""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import threadpoolctl

from bench.lib import timing
from minigpt import __version__, cli
from minigpt.backend.cores import processor, usable_cores
from minigpt.errors import UserError

OPENBLAS_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class WrongResult(Exception):
    """A candidate does not compute what it should; its text says which, what and by how much."""


def run(main):
    """Call the main of a bench as a program; a wrong result ends it with exit code 1."""

    def checked():
        try:
            return main()
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1

    cli.run(checked)


def positive(text):
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_number(parser, flag, default, help):
    """Add a flag that takes a positive number, or several where the default is a tuple."""
    many = isinstance(default, tuple)
    shown = " ".join(map(str, default)) if many else default
    help += f" (default: {shown})" if default else ""
    nargs = "+" if many else None
    parser.add_argument(flag, type=positive, nargs=nargs, default=default, metavar="N", help=help)


def add_flags(parser, backend=False, seconds=2.0):
    """Add the flags that every bench has; `--backend` where it can run on a GPU."""
    if backend:
        parser.add_argument(
            "--backend",
            choices=("numpy", "cupy"),
            default="numpy",
            help="where minigpt runs (default: numpy)",
        )
    add_number(parser, "--threads", usable_cores(), "threads of every candidate")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        metavar="X",
        help=f"time to spend on each comparison (default: {seconds:g})",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="FILE", help="also draw a picture there (matplotlib)")


def installed(*names):
    """Return the version of each package that is installed, {name: version}."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def environment(threads, xp=np):
    """Describe machine and software, without names of hosts or paths."""
    blas = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]
    record = {
        "cpu": processor(),
        "cores_usable": usable_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "minigpt": __version__,
        "commit": commit(),
        "packages": installed("numpy", "torch", "transformers", "threadpoolctl"),
        "blas": blas,
        "openblas_settings": {k: os.environ[k] for k in OPENBLAS_SETTINGS if k in os.environ},
    }
    if sys.modules.get("torch"):
        record["torch_threads"] = sys.modules["torch"].get_num_threads()
    if xp is not np:
        properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.runtime.getDevice())
        record["device"] = properties["name"].decode()
        record["driver"] = xp.cuda.runtime.driverGetVersion()
        record["packages"]["cupy"] = xp.__version__
    return record


def commit():
    """Return the checkout's commit, with a + if files differ from it, or None."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None


def git(*args):
    """Return what a git command in the checkout prints."""
    command = ["git", "-C", str(timing.ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def print_environment(record):
    """Print the record in a few lines, with a warning where settings slow the BLAS down."""
    blas = ", ".join(
        f"{b['internal_api']} {b['version']} ({b['architecture']})" for b in record["blas"]
    )
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    print(f"{record['cpu']}, {record['cores_usable']} cores usable, {record['threads']} threads")
    print(f"Python {record['python']}, minigpt {record['minigpt']}, {packages}")
    print(f"BLAS of NumPy: {blas}" + (f"; GPU: {record['device']}" if "device" in record else ""))
    for name, value in record["openblas_settings"].items():
        print(f"warning: {name}={value} is set; figures are valid only without it (env -u {name})")
    print()


def print_table(headings, rows):
    """Print rows of texts under headings; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for i, row in enumerate([headings, ["-" * width for width in widths], *rows]):
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip(), flush=i == len(rows) + 1)


def three_digits(number):
    """Return a text with at least three significant digits, never with an exponent of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def milliseconds(record):
    """Return the text of a `Times.record()`: median and half the distance of the quartiles."""
    half = (record["q3_s"] - record["q1_s"]) / 2
    share = 100 * half / record["median_s"]
    return f"{three_digits(1e3 * record['median_s'])} +-{share:.0f}%"


def finish(args, bench, env, records, draw):
    """Write and draw what a bench found, as --json and --plot ask for.

    Times are in seconds, all else in units without prefix. `draw` takes the file, the records and
    the environment.
    """
    if args.json:
        result = {"bench": bench, "environment": env, "records": records}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        draw(args.plot, records, env)


@contextlib.contextmanager
def figure(path, panels=1):
    """Give a list of axes to draw on and to `label`; the picture is then written to `path`.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("--plot: matplotlib is not installed; run pip install matplotlib") from None
    fig = Figure(figsize=(7 if panels == 1 else 4.2 * panels, 4.2), layout="constrained")
    axes = list(fig.subplots(1, panels, squeeze=False)[0])
    yield axes
    fig.savefig(path, dpi=150)


def label(axes, xlabel, ylabel, title):
    """Finish one panel: names with units, grid, legend. Without xlabel, x is categories."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="both" if xlabel else "y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none", framealpha=1, fontsize=9)


def log_x(axes, x):
    """Make the x axis logarithmic, with ticks at the values of x alone."""
    axes.set_xscale("log")
    axes.set_xticks(x, [str(value) for value in x])
    axes.set_xticks([], minor=True)


def log_y(axes):
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 of every power of ten."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
