"""What this machine has for minigpt, and how to get what is missing: minigpt doctor

It imports the packages that it reports on only where they are there, except NumPy, without which
no part of minigpt.backend can be imported.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import textwrap
import time
from importlib import metadata

import numpy

from minigpt import cli
from minigpt.backend import is_plain
from minigpt.backend.cores import core_limit
from minigpt.backend.devices import (
    CUDA13_CAPABILITY,
    INSTALL,
    PRECISIONS,
    check_precision,
    decimal,
    load_backend,
)
from minigpt.errors import UserError

REQUIRED = ("numpy", "safetensors", "threadpoolctl", "tqdm")
OPTIONAL = {
    "matplotlib": "pictures of losses and of attention",
    "tokenizers": "subword tokens",
    "ml_dtypes": "--dtype bfloat16 on a GPU",
    "pytest": "the tests",
    "hypothesis": "the tests",
    "torch": "comparisons in tests and benches",
}
NVIDIA = "libcuda.so.1", "nvcuda.dll"
AMD = "libamdhip64.so.7", "libamdhip64.so", "amdhip64_7.dll"
MAJOR_MINOR = 75, 76  # cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
OPENBLAS = "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"  # they choose kernels and blocks for a CPU
WIDTH, INDENT = 100, 19


def version(name):
    """Return the installed version of a package as text, or None."""
    if importlib.util.find_spec(name) is None:
        return None
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "installed, of unknown version"


def own_rows():
    """Yield (name, text) of Python, the packages, BLAS, the CPU and the environment."""
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "minigpt", cli.VERSION
    for name in REQUIRED:
        yield name, version(name) or f"missing: pip install {name}"
    for name, purpose in OPTIONAL.items():
        yield name, version(name) or f"not installed; for {purpose}: pip install {name}"
    for text in blas_texts():
        yield "BLAS", text
    limit = core_limit()
    yield "cores", f"{limit.cores} usable of {os.cpu_count() or 1}{limit.by}"
    for name in OPENBLAS:
        if name in os.environ:
            yield name, f"{os.environ[name]}: overrides OpenBLAS's own choice, which may be faster"
    on = "on, by MINIGPT_PLAIN: the ops run as they are written, without overrides, which is slow"
    yield "plain mode", on if is_plain() else "off"


def blas_texts():
    """Yield a text for each BLAS that NumPy has loaded, or why there is none."""
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ModuleNotFoundError:
        yield "unknown without threadpoolctl"
        return
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            kernels = f" ({pool['architecture']})" if pool.get("architecture") else ""
            blas = f"{pool['internal_api']} {pool['version']}{kernels}"
            yield f"{blas}, {cli.plural(pool['num_threads'], 'thread')}"


def called(libraries, function):
    """Return the number that a function of the driver writes, or None if no library loads."""
    for name in libraries:
        with contextlib.suppress(OSError, AttributeError):
            number = ctypes.c_int(0)
            getattr(ctypes.CDLL(name), function)(ctypes.byref(number))
            return number.value
    return None


def capability():
    """Return the compute capability of the oldest GPU times 10, as the driver says, or None."""
    for name in NVIDIA:
        with contextlib.suppress(OSError, AttributeError):
            library, count, found = ctypes.CDLL(name), ctypes.c_int(0), []
            if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
                return None
            for gpu in range(count.value):
                number = ctypes.c_int(0), ctypes.c_int(0)
                for attribute, to in zip(MAJOR_MINOR, number, strict=True):
                    library.cuDeviceGetAttribute(ctypes.byref(to), attribute, gpu)
                found.append(10 * number[0].value + number[1].value)
            return min(found, default=None)
    return None


def driver():
    """Return (the driver, the command that installs its CuPy); does not ask CuPy."""
    cuda = called(NVIDIA, "cuDriverGetVersion")
    if cuda:
        text, wheel = f"NVIDIA, for CUDA {numbers(cuda)}", min(cuda // 1000, 13)
        if cuda < 12000:
            return f"{text}: too old, CuPy needs CUDA 12 or later", INSTALL
        oldest = capability()
        if wheel > 12 and oldest is not None and oldest < CUDA13_CAPABILITY:
            text += f"; a GPU of compute capability {decimal(oldest)} needs CuPy for CUDA 12"
            wheel = 12
        return text, f"pip install 'cupy-cuda{wheel}x[ctk]'"
    if called(AMD, "hipRuntimeGetVersion"):
        return "AMD, with the ROCm libraries", "pip install cupy-rocm-7-0"
    return "none found, neither NVIDIA nor AMD", INSTALL


def numbers(cuda):
    """12090 -> '12.9'"""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def cupy_rows(install):
    """Yield (name, text) of CuPy, its runtime, GPUs and kernels; last, whether it can be used.

    Parameters
    ----------
    install : str
        The command that installs the wheel for this machine.
    """
    verdict = "--backend cupy"
    found = [d.metadata["Name"] for d in metadata.distributions()]
    wheels = sorted({name for name in found if name and name.lower().startswith("cupy")})
    if not wheels:
        yield verdict, f"does not work: CuPy is not installed; run {install}"
        return
    yield "CuPy", ", ".join(f"{name} {metadata.version(name)}" for name in wheels)
    if len(wheels) > 1:
        yield "", f"only one can be installed: pip uninstall {' '.join(wheels)}, then {install}"
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
        yield f"GPU {i}", describe_gpu(cupy, i)
    kernels = importlib.import_module(f"{__package__}.gpu.launch")
    results = [compile_kernels(cupy, kernels, char) for char in kernels.OPTIONS]
    for result in results:
        yield "kernels", result
    works = not any("do not compile" in result for result in results)
    yield verdict, "works" if works else "does not work: see the lines on kernels"


def describe_gpu(cupy, i):
    """Return the name of a GPU, its memory and the precisions that it has."""
    with cupy.cuda.Device(i) as gpu:
        properties, (free, total) = cupy.cuda.runtime.getDeviceProperties(i), gpu.mem_info
        kind = f"compute capability {decimal(int(gpu.compute_capability))}"
        if cupy.cuda.runtime.is_hip:
            kind = properties["gcnArchName"].decode()
        precisions = [name for name in PRECISIONS if has_precision(name, cupy)]
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"{properties['name'].decode()}, {memory}, {kind}, --dtype {'|'.join(precisions)}"


def has_precision(name, cupy):
    """Tell whether a run can have that precision on the current GPU."""
    with contextlib.suppress(UserError):
        check_precision(name, cupy)
        return True
    return False


def compile_kernels(cupy, kernels, char):
    """Compile all kernels for a dtype; return how long it took, or the compiler's first error."""
    dtype, start = kernels.NAMES[char], time.perf_counter()
    try:
        cupy.RawModule(code=kernels.source(), options=kernels.OPTIONS[char]).compile()
    except (RuntimeError, OSError, cupy.cuda.compiler.CompileException) as error:
        return f"for {dtype} do not compile: {cli.one_line(error)}"
    seconds = time.perf_counter() - start
    return f"for {dtype} ready in {seconds:.1f} s (CuPy caches them)"


def numpy_works():
    """Tell whether a matrix product of NumPy is right."""
    x = numpy.arange(6.0, dtype=numpy.float32).reshape(2, 3)
    return (x @ x.T).tolist() == [[5.0, 14.0], [14.0, 50.0]]


def numpy_verdict():
    """Return whether the NumPy backend can be used, and if not, what to do."""
    missing = [name for name in REQUIRED if version(name) is None]
    if missing:
        return f"does not work: {', '.join(missing)} missing; run pip install {' '.join(missing)}"
    return "works" if numpy_works() else "does not work: pip install --force-reinstall numpy"


def main(argv=None, prog="python -m minigpt.backend"):
    """Print a row for each part; return 0 if the NumPy backend works."""
    cli.parser(prog, __doc__.partition(":")[0] + ".").parse_args(argv)
    drivers, install = driver()
    verdict = numpy_verdict()
    rows = [*own_rows(), ("driver", drivers), ("--backend numpy", verdict), *cupy_rows(install)]
    for name, text in rows:
        lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
        print(f"{name:<{INDENT}}" + f"\n{'':{INDENT}}".join(lines))
    return 0 if verdict == "works" else 1


if __name__ == "__main__":
    cli.run(main)
