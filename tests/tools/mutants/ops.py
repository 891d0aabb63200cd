"""Faults in the ops."""

LAYERNORM = "ops/test_layernorm.py::"
ROTARY = "ops/test_rotary.py::"
SOFTMAX = "ops/test_softmax.py::"
ATTENTION = "ops/test_attention.py::"
CROSS_ENTROPY = "ops/test_cross_entropy.py::"
GRADIENT = "test_backward_is_the_gradient"
PAIRINGS = "backend/test_overrides.py::test_all_pairings_of_the_passes"

FAULTS = {
    "minigpt/ops/linear.py": [
        (
            "bias: mean over the rows, not sum",
            "dy2.sum(axis=0)",
            "dy2.mean(axis=0)",
            "ops/test_linear.py::" + GRADIENT,
        ),
    ],
    "minigpt/ops/embedding.py": [
        (
            "a repeated id overwrites",
            "dwte[used] += onehot.astype(dy.dtype).T @ dy.reshape(-1, C)",
            "dwte[ids] = dy",
            "ops/test_embedding.py::" + GRADIENT,
        ),
        (
            "positions begin at 0 in the backward pass",
            "dwpe[start : start + dy.shape[1]]",
            "dwpe[: dy.shape[1]]",
            "ops/test_embedding.py::" + GRADIENT,
        ),
        (
            "a gradient that is given is overwritten",
            "dwte[used] +=",
            "dwte[used] =",
            "ops/test_embedding.py::test_backward_adds_to_a_gradient_that_is_given",
        ),
        (
            "the token before is the one behind",
            "pairs[:, 1:] = ids[:, :-1]",
            "pairs[:, :-1] = ids[:, 1:]",
            "model/test_gpt.py::test_no_token_sees_the_future",
        ),
        (
            "before a part of a text there is nothing",
            "V if previous is None else previous[:, None]",
            "V",
            "ops/test_embedding.py::test_bigrams_in_parts_are_those_of_the_whole",
        ),
        (
            "nothing before the first token is token 0",
            "V if previous is None",
            "0 if previous is None",
            "ops/test_embedding.py::test_no_two_pairs_have_one_number",
        ),
    ],
    "minigpt/ops/rotary.py": [
        (
            "the sign of the angle",
            "a * cos - b * sin, a * sin + b * cos",
            "a * cos + b * sin, b * cos - a * sin",
            ROTARY + "test_is_a_product_of_complex_numbers",
        ),
        (
            "values are turned, too",
            "2)[:, :, :2]",
            "2)",
            ROTARY + "test_is_a_product_of_complex_numbers",
        ),
        (
            "the backward pass turns forward",
            "turned(dy, n_head, cos, -sin)",
            "turned(dy, n_head, cos, sin)",
            ROTARY + GRADIENT,
        ),
        (
            "positions begin at 0 behind a KV cache",
            "a[start : start + T] for a",
            "a[:T] for a",
            ROTARY + "test_a_later_part_is_a_part_of_the_whole",
        ),
        (
            "the fastest pair is the last",
            "BASE ** -xp.linspace(0, 1, D // 2)",
            "BASE ** -xp.linspace(1, 0, D // 2)",
            ROTARY + "test_is_a_product_of_complex_numbers",
        ),
        (
            "a table that is too short by a position",
            "known = 1 << max(start + T - 1, 0).bit_length()",
            "known = 1 << max(start + T - 2, 0).bit_length()",
            ROTARY + "test_a_later_part_is_a_part_of_the_whole",
        ),
        (
            "angles in the precision of the model",
            "    angle = xp.arange(n)[:, None] * speed\n",
            "    angle = (xp.arange(n)[:, None] * speed).astype(dtype)\n",
            ROTARY + "test_a_position_that_is_far_is_exact_in_float32",
        ),
    ],
    "minigpt/ops/layernorm.py": [
        ("no eps", " + eps) ** -0.5", ") ** -0.5", PAIRINGS),
        ("no gain in dx", "    dxhat = w * dy\n", "    dxhat = dy\n", LAYERNORM + GRADIENT),
        (
            "the mean does not move with x",
            "dx = dxhat - dxhat.mean(axis=-1, keepdims=True)",
            "dx = dxhat.copy()",
            LAYERNORM + GRADIENT,
        ),
        (
            "the deviation does not move with x",
            "dx -= xhat * (xhat * dxhat).mean(axis=-1, keepdims=True)",
            "dx -= 0",
            LAYERNORM + GRADIENT,
        ),
        (
            "variance in one pass",
            "((xc * xc).mean(axis=-1, keepdims=True) + eps)",
            "(abs((x * x).mean(axis=-1, keepdims=True) - mu * mu) + eps)",
            LAYERNORM + "test_variance_survives_a_large_mean",
        ),
    ],
    "minigpt/ops/softmax.py": [
        (
            "a row that sees nothing is 0 / 0",
            "e / xp.where(total == 0, 1.0, total)",
            "e / total",
            SOFTMAX + "test_a_row_that_is_all_masked_gives_zeros",
        ),
        (
            "no shift by the maximum",
            "xp.exp(x - xp.where(top == -math.inf, 0.0, top))",
            "xp.exp(x)",
            SOFTMAX + "test_scores_of_any_size_are_finite",
        ),
        (
            "the denominator is taken for a constant",
            "y * (dy - (y * dy).sum(axis=-1, keepdims=True))",
            "y * dy",
            SOFTMAX + GRADIENT,
        ),
    ],
    "minigpt/ops/dropout.py": [
        (
            "the share is rounded down",
            "min(round(p * 65536), 65535)",
            "min(int(p * 65536), 65535)",
            "ops/test_dropout.py::test_keep_rate_and_mean",
        ),
        (
            "another mask in the backward pass",
            "dropout_forward(dy, *cache)[0]",
            "dropout_forward(dy, cache[0], cache[1] and cache[1].fold(0))[0]",
            "ops/test_dropout.py::test_backward_uses_the_mask_of_the_forward",
        ),
        (
            "what stays is not scaled",
            "mask.astype(x.dtype) * threshold(p)[1]",
            "mask.astype(x.dtype)",
            PAIRINGS,
        ),
        (
            "a shard begins with the first row's bits",
            "start = rng.row * math.prod(shape[1:])",
            "start = 0",
            "ops/test_dropout.py::test_the_mask_is_that_of_the_definition",
        ),
        (
            "keys do not depend on the order",
            "key = mix((key + (i + 1) * GAMMA) & WORD)",
            "key ^= mix(((i + 1) * GAMMA) & WORD)",
            "ops/test_dropout.py::test_keys_are_words_of_the_definition",
        ),
    ],
    "minigpt/ops/attention.py": [
        (
            "queries are the first ones, not the last",
            "dtype=bool), Tk - Tq)",
            "dtype=bool), 0)",
            ATTENTION + "test_no_query_sees_the_future",
        ),
        (
            "no 1/sqrt(D)",
            "s = (q @ k.swapaxes(-1, -2)) * (1 / math.sqrt(q.shape[-1]))",
            "s = q @ k.swapaxes(-1, -2)",
            PAIRINGS,
        ),
        (
            "no 1/sqrt(D) in the backward pass",
            "ds = softmax_backward(dw, (w,)) * (1 / math.sqrt(q.shape[-1]))",
            "ds = softmax_backward(dw, (w,))",
            ATTENTION + GRADIENT,
        ),
        (
            "mask off by one",
            "dtype=bool), Tk - Tq)",
            "dtype=bool), Tk - Tq + 1)",
            ATTENTION + "test_no_query_sees_the_future",
        ),
        (
            "a finite mask",
            "s = xp.where(seen, s, -math.inf)",
            "s = xp.where(seen, s, -1e4)",
            ATTENTION + "test_no_query_sees_the_future",
        ),
        (
            "a finite mask over padding",
            "s = xp.where(key_mask[:, None, None, :], s, -math.inf)",
            "s = xp.where(key_mask[:, None, None, :], s, -1e4)",
            ATTENTION + "test_a_query_that_may_see_nothing_gets_zeros",
        ),
        (
            "no dropout mask on dw",
            "dw = dropout_backward(dy @ v.swapaxes(-1, -2), dropout_cache)",
            "dw = dy @ v.swapaxes(-1, -2)",
            ATTENTION + "test_backward_is_the_gradient_with",
        ),
        (
            "heads merged without a transposition",
            "y[:, :, i] = x.transpose(0, 2, 1, 3)",
            "y[:, :, i] = x.reshape(B, T, H, D)",
            ATTENTION + "test_heads_are_split_and_merged_without_loss",
        ),
    ],
    "minigpt/ops/add_norm.py": [
        (
            "what comes back along the stream is lost",
            "dstream = dx + dstream",
            "dstream = 0 * dx + dstream",
            "ops/test_add_norm.py::" + GRADIENT,
        ),
        (
            "no mask on dh",
            "dh = dropout_backward(dstream, (dropout, rng))",
            "dh = dstream",
            "ops/test_add_norm.py::" + GRADIENT,
        ),
    ],
    "minigpt/ops/activation.py": [
        (
            "a coefficient of erfc is lost",
            "    -1.0762973566319294e-10,\n",
            "",
            "ops/test_activation.py::test_is_its_formula",
        ),
        (
            "GELU: slope without the density",
            "return x * phi, phi + x * e * (1 / math.sqrt(2 * math.pi))",
            "return x * phi, phi",
            "ops/test_activation.py::" + GRADIENT,
        ),
        (
            "GELU by tanh: derivative of the cube without its 3",
            "dv = a * (1 + 3 * 0.044715 * x * x)",
            "dv = a * (1 + 0.044715 * x * x)",
            "ops/test_activation.py::" + GRADIENT,
        ),
        (
            "the bias is not added where the slope is made again",
            "_, slope = KINDS[kind](x if b is None else x + b)",
            "_, slope = KINDS[kind](x)",
            "ops/test_activation.py::test_a_slope_that_was_not_kept_is_made_again",
        ),
    ],
    "minigpt/ops/cross_entropy.py": [
        (
            "mean over ignored targets too",
            "count = max(int((t >= 0).sum()), 1)",
            "count = max(t.size, 1)",
            PAIRINGS,
        ),
        (
            "ignored targets have a gradient",
            "dlogits *= (t[rows] >= 0)[:, None] * (dloss / count)",
            "dlogits *= dloss / count",
            CROSS_ENTROPY + GRADIENT,
        ),
        (
            "dw of the last chunk of rows only",
            "dw += dlogits.T @ x2[rows]",
            "dw = dlogits.T @ x2[rows]",
            CROSS_ENTROPY + "test_backward_is_the_gradient_in_chunks",
        ),
        (
            "the last chunk of rows is lost",
            "for start in range(0, n, rows):",
            "for start in range(0, max(n - rows, 1), rows):",
            CROSS_ENTROPY + "test_chunks_make_no_difference",
        ),
    ],
}
