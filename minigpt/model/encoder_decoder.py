"""The encoder-decoder: one sequence is read, another is written, cross attention joins the two.

Vaswani et al. 2017, arXiv:1706.03762, figure 1, with the GPT's pre-norm blocks and
positions. The encoder is a GPT whose tokens all see each other. The decoder is a GPT with a cross
attention layer in every block; its parameters bear the GPT's names, the encoder's stand under
"encoder".

Rows of a batch end in padding of -1. No token attends to it, it predicts nothing, and no gradient
comes from it. The last id of the vocabulary is END: the decoder starts from it, and writes it when
it is done.
"""

from dataclasses import dataclass

from minigpt.backend import array_module
from minigpt.cli import option, option_of
from minigpt.errors import UserError
from minigpt.model.blocks import (
    cross_block_backward,
    cross_block_forward,
    fold_key,
)
from minigpt.model.gpt import (
    GPTConfig,
    below_head,
    check_pairs,
    embed_backward,
    embed_forward,
    gpt_backward,
    gpt_forward,
    head_params,
    ignore,
)
from minigpt.model.gpt import shapes as gpt_shapes
from minigpt.model.init import block_shapes, cross_block_shapes, embedding_shapes, norm_shapes
from minigpt.model.recompute import without_cache
from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_both,
    cross_entropy_forward,
)


