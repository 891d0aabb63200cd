"""Matrix products on a GPU, in two dimensions: there a transposed operand is no copy."""

import cupy


def product(a, b, out=None, add=False, dtype=None):
    """Return a @ b, summed in float32.

    Parameters
    ----------
    a, b : (M, K), (K, N)
        Of one dtype.
    out : (M, N), optional
        Where to write it.
    add : bool
        Whether to add it to `out` instead.
    dtype : dtype, optional
        Of the result: that of `out` or, without one, of `a` by default. float32 of 16-bit arrays
        is not rounded to 16 bit on the way.
    """
    dtype = out.dtype if out is not None else a.dtype if dtype is None else dtype
    # hipBLAS has no product of bfloat16, and CuPy none with a result of another type.
    if dtype != a.dtype or (a.dtype.char == "E" and cupy.cuda.runtime.is_hip):
        a, b = a.astype("f"), b.astype("f")
    if out is None:
        return (a @ b).astype(dtype, copy=False)
    if add:
        out += a @ b
    elif a.dtype == dtype:
        cupy.dot(a, b, out=out)
    else:
        out[...] = a @ b
    return out
