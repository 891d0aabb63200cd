"""Faster versions of the ops on a GPU: one kernel where the op has a dozen steps.

A file bears the name of the op's own file, a function the name of the op; the kernels are beside it
in a .cu file. Each has the signature, the results (to rounding) and the cache of its op, so that
the passes of the two can be mixed; for what the kernels do not take (float64, views that are not
contiguous, empty arrays, very wide rows) it returns NotImplemented, and the op itself runs. Delete
this folder and everything still works, only slower. No float atomics anywhere: the same input
gives the same bits.
"""
