"""How long the host takes to start the work of a training step on CuPy; the device's is left out.

On a GPU a few steps are queued, and not waited for. Where CuPy's kernels run on the CPU (the
stand-in for the HIP libraries that the tests use), launches, products and fills return at once
(nothing.c): CuPy does all that it does for them, and no number is computed.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.lib import traffic
from bench.lib.timing import ROOT, Times
from minigpt import backend
from minigpt.model.init import init_params
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

QUEUED = 4  # steps in a row: a GPU takes their launches without one waiting for it
LEAST = 25  # samples
COUNTS = ("launches", "products", "fills")


def host_time(presets, dtype, seconds, **sizes):
    """Return a record per preset: the host's time of a step, and what it starts.

    Parameters
    ----------
    presets : sequence of str
    dtype : str
        Of the passes: a key of PRECISIONS.
    seconds : float
        To spend on each.
    sizes : int
        Options of the model or the batch, instead of the preset's own.
    """
    requests = [{"preset": p, "dtype": dtype, "seconds": seconds} | sizes for p in presets]
    if not os.environ.get("CUPY_ON_CPU"):
        return [record(**request) for request in requests]
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "nothing.so"
        source = Path(__file__).with_name("nothing.c")
        cxx = os.environ.get("CUPY_ON_CPU_CXX", "g++")
        subprocess.run([cxx, "-xc", "-shared", "-fPIC", "-O2", "-o", shim, source], check=True)
        env = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "bench.lib.host_time", json.dumps(requests)]
        child = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise RuntimeError(f"timing the host ended with exit code {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def record(preset, seconds, **sizes):
    """Time one preset in this process; return its record."""
    import cupy

    if os.environ.get("CUPY_ON_CPU"):  # one row: the host does the same for more
        sizes = {"batch_size": 1} | sizes
        traffic.call_as_on_cuda()
    config, train_config = traffic.problem(preset, **sizes)
    ids = np.random.default_rng(1337).integers(0, config.vocab_size, 100_000, dtype=np.int32)
    numbers = iter(range(2**62))
    with Workers(1) as workers:
        trainer = Trainer(init_params(config, 1337, cupy), config, train_config, cupy, workers)
        split = backend.to_device(ids, cupy)
        wall, cpu, counted = samples(cupy, lambda: trainer.step(split, next(numbers)), seconds)
    found = {"preset": preset, "dtype": train_config.dtype, "batch_size": train_config.batch_size}
    return found | {"time": wall.record(), "cpu_time": cpu.record(), "counts": counted}


def samples(cupy, step, seconds):
    """Return `Times` of a step, by the clock and of the processor, and what is counted of one.

    Other programs lengthen the first; both are of this thread, which does all of a step.
    """
    for _ in range(3):
        step()
    wall, cpu, counted, start = [], [], {}, time.perf_counter()
    if os.environ.get("CUPY_ON_CPU"):
        numbers = (ctypes.c_longlong * len(COUNTS))()
        count = ctypes.CDLL(None).nothing_counts
        count(numbers)
        step()
        count(numbers)
        counted = dict(zip(COUNTS, numbers, strict=True))
    while len(wall) < LEAST or time.perf_counter() - start < seconds:
        cupy.cuda.Device().synchronize()
        begin, spent = time.perf_counter(), time.thread_time()
        for _ in range(QUEUED):
            step()
        cpu.append((time.thread_time() - spent) / QUEUED)
        wall.append((time.perf_counter() - begin) / QUEUED)
    return Times(wall, QUEUED), Times(cpu, QUEUED), counted


if __name__ == "__main__":
    print(json.dumps([record(**request) for request in json.loads(sys.argv[1])]))
