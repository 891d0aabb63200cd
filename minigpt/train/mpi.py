"""Sums over processes whose arrays are NumPy's: MPI, by mpi4py."""

import numpy

from minigpt.errors import UserError

PIECE = 2**28  # numbers in one sum: MPI counts in 32 bits
INSTALL = "run pip install 'minigpt[mpi]', which needs an MPI library such as Open MPI"


class Mpi:
    """Sums over processes whose arrays are in the memory of the host, on one machine or several.

    Parameters
    ----------
    MPI : module
        mpi4py.MPI.
    """

    def __init__(self, MPI):
        self._world, self._in_place = MPI.COMM_WORLD, MPI.IN_PLACE

    def sum(self, flat):
        """See Ranks.sum."""
        for start in range(0, flat.size, PIECE):
            self._world.Allreduce(self._in_place, flat[start : start + PIECE])

    def sum_parts(self, flat, parts):
        """See Ranks.sum_gradients."""
        part = parts[self._world.rank]
        own = flat[part].copy()
        self._world.Reduce_scatter(flat, own, [part.stop - part.start for part in parts])
        flat[part] = own

    def swap(self, x, sizes):
        """Return (size, n): from each rank what it has for this one.

        Parameters
        ----------
        x : (N,) uint16
            What is for rank 0, then for the others.
        sizes : list of int
            How much is for each.
        """
        n = sizes[self._world.rank]
        found = numpy.empty((len(sizes), n), x.dtype)
        self._world.Alltoallv([x, sizes], [found, [n] * len(sizes)])
        return found

    def spread(self, flat, parts):
        """See Ranks.spread."""
        sizes = [part.stop - part.start for part in parts]
        self._world.Allgatherv(self._in_place, [flat, (sizes, [part.start for part in parts])])


def load_mpi(place):
    """Return mpi4py.MPI, which must see all processes, or raise a UserError."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{place.by} has started {place.size} processes, but there is no MPI to bring them "
            f"together ({why}); {INSTALL}"
        ) from None
    if MPI.COMM_WORLD.size != place.size:
        raise UserError(
            f"{place.by} has started {place.size} processes, but MPI sees {MPI.COMM_WORLD.size}: "
            f"mpi4py uses another MPI ({MPI.Get_library_version().split(',')[0].strip()}); with "
            "srun, try --mpi=pmix"
        )
    return MPI
