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
            "raise Taken from None",
            "return None",
            "train/test_run.py::test_a_folder_is_for_one_run_at_a_time",
        ),
    ],
}
