"""Bugs in training by several processes."""

RANKS = "train/test_ranks.py::"
LINE = "train/test_lifeline.py::"

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
    "minigpt/train::Ranks.gather": [
        (
            "a signal stays at the rank that has received it",
            "if signals and",
            "if False and",
            RANKS + "test_a_signal_at_some_ranks_is_announced_once_and_at_once_and_obeyed_by_all",
        ),
    ],
    "minigpt/train::meet": [
        (
            "those that have come hear nothing of one that did not",
            "line.close(why)",
            "line.close()",
            LINE + "test_those_that_have_come_are_told_who_did_not",
        ),
    ],
    "minigpt/train::Ranks.announce": [
        (
            "each rank says that it obeys a signal",
            "if self.rank and self._lifeline.connected",
            "if False",
            RANKS + "test_a_signal_at_some_ranks_is_announced_once_and_at_once_and_obeyed_by_all",
        ),
    ],
    "minigpt/train::Interrupt.note": [
        (
            "a signal that another process has received makes the first here the second",
            "first, self._noted, self.signal = not self._noted, True,",
            "first, self._noted, self.signal = self.signal is None, True,",
            RANKS + "test_a_signal_that_comes_to_all_is_not_the_second_for_those_that_know_of_it",
        ),
    ],
    "minigpt/train::Trainer.step": [
        (
            "ranks learn of no signal between the batches of a step",
            "if i:",
            "if False:",
            RANKS + "test_a_signal_amid_the_batches_of_a_step_leaves_it",
        ),
    ],
    "minigpt/train::Trainer.evaluate": [
        (
            "some ranks have no batch of an evaluation",
            "-(-GROUP // at_once) * at_once",
            "GROUP",
            RANKS + "test_each_thread_of_each_rank_has_as_many_batches_of_an_evaluation_at_a_time",
        ),
    ],
    "minigpt/train::Ranks.__exit__": [
        (
            "an interrupt at the end leaves the others alone",
            "except KeyboardInterrupt:",
            "except ZeroDivisionError:",
            RANKS + "test_an_interrupt_at_the_end_leaves_in_order",
        ),
    ],
    "minigpt/train::find_place": [
        (
            "processes of torchrun are those of srun, which has started it",
            "if all(map(environ.get, MEETING))",
            "if False",
            RANKS + "test_what_has_started_a_process_says_which_it_is",
        ),
    ],
    "minigpt/train::find_meeting": [
        (
            "processes meet at the port where torchrun listens",
            "return host, int(port) + taken,",
            "return host, int(port),",
            RANKS + "test_processes_of_torchrun_meet_beside_its_own_port",
        ),
    ],
    "minigpt/train::narrow": [
        (
            "numbers are cut off instead of rounded",
            "rounded += HALF",
            "rounded[...] = 0",
            RANKS + "test_bfloat16_rounds_to_the_nearest",
        ),
        (
            "a NaN becomes a number",
            "half[x != x] = NAN",
            "pass",
            RANKS + "test_bfloat16_rounds_to_the_nearest",
        ),
    ],
    "minigpt/train::Narrow.sum_parts": [
        (
            "sums are rounded to bfloat16 as they grow",
            "own += widen(other)",
            "own[...] = widen(narrow(own + widen(other)))",
            RANKS + "test_sums_in_bfloat16_are_within_their_bound_at_half_of_the_bytes",
        ),
    ],
    "minigpt/train::Narrow.sum": [
        (
            "a rank keeps the sum of its own part as it was",
            "piece[...] = widen(half)",
            "piece[...], piece[own] = widen(half), piece[own].copy()",
            RANKS + "test_sums_in_bfloat16_are_within_their_bound_at_half_of_the_bytes",
        ),
    ],
    "minigpt/train::Trainer.sum_over_ranks": [
        (
            "losses of other ranks are left out",
            "self._sent[-1] = loss",
            "self._sent[-1] = loss / self.ranks.size",
            RANKS + "test_losses_are_those_of_one_process",
        ),
        (
            "losses travel in bfloat16, too",
            "self.ranks.sum(self._sent[-1:])",
            "self.ranks.sum_gradients(self._sent[-1:], None, narrow)",
            RANKS + "test_training_with_sums_in_bfloat16_stays_close",
        ),
    ],
    "minigpt/train::connect": [
        (
            "one machine listens to all others",
            'HERE if near else ""',
            '""',
            LINE + "test_one_machine_listens_to_itself_alone",
        ),
    ],
    "minigpt/train::Lifeline._greet": [
        (
            "a stranger needs no password",
            "secrets.compare_digest(password, self._password.encode())",
            "True",
            LINE + "test_a_stranger_is_refused",
        ),
    ],
    "minigpt/train::Lifeline._add": [
        (
            "a process is taken twice",
            "if rank in self.peers",
            "if False",
            LINE + "test_a_process_is_taken_once_and_nobody_is_once_all_are_there",
        ),
        (
            "the first process listens for ever",
            "if len(self.peers) == self.size - 1",
            "if False",
            LINE + "test_a_process_is_taken_once_and_nobody_is_once_all_are_there",
        ),
    ],
    "minigpt/train::Lifeline.grace_s": [
        (
            "processes have 5 s to meet, however long their steps take",
            "*(PATIENCE * lap for lap in laps)",
            "",
            LINE + "test_processes_have_as_long_to_meet_as_their_steps_take",
        ),
    ],
    "minigpt/train::Lifeline._take_values": [
        (
            "an exchange waits for ever for a process that has ended",
            " or rank in self._ended",
            "",
            LINE + "test_nobody_waits_for_one_that_has_ended",
        ),
        (
            "values are taken before all are there",
            "all(self._values[rank] or rank in self._ended for rank in ranks)",
            "any(self._values[rank] or rank in self._ended for rank in ranks)",
            LINE + "test_processes_that_know_an_address_exchange_values",
        ),
    ],
    "minigpt/train::dry_run": [
        (
            "--dry-run shows what one process alone would take",
            "rate, processes, limits)",
            "rate, 1, limits)",
            LINE + "test_a_dry_run_of_processes_without_mpi_shows_what_is_one_s_share",
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
