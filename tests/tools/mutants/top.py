"""Bugs in what stands beside the folders."""

MUTANTS = {
    "minigpt::Params.__init__": [
        (
            "gains stand among what decays",
            "key=lambda name: len(named[name]) < 2)",
            "key=lambda name: len(named[name]) < 1)",
            "test_params.py::test_matrices_come_first_and_only_they_decay",
        ),
    ],
    "minigpt::acquire": [
        (
            "what another process holds counts as free",
            "raise AlreadyLocked from None",
            "return None",
            "train/test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
    ],
    "minigpt::read_text": [
        (
            "a byte order mark is part of the text",
            r'.removeprefix("\ufeff")',
            "",
            "test_files.py::test_a_text_keeps_every_character_but_a_byte_order_mark",
        ),
    ],
    "minigpt::write_atomically": [
        (
            "the file is not synced before it is renamed",
            "os.fsync(file.fileno())",
            "",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        (
            "the old checkpoint is written over",
            'temporary = path.with_name(f"{path.name}{own}.tmp")',
            "temporary = path",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
    ],
}
