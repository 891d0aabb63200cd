"""The mathematics: a forward and a backward pass per file, one below the other.

Reading order: linear, embedding, layernorm, softmax, dropout, rotary, attention, residual,
activation, cross_entropy.

Legend: B batch, T time (Tq of queries, Tk of keys), C channels, H heads, D = C / H, V vocabulary.
`NAME_forward(arrays, parameters, options)` returns y and a cache; `NAME_backward(dy, cache)`
returns one gradient per positional array of floats, then a dict with a gradient per parameter.
`dx` is dL/dx, of the shape and dtype of x. No op writes to its arguments, but embedding_backward to
a gradient that it is given.
"""
