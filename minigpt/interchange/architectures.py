"""The architectures of transformers that a GPT can be, by the model_type of their config.json."""

from minigpt.errors import UserError
from minigpt.interchange import gpt2, starcoder2

ARCHITECTURES = {"gpt2": gpt2, "starcoder2": starcoder2}
HEAD = "lm_head.weight"  # the one name without a prefix


def architecture_for(config):
    """Return the architecture that a GPTConfig is exported as."""
    return starcoder2 if config.rotary else gpt2


def architecture_in(fields, where):
    """Return the architecture of a config.json, or raise a UserError that begins with `where`."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(
            f"{where}: model_type is {kind!r:.60}; what can be loaded: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def full_name(architecture, name):
    """Return the name of a tensor in files, with the prefix."""
    return name if name == HEAD else f"{architecture.PREFIX}{name}"


def flattened(x):
    """Return one of an architecture's `views` in its shape there: (C, ...) of (H, 2, D / 2, ...)"""
    return x.reshape(-1, *x.shape[3:]) if x.ndim > 2 else x
