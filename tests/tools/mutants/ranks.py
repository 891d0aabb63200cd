"""Bugs in training by several processes."""

RANKS = "train/test_ranks.py::"

MUTANTS = {
    "minigpt/train::Alone.rows": [
        (
            "every rank takes all rows",
            "shard_slices(n, self.size)",
            "[slice(0, n)] * self.size",
            RANKS + "test_rows_of_all_ranks_are_those_of_the_batch",
        ),
    ],
    "minigpt/train::Trainer.shards": [
        (
            "dropout of a rank begins at its own first row",
            "slice(first + part.start, first + part.stop)",
            "slice(part.start, part.stop)",
            RANKS + "test_losses_are_those_of_one_process",
        ),
    ],
    "minigpt/train::Trainer.sum_over_ranks": [
        (
            "losses of other ranks are left out",
            "self._sent[-1] = loss  # one sum for both",
            "self._sent[-1] = loss / self.ranks.size",
            RANKS + "test_losses_are_those_of_one_process",
        ),
    ],
    "minigpt/train::Ranks.map": [
        (
            "results of an evaluation come in the order of the ranks",
            "results[rank :: self.size] = part",
            "results[rank * len(part) : (rank + 1) * len(part)] = part",
            RANKS + "test_an_evaluation_is_shared_out_and_its_loss_is_the_same_to_the_bit",
        ),
    ],
    "minigpt/train::Ranks._heed": [
        (
            "a rank that fails is not heeded",
            "if why is not None",
            "if False",
            RANKS + "test_a_rank_that_fails_ends_the_others_where_they_meet_next",
        ),
        (
            "ranks meet whatever they have come for",
            "other != place for",
            "False for",
            RANKS + "test_ranks_at_different_places_end",
        ),
    ],
    "minigpt/train::Run.try_to_save": [
        (
            "a run goes on without a rank that has failed",
            "raise  # training does not go on",
            "return False",
            RANKS + "test_a_run_does_not_go_on_without_a_rank_that_fails_during_a_save",
        ),
    ],
    "minigpt/train::check_same_weights": [
        (
            "weights that differ are not noticed",
            "if odd is not None",
            "if False",
            RANKS + "test_weights_that_differ_are_noticed",
        ),
    ],
    "minigpt/optim::cut_evenly": [
        (
            "a matrix is cut",
            "if start < at < stop",
            "if False",
            RANKS + "test_parts_cover_a_buffer_in_order_and_cut_nothing_that_is_whole",
        ),
    ],
    "minigpt/optim::AdamW.update": [
        (
            "moments of a part are those of its first numbers",
            "slice(start - self.own.start, stop - self.own.start)",
            "slice(0, stop - start)",
            RANKS + "test_a_sharded_optimizer_takes_the_same_steps",
        ),
    ],
    "minigpt/optim::AdamW.prepare": [
        (
            "the norm is that of the own part",
            "if total is not None",
            "if False",
            RANKS + "test_a_sharded_optimizer_takes_the_same_steps",
        ),
    ],
}
