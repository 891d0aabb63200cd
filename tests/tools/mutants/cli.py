"""Bugs in command lines and configs."""

FLAGS, OLD = "cli/test_flags.py::", "train/test_old_runs.py::"
TERMINAL, VALUES = "cli/test_terminal.py::", "cli/test_values.py::"
IN_PYTHON = FLAGS + "test_a_config_made_in_python_is_checked_like_a_command_line"

MUTANTS = {
    "minigpt/cli::Config.__post_init__": [
        (
            "a config made in Python is not checked",
            "in fields_of(type(self)).items()",
            "in ()",
            IN_PYTHON,
        ),
    ],
    "minigpt/cli::Field.is_none": [
        (
            "none is a value of every option",
            "and NoneType in self.types",
            "",
            "cli/test_flags.py::test_none_takes_a_value_away_where_there_may_be_none",
        ),
    ],
    "minigpt/cli::Field.check": [
        (
            "a bound is not checked",
            "if not WITHIN[word](value, bound)",
            "if False",
            IN_PYTHON,
        ),
    ],
    "minigpt/cli::converted": [
        (
            "a number of NumPy is refused",
            "        return int(value)\n",
            "        return value\n",
            FLAGS + "test_numbers_and_paths_of_other_libraries_are_accepted",
        ),
        (
            "a whole number that no float can hold is rounded",
            "isinstance(value, numbers.Integral) and same != value",
            "False",
            "train/test_config.py::test_a_whole_number_is_not_rounded_to_a_float",
        ),
    ],
    "minigpt/cli::rename": [
        (
            "values of old names stay old",
            "values.get(value, value) if",
            "value if",
            OLD + "test_old_names_become_new_ones",
        ),
    ],
    "minigpt/cli::stored": [
        (
            "what an old checkpoint lacks has the default of today",
            "{**old, **rename(options)}",
            "rename(options)",
            OLD + "test_what_an_old_checkpoint_lacks_has_its_value_of_then",
        ),
    ],
    "minigpt/cli::Parser.split": [
        (
            "the underscores of a flag stay",
            'flag.replace("_", "-")',
            "flag",
            FLAGS + "test_flags_are_understood_as_nanogpt_writes_them",
        ),
    ],
    "minigpt/cli::Parser.take": [
        (
            "what a flag takes is the next flag",
            "if self.split(words[0])[1] is not None:",
            "if False:",
            FLAGS + "test_a_bad_command_line_is_one_line_on_stderr",
        ),
        (
            "a flag of several values takes one",
            "while words and",
            "while not words and",
            VALUES + "test_a_flag_of_several_values_takes_all_up_to_the_next",
        ),
    ],
    "minigpt/cli::Parser._get_values": [
        (
            "the value -- is lost",
            "if isinstance(action, Value):",
            "if False:",
            VALUES + "test_a_value_may_begin_with_a_dash",
        ),
    ],
    "minigpt/cli::command": [
        (
            "a name that begins with a dash is taken for a flag",
            '"=" if text.startswith("-") else " "',
            '" "',
            TERMINAL + "test_a_shell_reads_from_a_command_what_was_put_in",
        ),
    ],
    "minigpt/cli::shell_word": [
        (
            "a quotation mark ends the word",
            "if 32 <= b < 127 and",
            "if 32 <= b < 127 or",
            TERMINAL + "test_a_shell_reads_from_a_command_what_was_put_in",
        ),
    ],
    "minigpt/cli::visible_char": [
        (
            "a mark is drawn over its neighbour",
            '.startswith("M") or',
            '.startswith("X") or',
            "cli/test_characters.py::test_a_mark_in_quotes_is_an_escape",
        ),
    ],
    "minigpt/cli::token_table": [
        (
            "a table is wider than the terminal",
            "<= width:",
            "> 0:",
            "cli/test_characters.py::test_a_token_table_fits_a_terminal",
        ),
    ],
    "minigpt/cli::use_utf8": [
        (
            "output is in the encoding of the locale",
            'encoding=encoding or "utf-8"',
            "encoding=encoding or None",
            TERMINAL + "test_output_is_utf8_in_a_locale_of_ascii",
        ),
        (
            "PYTHONIOENCODING is not heard",
            'encoding=encoding or "utf-8"',
            'encoding="utf-8"',
            TERMINAL + "test_pythonioencoding_is_obeyed",
        ),
    ],
    "minigpt/cli::printable": [
        (
            "a file gets escapes",
            "and stream.isatty()",
            "",
            TERMINAL + "test_a_terminal_gets_escapes_for_control_characters",
        ),
    ],
    "minigpt/cli::Parser.switch": [
        (
            "=False is understood as =True",
            "if SWITCH[value.lower()]:",
            "if True:",
            FLAGS + "test_flags_are_understood_as_nanogpt_writes_them",
        ),
    ],
    "minigpt/cli::nearest": [
        (
            "a value that is no text has no nearest name",
            "str(word).lstrip(",
            "word.lstrip(",
            "train/test_train_input.py::test_a_config_file_that_is_no_good",
        ),
    ],
}
