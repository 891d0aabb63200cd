"""Bugs in blocks, models and checkpoints."""

CACHED = "sample/test_generate.py::test_cached_decoding_is_the_full_forward"
METADATA = "model/test_checkpoint_errors.py::test_metadata_that_does_not_fit"
LOSS = "model/test_gpt.py::test_every_gradient_of_the_loss"

MUTANTS = {
    "minigpt/model/encoder_decoder.py::shapes": [
        (
            "pairs of a shared vocabulary have too small a table",
            "config.vocab_size if shared else config.source_vocab_size",
            "config.source_vocab_size",
            "model/test_bigram.py::test_each_side_of_an_encoder_decoder_has_its_pairs",
        ),
    ],
    "minigpt/model::LN_2": [
        (
            "two places of a block draw the same bits",
            "LN_1, LN_2, LN_3 = range(5)",
            "LN_1, LN_2, LN_3 = 0, 1, 2, 2, 4",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
    ],
    "minigpt/model::block_forward": [
        (
            "the mask of an encoder's padding is lost",
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal, key_mask',
            'h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal',
            "model/test_encoder_decoder.py::test_padding_changes_nothing",
        ),
    ],
    "minigpt/model::check_tensors": [
        (
            "a tensor that is missing is not missed",
            "if name not in names]",
            "if False]",
            "model/test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
        ("shapes are not checked", "if came != needed:", "if came[0] != needed[0]:", METADATA),
    ],
    "minigpt/model::decoder_backward": [
        (
            "only the first block's gradient of memory",
            "dmemory = dmemory + dm",
            "dmemory = dm",
            "model/test_encoder_decoder.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
    ],
    "minigpt/model::decoder_forward": [
        (
            "the decoder reads padding",
            "partial(block, memory=memory, key_mask=seen)",
            "partial(block, memory=memory)",
            "model/test_encoder_decoder.py::test_padding_changes_nothing",
        ),
    ],
    "minigpt/model::decoder_ids": [
        (
            "the decoder begins with a token, not with END",
            "ids[:, :1] = config.vocab_size - 1",
            "ids[:, :1] = 0",
            "model/test_encoder_decoder.py::test_the_decoder_begins_with_end_and_goes_on_from_the_targets",
        ),
    ],
    "minigpt/model::draw_params": [
        (
            "residual projections are not scaled at the beginning",
            "if scaled else STD",
            "if False else STD",
            "model/test_gpt.py::test_initialization",
        ),
    ],
    "minigpt/model::encoder_forward": [
        (
            "an encoder that may not look ahead",
            "partial(block, causal=False, key_mask=seen)",
            "partial(block, causal=True, key_mask=seen)",
            "model/test_encoder_decoder.py::test_who_sees_whom",
        ),
    ],
    "minigpt/model::gpt_backward": [
        (
            "the pairs' gradient is lost",
            'embedding_backward(dh, bigram_cache)["wte"]',
            'embedding_backward(0 * dh, bigram_cache)["wte"]',
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
        (
            "gradients of the layers in the wrong order",
            '"h": h[::-1], "ln_f": ln_f}',
            '"h": h, "ln_f": ln_f}',
            "model/test_gpt.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
    ],
    "minigpt/model::gpt_forward": [
        (
            "a KV cache's last token is not the one before the next",
            "None if kv is None else kv.previous)",
            "None)",
            CACHED,
        ),
        (
            "pairs take the place of tokens",
            "h = h + of_pairs",
            "h = of_pairs",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
        (
            "all layers draw the same bits",
            "rng=at(rng, i),",
            "rng=rng,",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
        (
            "all layers have the first one's cache",
            "kv=None if kv is None else kv[i]",
            "kv=None if kv is None else kv[0]",
            CACHED,
        ),
        (
            "positions behind a KV cache are off by one",
            "start = 0 if kv is None else kv.length",
            "start = 0 if kv is None else max(kv.length - 1, 0)",
            CACHED,
        ),
    ],
    "minigpt/model::read": [
        ("the format is not checked", "if found != FORMAT:", "if False:", METADATA),
    ],
    "minigpt/model::read_params": [
        (
            "numbers that are not finite are loaded",
            "if not np.isfinite(x).all():",
            "if False:",
            "model/test_checkpoint_errors.py::test_tensors_that_do_not_fit",
        ),
    ],
    "minigpt/model::replace": [
        (
            "the file is not synced before it is renamed",
            "os.fsync(file.fileno())",
            "",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
        (
            "the old checkpoint is written over",
            'temporary = path.with_name(path.name + ".tmp")',
            "temporary = path",
            "model/test_checkpoint.py::test_a_failed_save_leaves_the_old_file_and_nothing_else",
        ),
    ],
    "minigpt/model::save": [
        (
            "numbers that are not finite are saved",
            "if bad:",
            "if False:",
            "train/test_nonfinite.py::test_no_number_that_is_not_finite_is_saved",
        ),
        (
            "one moment is saved in place of both",
            "on_host(getattr(optimizer, moment)).leaves()",
            "on_host(optimizer.m).leaves()",
            "model/test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
        (
            "the state is not saved",
            "json.dumps(state, allow_nan=False)",
            '"{}"',
            "model/test_checkpoint.py::test_what_is_saved_comes_back_to_the_bit",
        ),
    ],
    "minigpt/model::self_attention_backward": [
        (
            "gradients of queries and keys are not turned back",
            "dqkv = rotary_backward(dqkv, rotary_cache)",
            "pass",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
    ],
    "minigpt/model::self_attention_forward": [
        (
            "rotary positions begin at 0 behind a KV cache",
            "rotary_forward(qkv, n_head, 0 if kv is None else kv.length)",
            "rotary_forward(qkv, n_head)",
            CACHED,
        ),
    ],
    "minigpt/model::seq2seq_backward": [
        (
            "a shared embedding forgets the decoder",
            'grads["wte"] if shared else None)',
            "None)",
            "model/test_encoder_decoder.py::test_every_gradient_of_the_loss",
        ),
    ],
    "minigpt/model::bigrams": [
        (
            "the token before is the one behind",
            "pairs[:, 1:] = ids[:, :-1]",
            "pairs[:, :-1] = ids[:, 1:]",
            "model/test_gpt.py::test_no_token_sees_the_future",
        ),
        (
            "before a part of a text there is nothing",
            "V if previous is None else previous[:, None]",
            "V",
            "model/test_bigram.py::test_bigrams_in_parts_are_those_of_the_whole",
        ),
        (
            "nothing before the first token is token 0",
            "V if previous is None",
            "0 if previous is None",
            "model/test_bigram.py::test_no_two_pairs_have_one_number",
        ),
    ],
    "minigpt/model::below_head": [
        (
            "a tied head forgets the embedding",
            'backward(dx, cache, dwte=head_grads["w"])',
            '{**backward(dx, cache), "wte": head_grads["w"]}',
            LOSS,
        ),
        (
            "a tied embedding forgets the head",
            'backward(dx, cache, dwte=head_grads["w"])',
            "backward(dx, cache)",
            LOSS,
        ),
    ],
}
