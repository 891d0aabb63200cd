"""Bugs in what goes to other libraries, and comes from them."""

EXPORT = "interchange/test_export.py::"
LOGITS = f"{EXPORT}test_starcoder2_of_the_exported_files_gives_the_same_logits"
PEFT = "interchange/test_peft.py::"
ADAPTERS = "train/test_adapters.py::"
LOADING = "interchange/test_loading.py::"
ROTARY = f"{LOADING}test_what_no_rotary_model_here_is_like_is_named"

MUTANTS = {
    "minigpt/interchange::halves": [
        ("channels of a head are not reordered", ".swapaxes(1, 2)", "", LOGITS),
    ],
    "minigpt/interchange/starcoder2.py::views": [
        (
            "values are reordered with queries and keys",
            'if letter == "v" else',
            'if letter == "x" else',
            LOGITS,
        ),
        (
            "queries and keys change places",
            'zip("qkv", qkv,',
            'zip("kqv", qkv,',
            LOGITS,
        ),
        (
            "a matrix of Starcoder2 is not transposed",
            'tensors[f"h.{i}.{ours}.{end}"].T',
            'tensors[f"h.{i}.{ours}.{end}"]',
            LOGITS,
        ),
    ],
    "minigpt/interchange/starcoder2.py::theta_of": [
        ("the base of the rotation is ours", "BASE ** (D / (D - 2))", "BASE ** (D / D)", LOGITS),
    ],
    "minigpt/interchange/starcoder2.py::config_of": [
        (
            "groups of heads share their keys unnoticed",
            '"num_key_value_heads": config.n_head, ',
            "",
            f"{ROTARY}[num_key_value_heads-1]",
        ),
    ],
    "minigpt/interchange/starcoder2.py::check_rotation": [
        (
            "pairs of channels may turn at any speed",
            "if not known and",
            "if False and",
            f"{ROTARY}[rope_parameters-value7]",
        ),
    ],
    "minigpt/interchange::describe_alike": [
        (
            "an untied head is said to be tied",
            "config.tie_head",
            "True",
            f"{EXPORT}test_the_head_is_said_to_be_tied_where_it_is",
        ),
        (
            "a tied head is said to be untied",
            "config.tie_head",
            "False",
            f"{EXPORT}test_the_head_is_said_to_be_tied_where_it_is",
        ),
    ],
    "minigpt/interchange::completed": [
        (
            "tokens that are padding are exported",
            "vocab_size=V, ",
            "",
            f"{EXPORT}test_what_gpt2_lacks_is_rewritten_and_the_logits_stay",
        ),
    ],
    "minigpt/interchange::moved": [
        (
            "a head's bias that has no place is dropped",
            "if not change <= CHANGE:",
            "if False:",
            f"{EXPORT}test_what_has_no_counterpart_names_the_flag_and_writes_nothing",
        ),
    ],
    "minigpt/interchange::check_folder": [
        (
            "a folder that is not empty is replaced",
            "if not force and",
            "if False and",
            f"{EXPORT}test_a_folder_that_is_not_empty_is_left_alone_without_force",
        ),
    ],
    "minigpt/interchange::fitting": [
        (
            "factors of peft are not transposed",
            "return x.T",
            "return x.reshape(shape[::-1])",
            f"{PEFT}test_an_adapter_comes_back_bit_for_bit",
        ),
    ],
    "minigpt/interchange::peft_name": [
        (
            "A and B change places",
            'f"{MODEL}{GPT}{layer}.{FACTORS[factor]}"',
            "MODEL + GPT + layer + '.' + FACTORS['lora_b' if factor == 'lora_a' else 'lora_a']",
            f"{PEFT}test_files_have_the_names_and_shapes_of_peft",
        ),
    ],
    "minigpt/interchange/peft.py::describe": [
        (
            "a base's matrices are said to be torch's",
            '"fan_in_fan_out": True',
            '"fan_in_fan_out": False',
            f"{PEFT}test_files_have_the_names_and_shapes_of_peft",
        ),
    ],
    "minigpt/interchange::export_adapter": [
        (
            "an adapter takes the place of its base",
            "if base is not None and os.path.realpath(folder) == base:",
            "if False:",
            f"{ADAPTERS}test_what_cannot_be_exported_alone_is_one_line_and_nothing_is_written",
        ),
        (
            "the base is not named",
            "*adapter, base, facts",
            "*adapter, None, facts",
            f"{ADAPTERS}test_peft_finds_the_base_and_the_adapter_comes_back_as_it_is",
        ),
    ],
    "minigpt/interchange::place_in_transformers": [
        (
            "a checkpoint of minigpt is named as a base for peft",
            "if is_folder_of_transformers(path) else None",
            "",
            f"{ADAPTERS}test_of_a_base_that_is_a_checkpoint_the_export_is_named",
        ),
    ],
    "minigpt/interchange/__main__.py::run_export": [
        (
            "--no-merge merges",
            "config.adapter_only or not config.merge",
            "config.adapter_only",
            f"{ADAPTERS}test_of_a_base_that_is_a_checkpoint_the_export_is_named",
        ),
    ],
    "minigpt/interchange::lora_of": [
        (
            "rank-stabilized scaling is lost",
            'bool(fields.get("use_rslora"))',
            "False",
            f"{PEFT}test_a_command_sees_the_merged_weights",
        ),
    ],
    "minigpt/interchange::is_tied": [
        (
            "a head with numbers of its own is lost",
            "and equal(slots[HEAD], embedding)",
            "",
            f"{LOADING}test_a_head_is_tied_where_its_numbers_are_those_of_the_embedding",
        ),
        (
            "a tie is lost where the head is in the file, too",
            "return embedding is not None and",
            "return False and",
            f"{LOADING}test_a_head_is_tied_where_its_numbers_are_those_of_the_embedding",
        ),
    ],
    "minigpt/interchange/loading.py::find_weights": [
        (
            "a shard outside of the folder is read",
            r're.search(r"[/\\:\0]", file)',
            "False",
            f"{LOADING}test_shards_are_one_model",
        ),
    ],
    "minigpt/interchange::tokenizer_of": [
        (
            "a tokenizer larger than the model is taken",
            "if not tokenizer.fits(config):",
            "if False:",
            f"{LOADING}test_a_tokenizer_of_another_model_or_kind_is_named",
        ),
    ],
    "minigpt/interchange::by_short_name": [
        (
            "a mask is taken for a bias",
            "if architecture.BUFFERS.search(name):",
            "if False:",
            f"{LOADING}test_masks_are_no_parameters_whatever_their_type",
        ),
        (
            "the prefix stays",
            "name.removeprefix(architecture.PREFIX)",
            "name",
            f"{LOADING}test_weights_come_in_under_names_with_a_prefix_and_without",
        ),
    ],
    "minigpt/interchange::as_numbers": [
        (
            "BF16 is shifted by too little",
            "<< 16",
            "<< 15",
            f"{LOADING}test_numbers_of_16_bits_become_float32",
        ),
    ],
    "minigpt/interchange::fill": [
        (
            "numbers that are not finite pass",
            "finite and bool(np.isfinite(part).all())",
            "True",
            f"{LOADING}test_tensors_that_do_not_fit_are_named",
        ),
    ],
}
