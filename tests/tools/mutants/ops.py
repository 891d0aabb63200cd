"""Bugs in the ops."""

PAIRINGS = "backend/test_overrides.py::test_all_pairings_of_the_passes"
ROTATION = "ops/test_rotary.py::test_is_a_product_of_complex_numbers"
FUTURE = "ops/test_attention.py::test_no_query_sees_the_future"
ADAPTER = "ops/test_lora.py::test_backward_is_the_gradient"
ADAPTER_FORMULA = "ops/test_lora.py::test_is_the_formula_of_the_paper"

MUTANTS = {
    "minigpt/ops::ERFC": [
        (
            "a coefficient of erfc is lost",
            "-1.0762973566319294e-10",
            "0.0",
            "ops/test_activation.py::test_is_its_formula",
        ),
    ],
    "minigpt/ops::Rng.fold": [
        (
            "keys do not depend on the order",
            "key = mix((key + (i + 1) * GAMMA) & WORD)",
            "key ^= mix(((i + 1) * GAMMA) & WORD)",
            "ops/test_dropout.py::test_keys_are_words_of_the_definition",
        ),
    ],
    "minigpt/ops::add_norm_backward": [
        (
            "what comes back along the stream is lost",
            "dstream = dx + dstream",
            "dstream = 0 * dx + dstream",
            "ops/test_add_norm.py::test_backward_is_the_gradient",
        ),
        (
            "no mask on dh",
            "dh = dropout_backward(dstream, (dropout, rng))",
            "dh = dstream",
            "ops/test_add_norm.py::test_backward_is_the_gradient",
        ),
        (
            "no mask on the gradient of the pending bias",
            'grads["h_b"] = dh.reshape',
            'grads["h_b"] = dstream.reshape',
            "ops/test_add_norm.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::check_pending": [
        (
            "a pending bias of any shape is taken",
            "if h_b is not None and",
            "if False and",
            "ops/test_add_norm.py::test_refuses_parameters_that_would_broadcast",
        ),
    ],
    "minigpt/ops::angles": [
        (
            "positions begin at 0 after a KV cache",
            "a[start : start + T] for a",
            "a[:T] for a",
            "ops/test_rotary.py::test_a_later_part_is_a_part_of_the_whole",
        ),
        (
            "a table that is too short by a position",
            "known = 1 << max(start + T - 1, 0).bit_length()",
            "known = 1 << max(start + T - 2, 0).bit_length()",
            "ops/test_rotary.py::test_a_later_part_is_a_part_of_the_whole",
        ),
    ],
    "minigpt/ops::attention_backward": [
        (
            "no 1/sqrt(D) in the backward pass",
            "ds = softmax_backward(dw, (w,)) * (1 / math.sqrt(q.shape[-1]))",
            "ds = softmax_backward(dw, (w,))",
            "ops/test_attention.py::test_backward_is_the_gradient",
        ),
        (
            "no dropout mask on dw",
            "dw = dropout_backward(dy @ v.swapaxes(-1, -2), dropout_cache)",
            "dw = dy @ v.swapaxes(-1, -2)",
            "ops/test_attention.py::test_backward_is_the_gradient_with",
        ),
    ],
    "minigpt/ops::cross_entropy_backward": [
        (
            "dw of the last chunk of rows only",
            'grads["w"] += dlogits.T @ x2[rows]',
            'grads["w"] = dlogits.T @ x2[rows]',
            "ops/test_cross_entropy.py::test_backward_is_the_gradient_in_chunks",
        ),
    ],
    "minigpt/ops::cross_entropy_forward": [
        (
            "mean over ignored targets too",
            "count = max(int((t >= 0).sum()), 1)",
            "count = max(t.size, 1)",
            PAIRINGS,
        ),
    ],
    "minigpt/ops::dropout_backward": [
        (
            "another mask in the backward pass",
            "dropout_forward(dy, *cache)[0]",
            "dropout_forward(dy, cache[0], cache[1] and cache[1].fold(0))[0]",
            "ops/test_dropout.py::test_backward_uses_the_mask_of_the_forward",
        ),
    ],
    "minigpt/ops::dropout_forward": [
        (
            "what stays is not scaled",
            "mask.astype(x.dtype) * threshold(p)[1]",
            "mask.astype(x.dtype)",
            PAIRINGS,
        ),
    ],
    "minigpt/ops::embedding_backward": [
        (
            "a repeated id overwrites",
            "dwte[used] = onehot.astype(dy.dtype).T @ dy.reshape(-1, dy.shape[-1])",
            "dwte[ids] = dy",
            "ops/test_embedding.py::test_backward_is_the_gradient",
        ),
        (
            "positions begin at 0 in the backward pass",
            "dwpe[start : start + dy.shape[1]]",
            "dwpe[: dy.shape[1]]",
            "ops/test_embedding.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::gelu": [
        (
            "GELU: slope without the density",
            "return x * phi, phi + x * e * (1 / math.sqrt(2 * math.pi))",
            "return x * phi, phi",
            "ops/test_activation.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::gelu_tanh": [
        (
            "GELU by tanh: derivative of the cube without its 3",
            "1 + 3 * 0.044715 * x * x",
            "1 + 0.044715 * x * x",
            "ops/test_activation.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::keep_mask": [
        (
            "a shard begins with the first row's bits",
            "start = rng.row * math.prod(shape[1:])",
            "start = 0",
            "ops/test_dropout.py::test_the_mask_is_that_of_the_definition",
        ),
    ],
    "minigpt/ops::layernorm_backward": [
        (
            "no gain in dx",
            "dxhat = w * dy",
            "dxhat = dy",
            "ops/test_layernorm.py::test_backward_is_the_gradient",
        ),
        (
            "the mean does not move with x",
            "dx = dxhat - dxhat.mean(axis=-1, keepdims=True)",
            "dx = dxhat.copy()",
            "ops/test_layernorm.py::test_backward_is_the_gradient",
        ),
        (
            "the deviation does not move with x",
            "dx -= xhat * (xhat * dxhat).mean(axis=-1, keepdims=True)",
            "dx -= 0",
            "ops/test_layernorm.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::layernorm_forward": [
        ("no eps", "+ eps) ** -0.5", ") ** -0.5", PAIRINGS),
        (
            "variance in one pass",
            "((xc * xc).mean(axis=-1, keepdims=True) + eps)",
            "(abs((x * x).mean(axis=-1, keepdims=True) - mu * mu) + eps)",
            "ops/test_layernorm.py::test_variance_survives_a_large_mean",
        ),
    ],
    "minigpt/ops::linear_backward": [
        (
            "bias: mean over the rows, not sum",
            "dy2.sum(axis=0)",
            "dy2.mean(axis=0)",
            "ops/test_linear.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::merge_heads": [
        (
            "heads merged without a transposition",
            "y[:, :, i] = x.transpose(0, 2, 1, 3)",
            "y[:, :, i] = x.reshape(B, T, H, D)",
            "ops/test_attention.py::test_heads_are_split_and_merged_without_loss",
        ),
    ],
    "minigpt/ops::rotary_backward": [
        (
            "the backward pass rotates forward",
            "-sin",
            "sin",
            "ops/test_rotary.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::row_chunks": [
        (
            "the last chunk of rows is lost",
            "for start in range(0, n, rows):",
            "for start in range(0, max(n - rows, 1), rows):",
            "ops/test_cross_entropy.py::test_chunks_make_no_difference",
        ),
    ],
    "minigpt/ops::scores": [
        (
            "queries are the first ones, not the last",
            "dtype=bool), Tk - Tq)",
            "dtype=bool), 0)",
            FUTURE,
        ),
        (
            "no 1/sqrt(D)",
            "s = (q @ k.swapaxes(-1, -2)) * (1 / math.sqrt(q.shape[-1]))",
            "s = q @ k.swapaxes(-1, -2)",
            PAIRINGS,
        ),
        ("mask off by one", "dtype=bool), Tk - Tq)", "dtype=bool), Tk - Tq + 1)", FUTURE),
        (
            "a finite mask",
            "s = xp.where(seen, s, -math.inf)",
            "s = xp.where(seen, s, -1e4)",
            FUTURE,
        ),
        (
            "a finite mask over padding",
            "s = xp.where(key_mask[:, None, None, :], s, -math.inf)",
            "s = xp.where(key_mask[:, None, None, :], s, -1e4)",
            "ops/test_attention.py::test_a_query_that_may_see_nothing_gets_zeros",
        ),
    ],
    "minigpt/ops::softmax_backward": [
        (
            "the denominator is taken for a constant",
            "y * (dy - (y * dy).sum(axis=-1, keepdims=True))",
            "y * dy",
            "ops/test_softmax.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::softmax_forward": [
        (
            "a row that sees nothing is 0 / 0",
            "e / xp.where(total == 0, 1.0, total)",
            "e / total",
            "ops/test_softmax.py::test_a_row_that_is_all_masked_gives_zeros",
        ),
        (
            "no shift by the maximum",
            "xp.exp(x - xp.where(top == -math.inf, 0.0, top))",
            "xp.exp(x)",
            "ops/test_softmax.py::test_scores_of_any_size_are_finite",
        ),
    ],
    "minigpt/ops::table": [
        (
            "the fastest pair is the last",
            "BASE ** -xp.linspace(0, 1, D // 2)",
            "BASE ** -xp.linspace(1, 0, D // 2)",
            ROTATION,
        ),
        (
            "angles in the precision of the model",
            "xp.arange(n)[:, None] * theta",
            "(xp.arange(n)[:, None] * theta).astype(dtype)",
            "ops/test_rotary.py::test_a_position_that_is_far_is_exact_in_float32",
        ),
    ],
    "minigpt/ops::threshold": [
        (
            "the share is rounded down",
            "min(round(p * 65536), 65535)",
            "min(int(p * 65536), 65535)",
            "ops/test_dropout.py::test_keep_rate_and_mean",
        ),
    ],
    "minigpt/ops::logits_gradient": [
        (
            "ignored targets have a gradient",
            "(t >= 0)[:, None] * (dloss / count)",
            "dloss / count",
            "ops/test_cross_entropy.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/ops::linear_activation_backward": [
        (
            "the bias is not added where the slope is recomputed",
            "late_bias is not None",
            "False",
            "ops/test_linear_activation.py::test_a_slope_that_was_not_kept_is_recomputed_with_the_bias",
        ),
    ],
    "minigpt/ops::lora_backward": [
        (
            "the adapter's share of dx is lost",
            "dx + dropout_backward(du @ lora_a.T, dropout_cache)",
            "dx",
            ADAPTER,
        ),
        (
            "the mask is not in dx",
            "dropout_backward(du @ lora_a.T, dropout_cache)",
            "du @ lora_a.T",
            ADAPTER,
        ),
        (
            "the columns of du in another order",
            "du = scale * (dy @ lora_b.T)",
            "du = scale * (dy @ lora_b.T)[..., ::-1]",
            ADAPTER,
        ),
        (
            "s is not in the gradient of lora_b",
            "scale * (u.reshape(du2.shape).T @ dy2)",
            "u.reshape(du2.shape).T @ dy2",
            ADAPTER,
        ),
    ],
    "minigpt/ops::lora_forward": [
        ("s is missing", "(scale * u) @ lora_b", "u @ lora_b", ADAPTER_FORMULA),
        ("no dropout of the adapter", "u = dropped", "u = x", ADAPTER_FORMULA),
        ("the mask is not in the gradient of lora_a", "LoraCache(dropped", "LoraCache(x", ADAPTER),
    ],
    "minigpt/ops::embedding_backward_tied": [
        (
            "the gradient of the other use is overwritten",
            'dwte + grads["wte"]',
            'grads["wte"]',
            "ops/test_embedding.py::test_a_tied_backward_adds_to_the_gradient_from_the_other_use",
        ),
    ],
    "minigpt/ops::rotate": [
        (
            "the sign of the angle",
            "even * cos - odd * sin\n    y[..., 1::2] = even * sin + odd * cos",
            "even * cos + odd * sin\n    y[..., 1::2] = odd * cos - even * sin",
            ROTATION,
        ),
    ],
    "minigpt/ops::rotary_qkv_forward": [
        (
            "values are rotated, too",
            "merge_heads(q, k, v)",
            "merge_heads(q, k, rotary_forward(v, start)[0])",
            "ops/test_rotary.py::test_the_packed_form_rotates_queries_and_keys_and_leaves_values",
        ),
    ],
}