@dataclass(frozen=True)
class Seq2SeqConfig(GPTConfig):
    """Encoder-decoder (--task seq2seq; n_layer blocks in encoder and in decoder).

    The defaults are those of the preset dates.
    """

    bias: bool = option_of(GPTConfig, "bias", True)
    rotary: bool = option_of(GPTConfig, "rotary", False)
    bigram: bool = option_of(GPTConfig, "bigram", False)
    activation: str = option_of(GPTConfig, "activation", "gelu")
    source_vocab_size: int = option(65, "tokens of the sources; from the data", flag=False, min=1)
    share_embedding: bool = option(
        False, "one vocabulary and embedding for source and target", rare=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.bigram:
            check_pairs(self.source_vocab_size)
        if self.share_embedding and self.source_vocab_size > self.vocab_size:
            raise UserError(
                f"source_vocab_size is {self.source_vocab_size}, but with share_embedding it "
                f"must not exceed vocab_size, {self.vocab_size}"
            )

    def shapes(self):
        """Return the tree of parameter shapes; the encoder's stand under "encoder"."""
        return shapes(self)


def shapes(config):
    """Return the tree of parameter shapes."""
    shared = config.share_embedding
    encoder = {
        **embedding_shapes(config.vocab_size if shared else config.source_vocab_size, config),
        "h": [block_shapes(config) for _ in range(config.n_layer)],
        "ln_f": norm_shapes(config),
    }
    if shared:
        del encoder["wte"]
    decoder = {"h": [cross_block_shapes(config) for _ in range(config.n_layer)]}
    return {**gpt_shapes(config), **decoder, "encoder": encoder}


def encoder_forward(source, p, config, rng=None, on_layer=ignore, recompute=False):
    """Read the source: a GPT without the tril mask, in which no token sees padding.

    Parameters
    ----------
    source : (B, Ts) int
        -1 is padding, at the end of a row.
    p : tree of parameters
    config : Seq2SeqConfig
    rng : Rng, optional
        The key of this step's dropout; None is no dropout.
    on_layer : callable, optional
        As in gpt_forward; the names begin with "encoder.".
    recompute : bool
        As in gpt_forward.

    Returns
    -------
    memory : (B, Ts, C)
    seen : (B, Ts) bool
        False where there is padding.
    cache : as of gpt_forward
    """
    seen = source >= 0
    encoder = {"wte": p["wte"], **p["encoder"]}  # its own wte, where it has one
    key = fold_key(rng, config.n_layer + 1)  # apart from the decoder's blocks and embedding

    def on_encoder(name, *arrays):
        on_layer(f"encoder.{name}", *arrays)

    memory, cache = gpt_forward(
        source * seen,
        encoder,
        config,
        key,
        causal=False,
        key_mask=seen,
        on_layer=on_encoder,
        recompute=recompute,
    )
    return memory, seen, cache


def decoder_forward(
    ids, memory, seen, p, config, rng=None, kv=None, on_layer=ignore, recompute=False
):
    """gpt_forward with blocks that also read memory.

    Parameters
    ----------
    ids : (B, T) int
    memory : (B, Ts, C)
    seen : (B, Ts) bool
    p : tree of parameters
    config : Seq2SeqConfig
    rng : Rng, optional
        The key of this step's dropout; None is no dropout.
    kv : DecoderCache, optional
        It also has the keys and values of memory, which is then not looked at.
    on_layer, recompute : optional
        As in gpt_forward.

    Returns
    -------
    y : (B, T, C)
    cache : (of embed_forward, [of each block], of the final layernorm)
    """
    h, embed_cache = embed_forward(ids, p, kv)
    on_layer("wte", h)
    run_block = without_cache(cross_block_forward) if recompute else cross_block_forward
    x, b, block_caches = None, None, []
    for i, block in enumerate(p["h"]):
        x, h, b, cache = run_block(
            x,
            h,
            b,
            memory,
            block,
            config.n_head,
            config.activation,
            config.dropout,
            fold_key(rng, i),
            None if kv is None else kv[i],
            seen,
            config.rotary,
        )
        block_caches.append(cache)
        on_layer(f"h.{i}", x, h)
    key = fold_key(rng, config.n_layer)
    (_, y), norm_cache = add_norm_forward(x, h, **p["ln_f"], h_b=b, dropout=config.dropout, rng=key)
    on_layer("ln_f", y)
    if kv is not None:
        kv.advance(ids)
    return y, (embed_cache, block_caches, norm_cache)


def decoder_backward(dy, cache, dwte=None):
    """Return dmemory (B, Ts, C) and the tree of gradients.

    Every block reads memory, so dmemory is the sum of what they all return.

    Parameters
    ----------
    dy : (B, T, C)
    dwte : (V, C), optional
        As in gpt_backward.
    """
    embed_cache, block_caches, norm_cache = cache
    dx, dh, ln_f = add_norm_backward(None, dy, norm_cache)
    db = ln_f.pop("h_b", None)
    dmemory, blocks = 0, []
    for block_cache in reversed(block_caches):
        dx, dh, db, of_block, grads = cross_block_backward(dx, dh, db, block_cache)
        dmemory = dmemory + of_block
        blocks.append(grads)
    return dmemory, {**embed_backward(dh, embed_cache, dwte), "h": blocks[::-1], "ln_f": ln_f}


def decoder_ids(targets, config):
    """Return what the decoder reads, (B, T) int: END, then the targets but the last.

    Teacher forcing: position t reads the right token t - 1, not the model's own, and is asked for
    token t. So all positions are trained at once.
    """
    ids = array_module(targets).empty_like(targets)
    ids[:, :1] = config.vocab_size - 1
    ids[:, 1:] = targets[:, :-1] * (targets[:, :-1] >= 0)
    return ids


def seq2seq_forward(source, targets, p, config, rng=None, on_layer=ignore, recompute=False):
    """Encoder, then decoder: the last hidden state at each position of the targets.

    Parameters
    ----------
    source, targets : (B, Ts), (B, T) int
        -1 is padding, at the end of a row.
    on_layer, recompute : optional
        As in gpt_forward.

    Returns
    -------
    x : (B, T, C), dtype of the parameters
    cache : tuple
    """
    ids = decoder_ids(targets, config)
    also = {"on_layer": on_layer, "recompute": recompute}
    memory, seen, encoder_cache = encoder_forward(source, p, config, rng, **also)
    x, decoder_cache = decoder_forward(ids, memory, seen, p, config, rng, **also)
    return x, (encoder_cache, decoder_cache, config.share_embedding)


def seq2seq_backward(dx, cache, dwte=None):
    """Return the tree of gradients of seq2seq_forward; dwte as in gpt_backward."""
    encoder_cache, decoder_cache, shared = cache
    dmemory, grads = decoder_backward(dx, decoder_cache, dwte)
    encoder = gpt_backward(dmemory, encoder_cache, grads["wte"] if shared else None)
    if shared:
        grads["wte"] = encoder.pop("wte")
    return {**grads, "encoder": encoder}


def loss_forward(source, targets, p, config, rng=None, count=None, recompute=False):
    """Cross-entropy of the targets, in nats per token; arguments as in gpt.loss_forward.

    Parameters
    ----------
    source, targets : (B, Ts), (B, T) int
        -1 is padding, at the end of a row; a target ends with END.
    """
    x, cache = seq2seq_forward(source, targets, p, config, rng, recompute=recompute)
    loss, loss_cache = cross_entropy_forward(x, targets, **head_params(p), count=count)
    return loss, (cache, loss_cache, "lm_head" in p)


def loss_backward(dloss, cache):
    """Return the tree of gradients of loss_forward, nested as the parameters."""
    cache, loss_cache, untied = cache
    return below_head(seq2seq_backward, cache, untied, *cross_entropy_backward(dloss, loss_cache))


def loss_and_gradients(
    source, targets, p, config, rng=None, count=None, dloss=1.0, recompute=False
):
    """Both passes of the loss, as training takes them; see gpt.loss_and_gradients."""
    x, cache = seq2seq_forward(source, targets, p, config, rng, recompute=recompute)
    loss, *of_head = cross_entropy_both(x, targets, **head_params(p), count=count, dloss=dloss)
    return loss, below_head(seq2seq_backward, cache, "lm_head" in p, *of_head)
