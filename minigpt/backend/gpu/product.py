"""Matrix products on a GPU: cuBLAS's own call, for what CuPy's `@` leaves out.

`product(a, b)` is a @ b for matrices; more axes in front are rows. It can also take the transpose
of either, put the result where it is wanted, with gaps between the rows, add it to what is there,
and keep sums of 16-bit factors in float32. On CUDA it calls cublasGemmEx through ctypes, with
CuPy's handle, in CuPy's stream; elsewhere it is CuPy's `@`.

cuBLAS counts down columns, as Fortran does: what it calls a matrix (rows, columns), with `ld`
elements from one column to the next, is in NumPy the transposed array (columns, rows), with ld
elements from one row to the next. So it is asked for c^T = b^T @ a^T: b is its first factor, a the
second, and an array whose rows are contiguous is not transposed for it.
NVIDIA, cuBLAS library, https://docs.nvidia.com/cuda/cublas/#cublasgemmex.
"""

import ctypes
import functools
import importlib
import math

import cupy
from cupy._core import _routines_linalg
from cupy.cuda import get_current_stream
from cupy.cuda.device import get_cublas_handle

from minigpt.backend.devices import INSTALL
from minigpt.backend.gpu.launch import empty
from minigpt.errors import UserError

# Of the factors and of the result, by dtype.char: cudaDataType in library_types.h.
FLOAT32, FLOAT16, BFLOAT16 = 0, 2, 14
TYPES = {
    ("f", "f"): (FLOAT32, FLOAT32),
    ("e", "e"): (FLOAT16, FLOAT16),
    ("e", "f"): (FLOAT16, FLOAT32),
    ("E", "E"): (BFLOAT16, BFLOAT16),
    ("E", "f"): (BFLOAT16, FLOAT32),
}
# cublasComputeType_t and cublasGemmAlgo_t in cublas_api.h. All sums are in float32.
COMPUTE_32F, COMPUTE_32F_FAST_TF32, GEMM_DEFAULT = 68, 77, -1
TF32 = _routines_linalg.COMPUTE_TYPE_TF32
ZERO, ONE = ctypes.byref(ctypes.c_float(0.0)), ctypes.byref(ctypes.c_float(1.0))


@functools.cache
def cublas():
    """Return cublasSetStream, cublasGemmEx and cublasGemmStridedBatchedEx; on ROCm, None.

    They are those of the library that CuPy uses.

    Raises
    ------
    UserError
        If it does not load: one line.
    """
    if cupy.cuda.runtime.is_hip:
        return None
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")  # CuPy's own, from CuPy 14 on
        library = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
        functions = library.cublasSetStream_v2, library.cublasGemmEx
        functions += (library.cublasGemmStridedBatchedEx,)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no cause")
        raise UserError(
            f"--backend cupy: cuBLAS does not load ({cause}); install CuPy with the libraries of "
            f"its CUDA version, {INSTALL}, or use --backend numpy"
        ) from None
    return functions


def layout(x):
    """Return how x (..., rows, columns) lies in memory: (0, elements from one row to the next).

    Or (1, elements from one column to the next), if x is such an array transposed; or None.
    """
    rows, columns = x.shape[-2:]
    down, right = x.strides[-2:]
    item = x.itemsize
    if right == item and down >= columns * item:
        return 0, down // item
    if down == item and right >= rows * item:
        return 1, right // item
    return None


def matrix(x):
    """Return (rows, columns, flip, ld) of x (..., columns), the last two as from `layout`.

    ld is 0 where cuBLAS cannot take x as it lies in memory.
    """
    shape = x.shape
    columns = shape[-1]
    if x.size and x._c_contiguous:
        return x.size // columns, columns, 0, columns
    flip, ld = (len(shape) == 2 and layout(x)) or (0, 0)
    return math.prod(shape[:-1]), columns, flip, ld


