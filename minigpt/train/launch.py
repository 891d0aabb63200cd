"""Which of several processes this one is, by what started it: mpirun, srun or torchrun."""

import os
from typing import NamedTuple

# What starts processes, and the variables with a process's number and how many there are. srun
# sets those of its step only; within a batch script there is one process, whatever the job has.
STARTERS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE"),  # and Intel MPI
    "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "torchrun": ("RANK", "WORLD_SIZE"),
}
BY_HAND = "torchrun"  # its variables can be set by hand, and there is no MPI behind them


class Place(NamedTuple):
    """The number of a process among `size`, 0 at the first, and what has started them."""

    rank: int
    size: int
    by: str


def find_place(environ=os.environ):
    """Return the Place of this process; that of one of its own is the first of one."""
    for by, names in STARTERS.items():
        rank, size = (environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            return Place(int(rank), int(size), by)
    return Place(0, 1, "")
