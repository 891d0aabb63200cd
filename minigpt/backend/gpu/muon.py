"""Products of stacks of matrices on a GPU, for Muon: in TF32 where that is asked for."""

from minigpt.backend.gpu.product import batched


def batched_product(a, b):
    """As the op."""
    if a.dtype.char != "f" or b.dtype.char != "f" or a.shape[:-2] != b.shape[:-2]:
        return NotImplemented
    return batched(a, b)
