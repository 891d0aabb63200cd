"""Which of several processes this one is, by what started it: mpirun, srun or torchrun."""

import os
from typing import NamedTuple

from minigpt.errors import UserError

# What starts processes, and the variables with a process's number and how many there are. srun
# sets those of its step only; within a batch script there is one process, whatever the job has.
STARTERS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE"),  # and Intel MPI
    "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "torchrun": ("RANK", "WORLD_SIZE"),
}
BY_HAND = "torchrun"  # its variables can be set by hand; there is no MPI behind them
MEETING = ("MASTER_ADDR", "MASTER_PORT")  # where they meet: all four set win over the others
PORTS = range(1, 2**16)


class Place(NamedTuple):
    """The number of a process among `size`, 0 at the first, and what has started them."""

    rank: int
    size: int
    by: str


def find_place(environ=os.environ):
    """Return the Place of this process; that of one of its own is the first of one."""
    starters = STARTERS
    if all(map(environ.get, MEETING)):  # srun may have started torchrun
        starters = {BY_HAND: STARTERS[BY_HAND]} | STARTERS
    for by, names in starters.items():
        rank, size = (environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            return Place(int(rank), int(size), by)
    return Place(0, 1, "")


def find_meeting(environ=os.environ):
    """Return (host, port, name of the run) where processes meet that torchrun has started.

    The port is the next one where torchrun listens at its own.

    Raises
    ------
    UserError
        If they are not set.
    """
    host, port = (environ.get(name, "") for name in MEETING)
    taken = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not host or not port.isdecimal() or int(port) + taken not in PORTS:
        raise UserError(
            f"RANK and WORLD_SIZE are set for {environ.get('WORLD_SIZE')} processes, but "
            f"MASTER_ADDR is {host!r} and MASTER_PORT {port!r}: give the machine of rank 0 and a "
            "free port there, as torchrun does, or unset RANK"
        )
    return host, int(port) + taken, environ.get("TORCHELASTIC_RUN_ID", "a run")
