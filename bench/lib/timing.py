"""The one stopwatch of bench/: alternating rounds, medians and spreads, memory, machine record.

Every figure that a bench prints is taken here. Candidates take turns within one process (A B A B
...), so that whatever else the machine does meets all of them alike. A sample is the mean of as
many calls in a row as last `SAMPLE_S`. Before it come a pause of `SETTLE_S`, so that the idle
thread pool of the candidate before (OpenMP and BLAS workers go on spinning for a while) falls
outside, and an untimed call, which fills the caches again.

Each command of bench/ puts its checkout first on sys.path, so that it times the code beside it,
installed or not.
"""

import contextlib
import gc
import json
import math
import os
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import threadpoolctl

ROOT = Path(__file__).resolve().parents[2]

SAMPLE_S = 0.05
SETTLE_S = 0.005
SLOW_S = 0.5  # a call this long needs one warm-up and no more than a few rounds
MIN_ROUNDS, MAX_ROUNDS = 5, 200


def torch_on(threads):
    """Return torch, set to that many threads, or None where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(threads)
    return torch


def torch_device(torch, xp):
    """Return the device that torch runs on beside minigpt: "cpu", "cuda", or None if it has none.

    Where CuPy's kernels run on the CPU, torch does, too.
    """
    if torch is None or xp is np or os.environ.get("CUPY_ON_CPU"):
        return torch and "cpu"
    return "cuda" if torch.cuda.is_available() else None


# Time


class Times:
    """Seconds per call of one candidate, a sample per round.

    Attributes
    ----------
    samples : (rounds,) float64
        Seconds per call.
    calls : int
        Calls per sample.
    """

    def __init__(self, samples, calls):
        self.samples = np.asarray(samples)
        self.calls = calls

    @property
    def median(self):
        """Median seconds per call."""
        return float(np.median(self.samples))

    def record(self):
        """Return what goes into the JSON; times in seconds."""
        low, high = np.percentile(self.samples, (25, 75))
        return {
            "median_s": self.median,
            "min_s": float(self.samples.min()),
            "q1_s": float(low),
            "q3_s": float(high),
            "rounds": len(self.samples),
            "calls_per_round": self.calls,
        }


def measure(candidates, seconds=3.0, rounds=None, warmup=2, xp=np):
    """Time candidates in turns.

    Parameters
    ----------
    candidates : {name: function of no argument}
    seconds : float
        Time to spend on all of them together; `MIN_ROUNDS` rounds (3 where a round is slow) are
        taken even if that takes longer.
    rounds : int, optional
        Takes the place of `seconds`.
    warmup : int
        Untimed calls of each candidate before, at least; one where a call is slow.
    xp : module
        numpy: wall clock. cupy: GPU events around the calls, on the default stream.

    Returns
    -------
    {name: Times}
    """
    once = {name: warm_up(fn, warmup, xp) for name, fn in candidates.items()}
    calls = {name: max(1, math.ceil(SAMPLE_S / max(t, 1e-7))) for name, t in once.items()}
    slow = sum(once.values()) > 2 * SLOW_S
    least, most = (rounds, rounds) if rounds else (3 if slow else MIN_ROUNDS, MAX_ROUNDS)
    samples = {name: [] for name in candidates}
    gc.collect()
    start, done = time.perf_counter(), 0
    while done < least or (done < most and time.perf_counter() - start < seconds):
        for name, fn in candidates.items():
            time.sleep(SETTLE_S)
            if once[name] < SLOW_S:
                fn()  # the others have emptied the caches
            samples[name].append(time_calls(fn, calls[name], xp))
        done += 1
    return {name: Times(samples[name], calls[name]) for name in candidates}


def warm_up(fn, least, xp):
    """Call `fn` for about `SAMPLE_S`, at least so often; return the seconds of the fastest call.

    The very first call does not count, and is followed by a single one where it is slow.
    """
    spent = [time_calls(fn, 1, xp)]
    least = 1 if spent[0] > SLOW_S else least
    while len(spent) <= least or sum(spent) < SAMPLE_S:
        spent.append(time_calls(fn, 1, xp))
    return min(spent[1:])


def time_calls(fn, calls, xp=np):
    """Return the mean seconds per call of `calls` calls in a row."""
    if xp is np:
        start = time.perf_counter()
        for _ in range(calls):
            fn()
        return (time.perf_counter() - start) / calls
    start, end = xp.cuda.Event(), xp.cuda.Event()
    start.record()
    for _ in range(calls):
        fn()
    end.record()
    end.synchronize()
    return xp.cuda.get_elapsed_time(start, end) / 1000 / calls


def ratio(slow, fast):
    """Compare two candidates of one `measure`: how many times faster the second is.

    Returns
    -------
    dict
        "of_medians", and the quartiles "q1" and "q3" of the ratio within each round.
    """
    low, high = np.percentile(slow.samples / fast.samples, (25, 75))
    return {"of_medians": slow.median / fast.median, "q1": float(low), "q3": float(high)}


# Rates of the machine


def sgemm_peak(threads, n=2048, repeats=5):
    """Return the best float32 matrix product rate seen, in FLOP/s, with that many BLAS threads."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        best = min(time_calls(lambda: np.matmul(a, b, out=out), 1) for _ in range(repeats))
    return 2 * n**3 / best


def copy_bandwidth(nbytes, repeats=8):
    """Return the best rate of one thread copying `nbytes`, in bytes read plus written per s."""
    x = np.ones(max(1, nbytes // 4), np.float32)
    y = np.empty_like(x)
    calls = max(1, 2**28 // x.nbytes)
    best = min(time_calls(lambda: np.copyto(y, x), calls) for _ in range(repeats))
    return 2 * x.nbytes / best


def read_bandwidth(nbytes, repeats=8):
    """Return the best rate at which a matrix of `nbytes` goes through a product with a vector.

    All BLAS threads take part. In bytes of the matrix per s: the bound of a decoder of batch 1.
    """
    n = max(1, nbytes // 4 // 1024)
    w, x = np.ones((n, 1024), np.float32), np.ones(1024, np.float32)
    out = np.empty(n, np.float32)
    calls = max(1, 2**28 // w.nbytes)
    best = min(time_calls(lambda: np.matmul(w, x, out=out), calls) for _ in range(repeats))
    return w.nbytes / best


# Memory


def traced_peak(fn, xp=np):
    """Return the bytes of arrays that a second call of `fn` adds at its peak.

    numpy: as NumPy reports to tracemalloc. cupy: growth of the emptied memory pool.
    """
    fn()
    gc.collect()
    if xp is np:
        tracemalloc.start()
        try:
            fn()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    fn()
    return pool.total_bytes() - before


def resident_peak():
    """Return the largest resident set of this process so far, in bytes.

    On Linux VmHWM: ru_maxrss starts there from what the parent had when it made the process.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_start():
    """Return the resident bytes now, and reset `resident_peak` to them.

    Where the system cannot do that (it is Linux's /proc), return the peak so far.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    return resident_peak()


def in_child(script, *flags):
    """Run a bench script in a fresh process and return the JSON of its last line.

    That is how resident memory is taken: each candidate alone, in a process of its own.
    """
    command = [sys.executable, str(Path(script).resolve()), *map(str, flags)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(
            f"{Path(script).name} {' '.join(map(str, flags))}: {child.stderr.strip()[-500:]}"
        )
    return json.loads(child.stdout.splitlines()[-1])


@contextlib.contextmanager
def busy_core():
    """Keep one core busy with another process for the length of a with block."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()
