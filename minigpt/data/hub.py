"""What the Hugging Face hub has by a name, such as openai-community/gpt2: tokenizers, models.

The library huggingface_hub fetches them into its own cache, where other programs find them, too.
"""

import re
from pathlib import Path

from minigpt.cli import one_line
from minigpt.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/model
SHORT = {  # old names of the models without an owner
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
OF_TOKENIZERS = (  # files of a repository, which may hold the same in several formats
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
OF_MODELS = (
    *("config.json", "model.safetensors", "model.safetensors.index.json"),
    "model-*-of-*.safetensors",
    *OF_TOKENIZERS,
)


def repository(name):
    """Return the name on the hub that a name stands for, or None: a path of the user's.

    What begins with a folder that there is, is a path.
    """
    name = str(name)
    if name in SHORT:
        return SHORT[name]
    return name if NAME.fullmatch(name) and not Path(name).parent.exists() else None


def fetch(name, files, where="model"):
    """Return the folder of what the hub has by a name; what is in the cache stays.

    Parameters
    ----------
    name : str
        owner/model.
    files : tuple of str
        OF_MODELS or OF_TOKENIZERS.
    where : str
        What named it; errors begin with it.

    Raises
    ------
    UserError
        If it cannot be fetched: says which files to put where.
    """
    weights = "config.json, model.safetensors, " if files is OF_MODELS else ""
    by_hand = (
        f"or put {weights}vocab.json and merges.txt of https://huggingface.co/{name} into a "
        "folder, and name that"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{where} {name}: there is no such folder, and what the hub has needs the library "
            f"huggingface_hub: pip install 'minigpt[bpe]'; {by_hand}"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*files]))
    except Exception as error:  # of any library that it uses
        raise UserError(
            f"{where} {name}: there is no such folder, and the hub does not give it "
            f"({one_line(error):.200}); try again with a network, {by_hand}"
        ) from None
