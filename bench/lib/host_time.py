"""How long the host takes to start the work of a training step on CuPy; the device's is left out.

On a GPU a few steps are queued, and not waited for. Where CuPy's kernels run on the CPU (the
stand-in for the HIP libraries that the tests use), launches, products and fills return at once
(nothing.c): CuPy does all that it does for them, and no number is computed.

The same step is timed once more with the functions `launch` and `product` of backend/gpu replaced
by ones that return at once. What is left is ours, and the making of arrays.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

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

        def step():
            trainer.step(split, next(numbers))

        counted = counts(step)
        wall, cpu = samples(cupy, step, seconds)
        with started_nothing():
            _, python = samples(cupy, step, seconds)
    found = {"preset": preset, "dtype": train_config.dtype, "batch_size": train_config.batch_size}
    found |= {"time": wall.record(), "cpu_time": cpu.record(), "python_time": python.record()}
    return found | {"counts": counted}


def counts(step):
    """Return what is counted of a step where CuPy's kernels run on the CPU; {} on a GPU."""
    if not os.environ.get("CUPY_ON_CPU"):
        return {}
    for _ in range(2):
        step()
    numbers = (ctypes.c_longlong * len(COUNTS))()
    count = ctypes.CDLL(None).nothing_counts
    count(numbers)
    step()
    count(numbers)
    return dict(zip(COUNTS, numbers, strict=True))


def samples(cupy, step, seconds):
    """Return `Times` of a step, by the clock and of the processor.

    Other programs lengthen the first; both are of this thread, which does all of a step.
    """
    for _ in range(3):
        step()
    wall, cpu, start = [], [], time.perf_counter()
    while len(wall) < LEAST or time.perf_counter() - start < seconds:
        cupy.cuda.Device().synchronize()
        begin, spent = time.perf_counter(), time.thread_time()
        for _ in range(QUEUED):
            step()
        cpu.append((time.thread_time() - spent) / QUEUED)
        wall.append((time.perf_counter() - begin) / QUEUED)
    return Times(wall, QUEUED), Times(cpu, QUEUED)


@contextlib.contextmanager
def started_nothing():
    """Let the overrides start neither kernels nor products while this context lasts.

    But for Muon's products, and what CuPy itself launches.

    A product without a place for its result still makes one, uninitialized.
    """
    package = importlib.import_module("minigpt.backend.gpu")
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(name) for name in names]
    empty = importlib.import_module(f"{package.__name__}.launch").empty

    def launch(*args, **options):
        return None

    def product(a, b, out=None, add=False, dtype=None, flip_a=False, flip_b=False):
        if out is not None:
            return out
        rows = a.shape[-1:] if flip_a else a.shape[:-1]
        return empty((*rows, b.shape[0 if flip_b else -1]), dtype or a.dtype)

    with contextlib.ExitStack() as stack:
        for module in modules:
            for replacement in (launch, product):
                if hasattr(module, replacement.__name__):
                    patch = mock.patch.object(module, replacement.__name__, replacement)
                    stack.enter_context(patch)
        yield


if __name__ == "__main__":
    print(json.dumps([record(**request) for request in json.loads(sys.argv[1])]))
