"""The mathematics: one file per op, with the backward pass directly below the forward pass.

Reading order: linear, embedding, layernorm, softmax, dropout, rotary, attention, activation,
linear_activation, add_norm, cross_entropy; lora, for fine-tuning.

Names: B batch, T time (Tq of queries, Tk of keys), C channels, H heads, D = C / H, V vocabulary.
L is the loss. `dx` is dL/dx, of the shape and dtype of x, and `dy` is dL/dy: never a derivative
of y. A derivative of y is written with "partial", or as act'(x).

Every backward pass applies one rule, the chain rule:

    dx_j = sum_i dy_i * (partial y_i / partial x_j)

This is the Jacobian, transposed, times dy. The Jacobian is never built: each docstring works out
what the sum comes to. What the forward pass uses n times (a bias that is broadcast, a weight that
all positions share, a stream that branches) gets the sum of n gradients. Karpathy's lecture series
does the same by hand in makemore part 4, "Becoming a Backprop Ninja".

The contract:

- `NAME_forward(arrays, parameters, options)` returns y and a cache: a tuple of what the backward
  pass needs, held by reference where it is an argument. A cache of more than four entries is a
  NamedTuple. An override's cache has the same form, so that the passes of the two can be mixed.
- `NAME_backward(dy, cache)` returns a gradient per array, in the order of the arguments, and after
  them, if the op has parameters, a dict with a gradient per parameter, under its name. Integers
  (token ids, targets) have no gradient: embedding returns the dict alone.
- add_norm has two results, the stream and its layernorm, hence `add_norm_backward(dx, dy, cache)`.
- linear_activation, embedding_backward_tied and cross_entropy_both exist for speed alone: they are
  defined as compositions of other ops, which an override does in one go.
- An op writes to none of its arguments. An override may write to what the caller gives up: that is
  only the `dwte` of embedding_backward_tied. On a GPU it may return the place where a training step
  wants the gradient of a weight (backend/places.py), in float32.
- float32 in, float32 out: constants are Python floats, which do not promote.
"""
