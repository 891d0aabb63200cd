"""Rates of a GPU: copies, products by shape and type, and every kernel of a training step.

Times are those of events around the work, on CuPy's stream. An event pair around nothing takes a
few microseconds, which are left out of a kernel's time where there are many.
"""

import contextlib
import importlib
import json

import numpy as np

from bench.lib import timing, traffic
from bench.lib.report import WrongResult
from minigpt.backend import to_device, to_host
from minigpt.backend.devices import PRECISIONS, tf32_products
from minigpt.model.init import init_params
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

COPIED = 2**28  # bytes
STEPS = 5  # of which each kernel's times are taken, after as many that do not count
# Relative error of a product by largest element: at least and at most. What TF32 loses tells
# whether it is on; results in 16 bit are rounded.
ERRORS = {"float32": (0, 1e-5), "tf32": (2e-5, 2e-3)}
ERRORS |= {"float16": (0, 2**-10), "bfloat16": (0, 2**-7)}


def dtype_of(precision):
    """Return the dtype of the arrays of a precision."""
    name = PRECISIONS[precision].compute_dtype
    return np.dtype(getattr(importlib.import_module("ml_dtypes"), name) if name[0] == "b" else name)


def copy_rate(cupy, nbytes=COPIED):
    """Return the best rate of copying so many bytes, in bytes read plus written per s."""
    x = cupy.ones(nbytes // 4, "f")
    y = cupy.empty_like(x)
    cupy.copyto(y, x)
    seconds = min(timing.time_calls(lambda: cupy.copyto(y, x), 5, cupy) for _ in range(5))
    return 2 * x.nbytes / seconds


# Products


def square_rate(cupy, precision, n):
    """Return the best rate of products of two n x n matrices, in FLOP/s."""
    product = importlib.import_module("minigpt.backend.gpu.product").product
    a, b = (cupy.full((n, n), 0.5, "f").astype(dtype_of(precision)) for _ in range(2))
    with tf32_products(PRECISIONS[precision].tf32):
        product(a, b)
        best = min(timing.time_calls(lambda: product(a, b), 3, cupy) for _ in range(3))
    return 2 * n**3 / best


def shapes(config, rows):
    """Return {name: (m, k, n)} of a step's forward products; rows is the tokens of a batch."""
    C, V = config.n_embd, config.vocab_size
    return {
        "square": (8192, 8192, 8192) if C > 64 else (64, 64, 64),
        "c_attn": (rows, C, 3 * C),
        "c_proj": (rows, C, C),
        "c_fc": (rows, C, 4 * C),
        "mlp c_proj": (rows, 4 * C, C),
        "head": (rows, C, V),
        "head, rows of 64 n": (rows, C, -(-V // 64) * 64),
    }


def products(cupy, config, rows, precisions):
    """Yield a record per product of a step and precision: y = x w, dx = dy w^T and dw = x^T dy."""
    product = importlib.import_module("minigpt.backend.gpu.product").product
    for precision in precisions:
        dtype = dtype_of(precision)
        with tf32_products(PRECISIONS[precision].tf32):
            error = check_product(cupy, product, precision)
            for name, (m, k, n) in shapes(config, rows).items():
                x, w = (cupy.full(shape, 0.5, "f").astype(dtype) for shape in ((m, k), (k, n)))
                dy = product(x, w)
                wide = -(-n // 64) * 64
                padded = cupy.empty((m, wide), dtype)[:, :n]
                ways = {"x w": lambda x=x, w=w: product(x, w)}
                if name != "square":
                    ways["dy w^T"] = lambda dy=dy, w=w: product(dy, w.T)
                    ways["x^T dy"] = lambda x=x, dy=dy: product(x.T, dy, dtype=np.dtype("f"))
                if wide != n:
                    ways["x w, gaps"] = lambda x=x, w=w, to=padded: product(x, w, out=to)
                    ways["dy w^T, gaps"] = lambda w=w, dy=padded: product(dy, w.T)
                    ways["x^T dy, gaps"] = lambda x=x, dy=padded: product(
                        x.T, dy, dtype=np.dtype("f")
                    )
                for way, fn in ways.items():
                    fn()
                    seconds = min(timing.time_calls(fn, 5, cupy) for _ in range(3))
                    record = {"product": name, "way": way, "precision": precision}
                    record |= {"m, k, n": (m, k, n), "seconds": seconds, "error": error}
                    yield record | {"flops_per_s": 2 * m * k * n / seconds}


def check_product(cupy, product, precision):
    """Return the relative error of a product; raise WrongResult where it is not the precision's."""
    rng, dtype = np.random.default_rng(0), dtype_of(precision)
    a, b = (rng.standard_normal(s).astype("f").astype(dtype) for s in ((128, 768), (768, 192)))
    got = to_host(product(to_device(a, cupy), to_device(b, cupy))).astype(float)
    want = a.astype(float) @ b.astype(float)
    error = float(abs(got - want).max() / abs(want).max())
    least, most = ERRORS[precision]
    if not least * (not cupy.cuda.runtime.is_hip) <= error <= most:
        raise WrongResult(
            f"a product in {precision} is off by {error:.1e} of its largest element; {least:.0e} "
            f"to {most:.0e} is expected"
        )
    return error


# Kernels


@contextlib.contextmanager
def timed_launches(cupy, found):
    """Put (kernel's name, event before, event after) of each launch in a with block into a list."""
    module = importlib.import_module("minigpt.backend.gpu.launch")
    original = module.kernel

    def kernel(name, dtype):
        function = original(name, dtype)

        def call(*args, **options):
            before, after = cupy.cuda.Event(), cupy.cuda.Event()
            before.record()
            function(*args, **options)
            after.record()
            found.append((name, before, after))

        return call

    module.kernel = kernel
    try:
        yield
    finally:
        module.kernel = original


def kernels(cupy, preset, dtype, recorded, **sizes):
    """Return a record per kernel of a step: how often it runs, its time, its bytes and their rate.

    Parameters
    ----------
    preset, dtype : str
    recorded : dict or None
        The record of bench/launches.py for that preset and dtype, whose bytes are taken.
    sizes : int
        Options of the model or the batch, instead of the preset's own.
    """
    config, train_config = traffic.problem(preset, dtype=dtype, **sizes)
    ids = np.random.default_rng(1337).integers(0, config.vocab_size, 200_000, dtype=np.int32)
    launched, empty = [], []
    with Workers(1) as workers, tf32_products(PRECISIONS[dtype].tf32):
        trainer = Trainer(init_params(config, 1337, cupy), config, train_config, cupy, workers)
        split = to_device(ids, cupy)
        for step in range(STEPS):
            trainer.step(split, step)
        for _ in range(20):
            pair = cupy.cuda.Event(), cupy.cuda.Event()
            pair[0].record(), pair[1].record()
            empty.append(pair)
        with timed_launches(cupy, launched):
            for step in range(STEPS):
                trainer.step(split, STEPS + step)
        cupy.cuda.Device().synchronize()
        gap = min(cupy.cuda.get_elapsed_time(*pair) for pair in empty)
    counted = {} if recorded is None else recorded["counts"]
    return summed(cupy, launched, gap, {key.split()[-1]: entry for key, entry in counted.items()})


def summed(cupy, launched, gap, counted):
    """Return the records of `kernels`, the longest first; gap: ms of a pair around nothing."""
    times = {}
    for name, before, after in launched:
        spent = max(cupy.cuda.get_elapsed_time(before, after) - gap, 1e-4)
        times.setdefault(name, []).append(spent / 1000)
    found = []
    for name, spent in times.items():
        record = {"kernel": name, "launches": len(spent) // STEPS, "seconds": sum(spent) / STEPS}
        calls, nbytes, _ = counted.get(name, (0, 0, 0))
        if calls:  # of a record with other launches, too: bytes are those of a step
            record |= {"launches_counted": calls, "bytes": nbytes}
            record["bytes_per_s"] = nbytes / record["seconds"]
        found.append(record)
    return sorted(found, key=lambda record: -record["seconds"])


def recorded(preset, dtype):
    """Return the record of bench/launches.py for a preset with the overrides, or None."""
    for path in sorted((timing.ROOT / "bench" / "results").glob("launches*.json")):
        for record in json.loads(path.read_text("utf-8"))["records"]:
            if (record["preset"], record["variant"]) == (preset, "after") and (
                record["dtype"] == ("float32" if dtype == "tf32" else dtype)
            ):
                return record
    return None
