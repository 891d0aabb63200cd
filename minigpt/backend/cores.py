"""How many threads this process should use: the least that anyone who set a limit allows."""

import contextlib
import math
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from minigpt import cli

# What programs and batch systems read, or set, as the number of threads or cores to use.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "PYTHON_CPU_COUNT",
    "SLURM_CPUS_PER_TASK",
)


class Limit(NamedTuple):
    """A number of cores, and what sets it; "" is the machine."""

    cores: int
    name: str

    @property
    def by(self):
        """What follows the number in a message: ", by OMP_NUM_THREADS=2"."""
        return f", by {self.name}" if self.name else ""


def usable_cores():
    """Return the number of CPU cores that this process should use; see `core_limit`."""
    return core_limit().cores


def core_limit():
    """Return the lowest Limit, the first of equal ones."""
    return lowest([*cores_there_are(), *cores_asked_for()])


def lowest(limits):
    """Return the lowest of several Limits, the first of equal ones."""
    return min(limits, key=lambda limit: limit.cores)


def cores_there_are():
    """Yield the Limits of the machine, the process and its container."""
    yield Limit(os.cpu_count() or 1, "")
    if hasattr(os, "sched_getaffinity"):
        yield Limit(len(os.sched_getaffinity(0)), "the CPU affinity of the process")
    quota = cpu_quota()
    if quota is not None:
        yield Limit(max(1, math.ceil(quota)), f"a CPU quota of {quota:g} (cgroup)")


def cores_asked_for():
    """Yield the Limits of the environment."""
    for name in VARIABLES:
        value = os.environ.get(name, "")
        first = value.split(",")[0].strip()  # OpenMP's may list a number for each level of nesting
        if first.isdecimal() and int(first) > 0:
            yield Limit(int(first), f"{name}={value}")


def cpu_quota(root="/"):
    """Return the CPUs that the control groups of this process may use, a float; None if unlimited.

    The limit of a group holds for the groups in it, so that all up to the root are read; within a
    container the file system may begin anywhere among them. See cgroups(7).
    """
    top = Path(root, "sys/fs/cgroup")
    try:
        lines = Path(root, "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in {top, top / "unified", top / "cpu", top / controllers}:
            folders = (mount.joinpath(*parts[:n]) for n in range(len(parts) + 1))
            found += filter(None, map(group_quota, folders))
    return min(found, default=None)


def group_quota(folder):
    """Return the CPUs that a control group may use, of version 2 or 1; None if it has no limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text("utf-8").split()
        return int(quota) / int(period)  # quota may be "max", a ValueError
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text("utf-8")) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else None
    return None


def note_on_threads(threads):
    """Return a list with a note if there are fewer cores than threads; else an empty list."""
    limit = lowest(cores_there_are())
    if threads <= limit.cores:
        return []
    cores = cli.plural(limit.cores, "core")
    return [f"{threads} threads on {cores}{limit.by}: more threads than cores are slower"]


def processor():
    """Return the name of the processor."""
    with contextlib.suppress(OSError):
        name = processor_name(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
        if name:
            return name
    return platform.processor() or "an unknown processor"


def processor_name(info):
    """Return the name of the first processor in the text of /proc/cpuinfo, or None.

    One without a number, as virtual machines have, gets the numbers that tell generations apart.
    """
    info = dict(re.findall(r"^(cpu family|model|model name)\s*: (.+)", info.split("\n\n")[0], re.M))
    name, numbers = info.get("model name"), (info.get("cpu family"), info.get("model"))
    if name and None not in numbers and not re.search(r"\d", name):
        name += " (family {}, model {})".format(*numbers)
    return name
