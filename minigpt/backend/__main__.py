"""What this machine has for minigpt, and how to get what is missing: python -m minigpt.backend"""

import contextlib
import ctypes
import importlib
import os
import platform
import textwrap
import time
from importlib import metadata

import numpy
import threadpoolctl

from minigpt import cli
from minigpt.backend.devices import (
    INSTALL,
    TF32_CAPABILITY,
    check_precision,
    load_backend,
    usable_cores,
)
from minigpt.errors import UserError

OPTIONAL = {
    "matplotlib": "pictures of losses and of attention",
    "pytest": "the tests",
    "hypothesis": "the tests",
    "torch": "comparisons in tests and benches",
}
NVIDIA = "libcuda.so.1", "nvcuda.dll"
AMD = "libamdhip64.so.7", "libamdhip64.so", "amdhip64_7.dll"
WIDTH, INDENT = 100, 16


def version(name):
    """Return the installed version of a distribution, or None."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)


def own_rows():
    """Yield what NumPy and the program itself stand on."""
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "minigpt", cli.VERSION
    yield "numpy", numpy.__version__
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            kernels = f" ({pool['architecture']})" if pool.get("architecture") else ""
            blas = f"{pool['internal_api']} {pool['version']}{kernels}"
            yield "BLAS", f"{blas}, {pool['num_threads']} threads"
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    for name in ("filelock", "safetensors", "threadpoolctl", "tqdm"):
        yield name, version(name) or f"missing: pip install {name}"
    for name, purpose in OPTIONAL.items():
        yield name, version(name) or f"not installed; for {purpose}: pip install {name}"


def called(libraries, function):
    """Return the number that a driver's function writes, or None if no such library loads."""
    for name in libraries:
        with contextlib.suppress(OSError, AttributeError):
            number = ctypes.c_int(0)
            getattr(ctypes.CDLL(name), function)(ctypes.byref(number))
            return number.value
    return None


def driver():
    """Return (what driver there is, the wheel of CuPy that fits it); asks no CuPy."""
    cuda = called(NVIDIA, "cuDriverGetVersion")
    if cuda:
        text = f"NVIDIA's, for CUDA {numbers(cuda)}"
        if cuda < 12000:
            return f"{text}: too old, CuPy needs one for CUDA 12", INSTALL
        return text, f"pip install 'cupy-cuda{min(cuda // 1000, 13)}x[ctk]'"
    if called(AMD, "hipRuntimeGetVersion"):
        return "AMD's, with ROCm's libraries", "pip install cupy-rocm-7-0"
    return "none found of NVIDIA or AMD", INSTALL


def numbers(cuda):
    """12090 -> '12.9'"""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def cupy_rows(install):
    """Yield what there is of CuPy, down to the kernels; last, whether it can be used.

    Parameters
    ----------
    install : str
        The command that brings the wheel for this machine.
    """
    verdict = "--backend cupy"
    found = [d.metadata["Name"] for d in metadata.distributions()]
    wheels = sorted({name for name in found if name and name.lower().startswith("cupy")})
    if not wheels:
        yield verdict, f"does not work: CuPy is not installed; run {install}"
        return
    yield "CuPy", ", ".join(f"{name} {version(name)}" for name in wheels)
    if len(wheels) > 1:
        yield "", f"they exclude each other: pip uninstall {' '.join(wheels)}, then {install}"
    try:
        cupy = load_backend("cupy")
    except UserError as error:
        here = "" if install == INSTALL else f" (here: {install})"
        yield verdict, f"does not work: {str(error).removeprefix('--backend cupy: ')}{here}"
        return
    runtime = cupy.cuda.runtime
    if runtime.is_hip:
        yield "runtime", f"ROCm, HIP {runtime.runtimeGetVersion()}"
    else:
        yield "runtime", f"CUDA {numbers(runtime.runtimeGetVersion())}"
    for i in range(runtime.getDeviceCount()):
        yield f"device {i}", device(cupy, i)
    kernels = importlib.import_module(f"{__package__}.gpu.launch")
    results = [compiled(cupy, kernels, char) for char in kernels.OPTIONS]
    for result in results:
        yield "kernels", result
    works = not any("do not compile" in result for result in results)
    yield verdict, "works" if works else "does not work: see the kernels"


def device(cupy, i):
    """Return the name of a device, its memory and what it can do."""
    with cupy.cuda.Device(i) as this:
        properties, (free, total) = cupy.cuda.runtime.getDeviceProperties(i), this.mem_info
        capability = this.compute_capability
        half = "float16"
        try:
            check_precision(half, cupy)
        except UserError:
            half = "no float16"
    kind, tf32 = f"compute capability {capability[:-1]}.{capability[-1]}", "no TF32"
    if cupy.cuda.runtime.is_hip:
        kind = properties["gcnArchName"].decode()
    elif int(capability) >= TF32_CAPABILITY:
        tf32 = "TF32"
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"{properties['name'].decode()}, {memory}, {kind}, {half}, {tf32}"


def compiled(cupy, kernels, char):
    """Compile all kernels for a dtype; return how long it took, or what the compiler said."""
    dtype, start = numpy.dtype(char).name, time.perf_counter()
    try:
        cupy.RawModule(code=kernels.source(), options=kernels.OPTIONS[char]).compile()
    except (RuntimeError, OSError, cupy.cuda.compiler.CompileException) as error:
        return f"for {dtype} do not compile: {cli.one_line(error)}"
    return (
        f"for {dtype} ready in {time.perf_counter() - start:.1f} s (less if CuPy has cached them)"
    )


def numpy_works():
    """Tell whether a product of NumPy comes out right."""
    x = numpy.arange(6.0, dtype=numpy.float32).reshape(2, 3)
    return (x @ x.T).tolist() == [[5.0, 14.0], [14.0, 50.0]]


def main(argv=None):
    """Print a row for each part; return 0 if the NumPy backend works."""
    cli.parser("python -m minigpt.backend", __doc__.partition(":")[0] + ".").parse_args(argv)
    drivers, install = driver()
    works = numpy_works()
    told = "works" if works else "does not work: pip install --force-reinstall numpy"
    rows = [*own_rows(), ("driver", drivers), ("--backend numpy", told), *cupy_rows(install)]
    for name, text in rows:
        lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
        print(f"{name:<{INDENT}}" + f"\n{'':{INDENT}}".join(lines))
    return 0 if works else 1


if __name__ == "__main__":
    cli.run(main)
