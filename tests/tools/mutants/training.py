"""Faults in training: optimizer, schedule, threads, data, the step."""

FORMULA = "optim/test_adamw.py::test_adamw_is_its_formula"

FAULTS = {
    "minigpt/params.py": [
        (
            "gains stand among what decays",
            "key=lambda name: len(named[name]) < 2)",
            "key=lambda name: len(named[name]) < 1)",
            "test_params.py::test_matrices_come_first_and_only_they_decay",
        ),
    ],
    "minigpt/optim/adamw.py": [
        (
            "the scale of a step is that of the next one",
            "state[SCALE] = xp.where(taken, least / loss_scale, math.nan)",
            "state[SCALE] = xp.where(taken, least, math.nan)",
            "optim/test_adamw.py::test_mixed_precision_skips_what_overflowed_and_goes_on",
        ),
        (
            "no bias correction of the second moment",
            "m_new / debias(beta1, step), v_new / debias(beta2, step)",
            "m_new / debias(beta1, step), v_new",
            FORMULA,
        ),
        (
            "gains decay too",
            "p_new[:decayed] *= 1 - lr * weight_decay",
            "p_new *= 1 - lr * weight_decay",
            FORMULA,
        ),
        (
            "decay added to the gradient's moment",
            "m_new = beta1 * m + (1 - beta1) * g",
            "m_new = beta1 * m + (1 - beta1) * (g + weight_decay * p)",
            FORMULA,
        ),
        (
            "a step that overflowed is taken",
            "x[...] = xp.where(taken, new, x)",
            "x[...] = new",
            "optim/test_adamw.py::test_a_scale_that_is_not_finite_changes_no_bit",
        ),
        (
            "a step whose loss is not finite is taken",
            "norm = norm + 0.0 * loss",
            "norm = norm + 0.0",
            "optim/test_adamw.py::test_a_step_whose_loss_is_not_finite_is_skipped",
        ),
        (
            "clipping makes short gradients longer",
            "xp.minimum(1.0, max_norm / (norm + 1e-6))",
            "(max_norm / (norm + 1e-6))",
            "optim/test_adamw.py::test_clipping_brings_the_norm_to_its_limit_and_never_up",
        ),
        (
            "the norm of the scaled gradient",
            "xp.sqrt(squares.sum()) / loss_scale",
            "xp.sqrt(squares.sum())",
            "optim/test_adamw.py::test_clipping_brings_the_norm_to_its_limit_and_never_up",
        ),
        (
            "the loss scale doubles a step late",
            "doubled = good == growth",
            "doubled = good > growth",
            "optim/test_adamw.py::test_the_loss_scale_halves_on_overflow_and_doubles_after_good_steps",
        ),
        (
            "each part decays as if it were the first",
            "min(max(self.params.decayed - start, 0), stop - start)",
            "min(self.params.decayed, stop - start)",
            "optim/test_adamw.py::test_parts_in_any_order_make_the_same_step",
        ),
    ],
    "minigpt/optim/muon.py": [
        (
            "steps of tall and wide matrices are not alike",
            "0.2 * math.sqrt(max(kind.rows, kind.columns))",
            "0.2 * math.sqrt(min(kind.rows, kind.columns))",
            "optim/test_muon.py::test_steps_are_those_of_the_formulas",
        ),
        (
            "q, k and v as one matrix",
            '{"c_attn": 3, "c_kv": 2}.get(name.split(".")[-2], 1)',
            "1",
            "optim/test_muon.py::test_steps_are_those_of_the_formulas",
        ),
        (
            "momentum without a look ahead",
            "g += self.momentum * m",
            "g = 1 * m",
            "optim/test_muon.py::test_steps_are_those_of_the_formulas",
        ),
    ],
    "minigpt/optim/schedule.py": [
        (
            "warm-up counts as a part of the fall",
            "progress = (step - warmup) / (last - warmup) if",
            "progress = step / last if",
            "optim/test_schedule.py::test_a_cosine_is_that_of_nanogpt",
        ),
        (
            "a run by the clock leaves no time for its end",
            "available = max_seconds - reserve",
            "available = max_seconds",
            "optim/test_schedule.py::test_progress_leaves_time_for_what_comes_after_the_last_step",
        ),
        (
            "the warm-up begins a step late",
            "up = lr * (step + 1) / (warmup + 1)",
            "up = lr * step / (warmup + 1)",
            "optim/test_schedule.py::test_a_cosine_is_that_of_nanogpt",
        ),
        (
            "the fall ends at 0, not at min_lr",
            "down = config.min_lr + share * (lr - config.min_lr)",
            "down = share * lr",
            "optim/test_schedule.py::test_a_cosine_is_that_of_nanogpt",
        ),
    ],
    "minigpt/train/threads.py": [
        (
            "the last rows of a batch belong to no shard",
            "for a, b in zip(edges, edges[1:], strict=False)]",
            "for a, b in zip(edges, edges[1:-1] + [n - (n > 1)], strict=False)]",
            "train/test_threads.py::test_shards_cover_all_rows_once_in_order_and_evenly",
        ),
        (
            "what goes wrong in a shard is passed over",
            "        if errors:\n",
            "        if False:\n",
            "train/test_threads.py::test_an_exception_reaches_the_caller_and_the_workers_live_on",
        ),
    ],
    "minigpt/data/batches.py": [
        (
            "the last place of a text is never drawn",
            "PLACES[places](len(ids) - block_size, ",
            "PLACES[places](len(ids) - block_size - 1, ",
            "data/test_batches.py::test_random_batch_reaches_every_place_equally_often",
        ),
        (
            "validation text is trained on",
            "return ids[:n], ids[n:]",
            "return ids, ids[n:]",
            "data/test_batches.py::test_split_is_nine_tenths",
        ),
        (
            "a target is its own token",
            "return ids[where], ids[1:][where]",
            "return ids[where], ids[where]",
            "data/test_batches.py::test_random_batch_is_in_range_and_y_is_x_moved_on",
        ),
        (
            "neighbouring steps share their draws",
            "counter=step << 64",
            "counter=step",
            "data/test_batches.py::test_steps_and_seeds_share_no_draws",
        ),
        (
            "even places begin anew with each step",
            "np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)",
            "np.arange(batch_size, dtype=np.uint64)",
            "data/test_batches.py::test_even_places_leave_no_part_of_the_text_out",
        ),
        (
            "even places are not",
            "turned = (first + i * GOLDEN)",
            "turned = (first + i * (GOLDEN >> np.uint64(1)))",
            "data/test_batches.py::test_even_places_have_gaps_of_three_lengths",
        ),
        (
            "the end of the split is not evaluated",
            "if whole < n:",
            "if whole < n < block_size:",
            "train/test_step.py::test_an_evaluation_counts_every_prediction_of_the_split_once",
        ),
    ],
    "minigpt/data/tokenizers.py": [
        (
            "an unknown character gets an id",
            "if ids.min(initial=0) < 0:",
            "if ids.min(initial=0) < -1:",
            "data/test_tokenizers.py::test_every_other_character_is_unknown",
        ),
        (
            "ids in the order of the text",
            '"".join(sorted(set(text)))',
            '"".join(dict.fromkeys(text))',
            "data/test_tokenizers.py::test_vocabulary_is_the_sorted_set",
        ),
    ],
    "minigpt/data/pairs.py": [
        (
            "padding counts as a target",
            "return int((targets >= 0).sum())",
            "return targets.size",
            "train/test_train_seq2seq.py::test_a_step_is_the_mean_over_all_targets_of_all_its_batches",
        ),
        (
            "validation pairs are trained on",
            "for i, pair in enumerate(pairs, 1) if i % 10]",
            "for i, pair in enumerate(pairs, 1)]",
            "data/test_pairs.py::test_every_tenth_pair_is_for_validation",
        ),
        (
            "every bucket comes as often as any other",
            "pairs.bucket[bits[0] % np.uint64(len(pairs))]",
            "np.unique(pairs.bucket)[bits[0] % np.uint64(len(np.unique(pairs.bucket)))]",
            "data/test_pairs.py::test_lengths_in_a_batch_are_alike_and_pairs_equally_frequent",
        ),
    ],
    "minigpt/train/step.py": [
        (
            "the optimizer does not hear of the loss",
            "self.optimizer.step(self.grads.flat, lr, squares, parts, loss)",
            "self.optimizer.step(self.grads.flat, lr, squares, parts)",
            "train/test_nonfinite.py::test_a_step_that_is_not_finite_is_skipped_and_told",
        ),
        (
            "the gradient of the last shard is lost",
            "[grads for _, grads in done]",
            "[grads for _, grads in (done[:-1] or done)]",
            "train/test_step.py::test_gradients_are_those_of_the_whole_batch",
        ),
        (
            "every shard drops what the first one drops",
            "rng._replace(row=rows.start),",
            "rng,",
            "train/test_step.py::test_gradients_are_those_of_the_whole_batch",
        ),
        (
            "what was accumulated is overwritten",
            "add=i > 0",
            "add=False",
            "train/test_step.py::test_accumulated_batches_are_the_mean_of_them",
        ),
        (
            "accumulated batches are summed, not averaged",
            "self.gradients(*batch, rng, self.count, add=",
            "self.gradients(*batch, rng, None, add=",
            "train/test_step.py::test_accumulated_batches_are_the_mean_of_them",
        ),
        (
            "every step draws the same dropout",
            "Rng.of(train.seed, step, i)",
            "Rng.of(train.seed, i)",
            "train/test_step.py::test_each_batch_of_a_step_has_its_own_dropout_and_so_has_each_step",
        ),
        (
            "a mean of means, though the last window is shorter",
            "return sum(losses) / sum(counts)",
            "return sum(x / n for x, n in zip(losses, counts, strict=True)) / len(counts)",
            "train/test_step.py::test_an_evaluation_counts_every_prediction_of_the_split_once",
        ),
    ],
}
