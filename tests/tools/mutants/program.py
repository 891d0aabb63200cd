"""Faults in runs and their checkpoints, and in decoding."""

UNINTERRUPTED = "train/test_resume.py::test_interrupted_and_resumed_is_uninterrupted"
CACHED = "sample/test_generate.py::test_cached_decoding_is_the_full_forward"
METADATA = "model/test_checkpoint_errors.py::test_metadata_that_does_not_fit"

FAULTS = {
    "minigpt/train/resume.py": [
        (
            "losses of two texts are compared",
            "run.best_loss = run.best_step = None",
            "pass",
            "train/test_resume.py::test_another_text_has_a_best_loss_of_its_own",
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
            "train/test_resume.py::test_a_checkpoint_whose_state_is_damaged_is_refused",
        ),
        (
            "bad steps in a row are forgotten",
            'checkpoint, run.step, state.get("bad", 0)',
            "checkpoint, run.step, 0",
            "train/test_nonfinite.py::test_a_few_in_a_row_end_the_run_with_the_last_checkpoint",
        ),
        (
            "an evaluation that was interrupted is left out",
            'run.due = state.get("due")',
            "run.due = None",
            "train/test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/train/run.py": [
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
            "train/test_nonfinite.py::test_a_bad_loss_is_left_out_of_the_mean_and_of_all_files",
        ),
        (
            "the best checkpoint is the last one",
            "if self.best_loss is None or self.val_loss < self.best_loss:",
            "if True:",
            "train/test_run.py::test_the_best_checkpoint_is_not_the_last_where_the_loss_has_risen",
        ),
    ],
    "minigpt/train/run_dir.py": [
        (
            "the lock is not taken",
            "lock = acquire(folder / LOCK)",
            "lock = None",
            "train/test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
        (
            "a resumed run loses a line of its metrics",
            'json.loads(line)["step"] <= step',
            'json.loads(line)["step"] < step',
            "train/test_run.py::test_cut_metrics_keeps_whole_lines_up_to_the_step",
        ),
    ],
    "minigpt/files.py": [
        (
            "what another process holds counts as free",
            "raise Taken from None",
            "return None",
            "train/test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
    ],
    "minigpt/train/nonfinite.py": [
        (
            "bad steps are never counted",
            "self.bad + new if self.taken == taken else 0",
            "0",
            "train/test_nonfinite.py::test_what_counts_as_in_a_row",
        ),
        (
            "a good step does not end a row of bad ones",
            "self.bad + new if self.taken == taken else 0",
            "self.bad + new",
            "train/test_nonfinite.py::test_what_counts_as_in_a_row",
        ),
        (
            "a loss scale that is too high counts as a fault",
            "self.skipped - skipped - halvings",
            "self.skipped - skipped",
            "train/test_nonfinite.py::test_in_float16_only_what_no_smaller_loss_scale_would_save_counts",
        ),
        (
            "gradients are looked at in the order of the forward pass",
            "sorted(reversed(list(names)), key=",
            "sorted(list(names), key=",
            "train/test_nonfinite.py::test_the_first_gradient_that_went_bad",
        ),
        (
            "what a block makes is not looked at",
            'check(f"{prefix}h.{i}", x, h)',
            "pass",
            "train/test_nonfinite.py::test_the_first_layer_that_went_bad",
        ),
    ],
    "minigpt/data/corpus.py": [
        (
            "a copy that another process has just made is not looked for",
            "    with _turn():\n        return _cached() or _downloaded()",
            "    with _turn():\n        return _downloaded()",
            "sample/test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
        (
            "nobody waits for who downloads",
            "        lock = acquire(path)\n",
            "        lock = None\n",
            "sample/test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
        (
            "without a network each waits for all before it",
            "release(acquire(path, WAIT))",
            "lock = acquire(path, WAIT)",
            "sample/test_side_by_side.py::test_who_has_waited_in_vain_downloads_at_once",
        ),
    ],
    "minigpt/cli.py": [
        (
            "a value that is no text has no nearest name",
            "difflib.get_close_matches(str(word),",
            "difflib.get_close_matches(word,",
            "train/test_train_input.py::test_a_config_file_that_is_no_good",
        ),
    ],
    "minigpt/train/__main__.py": [
        (
            "an interrupt amid the update is saved",
            "if run.trainer.optimizer.step_count != run.step or run.over:",
            "if run.over:",
            "train/test_resume.py::test_an_interrupt_amid_the_update_keeps_the_old_checkpoint",
        ),
        (
            "an evaluation that is made up for has two lines",
            "run.step - bool(run.due))",
            "run.step)",
            "train/test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/model/checkpoint.py": [
        (
            "numbers that are not finite are saved",
            "    if bad:\n",
            "    if False:\n",
            "train/test_nonfinite.py::test_no_number_that_is_not_finite_is_saved",
        ),
        (
            "the file is not synced before it is renamed",
            "            os.fsync(file.fileno())\n",
            "",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        (
            "a tensor that is missing is not missed",
            "if name not in names]",
            "if False]",
            "model/test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
        (
            "one moment is saved in place of both",
            "on_host(getattr(optimizer, moment)).leaves()",
            "on_host(optimizer.m).leaves()",
            "model/test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
        (
            "the state is not saved",
            '"state": json.dumps(state, allow_nan=False),',
            '"state": "{}",',
            "model/test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
        (
            "the old checkpoint is written over",
            'temporary = path.with_name(path.name + ".tmp")',
            "temporary = path",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        ("the format is not checked", "if found != FORMAT:", "if False:", METADATA),
        ("shapes are not checked", "if came != needed:", "if came[0] != needed[0]:", METADATA),
        (
            "numbers that are not finite are loaded",
            "if not np.isfinite(x).all():",
            "if False:",
            "model/test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
    ],
    "minigpt/sample/generate.py": [
        (
            "all rows have one stream of random numbers",
            "np.array([seed, r], np.uint64)",
            "np.array([seed, 0], np.uint64)",
            "sample/test_generate.py::test_a_row_does_not_depend_on_the_others",
        ),
        (
            "ids that a padded model has and the text has not are drawn",
            "[:, :vocab_size]",
            "",
            "train/test_train.py::test_a_vocabulary_that_is_larger_than_the_texts",
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
            "sample/test_generate.py::test_probabilities_are_those_of_the_naive_rules",
        ),
        (
            "what has no probability is drawn",
            "(mass <= uniforms[:, None]",
            "(mass < uniforms[:, None]",
            "sample/test_generate.py::test_what_has_no_probability_is_never_drawn",
        ),
    ],
    "minigpt/model/gpt.py": [
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
    "minigpt/sample/beam.py": [
        (
            "the cache stays with its row when hypotheses move",
            "self.store[:, :, rows, :, :n]",
            "self.store[..., :n, :]",
            "sample/test_beam.py::test_cached_decoding_is_the_full_forward",
        ),
        (
            "what has ended grows longer",
            "length + ~done",
            "length + 1",
            "sample/test_beam.py::test_a_wide_beam_finds_the_best_of_all",
        ),
    ],
}
