"""Bugs in what stands beside the folders."""

MUTANTS = {
    "minigpt::Params.__init__": [
        (
            "gains stand among what decays",
            "key=lambda leaf: len(named[leaf[0]]) < 2",
            "key=lambda leaf: len(named[leaf[0]]) < 1",
            "test_params.py::test_matrices_come_first_and_only_they_decay",
        ),
    ],
    "minigpt::at_work": [
        (
            "a lock's file says nothing",
            "recent if holder",
            "False if holder",
            "test_locks.py::test_another_process_with_the_number_of_a_dead_one_holds_nothing",
        ),
        (
            "a killed run blocks the folder for good",
            'holder["born"] == born(holder["pid"])',
            "True",
            "test_locks.py::test_another_process_with_the_number_of_a_dead_one_holds_nothing",
        ),
    ],
    "minigpt::try_once": [
        (
            "what another process holds counts as free",
            "not free or at_work(holder, fd)",
            "at_work(holder, fd)",
            "test_locks.py::test_one_at_a_time_has_a_lock",
        ),
        (
            "only the system's locks count",
            "not free or at_work(holder, fd)",
            "not free",
            "test_locks.py::test_a_living_process_of_this_host_keeps_its_lock",
        ),
    ],
    "minigpt::again": [
        (
            "what fails once is not tried again",
            "time.sleep(pause)",
            "raise",
            "test_files.py::test_what_is_in_the_way_for_a_moment_does_not_prevent_a_write",
        ),
    ],
    "minigpt::append": [
        (
            "a part of a line stays where the disk is full",
            "file.truncate(size)",
            "pass",
            "test_files.py::test_lines_are_added_whole_or_not_at_all",
        ),
    ],
    "minigpt::make_folder": [
        (
            "a folder stays where nothing is kept",
            "path.rmdir()",
            "pass",
            "data/test_corpus.py::test_a_failed_download_leaves_no_folder",
        ),
    ],
    "minigpt::decode_utf8": [
        (
            "a byte order mark is a character of the line",
            r'.removeprefix("\ufeff")',
            "",
            "sample/test_lines.py::test_byte_order_marks_are_dropped_in_front_and_where_files_were_joined",
        ),
        (
            "a byte order mark is part of the text",
            r'.removeprefix("\ufeff")',
            "",
            "test_files.py::test_a_text_keeps_every_character_but_a_byte_order_mark",
        ),
    ],
    "minigpt::replace": [
        (
            "the file is not synced before it is renamed",
            "os.fsync(file.fileno())",
            "",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
    ],
    "minigpt::replacing": [
        (
            "the old checkpoint is written over",
            'temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")',
            "temporary = path",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
    ],
    "minigpt::write_atomically": [
        (
            "a file takes the place of a link",
            "path = real_path(path)",
            "path = Path(path)",
            "test_files.py::test_a_link_stays_and_the_file_that_it_points_to_is_replaced",
        ),
        (
            "what is marked read-only is replaced",
            "if marked_read_only(path):",
            "if False:",
            "test_files.py::test_a_file_that_is_marked_read_only_is_not_replaced",
        ),
    ],
}
