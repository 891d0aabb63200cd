"""Bugs in what `import minigpt` offers, and in the program that gathers the commands."""

MUTANTS = {
    "minigpt/library::fit_in": [
        (
            "the run that is asked for is not resumed",
            'resume_run(options) if own["resume"] else new_run(options, own["overwrite"])',
            "new_run(options, True)",
            "library/test_training.py::test_fit_resumes_a_run_of_the_command_and_the_command_one_of_fit",
        ),
        (
            "another run's text is overwritten",
            'check_folder(folder, own["overwrite"])',
            "pass",
            "library/test_training.py::test_a_text_is_kept_in_its_out_dir_so_that_its_run_can_be_resumed",
        ),
    ],
    "minigpt/train::unsaved": [
        (
            "half an update is saved",
            "run.trainer.optimizer.step_count == state.step > 0",
            "state.step > 0",
            "library/test_training.py::test_an_interrupt_leaves_a_run_that_is_resumed_to_the_bit",
        ),
    ],
    "minigpt/train::KeptFile.undo": [
        (
            "a text stays where no run has begun",
            "self.path.unlink(missing_ok=True)",
            "pass",
            "library/test_training.py::test_a_run_that_cannot_begin_leaves_nothing_behind",
        ),
        (
            "a run that cannot begin takes the text of the one before",
            "os.replace(self.aside, self.path)",
            "pass",
            "library/test_training.py::"
            "test_a_run_that_cannot_begin_leaves_the_text_of_the_one_before",
        ),
    ],
    "minigpt/train::RunFiles.leave": [
        (
            "a run that ends before its first step takes the text of the one before",
            "self.kept.undo()",
            "pass",
            "library/test_training.py::test_before_its_first_step_is_done_a_run_touches_nothing",
        ),
    ],
    "minigpt/backend/blas.py::blas_threads": [
        (
            "the first to end takes the limit from all",
            "_limits.pop(key, None)",
            "_limits.clear()",
            "backend/test_blas.py::test_blas_gets_its_threads_back_from_contexts_that_overlap",
        ),
    ],
    "minigpt/backend/blas.py::_apply": [
        (
            "the last limit holds and not the lowest",
            "min(_limits.values(), default=None)",
            "max(_limits.values(), default=None)",
            "backend/test_blas.py::test_blas_gets_its_threads_back_from_contexts_that_overlap",
        ),
    ],
    "minigpt/library::on_one_thread": [
        (
            "BLAS keeps one thread between the pieces of a stream",
            "item = next(items, None)\n        if item is None:\n            return\n"
            "        yield item",
            "item = next(items, None)\n            if item is None:\n                return\n"
            "            yield item",
            "library/test_model.py::test_stream_yields_pieces_as_they_are_made_and_checks_at_once",
        ),
    ],
    "minigpt/library::as_ids": [
        (
            "ids beyond the vocabulary pass",
            "| (array >= vocab_size)",
            "",
            "library/test_model.py::test_what_a_model_cannot_do_is_said_in_one_line",
        ),
        (
            "a text longer than the context passes",
            "array.shape[1] > block_size",
            "False",
            "library/test_model.py::test_what_a_model_cannot_do_is_said_in_one_line",
        ),
    ],
    "minigpt/library::as_batch": [
        (
            "padding in front of ids passes",
            "(ids[:, 0] < 0).any() or",
            "",
            "library/test_model.py::test_what_a_model_cannot_do_is_said_in_one_line",
        ),
    ],
    "minigpt/library::ended": [
        (
            "a target's end is forgotten",
            "[*tokenizer.encode(targets), end]",
            "tokenizer.encode(targets)",
            "library/test_model.py::test_losses_of_pairs_are_those_of_the_functions",
        ),
    ],
    "minigpt/library::describe": [
        (
            "every gradient is right",
            "error <= bound",
            "True",
            "library/test_check.py::test_a_wrong_factor_is_found_and_named",
        ),
    ],
    "minigpt/library::Passes.upstream": [
        (
            "dy is 1 everywhere",
            "rng.standard_normal(self.shape)",
            "np.ones(self.shape)",
            "library/test_check.py::test_ops_of_the_package_pass",
        ),
    ],
    "minigpt/library::row": [
        (
            "the first elements stand for all",
            "units(x.shape) if whole",
            "units(x.shape)[:1] if whole",
            "library/test_check.py::test_a_wrong_gradient_among_right_ones_is_named_with_its_place",
        ),
    ],
    "minigpt/__main__.py::main": [
        (
            "a command goes by another name",
            'prog=f"minigpt {name}"',
            'prog="minigpt"',
            "test_main.py::test_a_command_goes_by_its_name_in_its_help_and_errors",
        ),
    ],
}
