"""Bugs in the pages of the report: the shell, a run's page, when training writes it."""

SHELL, RUN = "report/test_page.py::", "report/test_run_page.py::"
TRAIN = "train/test_page.py::"

MUTANTS = {
    "minigpt/report::json_script": [
        (
            "data can end their script",
            'text.replace("<", "\\\\u003c")',
            'text.replace("<", "<")',
            SHELL + "test_text_stays_text",
        ),
    ],
    "minigpt/report::escape": [
        (
            "text is markup",
            'html.escape(text.encode("utf-8", "backslashreplace").decode())',
            'text.encode("utf-8", "backslashreplace").decode()',
            SHELL + "test_text_stays_text",
        ),
        (
            "controls turn the text that follows",
            "CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))",
            "str(text)",
            SHELL + "test_controls_are_escapes",
        ),
    ],
    "minigpt/report::table": [
        (
            "a column with one number is one of numbers",
            "all(map(is_number",
            "any(map(is_number",
            SHELL + "test_columns_of_numbers_stand_at_the_right_and_no_others",
        ),
    ],
    "minigpt/report::matrix": [
        (
            "weights are coloured by the largest, not by 1",
            '1.0 if kind == "weights" else',
            '1.0 if kind == "signed" else',
            SHELL + "test_cells_of_a_matrix_show_their_values_and_how_large_they_are",
        ),
    ],
    "minigpt/report::page": [
        (
            "every page has the plotting library",
            "[library()] if charts else []",
            "[library()]",
            SHELL + "test_a_page_without_charts_needs_no_library",
        ),
    ],
    "minigpt/report::pack": [
        (
            "the upper triangle is packed",
            "np.tri(len(rows), len(columns), dtype=bool)",
            "np.tri(len(rows), len(columns), dtype=bool).T",
            RUN + "test_weights_on_a_page_are_those_of_the_model",
        ),
        (
            "maps of many heads have no bound",
            "max(2, min(MOST, most))",
            "MOST",
            RUN + "test_maps_that_would_make_a_page_too_large_are_cut",
        ),
    ],
    "minigpt/report::curve_section": [
        (
            "damaged metrics are not named on the page",
            '"".join(map(note, run.notes))',
            '""',
            RUN + "test_damaged_metrics_are_named_and_the_rest_is_shown",
        ),
    ],
    "minigpt/report::check_place": [
        (
            "a page replaces a file without being asked",
            "os.path.lexists(file) and not force",
            "False",
            RUN + "test_what_is_no_page_of_ours_is_not_replaced",
        ),
    ],
    "minigpt/report::check_own_place": [
        (
            "a page takes the place of any file",
            "GENERATOR.encode() not in file.read(HEAD)",
            "False",
            RUN + "test_what_is_no_page_of_ours_is_not_replaced",
        ),
    ],
    "minigpt/report::by_group": [
        (
            "a model has one block",
            'tree["h"])):',
            'tree["h"][:1])):',
            RUN + "test_the_parts_of_a_model_are_all_of_it",
        ),
    ],
    "minigpt/train::Pages.renew": [
        (
            "every evaluation writes a page",
            "% every == 0",
            "% every >= 0",
            TRAIN + "test_a_page_is_renewed_at_every_nth_evaluation_until_the_run_ends",
        ),
    ],
    "minigpt/train::Pages.fit": [
        (
            "pages take as much of a run as they like",
            "<= FRACTION * run.state.seconds",
            "<= run.state.seconds * 1e9",
            TRAIN + "test_pages_take_a_small_part_of_a_run_and_do_not_count_as_training",
        ),
    ],
    "minigpt/train::Pages.reserve_s": [
        (
            "no time is kept for the page at the end",
            "return PAGE_S if END_FRACTION * self.budget_s >= PAGE_S else 0.0",
            "return 0.0",
            TRAIN + "test_with_a_budget_time_is_kept_for_the_page_at_the_end",
        ),
        (
            "the time that a page has taken is not kept for the next",
            "return self.last_s",
            "return 0.0",
            TRAIN + "test_a_page_amid_a_budget_counts_and_its_time_is_kept_for_the_next",
        ),
    ],
    "minigpt/train::Clock.leave_out": [
        (
            "pages count as training time",
            "self.last = self.first(time.perf_counter)",
            "pass",
            TRAIN + "test_pages_take_a_small_part_of_a_run_and_do_not_count_as_training",
        ),
    ],
    "minigpt/report::open_run": [
        (
            "a run in training reads its data again",
            "if data is None:",
            "if True:",
            TRAIN + "test_a_page_of_a_run_in_training_reads_no_data_again",
        ),
    ],
    "minigpt/report::Shown.sampled": [
        (
            "a run without samples has none made for it",
            "[self.made] * (self.made is not None)",
            "[]",
            RUN + "test_a_sample_made_for_the_page_is_no_line_of_the_run",
        ),
    ],
    "minigpt/train::write_or_note": [
        (
            "a run fails because of its page",
            "except Exception as error:",
            "except ImportError as error:",
            TRAIN + "test_a_run_never_fails_because_of_its_page",
        ),
    ],
    "minigpt/train::stop_page": [
        (
            "the page of a run that was stopped is renewed for ever",
            "end_page(run)",
            "pass",
            TRAIN + "test_the_page_of_a_run_that_is_stopped_is_renewed_no_longer",
        ),
    ],
}
