"""Models of the Hugging Face hub by their names, such as openai-community/gpt2.

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
FILES = (  # of a repository, which may hold the same weights in several formats
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


def repository(name):
    """Return the name on the hub that a name stands for, or None: a path of the user's.

    What begins with a folder that there is, is a path.
    """
    name = str(name)
    if name in SHORT:
        return SHORT[name]
    return name if NAME.fullmatch(name) and not Path(name).parent.exists() else None


def fetch(name):
    """Return the folder of a model of the hub; what is in the cache is not fetched again.

    Parameters
    ----------
    name : str
        owner/model.

    Raises
    ------
    UserError
        If it cannot be fetched: says which files to put where.
    """
    by_hand = (
        f"or put config.json, model.safetensors, vocab.json and merges.txt of "
        f"https://huggingface.co/{name} into a folder, and name that"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name}: there is no such folder, and a model of the hub needs the library "
            f"huggingface_hub: pip install 'minigpt[bpe]'; {by_hand}"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*FILES]))
    except Exception as error:  # of any library that it uses
        raise UserError(
            f"{name}: there is no such folder, and the hub does not give a model of that name "
            f"({one_line(error):.200}); try again with a network, {by_hand}"
        ) from None
