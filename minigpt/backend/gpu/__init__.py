"""Faster versions of the ops on a GPU: one kernel where the op has a dozen steps.

An override has the name of its op, in a file with the name of the op's file; its kernels are in the
.cu file of that name. It has the signature, the results (up to rounding) and the cache of its op,
so that the passes of the two can be mixed. For what the kernels do not support (float64, views that
are not contiguous, empty arrays, very wide rows) it returns NotImplemented, and the op itself runs.
Delete this folder and everything still works, only slower. There are no float atomics: the same
input gives the same bits.
"""
