"""Faster versions of the ops on a CPU: in place, in blocks of rows that fit the L2 cache.

A file bears the name of the op's own file, a function the name of the op: that is how they are
found. Each has the signature, the results (to rounding) and the cache of its op, so that the passes
of the two can be mixed; for what it does not take it returns NotImplemented, and the op itself
runs. Delete this folder and everything still works, only slower.

What makes them fast: a block of rows goes through all steps of an op while it is in the cache;
results are written into memory that is reused (`pool`); sums over rows or columns are products
with a vector, which BLAS does at the speed of the memory.
"""
