"""Several processes, or ranks, that train one model: data parallel.

All of them run the same commands on the same options. Where they differ is here:

- every rank draws the whole batch and takes its rows; gradients and loss are then summed over the
  ranks, and each takes the same step (`Trainer.step`);
- batches of an evaluation are shared out, and every rank learns all results (`map`);
- the first rank writes, prints, and has the clock (`first`); a signal that one rank
  receives is obeyed by all at the same batch (`Together`).

A rank that fails sends its error instead of the value that the others expect: see `gather`.
lifeline.py is for one that cannot.
"""

import contextlib
import io
import os
import platform
import sys
import traceback

from minigpt import cli
from minigpt.backend.cores import core_limit, cpu_quota
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.devices import load_backend
from minigpt.errors import UserError
from minigpt.train.interrupt import NEVER, Stopped, announce, interruptible
from minigpt.train.launch import BY_HAND, find_meeting, find_place
from minigpt.train.mpi import Mpi, load_mpi
from minigpt.train.narrow import Narrow
from minigpt.train.nccl import Nccl, choose_device

LEAVE = "gone"
OWN = {"threads", "data", "out_dir"}  # options that may differ: each machine has its own


class RankFailed(UserError):
    """Another rank cannot go on."""


class Alone:
    """A process of its own: the first of one rank, which has nobody to wait for.

    Attributes
    ----------
    rank, size : int
    """

    rank, size = 0, 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def rows(self, n):
        """Return the slice of n rows of a batch that are this rank's; it may be empty."""
        return (shard_slices(n, self.size) + [slice(n, n)] * self.size)[self.rank]

    def gather(self, value=None, place=None):
        """Return [value of each rank], in order; all ranks meet here.

        Parameters
        ----------
        value : object
        place : str, optional
            What the ranks meet for; it must be the same at all of them.

        Raises
        ------
        RankFailed
            If one of them has failed, or is at another place.
        """
        return [value]

    def first(self, work):
        """Return what work() returns at the first rank, where alone it is called.

        An exception there is one at all ranks.
        """
        return work()

    def map(self, map, stop):
        """Return a `map` that shares its items out, and raises Stopped if stop.signal is set."""
        return interruptible(map, stop)

    def together(self, stop):
        """Return an Interrupt or Never that is obeyed by all ranks."""
        return stop

    def own(self, stop):
        """Return this rank's own Interrupt or Never of what `together` has returned."""
        return stop

    def announce(self, number):
        """Say at once that a signal is obeyed, which this rank has received."""
        announce(number)

    def fail(self, error):
        """Tell the other ranks that this one ends with an exception."""

    def use(self, backend):
        """Prepare for arrays of a backend, which is not loaded yet: each rank has its own GPU."""


ALONE = Alone()


