"""Bugs in a training step, a run and what it does when things go wrong."""

UNINTERRUPTED = "train/test_resume.py::test_interrupted_and_resumed_is_uninterrupted"

MUTANTS = {
    "minigpt/train::evaluate": [
        (
            "the best checkpoint is the last one",
            "state.best_loss is None or state.val_loss < state.best_loss",
            "True",
            "train/test_run.py::test_the_best_checkpoint_is_not_the_last_where_the_loss_has_risen",
        ),
    ],
    "minigpt/train::Run.start": [
        (
            "the optimizer's moments are not taken up again",
            "getattr(optimizer, name).flat[...] = to_device(moment.flat[optimizer.own], xp)",
            "pass",
            UNINTERRUPTED,
        ),
        (
            "bias correction begins anew",
            "optimizer_numbers(self.state, self.train_config)",
            "{}",
            UNINTERRUPTED,
        ),
    ],
    "minigpt/train::Skips.count": [
        (
            "bad steps are never counted",
            "self.in_a_row + new if self.taken == taken else 0",
            "0",
            "train/test_nonfinite.py::test_what_counts_as_in_a_row",
        ),
        (
            "a good step does not end a row of bad ones",
            "self.in_a_row + new if self.taken == taken else 0",
            "self.in_a_row + new",
            "train/test_nonfinite.py::test_what_counts_as_in_a_row",
        ),
        (
            "a loss scale that is too high counts as a fault",
            "self.skipped - skipped - halvings",
            "self.skipped - skipped",
            "train/test_nonfinite.py::test_in_float16_only_what_no_smaller_loss_scale_would_save_counts",
        ),
    ],
    "minigpt/sample::mean_loss": [
        (
            "a mean of means, though the last window is shorter",
            "return sum(losses) / sum(counts)",
            "return sum(x / n for x, n in zip(losses, counts, strict=True)) / len(counts)",
            "train/test_step.py::test_an_evaluation_counts_every_prediction_of_the_split_once",
        ),
    ],
    "minigpt/sample::count_bytes": [
        (
            "a part of a split has the bytes of another",
            "config, COUNTED_ROWS, which)",
            "config, COUNTED_ROWS)",
            "train/test_run.py::test_bits_per_byte_are_of_the_very_targets_of_an_evaluation",
        ),
        (
            "padding has the bytes of a token",
            "targets = targets[targets >= 0]",
            "targets = abs(targets)",
            "sample/test_evaluation.py::test_the_end_of_a_target_and_its_padding_have_no_bytes",
        ),
    ],
    "minigpt/sample::bits_per_byte": [
        (
            "nats are taken for bits",
            "(math.log(2) * size)",
            "size",
            "sample/test_evaluation.py::test_a_uniform_guess_of_bytes_takes_eight_bits_for_each",
        ),
        (
            "per token instead of per byte",
            "loss * targets / (math.log(2) * size)",
            "loss / math.log(2)",
            "sample/test_evaluation.py::test_a_uniform_guess_of_bytes_takes_eight_bits_for_each",
        ),
    ],
    "minigpt/train::Trainer.gradients": [
        (
            "the gradient of the last shard is lost",
            "self.workers, trees,",
            "self.workers, trees[:-1] or trees,",
            "train/test_step.py::test_gradients_are_those_of_the_whole_batch",
        ),
        (
            "every shard drops what the first one drops",
            "rng._replace(row=rows.start),",
            "rng,",
            "train/test_step.py::test_gradients_are_those_of_the_whole_batch",
        ),
    ],
    "minigpt/train::Trainer.decay": [
        (
            "the passes so far count, not those that the time allows",
            "met = limits.rows(step) / progress if progress else 0.0",
            "met = limits.rows(step)",
            "train/test_clock.py::test_weight_decay_follows_the_passes_that_the_time_allows",
        ),
        (
            "what a run took in larger steps does not count",
            "Limits(train_config, items, self.ahead[1])",
            "Limits(train_config, items)",
            "train/test_weight_decay.py"
            "::test_a_run_that_is_resumed_decays_as_one_that_was_not_stopped",
        ),
    ],
    "minigpt/train::Trainer.step": [
        (
            "the optimizer does not hear of the loss",
            "self.workers.ranges, loss",
            "self.workers.ranges",
            "train/test_nonfinite.py::test_a_step_that_is_not_finite_is_skipped_and_told",
        ),
        (
            "a frozen weight moves",
            "self.workers.ranges, loss)",
            'self.workers.ranges, loss)\n            self.tree["wte"] *= 1 - lr',
            "train/test_lora.py::test_steps_change_the_adapter_alone_and_lower_the_loss",
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
            "Rng.of(train_config.seed, step, i)",
            "Rng.of(train_config.seed, i)",
            "train/test_step.py::test_each_batch_of_a_step_has_its_own_dropout_and_so_has_each_step",
        ),
    ],
    "minigpt/train/memory.py::moments": [
        (
            "moments that Muon never writes are counted",
            "- sum(math.prod(shape) for shape in matrices if len(shape) > 1)",
            "",
            "train/test_memory.py::test_muon_and_threads_and_pairs_are_counted",
        ),
    ],
    "minigpt/train/memory.py::smaller_step": [
        (
            "the advice for a step leaves the batch out",
            "if rows > 1:",
            "if rows > 2**40:",
            "train/test_memory.py::test_the_advice_for_a_step_is_a_command_line",
        ),
    ],
    "minigpt/errors.py::memory_for": [
        (
            "an outer place takes the blame",
            "except OutOfMemory:",
            "except ZeroDivisionError:",
            "train/test_memory.py::test_memory_for_names_the_innermost_place_and_keeps_other_errors",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads._map": [
        (
            "what goes wrong in a shard is passed over",
            "outcome and outcome[1])",
            "outcome and False)",
            "backend/test_threads.py::test_an_exception_reaches_the_caller_and_the_threads_live_on",
        ),
        (
            "a call begins while threads are at the last one",
            "self._wait()\n        outcomes, done",
            "outcomes, done",
            "backend/test_threads.py"
            "::test_ctrl_c_leaves_at_once_and_the_next_call_waits_for_what_is_left",
        ),
        (
            "an error keeps the memory of its piece",
            "del outcomes\n",
            "pass\n",
            "backend/test_threads.py::test_an_error_keeps_no_memory_of_the_pieces",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads._work": [
        (
            "threads handle overflows as NumPy does by itself",
            "np.seterr(**errors)",
            "pass",
            "sample/test_generate.py::test_threads_that_read_overflow_without_a_word",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads.close": [
        (
            "what Ctrl-C leaves at work is waited for at the end",
            "self._call is IDLE and ",
            "",
            "backend/test_threads.py::test_what_ctrl_c_leaves_at_work_ends_after_the_others",
        ),
    ],
    "minigpt/train::locked": [
        (
            "the lock is not taken",
            "lock = acquire(folder / LOCK)",
            "lock = None",
            "train/test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
    ],
    "minigpt/train::backward_order": [
        (
            "gradients are looked at in the order of the forward pass",
            "sorted(reversed(list(names)), key=",
            "sorted(list(names), key=",
            "train/test_nonfinite.py::test_the_first_gradient_that_went_bad",
        ),
    ],
    "minigpt/train::cut_metrics": [
        (
            "a resumed run loses a line of its metrics",
            'json.loads(line)["step"] <= step',
            'json.loads(line)["step"] < step',
            "train/test_run.py::test_cut_metrics_keeps_whole_lines_up_to_the_step",
        ),
    ],
    "minigpt/backend/cpu/crew.py::shard_slices": [
        (
            "the last rows of a batch belong to no shard",
            "for a, b in zip(edges, edges[1:], strict=False)]",
            "for a, b in zip(edges, edges[1:-1] + [n - (n > 1)], strict=False)]",
            "backend/test_threads.py::test_shards_cover_all_rows_once_in_order_and_evenly",
        ),
    ],
    "minigpt/train::LossMean.read": [
        (
            "a loss that is not finite is in the mean",
            "self.total, self.count = self.finite",
            "pass",
            "train/test_nonfinite.py::test_a_bad_loss_is_left_out_of_the_mean_and_of_all_files",
        ),
    ],
    "minigpt/train::RunState.__post_init__": [
        (
            "what a state holds is not checked",
            "not good",
            "False",
            "train/test_resume.py::test_a_checkpoint_whose_state_is_damaged_is_refused",
        ),
    ],
    "minigpt/train::Clock.lap": [
        (
            "a pause counts as training",
            "self.seconds += elapsed - pause",
            "self.seconds += elapsed",
            "train/test_clock.py::test_a_pause_takes_no_part_of_the_decay",
        ),
    ],
    "minigpt/train::Validation.affordable": [
        (
            "an evaluation takes as long as it likes",
            "self.speed(train_rate) * self.share_s",
            "self.speed(train_rate) * self.budget_s",
            "train/test_clock.py::test_evaluations_fit_the_budget",
        ),
    ],
    "minigpt/train::evaluate_rest": [
        (
            "at the end, bits per byte are those of a part",
            "run.val_bpb = bits_of(run, run.whole_loss)",
            "pass",
            "train/test_run.py::test_bits_per_byte_are_of_the_very_targets_of_an_evaluation",
        ),
        (
            "the loss of the whole split is that of the rest",
            "(part * part_loss + (total - part) * loss) / total",
            "loss",
            "train/test_clock.py::"
            "test_an_even_part_is_evaluated_on_the_way_and_the_whole_split_at_the_end",
        ),
    ],
    "minigpt/train::taken_ahead": [
        (
            "a resumed run with a smaller batch sees the same data again",
            "return [batches, rows]",
            "return [0, 0]",
            "train/test_together.py::test_data_go_on_where_they_were_when_a_batch_changes_its_size",
        ),
    ],
    "minigpt/train::check_together": [
        (
            "a floor may be above the learning rate",
            "if low > lr:",
            "if False:",
            "train/test_together.py::test_options_that_contradict_each_other_are_one_line",
        ),
    ],
    "minigpt/model::find_checkpoint": [
        (
            "the best of another text is sampled",
            "len({*data}) == 1",
            "data",
            "train/test_together.py::test_the_best_of_another_text_is_not_sampled",
        ),
    ],
    "minigpt/train::compare_best": [
        (
            "losses of two texts are compared",
            'same_losses and losses == (data_of(found), found.get("eval_targets") or whole)',
            "True",
            "train/test_resume.py::test_another_text_has_a_best_loss_of_its_own",
        ),
    ],
    "minigpt/train::state_of": [
        (
            "a resumed run skips a step",
            "RunState.build(checkpoint.state)",
            'RunState.build({**checkpoint.state, "step": checkpoint.state["step"] + 1})',
            UNINTERRUPTED,
        ),
    ],
    "minigpt/train::Limits.__init__": [
        (
            "a run ends before its last pass is whole",
            "math.ceil(",
            "math.floor(",
            "train/test_limits.py::test_passes_are_rounded_up_to_whole_steps",
        ),
        (
            "1.1 passes of ten rows are twelve",
            "Fraction(str(self.passes))",
            "Fraction(self.passes)",
            "train/test_limits.py::test_passes_are_rounded_up_to_whole_steps",
        ),
        (
            "rows of batches of another size are no part of a pass",
            "(rows - ahead)",
            "rows",
            "train/test_limits.py::test_rows_of_another_batch_size_count",
        ),
    ],
    "minigpt/train::Limits.progress": [
        (
            "a run goes by what comes last",
            "max(passes, time)",
            "min(passes, time)",
            "train/test_limits.py::test_a_run_is_as_far_as_what_comes_first",
        ),
    ],
    "minigpt/train::Limits.seconds_left": [
        (
            "what is left is what the clock leaves",
            "min(by_steps, by_clock)",
            "by_clock",
            "train/test_limits.py::test_what_is_left_is_the_lesser_of_steps_and_time",
        ),
    ],
    "minigpt/train::Limits.reason": [
        (
            "a run that had no time left has made its passes",
            "if not self.used_up(step):",
            "if False:",
            "train/test_limits.py::test_limits_in_words",
        ),
    ],
    "minigpt/train::Run.advance": [
        (
            "the schedule of a run by passes counts steps",
            "self.limits.schedule(state.step, state.seconds, self.reserve_s)",
            "None",
            "train/test_limits.py::test_a_run_by_passes_ends_after_them_and_says_so",
        ),
    ],
    "minigpt/train::Run.check_decay": [
        (
            "a few steps are blamed on the clock where the passes were over",
            "if limits.used_up(step):",
            "if False:",
            "train/test_limits.py::test_a_fast_machine_ends_after_the_passes",
        ),
    ],
    "minigpt/train::check_length": [
        (
            "steps beside passes are without effect, in silence",
            "if passes is not None and given.get(name) is not None:",
            "if False:",
            "train/test_limits.py::test_what_contradicts_passes_is_one_line",
        ),
    ],
    "minigpt/train::check_incomplete": [
        (
            "a run that has made its passes needs more time",
            "elif no_more_time and state.over and not before.used_up(state.step):",
            "elif no_more_time and state.over:",
            "train/test_limits.py::"
            "test_a_run_that_is_over_by_passes_goes_on_if_it_is_given_more_of_them",
        ),
    ],
    "minigpt/train::resume_run": [
        (
            "passes that are added do not count where the last evaluation is due",
            "state.over = check_incomplete(state, train_config, before, run.limits)",
            "pass",
            "train/test_limits.py::test_a_last_evaluation_is_no_end_where_passes_are_added",
        ),
    ],
    "minigpt/train::Run.__init__": [
        (
            "a run whose batches have grown counts their rows as before",
            "Limits(train_config, state.data_rows, ahead)",
            "Limits(train_config, state.data_rows)",
            "train/test_limits.py::"
            "test_passes_are_those_of_all_batches_where_these_change_their_size",
        ),
        (
            "bad steps in a row are forgotten",
            "Skips(state.skips_in_a_row)",
            "Skips(0)",
            "train/test_nonfinite.py::test_a_few_in_a_row_end_the_run_with_the_last_checkpoint",
        ),
        (
            "an evaluation that is made up for has two lines",
            "state.step - bool(state.due)",
            "state.step",
            "train/test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/train::train_steps": [
        (
            "an evaluation that was interrupted is left out",
            "if state.due:",
            "if False:",
            "train/test_resume.py::test_an_evaluation_that_was_interrupted_is_made_up_for",
        ),
    ],
    "minigpt/train::RunFiles.write_lines": [
        (
            "trackers get nothing",
            "self.track()",
            "pass",
            "train/test_trackers.py::test_a_tracker_gets_every_line_of_the_metrics_and_changes_no_bit",
        ),
        (
            "a line that could not be written is lost",
            'append(path, "".join(self.unwritten))',
            "append(path, self.unwritten[-1])",
            "train/test_ends.py::test_what_cannot_be_written_amid_a_run_is_a_note",
        ),
        (
            "each line that cannot be written is told",
            "if not failed:",
            "if True:",
            "train/test_ends.py::test_what_cannot_be_written_amid_a_run_is_a_note",
        ),
    ],
    "minigpt/train::Run.try_to_save": [
        (
            "a save that fails amid a run ends it",
            "return False",
            "raise",
            "train/test_ends.py::test_what_cannot_be_written_amid_a_run_is_a_note",
        ),
        (
            "a best checkpoint that could not be written is claimed",
            "return False",
            "return True",
            "train/test_ends.py::test_a_best_checkpoint_that_is_not_there_is_not_claimed",
        ),
    ],
    "minigpt/train::RunFiles.__init__": [
        (
            "a run that is resumed clears its folder",
            "self.old = cut is None and",
            "self.old =",
            UNINTERRUPTED,
        ),
        (
            "a new run adds to the lines of an old one",
            "self.old = cut is None and",
            "self.old = False and",
            "train/test_run.py::test_a_folder_in_use_is_refused_and_overwritten_on_demand",
        ),
    ],
    "minigpt/train::RunFiles.replace_old": [
        (
            "the metrics of an old run stay beside the checkpoints of the new",
            "remove_file(path)",
            "pass",
            "train/test_run.py::test_a_folder_in_use_is_refused_and_overwritten_on_demand",
        ),
    ],
    "minigpt/train::RunFiles.begin": [
        (
            "what a killed run left half-written stays",
            "remove_leftovers(real_path(self.folder / name), 0.0)",
            "pass",
            "train/test_ends.py::test_what_a_killed_run_left_half_written_is_removed",
        ),
    ],
    "minigpt/train::unsaved": [
        (
            "an interrupt amid the update is saved",
            "run.trainer.optimizer.step_count == state.step > 0",
            "state.step > 0",
            "train/test_ends.py::test_weights_amid_an_update_are_not_saved",
        ),
        (
            "an evaluation that was made up for is not saved",
            "(state.step, bool(state.due))",
            "(state.step, run.saved[1])",
            "train/test_ends.py::"
            "test_an_evaluation_that_was_made_up_for_is_saved_at_the_second_try",
        ),
        (
            "a run that ends before its first step takes the folder",
            "== state.step > 0",
            "== state.step",
            "train/test_ends.py::test_what_ends_before_its_first_step_leaves_the_folder_as_it_was",
        ),
    ],
    "minigpt/train::train_or_save": [
        (
            "what an error leaves in memory is lost",
            "save_after(run, shown, stop)",
            "pass",
            "train/test_ends.py::test_an_error_is_reported_after_saving_and_the_run_goes_on",
        ),
    ],
    "minigpt/train::Interrupt.__enter__": [
        (
            "what the parent has set to be ignored is obeyed",
            "handler is None or handler == signal.SIG_IGN",
            "handler is None",
            "train/test_interrupt.py::test_what_the_parent_has_set_to_be_ignored_stays_ignored",
        ),
    ],
    "minigpt/train::Interrupt.note": [
        (
            "a second signal cuts an update",
            "elif self.holding:",
            "elif False:",
            "train/test_interrupt.py::test_a_second_signal_does_not_cut_a_save_or_an_update",
        ),
    ],
    "minigpt/train::Lines.report": [
        (
            "the intervals between lines do not grow",
            "min(2 * self.pause_s, LONGEST_S)",
            "self.pause_s",
            "train/test_progress.py::"
            "test_without_a_terminal_a_line_tells_how_far_it_is_at_growing_intervals",
        ),
    ],
    "minigpt/train::check_writable": [
        (
            "what is marked read-only is found after the work",
            "if marked_read_only(path):",
            "if False:",
            "train/test_run.py::test_what_is_marked_read_only_is_found_before_any_work",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads.__init__": [
        (
            "threads that were started stay where not all can be",
            "self.close()\n            raise UserError(",
            "raise UserError(",
            "train/test_threads.py::"
            "test_threads_that_cannot_be_started_are_told_and_those_started_end",
        ),
    ],
    "minigpt/train::put_together": [
        (
            "steps that are given leave a preset its passes",
            'dict.fromkeys(REPLACED["max_iters"])',
            '{"max_seconds": None}',
            "train/test_config.py::test_a_preset_takes_options_in_python_as_on_the_command_line",
        ),
        (
            "a lower learning rate keeps its floor",
            'follow["min_lr"] = base.get("min_lr", 0.0) * lr / base["learning_rate"]',
            "pass",
            "train/test_together.py::test_a_lower_learning_rate_lowers_its_floor",
        ),
        (
            "a decay to the last step does not follow it",
            'base.get("lr_decay_iters") == base.get("max_iters")',
            "False",
            "train/test_config.py::test_a_decay_to_the_last_step_follows_it",
        ),
    ],
    "minigpt/train::resolve": [
        (
            "a table that came out smaller leaves the model padded",
            'model.pop("vocab_size", None)',
            "pass",
            "train/test_train_bpe.py::test_a_trained_table_sets_the_size_of_the_model",
        ),
        (
            "a large vocabulary has bigrams by default",
            'sizes["vocab_size"] <= BIGRAM_MAX_VOCAB',
            "True",
            "train/test_config.py::test_the_default_has_bigrams_where_tokens_are_few",
        ),
    ],
    "minigpt/train::options_of": [
        (
            "the defaults win over a preset",
            "defaults | chosen",
            "chosen | defaults",
            "train/test_config.py::test_presets_never_change",
        ),
    ],
    "minigpt/train::optimizer_numbers": [
        (
            "a loss scale outlives the precision that it was found in",
            'state.train.get("dtype") == train_config.dtype',
            "True",
            "train/test_resume.py::test_a_loss_scale_is_found_anew_where_the_precision_is_another",
        ),
    ],
    "minigpt/train/input.py::keep_pipe": [
        (
            "a run on standard input cannot be resumed",
            "str(path) if name in pipes else name",
            "name",
            "train/test_input.py::test_standard_input_is_kept_in_the_run_and_resumed",
        ),
    ],
    "minigpt/data/sources.py::find_again": [
        (
            "a relative name is looked for in the current folder first",
            "(os.path.join(folder, name), name,",
            "(name, os.path.join(folder, name),",
            "train/test_input.py::test_a_text_of_another_folder_is_not_taken_for_that_of_the_run",
        ),
        (
            "what was kept is looked for where the run was before",
            "os.path.join(out_dir, os.path.basename(name))",
            "name",
            "train/test_input.py::test_standard_input_is_kept_in_the_run_and_resumed",
        ),
    ],
    "minigpt/files.py::not_utf8": [
        (
            "UTF-16 is a byte that does not fit",
            "if begin.startswith(mark):",
            "if False:",
            "data/test_survey.py::test_what_is_no_text_is_called_by_its_name",
        ),
    ],
    "minigpt/cli/fields.py::expand_home": [
        (
            "a folder named ~",
            'if expanded == "~" or',
            "if False and",
            "data/test_sources.py::test_a_quoted_home_is_expanded_in_options_that_name_files",
        ),
    ],
    "minigpt/train::new_run": [
        (
            "the model as it came is not evaluated",
            "if base is not None:",
            "if False:",
            "train/test_init_from.py::test_the_first_evaluation_is_the_model_as_it_came",
        ),
    ],
    "minigpt/train::training_options": [
        (
            "an adapter has the learning rate of a whole model",
            "if lora and preset == FINETUNE:",
            "if False:",
            "train/test_init_from.py::test_an_adapter_has_a_rate_of_its_own_and_no_weight_decay",
        ),
        (
            "an adapter changes the options of every preset",
            "if lora and preset == FINETUNE:",
            "if lora:",
            "train/test_init_from.py::test_an_adapter_has_a_rate_of_its_own_and_no_weight_decay",
        ),
    ],
    "minigpt/model::count_flops": [
        (
            "frozen weights have the product of their gradient",
            "(products - 1) * of_blocks",
            "products * of_blocks",
            "train/test_cost.py::test_frozen_weights_have_no_products_of_their_gradients",
        ),
    ],
    "minigpt/train::Samples.take": [
        (
            "what samples have taken is forgotten",
            "self.spent_s += ",
            "self.spent_s = ",
            "train/test_samples.py::test_all_samples_together_take_a_hundredth_of_a_run",
        ),
        (
            "a sample's time has no end",
            "> left_s",
            "< 0",
            "train/test_samples.py::test_all_samples_together_take_a_hundredth_of_a_run",
        ),
    ],
    "minigpt/train::Trackers.attempt": [
        (
            "a tracker that has failed is tried again",
            "self.trackers.remove(tracker)",
            "pass",
            "train/test_trackers.py::test_a_tracker_that_fails_costs_one_note_and_not_the_run",
        ),
        (
            "a tracker's error ends the run",
            "except Exception as error:",
            "except UserError as error:",
            "train/test_trackers.py::test_trackers_fail_one_by_one",
        ),
    ],
    "minigpt/train::saved_by_token": [
        (
            "an adapter of what attention returns keeps it once more",
            "if not lora.dropout and",
            "if False and",
            "train/test_memory.py::test_what_is_counted_of_a_block_is_what_its_caches_hold",
        ),
        (
            "a frozen layer keeps its input",
            "10 * C + sum(",
            "16 * C + sum(",
            "train/test_memory.py::test_what_is_counted_of_a_block_is_what_its_caches_hold",
        ),
    ],
    "minigpt/model::base_params": [
        (
            "an adapter takes any base",
            "if sha256 != base.sha256:",
            "if False:",
            "train/test_lora.py::test_another_or_missing_base_is_refused",
        ),
    ],
    "minigpt/train::base_of": [
        (
            "an adapter takes the place of its base",
            "if out_dir.resolve() in",
            "if out_dir.name in",
            "train/test_lora.py::test_an_adapter_does_not_take_the_place_of_its_base",
        ),
    ],
    "minigpt/train::Run.first_weights": [
        (
            "a resumed run begins its adapter anew",
            "if checkpoint is not None:",
            "if checkpoint is not None and lora is None:",
            "train/test_lora.py::test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_was_not",
        ),
    ],
    "minigpt/model::cropped": [
        (
            "the last positions are kept",
            "whole[name][: len(view)]",
            "whole[name][-len(view) :]",
            "train/test_init_from.py::test_a_shorter_block_keeps_the_first_positions[False]",
        ),
    ],
    "minigpt/train::check_same_model": [
        (
            "an option that contradicts the model is left aside",
            "value != model[key] and",
            "False and",
            "train/test_init_from.py::test_a_file_of_options_and_fit_begin_from_a_model_too",
        ),
    ],
    "minigpt/train::open_data": [
        (
            "the text makes a tokenizer of its own",
            "None if base is None else base.tokenizer",
            "None",
            "train/test_init_from.py::test_no_model_and_characters_it_does_not_know_are_errors",
        ),
    ],
}
