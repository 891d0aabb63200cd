"""Faster versions of the ops on a CPU: in place, in blocks of rows that stay in the cache.

An override has the name of its op, in a file with the name of the op's file: that is how it is
found. It has the signature, the results (up to rounding) and the cache of its op, so that the
passes of the two can be mixed. For what it does not support it returns NotImplemented, and the op
itself runs. Delete this folder and everything still works, only slower.

What makes them fast: a block of rows goes through all steps of an op while it is in the cache;
results go into memory that is reused (`pool`); sums over rows or columns are products with a
vector, which BLAS does at memory bandwidth. Such a product, where a term is infinite, may be nan in
place of inf (BLAS kernels for AVX-512 multiply their padding too), so nobody may ask a sum which of
the two it is.
"""
