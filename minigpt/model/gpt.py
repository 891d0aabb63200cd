"""The GPT: a decoder-only transformer, with what the lecture, nanoGPT and GPT-2 need between them.

Radford et al. 2019 (GPT-2): pre-norm blocks and a final layernorm, which the GPT of 2018 had not.
The options of `GPTConfig` cover most of where the lecture, nanoGPT and GPT-2 differ.
"""

from dataclasses import dataclass

from minigpt import cli
from minigpt.backend import array_module
from minigpt.cli import option
from minigpt.errors import UserError
from minigpt.model.blocks import block_backward, block_forward, fold_key
from minigpt.model.init import block_shapes, embedding_shapes, norm_shapes
from minigpt.model.recompute import without_cache
from minigpt.ops.activation import KINDS
from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_both,
    cross_entropy_forward,
    head,
)
from minigpt.ops.embedding import (
    embedding_backward,
    embedding_backward_tied,
    embedding_forward,
)

MOST_TOKENS = 46340  # whose pairs, V (V + 1) of them, have numbers in int32


@dataclass(frozen=True)
class GPTConfig(cli.Config):
    """Model.

    The defaults are those of the preset quick on tiny Shakespeare. qkv_bias=None stands for the
    value of bias and is filled in when the config is made; `dataclasses.replace` therefore takes
    `qkv_bias=None` beside another `bias`.
    """

    vocab_size: int = option(
        65,
        "tokens in the vocabulary (default: as many as the tokenizer has)",
        min=1,
        rare=True,
    )
    block_size: int = option(64, "longest context, in tokens", min=1)
    n_layer: int = option(2, "number of blocks", min=1)
    n_head: int = option(4, "attention heads per block", min=1)
    n_embd: int = option(128, "channels, a multiple of n-head", min=1)
    dropout: float = option(0.0, "fraction of activations set to 0 in training", min=0, below=1)
    bias: bool = option(False, "biases in linear layers and layernorms")
    rotary: bool = option(True, "rotary position embedding in place of a learned one")
    bigram: bool = option(True, "add a learned bigram embedding (previous token, token)")
    qkv_bias: bool | None = option(
        None, "bias of the query, key and value projections (default: as --bias)", rare=True
    )
    activation: str = option("relu", "activation of the MLP", choices=tuple(KINDS))
    tie_head: bool = option(True, "share one matrix between LM head and token embedding", rare=True)
    head_bias: bool = option(False, "bias of an untied LM head", rare=True)
    init_scale: str = option(
        "residual",
        "initial weights of the projections into the residual stream: residual divides them "
        "by sqrt(2 n_layer), as GPT-2; plain does not",
        choices=("residual", "plain"),
        answers={"gpt2": "GPT-2's initialization is residual; pretrained weights are not loaded"},
        rare=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.qkv_bias is None:
            object.__setattr__(self, "qkv_bias", self.bias)
        check_together(self)
        if self.bigram:
            check_pairs(self.vocab_size)

    def shapes(self):
        """Return the tree of parameter shapes, under GPT-2's names."""
        return shapes(self)


def check_together(config):
    """Raise a UserError if options of a model contradict each other, whatever its vocabulary.

    Parameters
    ----------
    config : GPTConfig, or object with the same attributes
    """
    if config.n_embd % config.n_head:
        raise UserError(
            f"n_embd is {config.n_embd}, not a multiple of n_head {config.n_head}: every head gets "
            "n_embd / n_head channels; "
            f"use {config.n_head * -(-config.n_embd // config.n_head)}"
        )
    if config.rotary and config.n_embd // config.n_head % 2:
        raise UserError(
            "rotary turns pairs of channels, but n_embd / n_head is "
            f"{config.n_embd // config.n_head}, which is odd; use another n_head"
        )
    if config.tie_head and config.head_bias:
        raise UserError("head_bias is on with a tied head, which has none; set tie_head off")


def check_pairs(V):
    """Raise a UserError if the ids of pairs of V tokens do not fit into int32."""
    if V > MOST_TOKENS:
        raise UserError(
            f"bigram needs ids for the pairs of {V} tokens, too many for int32; switch it off, "
            f"or use a vocabulary of at most {MOST_TOKENS}"
        )


def shapes(config):
    """Return the tree of parameter shapes, under GPT-2's names."""
    C, V = config.n_embd, config.vocab_size
    tree = {
        **embedding_shapes(V, config),
        "h": [block_shapes(config) for _ in range(config.n_layer)],
        "ln_f": norm_shapes(config),
    }
    if not config.tie_head:
        tree["lm_head"] = {"w": (V, C), "b": (V,)} if config.head_bias else {"w": (V, C)}
    return tree


def bigrams(ids, V, previous=None):
    """Return a number for every token and the one before it: V * the id before + its own.

    Parameters
    ----------
    ids : (B, T) int
        In 0 .. V - 1.
    V : int
    previous : (B,) int, optional
        What stands before the first token of each row. Nothing, if left out: V takes its place.

    Returns
    -------
    pairs : (B, T), dtype of ids
        In 0 .. V (V + 1) - 1.
    """
    pairs = array_module(ids).empty_like(ids)
    pairs[:, 1:] = ids[:, :-1]
    pairs[:, :1] = V if previous is None else previous[:, None]
    pairs *= V
    pairs += ids
    return pairs


def embed_forward(ids, p, kv=None):
    """The stream's beginning: token, position and, if the model has it, bigram embedding.

    Parameters
    ----------
    ids : (B, T) int
    p : {"wte" (V, C)[, "wpe" (block_size, C)][, "wbe" (V (V + 1), C)]}
        Without wpe, positions are left to the rotation of queries and keys.
    kv : KVCache, optional
        Of the tokens before `ids`.

    Returns
    -------
    h : (B, T, C)
    cache : tuple
    """
    start = 0 if kv is None else kv.length
    h, embedding_cache = embedding_forward(ids, p["wte"], p.get("wpe"), start)
    if "wbe" not in p:
        return h, (embedding_cache, None)
    pairs = bigrams(ids, len(p["wte"]), None if kv is None else kv.previous)
    of_pairs, bigram_cache = embedding_forward(pairs, p["wbe"])
    return h + of_pairs, (embedding_cache, bigram_cache)


def embed_backward(dh, cache, dwte=None):
    """Return {"wte", "wpe"?, "wbe"?}: a sum passes its gradient to each of its terms.

    Parameters
    ----------
    dh : (B, T, C)
    dwte : (V, C), optional
        As in gpt_backward.
    """
    embedding_cache, bigram_cache = cache
    if dwte is None:
        grads = embedding_backward(dh, embedding_cache)
    else:
        grads = embedding_backward_tied(dh, embedding_cache, dwte)
    if bigram_cache is not None:
        grads["wbe"] = embedding_backward(dh, bigram_cache)["wte"]
    return grads


def ignore(name, *arrays):
    """Do nothing with what a layer has computed."""


def gpt_forward(
    ids,
    p,
    config,
    rng=None,
    kv=None,
    causal=True,
    key_mask=None,
    on_layer=ignore,
    recompute=False,
):
    """Embedding, blocks, final layernorm.

    Parameters
    ----------
    ids : (B, T) int
    p : tree of parameters
        p["h"] is the list of blocks, as GPT-2 names it.
    config : GPTConfig
    rng : Rng, optional
        The key of this step's dropout; None is no dropout.
    kv : KVCache, optional
        Keys and values of the tokens before `ids`; those of `ids` are added to it.
    causal, key_mask : optional
        As in block_forward: the GPT as an encoder.
    on_layer : callable, optional
        Called with the name of each layer and the arrays that it has computed, of a block without
        the bias that the next add_norm adds.
    recompute : bool
        Keep the inputs of the blocks in place of their caches; see model/recompute.py.

    Returns
    -------
    y : (B, T, C), dtype of the parameters
    cache : (of embed_forward, [of each block], of the final layernorm)
        The first is None in a frozen model (model/lora.py), whose embeddings have no gradient.
    """
    h, embed_cache = embed_forward(ids, p, kv)
    on_layer("wte", h)
    run_block = without_cache(block_forward) if recompute else block_forward
    x, b, block_caches = None, None, []
    for i, block in enumerate(p["h"]):
        x, h, b, cache = run_block(
            x,
            h,
            b,
            block,
            config.n_head,
            config.activation,
            config.dropout,
            fold_key(rng, i),
            None if kv is None else kv[i],
            causal,
            key_mask,
            config.rotary,
        )
        block_caches.append(cache)
        on_layer(f"h.{i}", x, h)
    key = fold_key(rng, config.n_layer)
    (_, y), norm_cache = add_norm_forward(x, h, **p["ln_f"], h_b=b, dropout=config.dropout, rng=key)
    on_layer("ln_f", y)
    if kv is not None:
        kv.advance(ids)
    if "frozen" in p:
        embed_cache = None
    return y, (embed_cache, block_caches, norm_cache)


def gpt_backward(dy, cache, dwte=None):
    """Return the tree of gradients of gpt_forward, which is read upwards.

    Parameters
    ----------
    dy : (B, T, C)
    dwte : (V, C), optional
        The tied head's gradient of wte, given up by the caller: the embedding's is added to it.
    """
    embed_cache, block_caches, norm_cache = cache
    dx, dh, ln_f = add_norm_backward(None, dy, norm_cache)
    db = ln_f.pop("h_b", None)
    blocks = []
    for block_cache in reversed(block_caches):
        dx, dh, db, grads = block_backward(dx, dh, db, block_cache)
        blocks.append(grads)
    embedding = {} if embed_cache is None else embed_backward(dh, embed_cache, dwte)
    return {**embedding, "h": blocks[::-1], "ln_f": ln_f}


def head_params(p):
    """Return {"w", "b"?} of the LM head: its own, or the token embedding."""
    return p.get("lm_head", {"w": p["wte"]})


def logits(x, p):
    """Return (..., V): what the head makes of x (..., C)."""
    return head(x, **head_params(p))


def loss_forward(ids, targets, p, config, rng=None, count=None, recompute=False):
    """Cross-entropy of the next tokens, in nats per token.

    Parameters
    ----------
    ids, targets : (B, T) int
        targets[b, t] follows ids[b, t]; -1 is ignored.
    p, config, rng, recompute : as in gpt_forward
        With recompute this takes the least memory, and where no backward pass follows no more time.
    count : int, optional
        As in cross_entropy_forward.

    Returns
    -------
    loss : () float
    cache : tuple
    """
    x, cache = gpt_forward(ids, p, config, rng, recompute=recompute)
    loss, loss_cache = cross_entropy_forward(x, targets, **head_params(p), count=count)
    return loss, (cache, loss_cache, "lm_head" in p, "frozen" in p)


def loss_backward(dloss, cache):
    """Return the tree of gradients of loss_forward, nested as the parameters."""
    cache, loss_cache, untied, frozen = cache
    of_head = cross_entropy_backward(dloss, loss_cache, frozen)
    return below_head(gpt_backward, cache, untied, *of_head)


def loss_and_gradients(ids, targets, p, config, rng=None, count=None, dloss=1.0, recompute=False):
    """Both passes of the loss, as training takes them: the head's two passes are one op.

    `recompute` is that of gpt_forward.

    Returns
    -------
    loss : () float
    grads : tree
        dloss times the gradient of the loss, nested as the parameters.
    """
    x, cache = gpt_forward(ids, p, config, rng, recompute=recompute)
    loss, *of_head = cross_entropy_both(
        x, targets, **head_params(p), count=count, dloss=dloss, frozen="frozen" in p
    )
    return loss, below_head(gpt_backward, cache, "lm_head" in p, *of_head)


def below_head(backward, cache, untied, dx, head_grads):
    """Go on from the LM head: return all gradients of a model.

    A tied head is a second use of wte, hence dwte = (as head) + (as embedding).

    Parameters
    ----------
    backward : callable
        gpt_backward or seq2seq_backward.
    cache : tuple
        Its own.
    untied : bool
        Whether the head has parameters of its own.
    dx, head_grads
        As from cross_entropy_backward.
    """
    if untied:
        return {**backward(dx, cache), "lm_head": head_grads}
    return backward(dx, cache, dwte=head_grads.get("w"))
