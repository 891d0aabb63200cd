"""Bugs in the walk through a training step: `minigpt data --step`."""

RECORDER = "report/step/test_recorder.py::"
STAGES = "report/step/test_stages.py::"
MATRICES = STAGES + "test_every_matrix_is_what_plain_numpy_makes_of_the_weights"
PAGE = "report/step/test_page.py::"
TERMINAL = "report/step/test_terminal.py::"

MUTANTS = {
    "minigpt/report/step::matrix_lines": [
        (
            "a matrix with long labels is wider than the terminal",
            "while size > WIDTH:",
            "while size > 2 * WIDTH or room > ROOM:",
            TERMINAL + "test_no_line_is_wider_than_80_columns_or_moves_the_cursor",
        ),
    ],
    "minigpt/report/step::Call.note": [
        (
            "what is changed in place is not kept",
            "not same(seen[-1], value)",
            "seen[-1].shape != value.shape",
            RECORDER + "test_every_value_that_a_variable_had_is_kept_in_place_or_anew",
        ),
        (
            "no copy is made",
            "seen.append(np.array(value))",
            "seen.append(np.asarray(value))",
            RECORDER + "test_what_is_recorded_is_a_copy",
        ),
    ],
    "minigpt/report/step::recording": [
        (
            "a debugger is lost",
            "sys.settrace(before)",
            "sys.settrace(None)",
            RECORDER + "test_a_tracer_that_was_there_is_there_again_even_after_an_error",
        ),
    ],
    "minigpt/report/step::record_step": [
        (
            "overrides run",
            "with plain():",
            "if True:",
            "report/step/test_record.py::"
            "test_loss_and_gradients_are_those_of_the_models_passes_to_the_last_bit",
        ),
        (
            "the loss after the step is that before it",
            "loss_after, _ = loss_forward(x, y, params.tree, config)",
            "loss_after, _ = loss_forward(x, y, before.tree, config)",
            "report/step/test_record.py::test_a_model_from_the_library_agrees",
        ),
    ],
    "minigpt/report/step::scores_stage": [
        (
            "scores are shown after the mask",
            'there.first("s")',
            'there["s"]',
            MATRICES,
        ),
    ],
    "minigpt/report/step::of_head": [
        (
            "always the first head",
            "x[0, view.head]",
            "x[0, 0]",
            MATRICES,
        ),
    ],
    "minigpt/report/step::View.block": [
        (
            "the backward pass of another block",
            '"block_backward", last - i',
            '"block_backward", i',
            STAGES + "test_blocks_have_stages_of_their_own",
        ),
    ],
    "minigpt/report/step::embedding_gradient": [
        (
            "the sum is of one position alone",
            "int(used[most]), rows[most]",
            "int(used[most]), rows[most][:1]",
            STAGES + "test_every_example_is_right",
        ),
    ],
    "minigpt/report/step::line_of": [
        (
            "the line of the decorator",
            'startswith("@")',
            'startswith("#")',
            STAGES + "test_every_op_is_where_the_walk_says",
        ),
    ],
    "minigpt/report/step::scale_of": [
        (
            "one digit more where rounding makes one",
            'int(f"{top:.{DIGITS - 1}e}".partition("e")[2])',
            "math.floor(math.log10(top))",
            TERMINAL + "test_a_matrix_has_the_point_where_its_largest_number_needs_it",
        ),
    ],
    "minigpt/report/step::digits": [
        (
            "an exact 0 looks like a small number",
            "if x == 0:",
            "if x == 0 and not scale.decimals:",
            TERMINAL + "test_an_exact_zero_has_no_point_and_stands_in_its_column",
        ),
    ],
    "minigpt/report/step::fill": [
        (
            "a wide character takes one column",
            "display_width(f",
            "len(f",
            TERMINAL + "test_no_line_is_wider_than_80_columns_or_moves_the_cursor",
        ),
    ],
    "minigpt/report/step::side_by_side": [
        (
            "matrices beside each other whatever the room",
            "width > room",
            "width > 2 * room",
            TERMINAL + "test_no_line_is_wider_than_80_columns_or_moves_the_cursor",
        ),
    ],
    "minigpt/report/step::Picture.columns_within": [
        (
            "the first columns, whatever is to be kept",
            "self.first_columns(room)",
            "range(len(self.columns))[:room]",
            TERMINAL
            + "test_the_columns_of_the_vocabulary_that_are_shown_are_those_of_the_sentence",
        ),
    ],
    "minigpt/report/page.py::check_place": [
        (
            "a file is replaced without being asked",
            "and not force",
            "and force",
            PAGE + "test_a_file_that_is_there_is_replaced_only_by_force",
        ),
    ],
    "minigpt/report/step::picture_html": [
        (
            "the columns stand in another order than their numbers",
            "[picture.columns[j] for j in columns]",
            "[picture.columns[j] for j in sorted(columns)]",
            PAGE + "test_labels_stand_above_their_numbers",
        ),
    ],
    "minigpt/cli::has_colours": [
        (
            "colours for one who wants none",
            'os.environ.get("NO_COLOR")',
            'os.environ.get("NO_COLOUR")',
            "report/step/test_command.py::test_colours_are_for_terminals_that_have_them",
        ),
    ],
}
