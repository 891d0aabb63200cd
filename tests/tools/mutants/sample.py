"""Bugs in sampling, the KV cache and beam search."""

STEP = "sample/test_step.py::test_a_step_is_the_forward_pass_of_one_token"
CACHED = "sample/test_generate.py::test_cached_decoding_is_the_full_forward"

MUTANTS = {
    "minigpt/sample::DecoderCache.take": [
        (
            "rows that change places leave their last token behind",
            "self.previous = self.previous[to_device(rows, xp)]",
            "pass",
            "sample/test_beam.py::test_a_row_that_is_taken_goes_on_as_the_other_did",
        ),
        (
            "the cache stays with its row when hypotheses move",
            "self.store[:, :, there, :, :n]",
            "self.store[:, :, here, :, :n]",
            "sample/test_beam.py::test_cached_decoding_is_the_full_forward",
        ),
    ],
    "minigpt/sample::KVCache.advance": [
        (
            "the first token of a part is remembered, not the last",
            "self.previous = ids[:, -1]",
            "self.previous = ids[:, 0]",
            CACHED,
        ),
    ],
    "minigpt/sample::KVCache.reset": [
        (
            "a cache that is emptied remembers its last token",
            "self.length, self.previous = 0, None",
            'self.length, self.previous = 0, getattr(self, "previous", None)',
            CACHED,
        ),
    ],
    "minigpt/sample::LayerKV.append": [
        (
            "a token's values replace those before it",
            "self.v[:, :, self.length : end] = v",
            "self.v[:, :, max(self.length - 1, 0) : end] = v[:, :, -1:]",
            CACHED,
        ),
    ],
    "minigpt/sample::draw": [
        (
            "what has no probability is drawn",
            "(mass <= uniforms[:, None]",
            "(mass < uniforms[:, None]",
            "sample/test_sampling.py::test_what_has_no_probability_is_never_drawn",
        ),
    ],
    "minigpt/sample::threads_of": [
        (
            "threads have parts that are too small for them",
            "work // PART_WORK",
            "work",
            "sample/test_generate.py::test_threads_have_enough_to_do",
        ),
    ],
    "minigpt/sample::part_of": [
        (
            "a part has the tokens before its rows from the first rows",
            "kv.previous[rows]",
            "kv.previous[: rows.stop - rows.start]",
            "sample/test_generate.py::test_rows_are_the_same_over_threads",
        ),
    ],
    "minigpt/sample::generate": [
        (
            "every thread has the rows of the first",
            "ids[rows]",
            "ids[: rows.stop - rows.start]",
            "sample/test_generate.py::test_rows_are_the_same_over_threads",
        ),
        (
            "parts of the rows read as much at a time as all rows",
            "rows), B)",
            "rows))",
            "sample/test_generate.py::test_rows_are_the_same_over_threads",
        ),
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
            "a full context goes on from its stale half",
            "context[:, :n] = context[:, config.block_size - n :]",
            "context[:, :n] = context[:, :n].copy()",
            CACHED,
        ),
    ],
    "minigpt/sample::is_step": [
        (
            "plain mode steps, too",
            " and not is_plain()",
            "",
            "sample/test_step.py::test_decoding_takes_steps_but_not_in_plain_mode",
        ),
    ],
    "minigpt/sample::step": [
        (
            "a step rotates as the token before",
            "angles(x, kv.length, 1,",
            "angles(x, max(kv.length - 1, 0), 1,",
            STEP,
        ),
        ("a step is not counted", "kv.advance(ids)", "pass", STEP),
    ],
    "minigpt/sample::norm": [
        ("a step's layernorms have no eps", "std += EPS", "pass", STEP),
        ("a step's layernorms have no bias", "y += b", "pass", STEP),
    ],
    "minigpt/sample::linear": [
        ("a step's linear layers have no bias", "y += b", "pass", STEP),
        ("a step's adapters have no scale", "scale * ", "", STEP),
    ],
    "minigpt/sample::cross_attention": [
        (
            "a step sees the padding of its memory",
            "key_mask=seen",
            "key_mask=None",
            "sample/test_step.py::test_a_step_of_a_decoder_reads_what_it_may_of_the_memory",
        ),
    ],
    "minigpt/sample::next_probabilities": [
        (
            "top-p is a token short",
            "(mass < top_p).sum(axis=-1, keepdims=True) + 1",
            "(mass < top_p).sum(axis=-1, keepdims=True)",
            "sample/test_sampling.py::test_probabilities_are_those_of_the_naive_rules",
        ),
    ],
    "minigpt/sample::exact_match": [
        (
            "the first validation pairs stand for all",
            "some_of(data.val_pairs, MEASURED_PAIRS)",
            "data.val_pairs[:MEASURED_PAIRS]",
            "train/test_train_seq2seq.py"
            "::test_exact_match_is_of_pairs_spread_over_the_whole_validation_part",
        ),
    ],
    "minigpt/sample::score_pairs": [
        (
            "an answer that was cut off is right",
            "if not (best.ended and best.text == target)",
            "if best.text != target",
            "sample/test_score.py::test_an_answer_that_is_cut_off_is_wrong_and_marked",
        ),
    ],
    "minigpt/sample::answers_to": [
        (
            "answers stand in the order in which they are made",
            "in zip(part, answered, strict=True)",
            "in zip(range(done, done + len(part)), answered, strict=True)",
            "sample/test_score.py::test_answers_stand_by_their_lines_in_whatever_order_they_are_made",
        ),
    ],
    "minigpt/sample::score_text": [
        (
            "the first token counts, though nothing predicts it",
            "removed.update(tokenizer.decoder().push(ids[:1].tolist()))",
            "pass",
            "sample/test_score.py::test_bits_are_per_character_and_per_byte_of_what_is_predicted",
        ),
    ],
    "minigpt/sample/score.py::score": [
        (
            "what could not be scored leaves the exit code 0",
            'return 2 if found["not_scored"] else 0',
            "return 0",
            "sample/test_score.py::test_bad_lines_are_told_by_number_and_the_others_are_scored",
        ),
    ],
    "minigpt/sample::stream_texts": [
        (
            "what follows the end of a text is a part of it",
            "text if over else text + decoder.push([i])",
            "text + decoder.push([i])",
            "sample/test_any_tokenizer.py::test_the_end_of_a_text_ends_it_and_is_not_shown",
        ),
        (
            "texts that have all ended go on",
            "if all(map(operator.or_, stopped, ended)):",
            "if all(stopped):",
            "sample/test_any_tokenizer.py::test_the_end_of_a_text_ends_it_and_is_not_shown",
        ),
        (
            "a character that is not complete at the end is left out",
            "text + decoder.flush()",
            "text",
            "sample/test_any_tokenizer.py::test_a_stream_shows_whole_characters_alone",
        ),
        (
            "tokens are decoded one by one",
            "decoder.push([i])",
            "tokenizer.decode([i])",
            "sample/test_any_tokenizer.py::test_a_stream_shows_whole_characters_alone",
        ),
    ],
    "minigpt/sample::search": [
        (
            "what has ended grows longer",
            "length + ~done",
            "length + 1",
            "sample/test_beam.py::test_a_wide_beam_finds_the_best_of_all",
        ),
    ],
    "minigpt/sample::read_lines": [
        (
            "a CR at the end of a part is a line's end, whatever follows",
            'b"\\r" in rest[:-1]',
            'b"\\r" in rest',
            "sample/test_lines.py::test_lines_are_the_same_however_they_arrive",
        ),
        (
            "CR ends no line",
            'end = b"\\r"',
            'end = b"\\n"',
            "sample/test_lines.py::test_lines_end_as_on_any_system",
        ),
    ],
    "minigpt/sample::on_one_line": [
        (
            "an answer with a line break is printed on two lines",
            r'.replace("\n", r"\n")',
            "",
            "sample/test_sample_seq2seq.py::test_a_line_break_in_an_answer_does_not_end_its_line",
        ),
    ],
    "minigpt/sample::print_answers": [
        (
            "a line without an answer leaves the exit code 0",
            "status = 2",
            "status = 0",
            "sample/test_lines.py::test_a_bad_line_has_an_empty_answer_and_a_line_of_error_and_the_rest_is_answered",
        ),
        (
            "an answer that was cut off is printed as if it were whole",
            "not ranked[0].ended",
            "not ranked",
            "sample/test_limits.py::test_an_answer_that_was_cut_off_is_named_by_its_line",
        ),
    ],
    "minigpt/sample::lines_that_fit": [
        (
            "a batch has as many lines whatever the beam",
            "// (source + beam * candidate)",
            "// (source + candidate)",
            "sample/test_limits.py::test_rows_fit_in_memory_or_are_one",
        ),
    ],
    "minigpt/sample::step_bytes": [
        (
            "the vocabulary takes no memory",
            " + 8 * COPIES * config.vocab_size",
            "",
            "sample/test_limits.py::test_rows_fit_in_memory_or_are_one",
        ),
    ],
    "minigpt/sample::largest": [
        (
            "of equals at the border none is found",
            "row >= least",
            "row > least",
            "sample/test_limits.py::test_the_largest_are_those_of_a_stable_sort",
        ),
    ],
    "minigpt/sample::print_texts": [
        (
            "a stop string that never came is passed over",
            "stopped < n",
            "stopped < 0",
            "sample/test_limits.py::test_a_stop_string_that_never_came_is_reported",
        ),
    ],
    "minigpt/sample::Progress.show": [
        (
            "lines come at even intervals",
            "self.due = 2 * self.seconds",
            "self.due = 10 + self.seconds",
            "sample/test_limits.py::test_long_work_shows_a_line_at_growing_intervals",
        ),
    ],
}