class Ranks(Alone):
    """Several ranks, as a context in which the first alone is heard: what they have in common.

    Parameters
    ----------
    rank, size : int
    exchange : callable
        exchange(x) -> [x of each rank], for small values.
    sums : Mpi, Nccl or None
        For arrays: of NumPy, until `use` has seen the backend; None if there is nothing for these.
    line : Lifeline, optional
        If there is none yet.

    Attributes
    ----------
    signal : int or None
        The number of the signal that came first, at the lowest rank that has received one: as of
        the last `gather`, so the same at all ranks.
    nodes : list of str
        The machine of each rank.
    """

    def __init__(self, rank, size, exchange, sums, line=None):
        self.rank, self.size, self._exchange, self.sums = rank, size, exchange, sums
        self._quiet, self._said = contextlib.ExitStack(), io.StringIO()
        self._left = self._announced = False
        self._stop, self.signal = NEVER, None
        self.nodes = exchange(platform.node())
        from minigpt.train.lifeline import connect  # no help of a command waits for it

        self._lifeline = line or connect(rank, size, exchange, self.nodes)
        self._lifeline.on_signal = self.announce

    def gather(self, value=None, place=None):
        """See Alone; each sends why it fails or None, place, value, and its signal or None."""
        found = self._exchange((None, place, value, self._stop.signal))
        self._lifeline.met()
        self._heed(found, place)
        signals = [signal for *_, signal in found if signal is not None]
        if signals and self.signal is None:
            self.signal = signals[0]
            self._stop.agree(self.signal)
        return [value for *_, value, _ in found]

    def _heed(self, found, place):
        """Raise RankFailed for the first rank that has failed, or has come to another place."""
        problems = [(rank, why) for rank, (why, *_) in enumerate(found) if why is not None]
        if not problems and any(other != place for _, other, *_ in found):
            places = ", ".join(f"{other}" for _, other, *_ in found)
            problems = [(0, f"the processes no longer do the same (by rank: {places})")]
        if problems:
            self._lifeline.heard = True
            self._left = any(other == LEAVE for _, other, *_ in found)
            raise RankFailed("rank {1} of {0} has failed: {2}".format(self.size, *problems[0]))

    def first(self, work):
        """See Alone."""
        value = problem = None
        if self.rank == 0:
            try:
                value = work()
            except Exception as error:
                problem = error
        expected = isinstance(problem, UserError)
        text, expected, value = self.gather(
            (problem and describe(problem), expected, value), "work of the first"
        )[0]
        if problem is not None:
            raise problem
        if text is not None:  # what may be caught there must be caught here, and nothing else
            error = UserError if expected else RankFailed
            raise error(text)
        return value

    def map(self, map, stop):
        """See Alone. Each rank takes every so many, and all receive the results of all."""

        def shared(fn, items):
            if stop.signal is not None:
                raise Stopped
            items = list(items)
            results = [None] * len(items)
            done = self.gather([*map(fn, items[self.rank :: self.size])], "evaluation")
            for rank, part in enumerate(done):
                results[rank :: self.size] = part
            return results

        return shared

    def together(self, stop):
        """See Alone."""
        self._stop = stop
        return Together(stop, self)

    def own(self, stop):
        """See Alone."""
        return stop.own

    def fail(self, error):
        """See Alone."""
        if self._lifeline.heard:
            return
        text = describe(error, self._said.getvalue())
        self._lifeline.fail(text)
        self._exchange((text, None, None, None))
        self._lifeline.heard = True

    def announce(self, number):
        """See Alone: the first rank says it, and once."""
        if self.rank and self._lifeline.connected:
            self._lifeline.signal(number)
        elif not self._announced:
            self._announced = True
            announce(number)

    def sum(self, flat):
        """Replace an array by its sum over the ranks, the same to the bit at each."""
        self.gather(place="a sum")  # none has failed
        self.sums.sum(flat)

    def total(self, x):
        """Return the sum of a small array over the ranks; it comes behind another sum."""
        self.sums.sum(x)
        return x

    def sum_gradients(self, flat, parts=None, narrow=False):
        """Replace an array by its sum over the ranks, right behind `sum`.

        Parameters
        ----------
        flat : (N,) float32
        parts : list of slices, optional
            Of each rank; together they cover the array in order. Each rank has the sum of its own
            part then, and the others are lost.
        narrow : bool
            Whether it travels in bfloat16: see Narrow.
        """
        sums = Narrow(self.sums, self.rank, self.size) if narrow else self.sums
        if parts is None:
            sums.sum(flat)
        else:
            sums.sum_parts(flat, parts)

    def spread(self, flat, parts):
        """Replace every rank's part of an array by what that rank has; as `sum_gradients`."""
        self.gather(place="an exchange of parts")
        self.sums.spread(flat, parts)

    def use(self, backend):
        """See Alone."""
        if backend == "cupy":
            choose_device(self)
            load_backend(backend)  # says what it lacks
            self.sums = Nccl(self)
        elif self.sums is None:
            raise UserError(
                f"--backend {backend}: sums on CPUs need MPI, and these {self.size} processes are "
                "of torchrun, or of RANK and WORLD_SIZE; start them by mpirun or srun, or give "
                "--backend cupy"
            )

    def cores(self):
        """Return how many CPU cores this rank should use, beside the others on its machine."""
        mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        mine = mine or list(range(os.cpu_count() or 1))
        all_of_them = zip(self.nodes, self.gather(mine), strict=True)
        near = [cores for node, cores in all_of_them if node == self.nodes[self.rank]]
        share = sum(1 / sum(core in cores for cores in near) for core in mine)
        quota = cpu_quota()
        if quota is not None:
            share = min(share, quota / len(near))
        return max(1, min(int(share + 1e-6), core_limit().cores))

    def __enter__(self):
        if self.rank:
            nowhere = self._quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            self._quiet.enter_context(contextlib.redirect_stdout(nowhere))
            self._quiet.enter_context(contextlib.redirect_stderr(self._said))
        return self

    def __exit__(self, kind, error, trace):
        """Let all ranks end together, and the first alone say why."""
        try:
            if error is not None:
                self.fail(error)
            elif not self._lifeline.heard:
                self.gather(place="the end")
        except UserError as failure:
            error = error or failure
        except KeyboardInterrupt:
            pass  # whatever there was to do is done
        self._quiet.close()
        if self.rank and is_bug(error):
            traceback.print_exception(error)  # each has its own
        self.leave()
        if error is not None and self.rank:
            code = cli.exit_code(error)
            raise SystemExit(1 if code is None else code) from None
        if isinstance(error, RankFailed):
            raise error

    def leave(self):
        """Wait for the first rank, whose end may be that of all, and close the connections."""
        sys.stdout.flush()
        try:
            if not self._left:
                self._exchange((None, LEAVE, None, None))
        except UserError:
            self._lifeline.close()
            raise
        self._lifeline.close()


