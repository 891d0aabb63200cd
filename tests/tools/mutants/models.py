"""Faults in the blocks and models that are made of ops."""

FAULTS = {
    "minigpt/model/blocks.py": [
        (
            "two places of a block draw the same bits",
            "LN_1, LN_2, LN_3 = range(5)",
            "LN_1, LN_2, LN_3 = 0, 1, 2, 2, 4",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
        (
            "the mask of an encoder's padding is lost",
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal, key_mask',
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal',
            "model/test_encoder_decoder.py::test_padding_changes_nothing",
        ),
        (
            "rotary positions begin at 0 behind a KV cache",
            "rotary_forward(qkv, n_head, 0 if kv is None else kv.length)",
            "rotary_forward(qkv, n_head)",
            "sample/test_generate.py::test_cached_decoding_is_the_full_forward",
        ),
        (
            "gradients of queries and keys are not turned back",
            "dqkv = rotary_backward(dqkv, rotary_cache)",
            "pass",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
    ],
    "minigpt/model/gpt.py": [
        (
            "a KV cache's last token is not the one before the next",
            "None if kv is None else kv.previous)",
            "None)",
            "sample/test_generate.py::test_cached_decoding_is_the_full_forward",
        ),
        (
            "the pairs' gradient is lost",
            'embedding_backward(dh, bigram_cache)["wte"]',
            'embedding_backward(0 * dh, bigram_cache)["wte"]',
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
        (
            "pairs take the place of tokens",
            "h = h + of_pairs",
            "h = of_pairs",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
        (
            "a tied head forgets the embedding",
            'return gpt_backward(dx, cache, dwte=grads["w"])',
            'return {**gpt_backward(dx, cache), "wte": grads["w"]}',
            "model/test_gpt.py::test_every_gradient_of_the_loss",
        ),
        (
            "a tied embedding forgets the head",
            'return gpt_backward(dx, cache, dwte=grads["w"])',
            "return gpt_backward(dx, cache)",
            "model/test_gpt.py::test_every_gradient_of_the_loss",
        ),
        (
            "all layers draw the same bits",
            "rng=at(rng, i),",
            "rng=rng,",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
        (
            "gradients of the layers in the wrong order",
            '"h": h[::-1], "ln_f": ln_f}',
            '"h": h, "ln_f": ln_f}',
            "model/test_gpt.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
        (
            "residual projections are not scaled at the beginning",
            "if scaled else STD",
            "if False else STD",
            "model/test_gpt.py::test_initialization",
        ),
    ],
    "minigpt/sample/generate.py": [
        (
            "a cache that is emptied remembers its last token",
            "self.length, self.previous = 0, None",
            'self.length, self.previous = 0, getattr(self, "previous", None)',
            "sample/test_generate.py::test_cached_decoding_is_the_full_forward",
        ),
        (
            "the first token of a part is remembered, not the last",
            "self.previous = ids[:, -1]",
            "self.previous = ids[:, 0]",
            "sample/test_generate.py::test_cached_decoding_is_the_full_forward",
        ),
    ],
    "minigpt/sample/beam.py": [
        (
            "rows that change places leave their last token behind",
            "self.previous = self.previous[rows]",
            "pass",
            "sample/test_beam.py::test_a_row_that_is_taken_goes_on_as_the_other_did",
        ),
    ],
    "minigpt/model/encoder_decoder.py": [
        (
            "pairs of a shared vocabulary have too small a table",
            "config.vocab_size if shared else config.source_vocab_size",
            "config.source_vocab_size",
            "model/test_bigram.py::test_each_side_of_an_encoder_decoder_has_its_pairs",
        ),
        (
            "the decoder begins with a token, not with END",
            "ids[:, :1] = config.vocab_size - 1",
            "ids[:, :1] = 0",
            "model/test_encoder_decoder.py::test_the_decoder_begins_with_end_and_goes_on_from_the_targets",
        ),
        (
            "an encoder that may not look ahead",
            "partial(block, causal=False, key_mask=seen)",
            "partial(block, causal=True, key_mask=seen)",
            "model/test_encoder_decoder.py::test_who_sees_whom",
        ),
        (
            "the decoder reads padding",
            "partial(block, memory=memory, key_mask=seen)",
            "partial(block, memory=memory)",
            "model/test_encoder_decoder.py::test_padding_changes_nothing",
        ),
        (
            "only the first block's gradient of memory",
            "dmemory = dmemory + dm",
            "dmemory = dm",
            "model/test_encoder_decoder.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
        (
            "a shared embedding forgets the decoder",
            'grads["wte"] if shared else None)',
            "None)",
            "model/test_encoder_decoder.py::test_every_gradient_of_the_loss",
        ),
    ],
}
