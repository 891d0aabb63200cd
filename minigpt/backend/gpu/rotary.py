"""Rotary positions on a GPU."""

from minigpt.backend.gpu.launch import each, empty, launch, supported, threads
from minigpt.ops import rotary


def rotary_qkv_forward(qkv, n_head, start=0):
    """As the op; in the packed array."""
    if not supported(qkv):
        return NotImplemented
    cos, sin = rotary.angles(qkv, start, qkv.shape[1], qkv.shape[2] // (3 * n_head))
    return rotate(qkv, n_head, cos, sin, 1.0), (n_head, cos, sin)


def rotary_qkv_backward(dy, cache):
    """As the op; in the packed array."""
    n_head, cos, sin = cache
    if not supported(dy, cos, sin):
        return NotImplemented
    return rotate(dy, n_head, cos, sin, -1.0)


def rotate(x, n_head, cos, sin, sign):
    """Launch the kernel, with the sign 1, or -1 to rotate back; return y."""
    C, y = x.shape[2] // 3, empty(x.shape, x.dtype)
    block = threads(-(-3 * C // each(x.dtype)))
    grid = x.size // (3 * C), -(-3 * C // (each(x.dtype) * block[0]))
    launch("rotary", x.dtype, grid, block, (x, cos, sin, y, x.shape[1], C, C // n_head, sign))
    return y
