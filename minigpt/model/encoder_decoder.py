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
from functools import partial

from minigpt.backend import array_module
from minigpt.cli import option
from minigpt.errors import UserError
from minigpt.model.blocks import at, block_forward, cross_block_backward, cross_block_forward
from minigpt.model.gpt import (
    GPTConfig,
    below_head,
    block_shapes,
    check_pairs,
    draw_params,
    embedding_shapes,
    gpt_backward,
    gpt_forward,
    head_params,
    linear_shapes,
    norm_shapes,
    qkv_bias,
)
from minigpt.model.gpt import shapes as gpt_shapes
from minigpt.ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_both,
    cross_entropy_forward,
)


@dataclass(frozen=True)
class Seq2SeqConfig(GPTConfig):
    """Encoder-decoder (--task seq2seq; n_layer blocks in each of the two)."""

    source_vocab_size: int = option(65, "tokens of the source; found from the data", flag=False)
    share_embedding: bool = option(False, "source and target have one vocabulary and embedding")

    def __post_init__(self):
        super().__post_init__()
        if self.source_vocab_size < 1:
            raise UserError(f"source_vocab_size is {self.source_vocab_size}; it must be at least 1")
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


def cross_block_shapes(config):
    """Return the tree of parameter shapes of a block with cross attention."""
    C, bias = config.n_embd, qkv_bias(config)
    cross = {
        "c_q": linear_shapes(C, C, bias),
        "c_kv": linear_shapes(C, 2 * C, bias),
        "c_proj": linear_shapes(C, C, config.bias),
    }
    return {**block_shapes(config), "cross": cross, "ln_3": norm_shapes(config)}


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


def init_params(config, seed, xp, dtype="float32"):
    """Return fresh Params, as gpt.init_params; a decoder has three projections a block."""
    return draw_params(shapes(config), config.init, seed, xp, dtype)


def encoder_forward(source, p, config, rng=None, block=block_forward):
    """Read the source.

    Parameters
    ----------
    source : (B, Ts) int
        -1 is padding, at the end of a row.
    block : callable, optional
        In place of block_forward.

    Returns
    -------
    memory : (B, Ts, C)
    seen : (B, Ts) bool
        False where there is padding.
    cache : tuple
    """
    seen = source >= 0
    encoder = {"wte": p["wte"], **p["encoder"]}  # its own wte, where it has one
    key = at(rng, config.n_layer + 1)  # apart from the decoder's blocks and embedding
    block = partial(block, causal=False, key_mask=seen)
    memory, cache = gpt_forward(source * seen, encoder, config, key, block=block)
    return memory, seen, cache


def decoder_forward(ids, memory, seen, p, config, rng=None, kv=None, block=cross_block_forward):
    """A GPT whose blocks also read memory.

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
    block : callable, optional
        In place of cross_block_forward.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    block = partial(block, memory=memory, key_mask=seen)
    return gpt_forward(ids, p, config, rng, kv, block)


def decoder_backward(dy, cache, dwte=None):
    """Return dmemory (B, Ts, C), summed over the blocks, and the tree of gradients.

    Parameters
    ----------
    dy : (B, T, C)
    dwte : (V, C), optional
        As in gpt_backward.
    """
    dmemory = 0

    def block(dx, dh, cache):
        nonlocal dmemory
        dx, dh, dm, grads = cross_block_backward(dx, dh, cache)
        dmemory = dmemory + dm
        return dx, dh, grads

    grads = gpt_backward(dy, cache, dwte, block)
    return dmemory, grads


def decoder_ids(targets, config):
    """Return what the decoder reads, (B, T) int: END, then the targets but the last."""
    ids = array_module(targets).empty_like(targets)
    ids[:, :1] = config.vocab_size - 1
    ids[:, 1:] = targets[:, :-1] * (targets[:, :-1] >= 0)
    return ids


def seq2seq_forward(source, targets, p, config, rng=None):
    """Encoder, then decoder: what it says at each place of the targets.

    Parameters
    ----------
    source, targets : (B, Ts), (B, T) int
        -1 is padding, at the end of a row.

    Returns
    -------
    x : (B, T, C), dtype of the parameters
    cache : tuple
    """
    ids = decoder_ids(targets, config)
    memory, seen, encoder_cache = encoder_forward(source, p, config, rng)
    x, decoder_cache = decoder_forward(ids, memory, seen, p, config, rng)
    return x, (encoder_cache, decoder_cache, config.share_embedding)


def seq2seq_backward(dx, cache, dwte=None):
    """Return the tree of gradients of seq2seq_forward; dwte as in gpt_backward."""
    encoder_cache, decoder_cache, shared = cache
    dmemory, grads = decoder_backward(dx, decoder_cache, dwte)
    encoder = gpt_backward(dmemory, encoder_cache, grads["wte"] if shared else None)
    if shared:
        grads["wte"] = encoder.pop("wte")
    return {**grads, "encoder": encoder}


def loss_forward(source, targets, p, config, rng=None, count=None):
    """Cross-entropy of the targets, in nats per token; arguments as in gpt.loss_forward.

    Parameters
    ----------
    source, targets : (B, Ts), (B, T) int
        -1 is padding, at the end of a row; a target ends with END.
    """
    x, cache = seq2seq_forward(source, targets, p, config, rng)
    loss, loss_cache = cross_entropy_forward(x, targets, **head_params(p), count=count)
    return loss, (cache, loss_cache, "lm_head" in p)


def loss_backward(dloss, cache):
    """Return the tree of gradients of loss_forward, nested as the parameters."""
    cache, loss_cache, untied = cache
    return below_head(seq2seq_backward, cache, untied, *cross_entropy_backward(dloss, loss_cache))


def loss_and_gradients(source, targets, p, config, rng=None, count=None, dloss=1.0):
    """Both passes of the loss, as training takes them; see gpt.loss_and_gradients."""
    x, cache = seq2seq_forward(source, targets, p, config, rng)
    loss, *of_head = cross_entropy_both(x, targets, **head_params(p), count=count, dloss=dloss)
    return loss, below_head(seq2seq_backward, cache, "lm_head" in p, *of_head)