class Together:
    """An Interrupt that any rank's signal triggers, for all of them at the same place.

    Parameters
    ----------
    own : Interrupt or Never
        This rank's.
    ranks : Ranks

    Attributes
    ----------
    signal : int or None
        As of Ranks.
    """

    def __init__(self, own, ranks):
        self.own, self._ranks = own, ranks
        self.hold, self.release = own.hold, own.release

    @property
    def signal(self):
        """The number of a signal that all ranks have learned of, or None."""
        return self._ranks.signal


def describe(error, said=""):
    """Return an exception in one line for other ranks; `said` is what preceded it."""
    if isinstance(error, SystemExit):
        return cli.one_line(said.strip().rpartition("error: ")[2]) or f"exit code {error.code}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_bug(error):
        return cli.one_line(f"{type(error).__name__}: {error}")
    return cli.one_line(error)


def is_bug(error):
    """Tell whether an exception is one that a program shows with its traceback."""
    return error is not None and cli.exit_code(error) is None


def join():
    """Return the ranks that this process is one of: Alone, or Ranks.

    Raises
    ------
    UserError
        If they cannot work together; under MPI at the first rank, and SystemExit at the others.
    """
    place = find_place()
    if place.size == 1:
        return ALONE
    if place.by == BY_HAND:
        from minigpt.train.lifeline import meet

        line = meet(place.rank, place.size, *find_meeting())
        return Ranks(place.rank, place.size, line.exchange, None, line)
    try:
        MPI = load_mpi(place)
        world = MPI.COMM_WORLD
        return Ranks(world.rank, world.size, world.Dup().allgather, Mpi(MPI))
    except UserError:
        if place.rank:
            raise SystemExit(2) from None
        raise


def check_same(run, ranks):
    """Raise a UserError, at all ranks, unless a Run is the same at each of them."""
    if ranks.size == 1:
        return
    rows = run.train_config.batch_size
    if rows < ranks.size:
        raise UserError(
            f"batch_size is {rows}, but there are {ranks.size} processes, and each takes rows of "
            f"it; give a batch_size of {ranks.size} or more, or start fewer processes"
        )
    check_alike({k: v for k, v in description(run).items() if k not in OWN}, ranks)


def check_alike(values, ranks):
    """Raise a UserError, at all ranks, unless a dict has the same values at each of them."""
    all_of_them = ranks.gather(values, "options")
    for rank, other in enumerate(all_of_them):
        for name, value in all_of_them[0].items():
            if other[name] != value:
                raise UserError(
                    f"{name} is {value} at rank 0, but {other[name]} at rank {rank}; give all "
                    "processes the same options and data"
                )


def description(run):
    """Return what a Run is of, and how far it has come, by name."""
    state = vars(run.state) | {"train": None, "data_name": None, "data_folder": None}
    return {"text of the data (SHA-256)": run.data.sha256, **vars(run.config)} | {
        **vars(run.train_config),
        **{f"{name} of the run": value for name, value in state.items()},
    }
