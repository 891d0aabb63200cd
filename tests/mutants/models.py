"""Faults in the blocks and models that are made of ops."""

FAULTS = {
    "minigpt/blocks.py": [
        (
            "two places of a block draw the same bits",
            "LN_1, LN_2, LN_3 = range(5)",
            "LN_1, LN_2, LN_3 = 0, 1, 2, 2, 4",
            "test_seq2seq.py::test_every_dropout_draws_its_own_bits",
        ),
        (
            "the mask of an encoder's padding is lost",
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal, key_mask',
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal',
            "test_seq2seq.py::test_padding_changes_nothing",
        ),
    ],
    "minigpt/gpt.py": [
        (
            "a tied head forgets the embedding",
            'return gpt_backward(dx, cache, dwte=grads["w"])',
            'return {**gpt_backward(dx, cache), "wte": grads["w"]}',
            "test_gpt.py::test_every_gradient_of_the_loss",
        ),
        (
            "a tied embedding forgets the head",
            'return gpt_backward(dx, cache, dwte=grads["w"])',
            "return gpt_backward(dx, cache)",
            "test_gpt.py::test_every_gradient_of_the_loss",
        ),
        (
            "all layers draw the same bits",
            "rng=at(rng, i),",
            "rng=rng,",
            "test_seq2seq.py::test_every_dropout_draws_its_own_bits",
        ),
        (
            "gradients of the layers in the wrong order",
            '"h": h[::-1], "ln_f": ln_f}',
            '"h": h, "ln_f": ln_f}',
            "test_gpt.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
        (
            "residual projections are not scaled at the beginning",
            "if scaled else STD",
            "if False else STD",
            "test_gpt.py::test_initialization",
        ),
    ],
    "minigpt/seq2seq.py": [
        (
            "the decoder begins with a token, not with END",
            "ids[:, :1] = config.vocab_size - 1",
            "ids[:, :1] = 0",
            "test_seq2seq.py::test_the_decoder_begins_with_end_and_goes_on_from_the_targets",
        ),
        (
            "an encoder that may not look ahead",
            "partial(block, causal=False, key_mask=seen)",
            "partial(block, causal=True, key_mask=seen)",
            "test_seq2seq.py::test_who_sees_whom",
        ),
        (
            "the decoder reads padding",
            "partial(block, memory=memory, key_mask=seen)",
            "partial(block, memory=memory)",
            "test_seq2seq.py::test_padding_changes_nothing",
        ),
        (
            "only the first block's gradient of memory",
            "dmemory = dmemory + dm",
            "dmemory = dm",
            "test_seq2seq.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
        (
            "a shared embedding forgets the decoder",
            'grads["wte"] if shared else None)',
            "None)",
            "test_seq2seq.py::test_every_gradient_of_the_loss",
        ),
    ],
}
