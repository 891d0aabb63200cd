"""A tokenizer's files for transformers: tokenizer.json and tokenizer_config.json.

Format: https://huggingface.co/docs/tokenizers, "Components". A table of characters is a BPE that
has learnt no merges: every token is one character. Where it is decoded, the characters are joined.
What is not in the table vanishes there without a word; here it is an error.
"""

import json

from minigpt.data.characters import CharTokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def tokenizer_files(tokenizer, config):
    """Return {name: text or JSON value} of the files that `AutoTokenizer` reads.

    Parameters
    ----------
    tokenizer : Tokenizer or None
        None gives no files.
    config : GPTConfig
    """
    if tokenizer is None:
        return {}
    special = tokenizer.end_of_text
    end = (
        {}
        if special is None
        else dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokenizer.label(special))
    )
    table = of_characters(tokenizer) if isinstance(tokenizer, CharTokenizer) else None
    return {
        TOKENIZER: table or tokenizer.tokenizer_json(),
        TOKENIZER_CONFIG: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.block_size,
            **end,
        },
    }


def of_characters(tokenizer):
    """Return the tokenizer.json of a CharTokenizer, a dict."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {char: i for i, char in enumerate(tokenizer.chars)},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": model,
    }


def read_characters(text):
    """Return the CharTokenizer that `of_characters` wrote as JSON, or None if it is another's."""
    try:
        table = json.loads(text)
        vocab = table["model"]["vocab"]
        tokenizer = CharTokenizer("".join(sorted(vocab, key=vocab.get)))
        return tokenizer if of_characters(tokenizer) == table else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
