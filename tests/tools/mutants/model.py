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
    "minigpt/model::block_forward": [
        (
            "the mask of an encoder's padding is lost",
            "causal, key_mask, rotary",
            "causal, None, rotary",
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
    "minigpt/model::load_plain": [
        (
            "an adapter is read as if it were a model",
            "if checkpoint.lora is None:",
            "if True:",
            "train/test_lora.py::test_whatever_does_not_train_on_sees_merged_weights",
        ),
        (
            "a merged model forgets its adapter",
            "adapter=checkpoint)",
            "adapter=None)",
            "train/test_adapters.py::test_the_library_exports_the_same_adapter",
        ),
    ],
    "minigpt/model::Lora.scale": [
        (
            "rsLoRA divides by the rank",
            "math.sqrt(self.rank) if self.rslora else self.rank",
            "self.rank",
            "model/test_lora.py::test_the_scale_is_alpha_by_rank_or_by_its_root",
        ),
    ],
    "minigpt/model::init_adapter": [
        (
            "the wrong factor begins at 0",
            'name.endswith("lora_a")',
            'name.endswith("lora_b")',
            "model/test_lora.py::test_first_factors_are_uniform_and_second_ones_0",
        ),
    ],
    "minigpt/model::join": [
        (
            "a frozen model computes the gradients of its embeddings",
            '{**tree, "frozen": True}',
            "tree",
            "model/test_lora.py::test_both_passes_at_once_give_no_gradient_of_embeddings_and_head",
        ),
    ],
    "minigpt/model::merge": [
        (
            "the base is merged into",
            "params.flat.copy()",
            "params.flat",
            "model/test_lora.py::test_merged_weights_give_what_the_joined_ones_give",
        ),
        (
            "merged without the scale",
            "lora.scale * (lora_a @ lora_b)",
            "lora_a @ lora_b",
            "model/test_lora.py::test_merged_weights_give_what_the_joined_ones_give",
        ),
    ],
    "minigpt/model::decoder_backward": [
        (
            "only the first block's gradient of memory",
            "dmemory + of_block",
            "of_block",
            "model/test_encoder_decoder.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
    ],
    "minigpt/model::decoder_forward": [
        (
            "the decoder reads padding",
            "seen, config.rotary",
            "None, config.rotary",
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
            "causal=False",
            "causal=True",
            "model/test_encoder_decoder.py::test_who_sees_whom",
        ),
    ],
    "minigpt/model::gpt_backward": [
        (
            "gradients of the layers in the wrong order",
            "blocks[::-1]",
            "blocks",
            "model/test_gpt.py::test_every_gradient_of_a_deeper_model_along_random_directions",
        ),
    ],
    "minigpt/model::gpt_forward": [
        (
            "all layers draw the same bits",
            "fold_key(rng, i)",
            "rng",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
        ("all layers have the first one's cache", "kv[i]", "kv[0]", CACHED),
        (
            "the output of a block is not checked",
            'on_layer(f"h.{i}", x, h)',
            "pass",
            "train/test_nonfinite.py::test_the_first_layer_that_went_bad",
        ),
    ],
    "minigpt/model::read": [
        ("the format is not checked", "if found not in (FORMAT, ADAPTER):", "if False:", METADATA),
    ],
    "minigpt/model::read_params": [
        (
            "numbers that are not finite are loaded",
            "if not np.isfinite(x).all():",
            "if False:",
            "model/test_checkpoint_errors.py::test_tensors_that_do_not_fit",
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
    "minigpt/model::put_last_bias": [
        (
            "a bias that add_norm has added has no gradient",
            "if db is not None:",
            "if False:",
            "model/test_blocks.py::test_backward_of_block",
        ),
    ],
    "minigpt/model::without_last_bias": [
        (
            "a frozen layer with a bias loses its adapter",
            ' or "scale" in last',
            "",
            "model/test_lora.py::test_backends_agree",
        ),
    ],
    "minigpt/model::self_attention_backward": [
        (
            "gradients of queries and keys are not rotated back",
            "dqkv = rotary_qkv_backward(dqkv, cache.rotary)",
            "pass",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
    ],
    "minigpt/model::self_attention_forward": [
        (
            "rotary positions begin at 0 after a KV cache",
            "0 if kv is None else kv.length",
            "0",
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
            "the token before is the one after",
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
            'backward(dx, cache, dwte=head_grads.get("w"))',
            '{**backward(dx, cache), "wte": head_grads["w"]}',
            LOSS,
        ),
        (
            "a tied embedding forgets the head",
            'backward(dx, cache, dwte=head_grads.get("w"))',
            "backward(dx, cache)",
            LOSS,
        ),
    ],
    "minigpt/model::SITE_RESIDUAL_2": [
        (
            "two sites of a block draw the same bits",
            "2, 3, 4",
            "2, 2, 4",
            "model/test_encoder_decoder.py::test_every_dropout_draws_its_own_bits",
        ),
    ],
    "minigpt/model::embed_backward": [
        (
            "the pairs' gradient is lost",
            "embedding_backward(dh, bigram_cache)",
            "embedding_backward(0 * dh, bigram_cache)",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
    ],
    "minigpt/model::embed_forward": [
        (
            "a KV cache's last token is not the one before the next",
            "None if kv is None else kv.previous",
            "None",
            CACHED,
        ),
        (
            "pairs take the place of tokens",
            "h + of_pairs",
            "of_pairs",
            "model/test_gpt.py::test_every_gradient_of_the_loss[rotary with bigrams]",
        ),
        (
            "positions after a KV cache are off by one",
            "kv.length",
            "max(kv.length - 1, 0)",
            CACHED,
        ),
    ],
    "minigpt/model::whole_cache": [
        (
            "the second pass of a block drops something else",
            "cache.forward(*cache.args)[-1]",
            "cache.forward(*(a._replace(row=a.row + 1) if hasattr(a, 'row') else a"
            " for a in cache.args))[-1]",
            "model/test_recompute.py::test_steps_of_training_have_the_same_bits[0.2-2-adapter2]",
        ),
        (
            "the second pass of a block drops nothing",
            "cache.forward(*cache.args)[-1]",
            "cache.forward(*(None if hasattr(a, 'row') else a for a in cache.args))[-1]",
            "model/test_recompute.py::test_steps_of_training_have_the_same_bits[0.2-2-adapter2]",
        ),
    ],
    "minigpt/model::without_cache": [
        (
            "a block keeps its whole cache",
            "*outputs, _ = forward(*args)",
            "*outputs, args = forward(*args)",
            "model/test_recompute.py::test_a_block_keeps_its_inputs_alone",
        ),
    ],
}
