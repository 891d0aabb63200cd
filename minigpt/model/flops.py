"""Floating-point operations of both passes of a model, counted from its shapes."""

from minigpt.model.lora import count_adapter
from minigpt.params import leaves


def count_layers(config):
    """Return the numbers of (blocks, encoder blocks, cross attentions) of a model."""
    names = [name for name, _ in leaves(config.shapes())]
    blocks = [name for name in names if name.endswith(".attn.c_attn.w")]
    encoder = [name for name in blocks if name.startswith("encoder.")]
    return len(blocks), len(encoder), sum(name.endswith(".c_kv.w") for name in names)


def count_flops(config, rows, targets, sources=None, recompute=False, lora=None):
    """Return the floating-point operations of a forward and a backward pass.

    Two per multiply-add, three products per weight (y, dx, dw) and token: 6 per weight of a linear
    layer, the head included, which Kaplan et al. 2020, arXiv:2001.08361, table 1, leave out.
    Attention is counted as in that table: nanoGPT's estimate (PaLM, arXiv:2204.02311, appendix B),
    halved by the mask. Elementwise work is not counted. With recompute the blocks have four
    products in place of three. With LoRA no weight has the product dw, but for those of adapters.

    Parameters
    ----------
    config : GPTConfig or Seq2SeqConfig
    rows : int
        Of the batch.
    targets, sources : int
        Tokens in each row, with padding; of a GPT there are no sources.
    recompute : bool
    lora : Lora, optional
    """
    C, T, S = config.n_embd, targets, sources or 0
    blocks, encoder, cross = count_layers(config)
    decoder = blocks - encoder
    # Of cross attention, q and its projection are of the targets, k and v of the sources.
    of_blocks = (12 * (decoder * T + encoder * S) + 2 * cross * (T + S)) * C * C
    # Two products a token and layer: with (T + 1) / 2 keys under the mask, with S without it.
    seen = (decoder * (T + 1) * T + encoder * 2 * S * S + cross * 2 * S * T) * C
    head = config.vocab_size * C * T
    products = 4 if recompute else 3
    if lora is None:
        return 2 * (products * (of_blocks + seen) + 3 * head) * rows
    trained = seen + count_adapter(config, lora) * T
    return 2 * (products * trained + (products - 1) * of_blocks + 2 * head) * rows
