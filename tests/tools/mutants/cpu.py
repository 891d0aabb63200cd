"""Bugs in the overrides on NumPy."""

PAIRINGS = "backend/test_overrides.py::test_all_pairings_of_the_passes"
FORMULA = "optim/test_adamw.py::test_adamw_is_its_formula"
FUTURE = "ops/test_attention.py::test_no_query_sees_the_future"

MUTANTS = {
    "minigpt/backend/cpu/lora.py::lora_backward": [
        (
            "the mask is not in dx",
            "dropout_backward((du @ lora_a.T).reshape(dx.shape), dropout_cache)",
            "(du @ lora_a.T).reshape(dx.shape)",
            "ops/test_lora.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu/add_norm.py::normalize": [
        ("no eps", "rstd += eps", "", "ops/test_layernorm.py::test_eps_is_gpt2s"),
        (
            "the variance over C - 1",
            "rstd *= 1 / max(C, 1)",
            "rstd *= 1 / max(C - 1, 1)",
            "ops/test_layernorm.py::test_mean_variance_and_gradient_are_as_they_must",
        ),
    ],
    "minigpt/backend/cpu/cross_entropy.py::normalize": [
        (
            "an underflow of the softmax goes unnoticed",
            "bad = ~((total > TINY) & (total < HUGE))",
            "bad = ~(total < HUGE)",
            "ops/test_cross_entropy.py::test_logits_of_any_size_are_finite",
        ),
        (
            "an overflow of the softmax goes unnoticed",
            "bad = ~((total > TINY) & (total < HUGE))",
            "bad = ~(total > TINY)",
            "ops/test_cross_entropy.py::test_logits_of_any_size_are_finite",
        ),
    ],
    "minigpt/backend/cpu/pool.py::Block.array": [
        (
            "arrays do not refer to what tells that memory is in use",
            "return numpy.ndarray(shape, dtype, user)",
            "return numpy.ndarray(shape, dtype, self.memory)",
            "backend/test_pool.py::test_a_view_keeps_the_memory",
        ),
        (
            "memory is released under the arrays on it",
            "user.memory = self.memory",
            "pass",
            "backend/test_pool.py::test_memory_lives_as_long_as_the_arrays_on_it",
        ),
    ],
    "minigpt/backend/cpu/pool.py::empty": [
        (
            "memory that has been used is never free again",
            "buffer.user() is None",
            "buffer.user is nobody",
            "backend/test_pool.py::test_a_buffer_without_references_is_reused",
        ),
        (
            "two calls, one in the middle of the other, find the same buffer free",
            "size < SMALL or cache.busy",
            "size < SMALL",
            "backend/test_pool.py::test_arrays_may_be_made_in_the_middle_of_making_one",
        ),
        (
            "after its first array the pool takes itself for busy",
            "cache.busy = False",
            "pass",
            "backend/test_pool.py::test_a_buffer_without_references_is_reused",
        ),
    ],
    "minigpt/backend/cpu/pool.py::work": [
        (
            "what comes after a piece of work drops its buffers",
            "finally:\n        _cache.begun = False",
            "finally:\n        pass",
            "backend/test_pool.py::test_what_comes_between_pieces_of_work_leaves_their_buffers",
        ),
    ],
    "minigpt/backend/cpu/pool.py::new_buffer": [
        (
            "each shape of a batch keeps memory of its own",
            "cache.begun or",
            "",
            "backend/test_pool.py::test_work_of_many_shapes_takes_no_more_memory_than_the_largest",
        ),
    ],
    "minigpt/backend/cpu/pool.py::recycle": [
        (
            "buffers that are forgotten keep their chunks",
            "cache.rests.clear()",
            "",
            "backend/test_pool.py::test_work_of_many_shapes_takes_no_more_memory_than_the_largest",
        ),
    ],
    "minigpt/backend/cpu/pool.py::chunk_of": [
        (
            "chunks that are too small are kept beside the new one",
            "while free and released < size:",
            "while False:",
            "backend/test_pool.py::test_memory_follows_shapes_that_grow",
        ),
        (
            "chunks in use are cut anew",
            "if chunk.user() is None",
            "",
            "backend/test_pool.py::test_an_array_in_use_keeps_its_memory_when_buffers_are_cut_anew",
        ),
    ],
    "minigpt/backend/cpu::Tiles.__init__": [
        (
            "queries are the first ones, not the last",
            "self.past = self.Tk - self.Tq",
            "self.past = 0",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::Tiles.drop": [
        (
            "a shard drops what the first rows drop",
            "(sequence + self.rng.row) * self.H",
            "sequence * self.H",
            "ops/test_attention.py::test_shards_of_a_batch_drop_what_the_whole_drops",
        ),
        (
            "a tile's bits begin at its row, not at its first key",
            "place = row[..., None] * self.Tk + j.start",
            "place = row[..., None] * self.Tk",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::random_words": [
        (
            "words of the stream's beginning",
            "first * GAMMA + key",
            "0 * first + key",
            "ops/test_dropout.py::test_shards_get_their_part_of_the_whole_mask",
        ),
    ],
    "minigpt/backend/cpu::multiples": [
        ("counters from 0", "np.arange(1, n + 1, ", "np.arange(0, n, ", PAIRINGS),
    ],
    "minigpt/backend/cpu::Tiles.keys": [
        (
            "the tile on the diagonal is left out",
            "max(0, i.stop + self.past)) if self.causal",
            "max(0, i.start + self.past)) if self.causal",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::Tiles.mask": [
        (
            "mask of a tile off by one",
            "diagonal = i.start + self.past - j.start",
            "diagonal = i.start + self.past - j.start + 1",
            FUTURE,
        ),
    ],
    "minigpt/backend/cpu::adamw_step": [
        ("eps beside a moment that is not corrected", "eps * root", "eps", FORMULA),
        ("gains decay too", "pb[: decayed - start]", "pb", FORMULA),
        ("squares of a part of the gradient", "(1 - beta1) ** 2", "(1 - beta1)", FORMULA),
    ],
    "minigpt/backend/cpu::differentiate": [
        (
            "the first column of a tile is nobody's target",
            "(t >= columns.start)",
            "(t > columns.start)",
            "ops/test_cross_entropy.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::add_weights": [
        (
            "dw of the last rows only",
            '"w" in grads and first',
            '"w" in grads',
            "ops/test_cross_entropy.py::test_both_passes_at_once_give_what_one_after_the_other_gives",
        ),
    ],
    "minigpt/backend/cpu::add_norm_backward": [
        (
            "the stream's gradient replaces layernorm's",
            "ds += dxr",
            "ds[...] = dxr",
            "ops/test_add_norm.py::test_backward_is_the_gradient",
        ),
        (
            "the gain's gradient of the last block only",
            'grads["w"] += normalize_backward(',
            'grads["w"][...] = normalize_backward(',
            PAIRINGS,
        ),
        (
            "no mask on the gradient of the pending bias",
            "column_sums(dh2)",
            "column_sums(ds2)",
            "ops/test_add_norm.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::add_norm_forward": [
        (
            "the pending bias is not added",
            "added = np.add(added, h_b, out=s)",
            "pass",
            "ops/test_add_norm.py::test_a_bias_is_added_here_as_by_the_layer_before",
        ),
        (
            "every block of rows drops alike",
            "drop(added, place + start * C, dropout, rng, out=s)",
            "drop(added, place, dropout, rng, out=s)",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::attention_forward": [
        (
            "a query alone is given no padding",
            "one_query(q, k, v, causal, key_mask)",
            "one_query(q, k, v, causal)",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::backward": [
        (
            "softmax's denominator is taken for a constant, by tiles",
            "ds -= delta[g][:, i]",
            "ds -= 0",
            PAIRINGS,
        ),
        ("dropout is not in dv, by tiles", "p *= mask", "p *= 1", PAIRINGS),
        (
            "dq of the last tile of keys only",
            "put(ds, k[g][:, j], dq[g][:, i], j.start == 0, d_scratch)",
            "put(ds, k[g][:, j], dq[g][:, i], True, d_scratch)",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::constant": [
        (
            "vectors of one size and different values are mixed up",
            "x = np.full(n, value, dtype)",
            "x = np.full(n, 1, dtype)",
            "ops/test_layernorm.py::test_mean_variance_and_gradient_are_as_they_must",
        ),
    ],
    "minigpt/backend/cpu::forward": [
        (
            "lse without the shift",
            "np.log(total) if shift is None else np.log(total) + shift",
            "np.log(total)",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::gather": [
        (
            "what was accumulated is overwritten",
            "rest = [first, *rest]",
            "out[...] = first",
            "train/test_threads.py::test_sum_gradients_is_the_sum_in_order",
        ),
    ],
    "minigpt/backend/cpu::gelu": [
        (
            "GELU loses the sign of x",
            "bits |= np.bitwise_and(x.view(np.uint32), SIGN, out=t.view(np.uint32))",
            "bits |= 0",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::gelu_tanh": [
        (
            "GELU by tanh: derivative of the cube without its 3",
            "x2 *= 3 * 0.044715 * a",
            "x2 *= 0.044715 * a",
            "ops/test_activation.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::merge_heads": [
        (
            "heads of another array count as beside these",
            "beside = address(x) == address(first) + i * H * D * size",
            "beside = True",
            "ops/test_attention.py::test_merging_does_not_mistake_what_lies_side_by_side",
        ),
    ],
    "minigpt/backend/cpu::normalize_backward": [
        (
            "a sign in dx",
            "dx -= shift[:, None]",
            "dx += shift[:, None]",
            "ops/test_layernorm.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::one_query": [
        (
            "no 1/sqrt(D) for a single query",
            "w *= 1 / math.sqrt(q.shape[-1])",
            "w *= 1.0",
            PAIRINGS,
        ),
        (
            "a single query sees padding",
            "where=~key_mask[:, None, None]",
            "where=False",
            "sample/test_step.py::test_a_step_of_a_decoder_reads_what_it_may_of_the_memory",
        ),
        (
            "a single query that may see nothing divides by 0",
            "np.maximum(total, 1, out=total)",
            "total",
            "sample/test_step.py::test_a_step_of_a_decoder_reads_what_it_may_of_the_memory",
        ),
    ],
    "minigpt/backend/cpu::values": [
        (
            "activations of the first block alone",
            "yr[...] = ALONE[kind](xr)",
            "y[: len(xr)] = ALONE[kind](xr)",
            "sample/test_step.py::test_many_rows_go_through_the_activation_in_blocks",
        ),
    ],
    "minigpt/backend/cpu::factors": [
        (
            "heads are rotated by angles of others",
            "np.tile(cos + 1j * sin, 2 * n_head)",
            "np.repeat(cos + 1j * sin, 2 * n_head, axis=-1)",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::row_blocks": [
        (
            "the last block of rows is lost",
            "for start in range(0, n, rows):",
            "for start in range(0, max(n - rows, 1), rows):",
            PAIRINGS,
        ),
    ],
    "minigpt/backend/cpu::shifts": [
        (
            "the shift is by a bound that sees the future",
            "np.maximum.accumulate(k_norm, axis=-1)[..., np.maximum(last, 0)]",
            "k_norm.max(axis=-1, keepdims=True)",
            "ops/test_attention.py::test_no_query_of_a_long_sequence_sees_the_future",
        ),
        (
            "no shift where exp overflows",
            "is_below(limit, q_norm.max(), k_norm.max())",
            "True",
            "ops/test_attention.py::test_scores_of_any_size_are_finite",
        ),
    ],
    "minigpt/backend/cpu::short_backward": [
        (
            "softmax's denominator is taken for a constant, short",
            "ds -= delta[b]",
            "ds -= 0",
            "ops/test_attention.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::multiply_by_slope": [
        (
            "the bias's gradient of the last block only",
            "db += sums[start]",
            "db[...] = sums[start]",
            "backend/test_overrides.py::test_all_pairings_of_the_passes",
        ),
    ],
    "minigpt/backend/cpu::add_rows": [
        (
            "many ids: the gradient of the other use is overwritten",
            "dwte[used] += np.add.reduceat",
            "dwte[used] = np.add.reduceat",
            "ops/test_embedding.py::test_a_tied_backward_adds_to_the_gradient_from_the_other_use",
        ),
        ("many ids: segments of unsorted rows", "rows[order]", "rows", PAIRINGS),
    ],
    "minigpt/backend/cpu::sum_of_squares": [
        (
            "the norm is without the last elements",
            "row_blocks(g)",
            "row_blocks(g[:-1])",
            "test_params.py::test_parts_of_the_sum_of_squares_add_up_to_it",
        ),
        (
            "the norm of the last block only",
            "total += float(np.dot(block, block))",
            "total = float(np.dot(block, block))",
            "test_params.py::test_parts_of_the_sum_of_squares_add_up_to_it",
        ),
    ],
    "minigpt/backend/cpu::causal_mask": [
        ("a finite mask", "-math.inf", "-1e4", FUTURE),
    ],
    "minigpt/backend/cpu::rotary_qkv_backward": [
        (
            "the backward pass rotates forward",
            "-sin",
            "sin",
            "ops/test_rotary.py::test_backward_is_the_gradient",
        ),
    ],
    "minigpt/backend/cpu::rotate": [
        (
            "keys stand for values",
            "y[..., 2 * C :] = x[..., 2 * C :]",
            "y[..., 2 * C :] = y[..., C : 2 * C]",
            PAIRINGS,
        ),
    ],
}
