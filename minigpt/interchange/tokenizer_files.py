"""A tokenizer's files for transformers: tokenizer.json and tokenizer_config.json.

Format: https://huggingface.co/docs/tokenizers, "Components". A table of characters is a BPE that
has learnt no merges: every token is one character. Where it is decoded, the characters are joined.
What is not in the table vanishes there without a word; here it is an error.
"""

from minigpt.data.bpe_files import FUSE, TOKENIZER, TOKENIZER_CONFIG, model_of
from minigpt.data.characters import CharTokenizer


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
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": FUSE,
        "model": model_of({char: i for i, char in enumerate(tokenizer.chars)}, []),
    }
