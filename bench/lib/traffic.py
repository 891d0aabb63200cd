"""What a training step on CuPy does to device memory, measured without a GPU.

It is counted where CuPy's kernels run on the CPU (the stand-in for the HIP libraries that the tests
use, there when CUPY_ON_CPU is set). traffic.c sees each launch, product and copy; the kernels are
compiled to report their loads and stores, and of each launch the distinct bytes are counted.
"""

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.lib.timing import ROOT
from minigpt import backend
from minigpt.errors import UserError
from minigpt.model.init import init_params
from minigpt.ops import cross_entropy
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

CHARACTERS = 65  # vocabulary of the presets for tiny Shakespeare
WATCHED = 2**31  # bytes of GPU memory, which all arrays are in
COMPILER = '#!/bin/sh\nexec {cxx} -fsanitize=thread -nodefaultlibs "$@"\n'
KINDS = ("attention", "kernel", "product", "copy")
CHUNK = cross_entropy.CHUNK  # before `cut_alike`
PARTS, ROWS = 512, 4  # as in minigpt/backend/gpu/linear.py


def problem(preset, **sizes):
    """Return (GPTConfig, TrainConfig) of a preset with one batch per step, and these options."""
    values = PRESETS[preset] | {"gradient_accumulation_steps": 1, "backend": "cupy"} | sizes
    return resolve(values, {"vocab_size": values.get("vocab_size", CHARACTERS)})


def counts(requests):
    """Count a step of each problem, in a process whose kernels report what they touch.

    Parameters
    ----------
    requests : list of dict
        preset, n_layer, batch_size, block_size, dtype; fused: whether overrides
        are used; whole_batch: the number of sequences that the result is scaled to; parts: how
        many parts a sum over rows has at most (default: as many as on a GPU).

    Returns
    -------
    list of {"KIND NAME": [times, bytes, FLOPs]}
        KIND is one of `KINDS`. FLOPs of products; 0 for all else.
    """
    if not os.environ.get("CUPY_ON_CPU"):
        raise UserError("launches.py counts where CuPy runs on the CPU, and CUPY_ON_CPU is not set")
    cxx = os.environ.get("CUPY_ON_CPU_CXX", "g++")
    folder = Path(os.environ["CUPY_CACHE_DIR"]) / "traffic"  # of kernels that are so compiled
    folder.mkdir(parents=True, exist_ok=True)
    shim, compiler = folder / "traffic.so", folder / "cxx"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([cxx, "-xc", "-shared", "-fPIC", "-O2", "-o", shim, source, "-ldl"], check=True)
    compiler.write_text(COMPILER.format(cxx=cxx))
    compiler.chmod(0o755)
    settings = {"LD_PRELOAD": shim, "CUPY_ON_CPU_CXX": compiler, "CUPY_CACHE_DIR": folder}
    env = os.environ | {name: str(value) for name, value in settings.items()}
    env["PYTHONPATH"] = str(ROOT)
    env |= {"CUPY_ON_CPU_CACHE": str(folder), "CUPY_ON_CPU_GUARD_PAGES": "0"}
    command = [sys.executable, "-m", "bench.lib.traffic", json.dumps(requests)]
    child = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise RuntimeError(f"counting ended with exit code {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


@contextlib.contextmanager
def watched(cupy, found):
    """Put into `found` the lines of traffic.c for what is done in a with block."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    start = cupy.empty(WATCHED, cupy.uint8).data.ptr  # given back, and then divided by the pool
    if pool.total_bytes() != WATCHED:
        raise RuntimeError("there are arrays outside the memory that is watched")
    with tempfile.NamedTemporaryFile("r") as file:
        shim = ctypes.CDLL(None)
        shim.traffic_start.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_char_p]
        if not shim.traffic_start(start, WATCHED, file.name.encode()):
            raise MemoryError
        try:
            yield
        finally:
            shim.traffic_stop()
        if pool.total_bytes() != WATCHED:
            raise RuntimeError("there are arrays outside the memory that is watched")
        found.extend(file.read().splitlines())


def cut_alike(config, train_config, whole_batch):
    """Let the op's head cut this batch into as many parts as the whole one: counts are linear then.

    The override takes them in one, as on a GPU of 80 GB.
    """
    override = importlib.import_module("minigpt.backend.gpu.cross_entropy")
    V, T = config.vocab_size, config.block_size
    parts = -(-whole_batch * T // max(1, CHUNK // V))
    cross_entropy.CHUNK = V * -(-train_config.batch_size * T // parts)
    override.most_logits = lambda size: sys.maxsize


def call_as_on_cuda():
    """Let the overrides call the cuBLAS that was loaded before all libraries, and no other BLAS."""
    library = ctypes.CDLL(None)
    names = "cublasSetStream_v2", "cublasGemmEx", "cublasGemmStridedBatchedEx"
    functions = tuple(getattr(library, name) for name in names)
    importlib.import_module("minigpt.backend.gpu.product").cublas = lambda: functions


def count(cupy, preset, fused, whole_batch, parts=None, **sizes):
    """Return what `counts` does, for one problem: of its second step, in the steady state."""
    config, train_config = problem(preset, **sizes)
    cut_alike(config, train_config, whole_batch)
    importlib.import_module("minigpt.backend.gpu.linear").PARTS = parts or PARTS
    rng = np.random.default_rng(1337)
    ids = rng.integers(0, config.vocab_size, 100_000, dtype=np.int32)
    lines = []
    call_as_on_cuda()
    with backend.plain(not fused), Workers(1) as workers, watched(cupy, lines):
        trainer = Trainer(init_params(config, 1337, cupy), config, train_config, cupy, workers)
        split = backend.to_device(ids, cupy)
        trainer.step(split, 0)
        ctypes.CDLL(None).traffic_mark()
        trainer.step(split, 1)
        del trainer, split
    return summed(lines[lines.index("step") + 1 :])


def summed(lines):
    """Return {"KIND NAME": [times, bytes, FLOPs]} of the lines of traffic.c."""
    sums = {}
    for line in lines:
        kind, name, read, written, flops = line.split()
        if kind == "kernel" and "attention" in name:
            kind = "attention"
        entry = sums.setdefault("product" if kind == "product" else f"{kind} {name}", [0, 0, 0])
        for i, value in enumerate((1, int(read) + int(written), int(flops))):
            entry[i] += value
    return sums


def main(requests):
    """Count what the parent process asks for, and print it."""
    import cupy

    found = []
    for request in requests:
        print(*request.values(), "...", file=sys.stderr, flush=True)
        found.append(count(cupy, **request))
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
