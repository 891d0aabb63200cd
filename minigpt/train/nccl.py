"""Sums over processes whose arrays are on GPUs: NCCL, by CuPy's plain binding."""

import importlib

from minigpt.errors import UserError

INSTALL = "run pip install nvidia-nccl-cu12, or nvidia-nccl-cu13, as the wheel of CuPy is"


class Nccl:
    """What Mpi does, with float32 arrays on a GPU of this process's own.

    Nothing waits for the GPU: a sum takes its turn in the current stream.

    Parameters
    ----------
    ranks : Ranks
    nccl : module, optional
        In place of cupy.cuda.nccl.

    Raises
    ------
    UserError
        If CuPy finds no NCCL.
    """

    def __init__(self, ranks, nccl=None):
        self._cupy, self._rank = importlib.import_module("cupy"), ranks.rank
        self._nccl = nccl or load_nccl()
        key = ranks.first(lambda: list(self._nccl.get_unique_id()))
        self._comm = self._nccl.NcclCommunicator(ranks.size, tuple(key), ranks.rank)

    def sum(self, flat):
        """See Ranks.sum."""
        at = flat.data.ptr
        self._comm.allReduce(at, at, flat.size, *self._kind(flat), self._stream())

    def sum_parts(self, flat, parts):
        """See Ranks.sum_gradients; parts may differ in length, which reduceScatter cannot have."""
        self._nccl.groupStart()
        for root, part in enumerate(parts):
            at, n = flat[part].data.ptr, part.stop - part.start
            if n:
                self._comm.reduce(at, at, n, *self._kind(flat), root, self._stream())
        self._nccl.groupEnd()

    def swap(self, x, sizes):
        """See Mpi.swap."""
        n, at = sizes[self._rank], 0
        found = self._cupy.empty((len(sizes), n), x.dtype)
        self._nccl.groupStart()
        for peer, size in enumerate(sizes):
            if size:
                part = x[at : at + size]
                self._comm.send(*self._bytes(part), peer, self._stream())
            if n:
                self._comm.recv(*self._bytes(found[peer]), peer, self._stream())
            at += size
        self._nccl.groupEnd()
        return found

    def spread(self, flat, parts):
        """See Ranks.spread; of any type."""
        self._nccl.groupStart()
        for root, part in enumerate(parts):
            if part.start < part.stop:
                self._comm.bcast(*self._bytes(flat[part]), root, self._stream())
        self._nccl.groupEnd()

    def _bytes(self, x):
        return x.data.ptr, x.nbytes, self._nccl.NCCL_UINT8

    def _kind(self, flat):
        if flat.dtype != "float32":
            raise TypeError(f"{flat.dtype} cannot be summed, float32 can")
        return self._nccl.NCCL_FLOAT32, self._nccl.NCCL_SUM

    def _stream(self):
        return self._cupy.cuda.get_current_stream().ptr


def load_nccl():
    """Return cupy.cuda.nccl, or raise a UserError."""
    try:
        nccl = importlib.import_module("cupy.cuda.nccl")
    except ImportError as error:
        nccl, why = None, f" ({error})"
    else:
        why = ""
    if nccl is None or not nccl.available:
        raise UserError(f"--backend cupy: several GPUs need NCCL, which CuPy lacks{why}; {INSTALL}")
    return nccl


def device_name(cuda):
    """Return what tells the current GPU from all others of its machine."""
    return cuda.Device().pci_bus_id


def choose_device(ranks):
    """Make the GPU current whose number is this process's among those of its machine.

    Raises
    ------
    UserError
        At all ranks, if two of them would share a GPU, which NCCL refuses.
    """
    try:
        cuda, count = importlib.import_module("cupy").cuda, 0
        count = cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError):
        count = 0  # what is wrong is said where the backend is loaded
    local = [rank for rank, node in enumerate(ranks.nodes) if node == ranks.nodes[ranks.rank]]
    name = None
    if count:
        cuda.Device(local.index(ranks.rank) % count).use()  # of one that is its own already: 0
        name = device_name(cuda)
    places = ranks.gather((name and [ranks.nodes[ranks.rank], name], count))
    for rank, (place, count) in enumerate(places):
        shared = [other for other, (theirs, _) in enumerate(places) if place and theirs == place]
        if len(shared) > 1:
            processes = sum(node == ranks.nodes[rank] for node in ranks.nodes)
            raise UserError(
                f"--backend cupy: {processes} processes on {ranks.nodes[rank]}, which shows them "
                f"{count} GPU{'s' * (count != 1)}: each process needs one of its own; start fewer"
            )
