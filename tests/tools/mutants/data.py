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
    "minigpt/data::count_bits": [
        (
            "what follows a token is not weighed by how often the token comes",
            "(firsts + PRIOR)",
            "(len(train) + PRIOR)",
            "data/test_walk.py::test_a_code_by_counts_takes_the_bits_of_its_probabilities",
        ),
    ],
    "minigpt/data::PairTokenizer.byte_lengths": [
        (
            "END counts as a byte of its target",
            "np.append(self.target.byte_lengths, 0)",
            "np.append(self.target.byte_lengths, 1)",
            "sample/test_evaluation.py::test_the_end_of_a_target_and_its_padding_have_no_bytes",
        ),
    ],
    "minigpt/data::CharTokenizer.encode_parts": [
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
    ],
    "minigpt/data::windows": [
        (
            "a target is its own token",
            "as_int32(ids[1:][where])",
            "as_int32(ids[where])",
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
    "minigpt/data::TextData.__init__": [
        (
            "validation text is trained on",
            "ids[:border], ids[border:]",
            "ids, ids[border:]",
            "data/test_token_files.py::test_a_text_is_cut_at_nine_tenths_of_its_characters",
        ),
        (
            "a text is split after it was encoded",
            "encode_text(sources, found, tokenizer, self.split_at)",
            "(ids := encode_text(sources, found, tokenizer)[0], int(0.9 * len(ids)), [])",
            "data/test_token_files.py::test_subwords_are_of_one_part_of_the_split",
        ),
    ],
    "minigpt/data::TextData.new_tokenizer": [
        (
            "BPE is trained on the validation part, too",
            "itertools.takewhile(bool, texts)",
            "texts",
            "data/test_token_files.py::test_bpe_is_trained_on_the_training_part_alone",
        ),
    ],
    "minigpt/data::key_of": [
        (
            "a text has the same ids whatever the tokenizer",
            'found.sha256.encode("ascii") + table',
            'found.sha256.encode("ascii")',
            "data/test_token_files.py::test_another_text_or_tokenizer_has_a_file_of_its_own",
        ),
        (
            "a text in two parts has the file of the whole text",
            "if split is None or tokenizer.concatenates",
            "if True",
            "data/test_token_files.py::test_the_whole_text_has_another_file_than_its_two_parts",
        ),
    ],
    "minigpt/data::cut_at": [
        (
            "only the first part of a text is looked at",
            "left - len(text)",
            "left",
            "data/test_token_files.py::test_a_text_is_cut_after_so_many_characters",
        ),
    ],
    "minigpt/data::separate": [
        (
            "a text is cut within a word",
            "cut = found.end() if found else 0",
            "cut = len(part)",
            "data/test_subwords.py::test_a_text_in_parts_has_the_ids_of_the_whole",
        ),
        (
            "two texts are encoded as one",
            "if (cut or not part) and (whole",
            "if cut and (whole",
            "data/test_subwords.py::test_a_text_in_parts_has_the_ids_of_the_whole",
        ),
    ],
    "minigpt/data::BpeTokenizer.__init__": [
        (
            "special tokens count as bytes",
            "self.byte_lengths = np.array([*map(len, self._bytes)], np.int64)",
            "self.byte_lengths = np.array([*map(len, self.vocab | self.special)], np.int64)",
            "data/test_subwords.py::test_special_tokens_are_no_text_but_are_shown",
        ),
    ],
    "minigpt/data::ByteDecoder.flush": [
        (
            "bytes that wait at the end are lost",
            'self._decoder.decode(b"", final=True)',
            '""',
            "data/test_subwords.py::test_a_stream_shows_whole_characters_and_in_the_end_all_of_the_text",
        ),
    ],
    "minigpt/data::BpeTokenizer.decoder": [
        (
            "half a character is shown",
            "return ByteDecoder(self._joined)",
            "return StreamDecoder(self)",
            "data/test_subwords.py::test_a_stream_shows_whole_characters_and_in_the_end_all_of_the_text",
        ),
    ],
    "minigpt/data::checked": [
        (
            "a special token is found in texts",
            "for token, i in ids.items() if token not in special}",
            "for token, i in ids.items()}",
            "data/test_bpe_files.py::test_a_tokenizer_json_is_read_as_it_was_written",
        ),
    ],
    "minigpt/data::json_of": [
        (
            "a special token takes another id in the library",
            "(table.vocab | table.special).items()",
            "table.vocab.items()",
            "data/test_bpe_files.py::test_a_tokenizer_json_is_one_of_the_library_with_the_same_ids",
        ),
    ],
    "minigpt/data::new_model": [
        (
            "a space is put in front of a text",
            "add_prefix_space=False",
            "add_prefix_space=True",
            "data/test_subwords.py::test_what_has_no_token_is_named",
        ),
    ],
    "minigpt/data::split_by_position": [
        (
            "validation pairs are trained on",
            "for i, pair in enumerate(pairs, 1) if i % 10]",
            "for i, pair in enumerate(pairs, 1)]",
            "data/test_pairs.py::test_the_old_split_takes_every_tenth_pair",
        ),
    ],
    "minigpt/data::split_by_source": [
        (
            "pairs of one source stand on both sides",
            "if pair[0] in chosen",
            "if pair[0] in chosen and len(val) < len(chosen)",
            "data/test_pairs.py::test_a_tenth_of_the_sources_is_for_validation_with_all_their_pairs",
        ),
        (
            "the split follows the order of the file",
            "sorted(sources, key=sha256)",
            "list(sources)",
            "data/test_pairs.py::test_the_split_follows_the_texts_and_not_their_order",
        ),
    ],
    "minigpt/data::notes_on": [
        (
            "a source counts as one with several targets if it comes again",
            "if targets.setdefault(source, target) != target",
            "if source in targets or targets.update({source: target})",
            "data/test_pairs.py::test_what_is_odd_about_a_split_is_noted",
        ),
    ],
    "minigpt/data::needed_length": [
        (
            "the block size follows an outlier",
            "max(LONG, min(4 * usual, TOO_LONG))",
            "TOO_LONG",
            "data/test_pairs.py::test_the_length_that_is_needed_leaves_outliers_to_the_user",
        ),
    ],
    "minigpt/data::split_lines": [
        (
            "a carriage return always ends a line",
            'end = "\\n" if "\\n" in text else "\\r"',
            'text, end = text.replace("\\r\\n", "\\n").replace("\\r", "\\n"), "\\n"',
            "data/test_pair_files.py::test_a_table_of_lines",
        ),
    ],
    "minigpt/data::read_table": [
        (
            "columns are taken by their place, whatever the header says",
            "[names.index(key) for key in keys or ()] or [0, 1]",
            "[0, 1]",
            "data/test_pair_files.py::test_sides_have_the_names_that_people_give_them",
        ),
        (
            "a blank line is malformed",
            "yield number, None",
            "yield number, needed(len(row), width)",
            "data/test_pair_files.py::test_blank_lines_are_left_out_and_counted",
        ),
    ],
    "minigpt/data::csv_rows": [
        (
            "a row is named after its last line",
            "yield number, row",
            "yield rows.line_num, row",
            "data/test_pair_files.py::test_a_bad_line_is_named",
        ),
    ],
    "minigpt/data::skips_blanks": [
        (
            "blanks are left out of files whose header has none",
            "plain[1:] != skipped[1:] and ",
            "",
            "data/test_pair_files.py::test_blanks_after_commas_count_nowhere_if_the_header_has_them",
        ),
    ],
    "minigpt/data::csv_reader": [
        (
            "a field has the length that module csv allows",
            "csv.field_size_limit(FIELD)",
            "pass",
            "data/test_pair_files.py::test_a_field_may_be_of_any_length",
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
    "minigpt/data::CharTokenizer._remedy": [
        (
            "a form that the vocabulary has not is advised",
            "if other != part and chars.issuperset(other):",
            "if other != part:",
            "data/test_tokenizers.py::test_an_unknown_character_can_be_seen_and_what_to_do_is_said",
        ),
    ],
    "minigpt/data::CharTokenizer._encode": [
        (
            "what ASCII lacks gets an id",
            'if b"\\xff" not in ids:',
            "if True:",
            "data/test_tokenizers.py::test_every_other_character_is_unknown",
        ),
    ],
    "minigpt/data::find_sources": [
        (
            "a file that is named twice is read twice",
            "once.setdefault(identity(path), Source(path))",
            "once[len(once)] = Source(path)",
            "data/test_sources.py::test_data_names_files_folders_and_globs",
        ),
    ],
    "minigpt/data::folder_files": [
        (
            "the folder of a run is taken for texts",
            "if METRICS in files and path != folder:",
            "if False:",
            "data/test_sources.py::test_data_names_files_folders_and_globs",
        ),
        (
            "files come as the disk has them",
            "sorted(found, key=lambda path: path.split(os.sep))",
            "found[::-1]",
            "data/test_sources.py::test_data_names_files_folders_and_globs",
        ),
    ],
    "minigpt/data::read_parts": [
        (
            "the last line of a file and the first of the next are one",
            'yield b"\\n", "\\n"',
            "pass",
            "data/test_survey.py::test_parts_are_the_joined_text_in_whole_characters",
        ),
    ],
    "minigpt/data::parts_of": [
        (
            "a byte order mark is a character",
            "begin.removeprefix(MARK)",
            "begin",
            "data/test_survey.py::test_parts_are_the_joined_text_in_whole_characters",
        ),
        (
            "a place is counted from the part",
            "offset += used",
            "pass",
            "data/test_survey.py::test_a_byte_that_does_not_fit_is_named_with_its_place",
        ),
    ],
    "minigpt/data::survey": [
        (
            "a line end between two parts is not seen",
            ' + (last.endswith(b"\\r") and raw.startswith(b"\\n"))',
            "",
            "data/test_survey.py::test_a_survey_counts_as_if_the_text_were_whole",
        ),
    ],
    "minigpt/data::dtype_of": [
        (
            "an id too many for a byte",
            "if vocab_size <= n",
            "if vocab_size <= n + 1",
            "data/test_token_files.py::test_ids_are_as_small_as_the_vocabulary_allows",
        ),
    ],
    "minigpt/data::SmallIds.__iter__": [
        (
            "a text that changes is kept under the name of the one before",
            "sha256.hexdigest() != self.found.sha256",
            "False",
            "data/test_token_files.py::test_a_text_that_changes_while_it_is_read_is_refused",
        ),
    ],
    "minigpt/data::beginnings": [
        (
            "a later part goes on where the one before has ended",
            "left = most\n            yield text",
            "yield text",
            "data/test_excerpts.py::test_parts_of_texts_end_after_so_many_characters",
        ),
    ],
    "minigpt/data::encode_beginnings": [
        (
            "ids that are kept in a file are not used",
            "if kept is not None:",
            "if False:",
            "data/test_excerpts.py::test_ids_that_are_kept_in_a_file_are_all_there",
        ),
    ],
    "minigpt/data::pair_excerpt": [
        (
            "an excerpt of pairs is of their beginning",
            "part[:: -(-len(part) // PAIRS)]",
            "part[:PAIRS]",
            "data/test_excerpts.py::test_of_many_pairs_some_are_there_at_even_distances",
        ),
    ],
    "minigpt/data::read_tokens": [
        (
            "the border in a file is not read",
            'fields.get("border", int(0.9 * count))',
            "int(0.9 * count)",
            "data/test_token_files.py::test_subwords_are_of_one_part_of_the_split",
        ),
        (
            "a damaged file is trained on",
            "crc32 = zlib.crc32(block, crc32)",
            'crc32 = fields["crc32"]',
            "data/test_token_files.py::test_a_damaged_file_is_made_anew",
        ),
    ],
    "minigpt/data::turn": [
        (
            "each of many processes makes the file",
            'acquire(path.with_suffix(".lock"), WAIT)',
            "None",
            "data/test_token_files.py::test_many_that_start_at_once_make_one_file",
        ),
    ],
    "minigpt/data::only_in": [
        (
            "a character that is trained on counts as unseen",
            "= part is ids",
            "|= part is ids",
            "data/test_batches.py::test_tokens_of_one_part_only",
        ),
    ],
    "minigpt/data::cache_folder": [
        (
            "a relative folder is the cache",
            "if os.path.isabs(folder):",
            "if folder:",
            "data/test_corpus.py::test_without_a_home_nothing_is_kept",
        ),
    ],
    "minigpt/data/__main__.py::cut_text": [
        (
            "a giant word is printed whole",
            "if line == text",
            "if True",
            "data/test_walk.py::test_what_is_printed_is_as_small_whatever_the_text",
        ),
    ],
}
