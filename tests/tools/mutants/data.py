"""Bugs in text and pairs, tokenizers and batches."""

MUTANTS = {
    "minigpt/data/pairs.py::count_targets": [
        (
            "padding counts as a target",
            "return int((targets >= 0).sum())",
            "return targets.size",
            "train/test_train_seq2seq.py::test_a_step_is_the_mean_over_all_targets_of_all_its_batches",
        ),
    ],
    "minigpt/data::CharTokenizer.encode": [
        (
            "an unknown character gets an id",
            "if ids.min(initial=0) < 0:",
            "if ids.min(initial=0) < -1:",
            "data/test_tokenizers.py::test_every_other_character_is_unknown",
        ),
    ],
    "minigpt/data::CharTokenizer.from_text": [
        (
            "ids in the order of the text",
            '"".join(sorted(set(text)))',
            '"".join(dict.fromkeys(text))',
            "data/test_tokenizers.py::test_vocabulary_is_the_sorted_set",
        ),
    ],
    "minigpt/data::Pairs.lengths": [
        (
            "a pair is as long as its shorter side",
            "np.maximum(",
            "np.minimum(",
            "data/test_pairs.py::test_pairs_that_are_too_long",
        ),
    ],
    "minigpt/data::Sequences.of": [
        (
            "a token is taken for a character",
            "ids, lengths = tokenizer.encode_each(texts)",
            "ids, lengths = tokenizer.encode_each(texts)[0], np.array([*map(len, texts)])",
            "sample/test_any_tokenizer.py::test_pairs_are_as_long_as_their_tokens",
        ),
    ],
    "minigpt/data::_fetch_once": [
        (
            "a copy that another process has just made is not looked for",
            "with _take_turn():\n        return _read_cache() or _download_to_cache()",
            "with _take_turn():\n        return _download_to_cache()",
            "sample/test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
    ],
    "minigpt/data::_take_turn": [
        (
            "nobody waits for who downloads",
            "lock = acquire(path)",
            "lock = None",
            "sample/test_side_by_side.py::test_many_processes_download_once_and_train_on_the_same_text",
        ),
        (
            "without a network each waits for all before it",
            "release(acquire(path, WAIT))",
            "lock = acquire(path, WAIT)",
            "sample/test_side_by_side.py::test_who_has_waited_in_vain_downloads_at_once",
        ),
    ],
    "minigpt/data::weyl": [
        (
            "Weyl starts begin anew with each step",
            "np.arange(row, row + batch_size, dtype=np.uint64)",
            "np.arange(batch_size, dtype=np.uint64)",
            "data/test_batches.py::test_weyl_starts_leave_no_part_of_the_text_out",
        ),
        (
            "Weyl starts are not even",
            "fraction = (first + i * GOLDEN)",
            "fraction = (first + i * (GOLDEN >> np.uint64(1)))",
            "data/test_batches.py::test_weyl_starts_have_gaps_of_three_lengths",
        ),
    ],
    "minigpt/data::random_batch": [
        (
            "the last start in a text is never drawn",
            "SAMPLERS[sampler](len(ids) - block_size,",
            "SAMPLERS[sampler](len(ids) - block_size - 1,",
            "data/test_batches.py::test_random_batch_reaches_every_start_equally_often",
        ),
        (
            "a target is its own token",
            "return ids[where], ids[1:][where]",
            "return ids[where], ids[where]",
            "data/test_batches.py::test_random_batch_is_in_range_and_y_is_x_moved_on",
        ),
    ],
    "minigpt/data::random_pairs": [
        (
            "every bucket comes as often as any other",
            "pairs.bucket[bits[0] % np.uint64(len(pairs))]",
            "np.unique(pairs.bucket)[bits[0] % np.uint64(len(np.unique(pairs.bucket)))]",
            "data/test_pairs.py::test_lengths_in_a_batch_are_alike_and_pairs_equally_frequent",
        ),
    ],
    "minigpt/data::uniform": [
        (
            "neighbouring steps share their draws",
            "counter=number << 64",
            "counter=number",
            "data/test_batches.py::test_steps_and_seeds_share_no_draws",
        ),
    ],
    "minigpt/data::split": [
        (
            "validation text is trained on",
            "return ids[:n], ids[n:]",
            "return ids, ids[n:]",
            "data/test_batches.py::test_split_is_nine_tenths",
        ),
    ],
    "minigpt/data::split_pairs": [
        (
            "validation pairs are trained on",
            "for i, pair in enumerate(pairs, 1) if i % 10]",
            "for i, pair in enumerate(pairs, 1)]",
            "data/test_pairs.py::test_every_tenth_pair_is_for_validation",
        ),
    ],
    "minigpt/data/batches.py::eval_batches": [
        (
            "the end of the split is not evaluated",
            "if whole < n and",
            "if whole < n < block_size and",
            "train/test_step.py::test_an_evaluation_counts_every_prediction_of_the_split_once",
        ),
    ],
}
