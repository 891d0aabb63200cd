"""Bugs in what a page says of a run."""

CONTENTS = "report/test_contents.py::"
LOSSES = "report/test_token_losses.py::"

MUTANTS = {
    "minigpt/report::extremes": [
        (
            "a spike of the loss is thinned out",
            "kept += {max(",
            "kept += {min(",
            CONTENTS + "test_many_lines_are_thinned_out_and_extremes_and_evaluations_stay",
        ),
    ],
    "minigpt/files.py::read_metrics": [
        (
            "damaged lines are not named",
            "damaged.append(number)",
            "pass",
            CONTENTS + "test_damaged_lines_amid_the_metrics_are_named_and_a_torn_last_one_is_not",
        ),
        (
            "a torn last line is damage",
            'text.endswith("\\n") and ',
            "",
            CONTENTS + "test_damaged_lines_amid_the_metrics_are_named_and_a_torn_last_one_is_not",
        ),
    ],
    "minigpt/files.py::are_metrics": [
        (
            "numbers that are not finite are metrics",
            " and abs(value) < TOO_LARGE",
            "",
            CONTENTS + "test_a_line_with_a_value_that_no_metric_has_is_damaged",
        ),
    ],
    "minigpt/report::find_prompt": [
        (
            "attention is shown for a text of two characters",
            "len(text) >= FEW",
            "True",
            "report/test_run_page.py::test_attention_is_shown_for_a_text_that_is_worth_a_look",
        ),
    ],
    "minigpt/report::adapter_gradients": [
        (
            "the gradient of a factor lacks the scale",
            "adapter.lora.scale * ",
            "",
            CONTENTS + "test_gradient_norms_of_an_adapter_are_those_that_training_would_have",
        ),
    ],
    "minigpt/report::open_run_data": [
        (
            "data that have changed are taken for the run's",
            "data.sha256 not in (None, data_of(state))",
            "False",
            CONTENTS + "test_the_data_of_a_run_are_found_again_or_it_is_said_why_not",
        ),
    ],
    "minigpt/report::read_kept": [
        (
            "a damaged script is put into pages",
            "head + end == head_of(script)",
            "True",
            "report/test_vega.py::test_the_script_is_made_once_and_anew_if_its_file_is_damaged",
        ),
    ],
    "minigpt/report::token_losses": [
        (
            "targets are those of other places",
            "to_host(targets)[:, first:]",
            "to_host(targets)[:, : targets.shape[1] - first]",
            LOSSES + "test_the_losses_of_tokens_have_the_mean_of_the_loss",
        ),
    ],
    "minigpt/report::rank_passages": [
        (
            "a passage has no context",
            "first = T // 2",
            "first = 0",
            LOSSES + "test_passages_of_a_text_are_ranked_by_their_mean_loss",
        ),
    ],
    "minigpt/report::clocks": [
        (
            "ops of other threads are timed",
            "threading.get_ident() != own",
            "False",
            "report/test_cost.py::test_calls_of_other_threads_are_not_timed",
        ),
    ],
    "minigpt/report::time_update": [
        (
            "the update is that of one block",
            "layers * time_steps(muon)",
            "time_steps(muon)",
            "report/test_cost.py::test_the_update_is_timed_of_all_weights",
        ),
    ],
}
