"""Compiling and launching the kernels: the CUDA C++ in the .cu files of this folder.

CuPy compiles them at first use. All .cu files are one source text: common.cu with what they share,
then the others in order of their names. It is written for an element type T and compiled for each
dtype when that is first used, so that float32 does not wait for the others. All arithmetic is in
float.
"""

import functools
from pathlib import Path

import cupy

from minigpt.backend.devices import INSTALL
from minigpt.errors import UserError

FOLDER = Path(__file__).parent
# Compiler options by dtype.char, float32, float16 and bfloat16 (of ml_dtypes, which then is there):
# dtype.name would take NumPy microseconds.
OPTIONS = {
    "f": ("-std=c++17",),
    "e": ("-std=c++17", "-DHALF"),
    "E": ("-std=c++17", "-DBFLOAT16"),
}
NAMES = {"f": "float32", "e": "float16", "E": "bfloat16"}
empty = cupy.ndarray  # what cupy.empty calls with (shape, dtype); a step makes 200 arrays


def source():
    """Return the text of all kernels, with the file names for the compiler's messages."""
    first = FOLDER / "common.cu"
    paths = [first, *sorted(set(FOLDER.glob("*.cu")) - {first})]
    return "\n".join(f'#line 1 "{path.name}"\n{path.read_text("utf-8")}' for path in paths)


@functools.cache
def _module(char):
    return cupy.RawModule(code=source(), options=OPTIONS[char])


@functools.cache
def kernel(name, dtype):
    """Return the kernel of that name, an extern "C" function of the .cu files, for a dtype.

    CuPy compiles the module at the first kernel, and again for each further device.

    Raises
    ------
    UserError
        If the kernels do not compile or load: one line with the first error.
    """
    try:
        function = _module(dtype.char).get_function(name)
        _ = function.kernel  # compiles
    except (cupy.cuda.compiler.CompileException, ImportError, OSError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no cause"]
        cause = next((line for line in lines if "error" in line.lower()), lines[0])
        raise UserError(
            f"--backend cupy: the kernels for {dtype} do not compile or load here ({cause}); "
            f"install CuPy with the compiler and headers of its CUDA version, {INSTALL}, or use "
            "--backend numpy"
        ) from None
    return function


def launch(name, dtype, grid, block, args, shared=0):
    """Start a kernel; does not wait for it.

    Parameters
    ----------
    name : str
    dtype : dtype
        What T stands for: float32, float16 or bfloat16.
    grid, block : tuples of int
    args : tuple
        CuPy arrays or None (a null pointer) for pointers, int for long long, float for double,
        NumPy scalars for all other types. They are neither converted nor checked.
    shared : int
        Bytes of shared memory of a block, beside what the kernel itself declares.
    """
    kernel(name, dtype)(grid, block, args, shared_mem=shared)


def supported(*arrays):
    """Tell whether the kernels support these arrays; None stands for an array left out.

    They support contiguous CuPy arrays that are not empty, all of one type of OPTIONS.
    """
    # x._c_contiguous is what x.flags.c_contiguous looks up, without an object for all flags.
    dtype = arrays[0].dtype
    if dtype.char not in OPTIONS:
        return False
    for x in arrays:
        if x is not None and not (
            isinstance(x, cupy.ndarray) and x.dtype == dtype and x.size and x._c_contiguous
        ):
            return False
    return True


def each(dtype):
    """Return how many adjacent elements a thread does at a time, 16 bytes: EACH in common.cu."""
    return 16 // dtype.itemsize


def threads(n):
    """Return the block size for n work items: a multiple of both warp sizes, at most 1024."""
    return (min(max(-(-n // 64) * 64, 64), 1024),)
