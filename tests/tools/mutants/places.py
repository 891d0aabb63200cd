"""Bugs in where gradients are left, and in what is made of the factors that shards leave."""

THREADS = "backend/test_threads.py::"
SHARED = "ops/test_attention.py::"
LATER = "train/test_later.py::"
SUMS = f"{LATER}test_gradients_made_of_what_shards_leave_are_their_sums"
BITS = f"{LATER}test_one_thread_has_the_bits_of_gradients_that_are_gathered"
SPLIT = f"{LATER}test_rows_of_gradients_are_split_among_any_number_of_threads"
FEW = "train/test_memory.py::test_few_tokens_keep_factors_in_place_of_gradients"

MUTANTS = {
    "minigpt/backend/places.py::_find": [
        (
            "a part of a weight has the place of the whole",
            "or place.shape != w.shape",
            "",
            f"{LATER}test_a_place_is_one_thread_s_while_the_context_lasts",
        ),
    ],
    "minigpt/backend/places.py::place_of": [
        ("further batches replace the first", "return place, now.add", "return place, False", BITS),
        ("a head adds to a batch before", "or now.add > adds", "", BITS),
        (
            "the place of a sum is filled by one of its shards",
            "or now.later is not None",
            "",
            f"{LATER}test_what_is_larger_as_factors_is_not_left",
        ),
    ],
    "minigpt/backend/places.py::is_later": [
        (
            "a shard decides by itself",
            "max(rows)",
            "rows[now.shard]",
            f"{LATER}test_all_shards_decide_alike_by_the_largest",
        ),
        (
            "everything is left for later",
            "numbers * max(rows) <= w.size * rows[now.shard]",
            "True",
            f"{LATER}test_all_shards_decide_alike_by_the_largest",
        ),
    ],
    "minigpt/backend/places.py::change": [
        ("an embedding does not wait for the head", "now is not None", "False", SUMS),
    ],
    "minigpt/backend/places.py::gradients_into": [
        (
            "places are open for ever",
            "finally: _now.open = None",
            "finally: pass",
            f"{LATER}test_after_an_error_nothing_is_left_anywhere",
        ),
    ],
    "minigpt/backend/places.py::_now": [
        (
            "places are open in all threads",
            "threading.local()",
            "type(threading)('now')",
            f"{LATER}test_a_place_is_one_thread_s_while_the_context_lasts",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads.map": [
        (
            "a piece of work that is alone lends no threads",
            "crew.lend(self.n, self._spread)",
            "crew.lend(1, None)",
            f"{THREADS}test_ops_share_their_parts_where_a_piece_of_work_is_alone",
        ),
    ],
    "minigpt/backend/cpu/threads.py::Threads.ranges": [
        (
            "a part of no weights has no range",
            "max(-(-n // LINE_ELEMENTS), 1)",
            "-(-n // LINE_ELEMENTS)",
            "train/test_threads.py::test_a_part_of_no_weights_has_a_norm_and_a_step",
        ),
    ],
    "minigpt/backend/cpu/crew.py::share": [
        (
            "an op that shares its parts lends threads to the ops within",
            "lend(1, None)",
            "lend(n, spread)",
            f"{THREADS}test_ops_share_their_parts_where_a_piece_of_work_is_alone",
        ),
    ],
    "minigpt/backend/cpu/crew.py::product": [
        (
            "the last part of a product is nobody's",
            "parts(len(out), out.size * len(b))",
            "parts(len(out), out.size * len(b))[:1]",
            f"{LATER}test_a_row_alone_is_shared_out_by_rows_and_blocks",
        ),
    ],
    "minigpt/backend/cpu/crew.py::parts": [
        (
            "small products wake up threads",
            "work // PART",
            "work",
            f"{LATER}test_a_small_row_alone_wakes_up_no_thread",
        ),
    ],
    "minigpt/backend/cpu/attention_tiles.py::Tiles.__init__": [
        (
            "one thread has the heads of all",
            "-(-self.H // crew.size())",
            "self.H",
            f"{LATER}test_a_row_alone_is_shared_out_by_rows_and_blocks",
        ),
        (
            "threads without a head of their own have nothing to do",
            "max(1, crew.size() // (self.B * self.H))",
            "1",
            f"{SHARED}test_threads_share_a_head_s_queries_evenly",
        ),
    ],
    "minigpt/backend/cpu/attention_tiles.py::Tiles.queries": [
        (
            "later parts of the queries see fewer keys",
            "(*stops[part::turn], *stops[turn - 1 - part :: turn])",
            "stops[part :: self.cuts]",
            f"{SHARED}test_threads_share_a_head_s_queries_evenly",
        ),
        (
            "of the queries in each turn half are nobody's",
            "*stops[turn - 1 - part :: turn]",
            "*()",
            f"{SHARED}test_threads_that_share_a_head_make_the_same_of_it",
        ),
    ],
    "minigpt/backend/cpu/attention.py::shifts": [
        (
            "the largest score of a part of the queries only",
            "tiles.parts()",
            "tiles.parts()[:1]",
            f"{SHARED}test_threads_that_share_a_head_make_the_same_of_it",
        ),
    ],
    "minigpt/backend/cpu/attention.py::add_parts": [
        (
            "keys get no gradient from the queries of other threads",
            "sums[1:]",
            "sums[2:]",
            f"{SHARED}test_threads_that_share_a_head_make_the_same_of_it",
        ),
    ],
    "minigpt/train/threads.py::sum_gradients": [
        ("what is in its place is added once more", "if done: continue", "", BITS),
        (
            "a gradient may be replaced after it was left in its place",
            "or sum(map(sum, there)) != len(filled)",
            "",
            f"{LATER}test_a_gradient_that_was_replaced_is_an_error",
        ),
        (
            "one shard may replace a gradient that the others have left",
            "any(x != there[0] for x in there) or",
            "",
            f"{LATER}test_a_gradient_that_was_replaced_is_an_error",
        ),
        ("embeddings forget to add to the head", "how()", "pass", SUMS),
    ],
    "minigpt/train/threads.py::multiply": [
        ("a thread makes rows before its own", "slice(max(first, 0)", "slice(first", SPLIT),
    ],
    "minigpt/train/threads.py::multiply_rows": [
        ("products of further batches replace the first", "if add:", "if False:", SPLIT),
        ("products of the first batch are added to the last step", "if add:", "if True:", SPLIT),
    ],
    "minigpt/backend/cpu/cross_entropy.py::compute": [
        (
            "rows of the head leave the dlogits of the first alone",
            "p[rows] if later",
            "p[: rows.stop - rows.start] if later",
            f"{LATER}test_rows_that_pass_the_head_in_parts_leave_them_all",
        ),
    ],
    "minigpt/backend/cpu/cross_entropy.py::room": [
        ("the head adds to a batch before", "adds=False", "adds=True", BITS),
    ],
    "minigpt/train/memory.py::shard_gradients": [
        ("x of recomputed blocks takes no memory", "x * train_config.recompute", "0", FEW),
        ("factors are kept where they are larger", "<= size:", "<= 2**60:", FEW),
        ("a thread alone makes its own gradients", "if len(rows) == 1:", "if False:", FEW),
        (
            "frozen weights are told to have gradients",
            "count_weights(config, train_config.lora)[1]",
            "count_weights(config, train_config.lora)[0]",
            "train/test_memory.py"
            "::test_frozen_weights_have_no_gradients_and_no_moments_and_keep_less",
        ),
    ],
    "minigpt/train/memory.py::memory": [
        (
            "the threads' gradients are counted once",
            "for B in rows",
            "for B in rows[:1]",
            "train/test_memory.py::test_muon_and_threads_and_pairs_are_counted",
        ),
    ],
    "minigpt/sample/evaluation.py::mean_loss": [
        (
            "an evaluation keeps what a backward pass would need",
            "recompute=True",
            "recompute=False",
            "sample/test_evaluation.py::test_an_evaluation_keeps_no_caches_of_blocks",
        ),
    ],
}
