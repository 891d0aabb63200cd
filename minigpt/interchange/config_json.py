"""What a config.json has of a model, whatever its architecture.

An architecture, gpt2.py or starcoder2.py, has its own names of fields and tensors:

    DEFAULTS        the fields that stand for something if left out
    OPTIONS         our options under which of its fields
    FIXED           the fields that have one value here
    PREFIX          what names of tensors begin with, but for those of the head
    EMBEDDING       the token embedding, without the prefix
    BUFFERS         the tensors in old files that are no parameters, a regular expression
    config_of, describe, views
"""

from minigpt import cli
from minigpt.data.bpe_files import read_json
from minigpt.errors import UserError
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import STD

ENDS = {"w": "weight", "b": "bias"}
ACTIVATIONS = {  # names in transformers: ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_object(path, where, what):
    """Return the JSON object in a file; the parameters and the errors are files.read_text's."""
    found = read_json(path, where, what)
    if not isinstance(found, dict):
        raise UserError(f"{where} {path} is damaged: it is no JSON object; get it again")
    return found


def read_options(fields, where, names, rotary):
    """Return the GPTConfig of a config.json: with a tied head, and a bias wherever one may be.

    Parameters
    ----------
    fields : dict
        With a value for each of `names`.
    where : str
        What errors begin with.
    names : {our option: field}
    rotary : bool

    Raises
    ------
    UserError
        If a value is none that there is here.
    """
    options = {ours: fields[theirs] for ours, theirs in names.items()}
    activation = options["activation"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{where}: {names['activation']} is {activation!r:.60}; what can be loaded: "
            f"{', '.join(ACTIVATIONS)}"
        )
    options |= {"activation": ACTIVATIONS[activation], "rotary": rotary}
    try:
        return cli.build(GPTConfig, options | {"bias": True, "bigram": False})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def require(fields, needed, where):
    """Raise a UserError if a field, {name: value}, is not what is needed."""
    for name, value in needed.items():
        if fields[name] != value:
            raise UserError(
                f"{where}: {name} is {fields[name]!r:.60}; what can be loaded has {value!r}"
            )


def describe_alike(config, end_of_text):
    """Return what a config.json has of any GPT, a dict."""
    return {
        "vocab_size": config.vocab_size,
        "initializer_range": STD,
        "tie_word_embeddings": config.tie_head,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",  # where transformers 5 looks, and 4 below
        "torch_dtype": "float32",
    }
