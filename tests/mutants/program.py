"""Faults in runs and their checkpoints, and in decoding."""

UNINTERRUPTED = "test_resume.py::test_interrupted_and_resumed_is_uninterrupted"
CACHED = "test_decoding.py::test_cached_decoding_is_the_full_forward"
METADATA = "test_checkpoint_errors.py::test_metadata_that_does_not_fit"

FAULTS = {
    "minigpt/resume.py": [
        (
            "losses of two texts are compared",
            "run.best_loss = run.best_step = None",
            "pass",
            "test_resume.py::test_another_text_has_a_best_loss_of_its_own",
        ),
        (
            "a resumed run skips a step",
            "setattr(run, key, state[key])",
            'setattr(run, key, state[key] + 1 if key == "step" else state[key])',
            UNINTERRUPTED,
        ),
        (
            "what a state holds is not checked",
            "    if wrong:\n",
            "    if False:\n",
            "test_resume.py::test_a_checkpoint_whose_state_is_damaged_is_refused",
        ),
        (
            "bad steps in a row are forgotten",
            'checkpoint, run.step, state.get("bad", 0)',
            "checkpoint, run.step, 0",
            "test_divergence.py::test_a_few_in_a_row_end_the_run_with_the_last_checkpoint",
        ),
        (
            "an evaluation that was interrupted is left out",
            'run.due = state.get("due")',
            "run.due = None",
            "test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/run.py": [
        (
            "the optimizer's moments are not taken up again",
            "getattr(optimizer, name).flat[...] = to_device(moment.flat, xp)",
            "pass",
            UNINTERRUPTED,
        ),
        (
            "bias correction begins anew",
            "optimizer.restore(optimizer_state(checkpoint.state, self.train))",
            "optimizer.restore({})",
            UNINTERRUPTED,
        ),
        (
            "a loss that is not finite is in the mean",
            "        self.loss_sum, self.loss_count = self.known\n",
            "        self.loss_sum = loss\n",
            "test_divergence.py::test_a_bad_loss_is_left_out_of_the_mean_and_of_all_files",
        ),
        (
            "the best checkpoint is the last one",
            "if self.best_loss is None or self.val_loss < self.best_loss:",
            "if True:",
            "test_run.py::test_the_best_checkpoint_is_not_the_last_where_the_loss_has_risen",
        ),
    ],
    "minigpt/folder.py": [
        (
            "the lock is not taken",
            "lock = acquire(folder / LOCK)",
            "lock = None",
            "test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
        (
            "a resumed run loses a line of its metrics",
            'json.loads(line)["step"] <= step',
            'json.loads(line)["step"] < step',
            "test_run.py::test_cut_metrics_keeps_whole_lines_up_to_the_step",
        ),
    ],
    "minigpt/lock.py": [
        (
            "what another process holds counts as free",
            "raise Taken from None",
            "return None",
            "test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
    ],
    "minigpt/divergence.py": [
        (
            "bad steps are never counted",
            "self.bad + new if self.taken == taken else 0",
            "0",
            "test_divergence.py::test_what_counts_as_in_a_row",
        ),
        (
            "a good step does not end a row of bad ones",
            "self.bad + new if self.taken == taken else 0",
            "self.bad + new",
            "test_divergence.py::test_what_counts_as_in_a_row",
        ),
        (
            "a loss scale that is too high counts as a fault",
            "self.skipped - skipped - halvings",
            "self.skipped - skipped",
            "test_divergence.py::test_in_float16_only_what_no_smaller_loss_scale_would_save_counts",
        ),
        (
            "gradients are looked at in the order of the forward pass",
            "sorted(reversed(list(names)), key=",
            "sorted(list(names), key=",
            "test_divergence.py::test_the_first_gradient_that_went_bad",
        ),
        (
            "what a block makes is not looked at",
            'check(f"{prefix}h.{i}", x, h)',
            "pass",
            "test_divergence.py::test_the_first_layer_that_went_bad",
        ),
    ],
    "minigpt/corpus.py": [
        (
            "a copy that another process has just made is not looked for",
            "    with _turn():\n        return _cached() or _downloaded()",
            "    with _turn():\n        return _downloaded()",
            "test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
        (
            "nobody waits for who downloads",
            "        lock = acquire(path)\n",
            "        lock = None\n",
            "test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
        (
            "without a network each waits for all before it",
            "release(acquire(path, WAIT))",
            "lock = acquire(path, WAIT)",
            "test_side_by_side.py::test_who_has_waited_in_vain_downloads_at_once",
        ),
    ],
    "minigpt/cli.py": [
        (
            "a value that is no text has no nearest name",
            "difflib.get_close_matches(str(word),",
            "difflib.get_close_matches(word,",
            "test_train_input.py::test_a_config_file_that_is_no_good",
        ),
    ],
    "minigpt/train.py": [
        (
            "an interrupt amid the update is saved",
            "if run.trainer.optimizer.step_count != run.step or run.over:",
            "if run.over:",
            "test_resume.py::test_an_interrupt_amid_the_update_keeps_the_old_checkpoint",
        ),
        (
            "an evaluation that is made up for has two lines",
            "run.step - bool(run.due))",
            "run.step)",
            "test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/checkpoint.py": [
        (
            "numbers that are not finite are saved",
            "    if bad:\n",
            "    if False:\n",
            "test_divergence.py::test_no_number_that_is_not_finite_is_saved",
        ),
        (
            "the file is not synced before it is renamed",
            "            os.fsync(file.fileno())\n",
            "",
            "test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        (
            "a tensor that is missing is not missed",
            "if name not in names]",
            "if False]",
            "test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
        (
            "one moment is saved in place of both",
            "on_host(getattr(optimizer, moment)).leaves()",
            "on_host(optimizer.m).leaves()",
            "test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
        (
            "the state is not saved",
            '"state": json.dumps(state, allow_nan=False),',
            '"state": "{}",',
            "test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
        (
            "the old checkpoint is written over",
            'temporary = path.with_name(path.name + ".tmp")',
            "temporary = path",
            "test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        ("the format is not checked", "if found != FORMAT:", "if False:", METADATA),
        ("shapes are not checked", "if came != needed:", "if came[0] != needed[0]:", METADATA),
        (
            "numbers that are not finite are loaded",
            "if not np.isfinite(x).all():",
            "if False:",
            "test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
    ],
    "minigpt/decoding.py": [
        (
            "all rows have one stream of random numbers",
            "np.array([seed, r], np.uint64)",
            "np.array([seed, 0], np.uint64)",
            "test_decoding.py::test_a_row_does_not_depend_on_the_others",
        ),
        (
            "ids that a padded model has and the text has not are drawn",
            "[:, :vocab_size]",
            "",
            "test_train.py::test_a_vocabulary_that_is_larger_than_the_texts",
        ),
        (
            "a token's values replace those before it",
            "self.v[:, :, self.length : end] = v",
            "self.v[:, :, max(self.length - 1, 0) : end] = v[:, :, -1:]",
            CACHED,
        ),
        (
            "a full context goes on from its stale half",
            "context[:, :n] = context[:, config.block_size - n :]",
            "context[:, :n] = context[:, :n].copy()",
            CACHED,
        ),
        (
            "top-p is a token short",
            "(mass < top_p).sum(axis=-1, keepdims=True) + 1",
            "(mass < top_p).sum(axis=-1, keepdims=True)",
            "test_decoding.py::test_probabilities_are_those_of_the_naive_rules",
        ),
        (
            "what has no probability is drawn",
            "(mass <= uniforms[:, None]",
            "(mass < uniforms[:, None]",
            "test_decoding.py::test_what_has_no_probability_is_never_drawn",
        ),
    ],
    "minigpt/gpt.py": [
        (
            "all layers have the first one's cache",
            "kv=None if kv is None else kv[i]",
            "kv=None if kv is None else kv[0]",
            CACHED,
        ),
        (
            "positions behind a KV cache are off by one",
            "start = 0 if kv is None else kv.length",
            "start = 0 if kv is None else max(kv.length - 1, 0)",
            CACHED,
        ),
    ],
    "minigpt/beam.py": [
        (
            "the cache stays with its row when hypotheses move",
            "self.store[:, :, rows, :, :n]",
            "self.store[..., :n, :]",
            "test_beam.py::test_cached_decoding_is_the_full_forward",
        ),
        (
            "what has ended grows longer",
            "length + ~done",
            "length + 1",
            "test_beam.py::test_a_wide_beam_finds_the_best_of_all",
        ),
    ],
}