def product(a, b, out=None, add=False, dtype=None, flip_a=False, flip_b=False):
    """Return a @ b; sums are in float32, rounded once.

    Factors in float32 are rounded to TF32 where that is switched on: devices.tf32_products. No
    view is made on the way: a few take Python as long as the rest of the call.

    Parameters
    ----------
    a, b : (..., m, k), (k, n), of one dtype
        All axes of a but the last count its rows. Nothing is copied if they are contiguous, or, in
        two dimensions, transposed views of what is, or have gaps between their rows.
    out : (..., m, n), optional
        Receives the result, and is returned. Its dtype is that of a, or float32. With more than two
        axes it is contiguous.
    add : bool
        Whether the result is added to what is in `out`.
    dtype : dtype, optional
        Of the result without `out`; by default that of a.
    flip_a, flip_b : bool
        Take a as (..., k, m), with all axes of b but the last for its rows, too: a^T @ b is (m, n),
        a sum over rows. Or b as (n, k): a @ b^T.

    Raises
    ------
    ValueError
        If the shapes do not fit: cuBLAS would read or write what is beside the arrays.
    CUBLASError
        CuPy's, if cuBLAS fails.
    """
    m, k, turn_a, ld_a = matrix(a)
    also_k, n, turn_b, ld_b = matrix(b)
    if flip_a:
        m, k, turn_a = k, m, 1 - turn_a
    if flip_b:
        also_k, n, turn_b = n, also_k, 1 - turn_b
    if out is None:
        shape = (m, n) if flip_a else (*a.shape[:-1], n)
        out, add = empty(shape, dtype or a.dtype), False
    rows, columns, turned, ld = matrix(out)
    if k != also_k or rows != m or columns != n or out.ndim > 2 and not out._c_contiguous:
        raise ValueError(f"product: {(m, k)} @ {(also_k, n)} does not go into {out.shape}")
    functions, char = cublas(), a.dtype.char
    types = TYPES.get((char, out.dtype.char))
    laid_out = ld_a and ld_b and ld and not turned
    if functions is None or types is None or a.dtype != b.dtype or not (m * n * k and laid_out):
        with_cupy(two_axes(a, flip_a), two_axes(b, flip_b), two_axes(out), add)
        return out
    (factor, result), (set_stream, gemm, _), pointer = types, functions, ctypes.c_void_p
    handle, scale = pointer(get_cublas_handle()), ONE if add else ZERO
    at_a, at_b, at_out = pointer(a.data.ptr), pointer(b.data.ptr), pointer(out.data.ptr)
    # fmt: off
    status = set_stream(handle, pointer(get_current_stream().ptr)) or gemm(
        handle, turn_b, turn_a, n, m, k, ONE, at_b, factor, ld_b, at_a, factor, ld_a,
        scale, at_out, result, ld, compute_type(char), GEMM_DEFAULT,
    )
    # fmt: on
    check(status)
    return out


def two_axes(x, flip=False):
    """Return x (..., columns) as (rows, columns), or its transpose."""
    x = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return x.T if flip else x


def compute_type(char):
    """Return cuBLAS's number for the arithmetic of factors of that dtype.char."""
    tf32 = char == "f" and _routines_linalg.get_compute_type("f") == TF32
    return COMPUTE_32F_FAST_TF32 if tf32 else COMPUTE_32F


def check(status):
    """Raise CuPy's error for a status that is not success."""
    if status:
        raise importlib.import_module("cupy_backends.cuda.libs.cublas").CUBLASError(status)


def batched(a, b):
    """Return a @ b for stacks of matrices in float32, as `product`; CuPy's `@` knows no TF32.

    Parameters
    ----------
    a, b : (..., m, k), (..., k, n)
        Nothing is copied if they are contiguous, or such arrays with their last two axes swapped.
    """
    m, k, n = *a.shape[-2:], b.shape[-1]
    if k != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"batched: {a.shape} @ {b.shape} do not fit")
    functions, out = cublas(), cupy.empty((*a.shape[:-1], n), "f")
    a3, b3 = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    of_a, of_b = layout(a3), layout(b3)
    if functions is None or of_a is None or of_b is None or not out.size * k:
        return a @ b
    (set_stream, _, gemm), pointer = functions, ctypes.c_void_p
    handle, step_a, step_b = pointer(get_cublas_handle()), *(x.strides[0] // 4 for x in (a3, b3))
    at_a, at_b, at_out = (pointer(x.data.ptr) for x in (a3, b3, out))
    (flip_a, ld_a), (flip_b, ld_b), far = of_a, of_b, ctypes.c_longlong
    # fmt: off
    status = set_stream(handle, pointer(get_current_stream().ptr)) or gemm(
        handle, flip_b, flip_a, n, m, k, ONE, at_b, FLOAT32, ld_b, far(step_b),
        at_a, FLOAT32, ld_a, far(step_a), ZERO, at_out, FLOAT32, n, far(m * n), len(a3),
        compute_type("f"), GEMM_DEFAULT,
    )
    # fmt: on
    check(status)
    return out


def with_cupy(a, b, out, add):
    """Do as `product` by CuPy's `@`: it has no bfloat16 on ROCm, and no other type of result."""
    char = a.dtype.char
    if char == "E" or char == "e" and (add or out.dtype.char != "e" or out.size == 1):
        a, b = a.astype("f"), b.astype("f")
    if add:
        out += a @ b
    elif a.dtype == b.dtype == out.dtype and out.flags.c_contiguous:
        cupy.dot(a, b, out=out)
    else:
        out[...] = a @ b
