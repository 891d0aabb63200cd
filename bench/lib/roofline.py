"""The bytes that the arithmetic of a training step needs, and the times that peak rates allow.

The minimum is that of ops which each read every input once and write every output once, with what
the fused ones keep for their backward pass and nothing else:

- a matrix product reads both operands and writes its result; head, softmax and loss are such a
  product, a pass over the logits that leaves their gradients, and two products more;
- a layer's bias belongs to what comes after it; activation, attention and dropout -> add ->
  layernorm are one op each and keep their inputs (attention a number per query, layernorm two per
  token) and no mask;
- the token table's gradient is read and written in the rows that occur;
- the gradients are read once for their norm, then parameters, gradients and moments once for the
  update, which writes parameters and moments.

It counts matrices that a large cache could keep from one op to the next: a program that fused over
the bounds of these ops could need less.
"""

from typing import NamedTuple

from minigpt.model import count_parameters

WORD = 4  # bytes of a float32 and of a token's id


class Device(NamedTuple):
    """Peak rates of a device: bytes per s, and FLOP/s of dense arithmetic by number format."""

    bandwidth: float
    float32: float  # outside of tensor cores, as attention in float32 is here
    tf32: float
    float16: float  # with sums in float32
    bfloat16: float


DEVICES = {
    # NVIDIA A100 Tensor Core GPU data sheet (June 2021), A100 80GB SXM
    "A100": Device(2.039e12, 19.5e12, 156e12, 312e12, 312e12),
    # NVIDIA H100 Tensor Core GPU data sheet, H100 SXM; tensor rates halved: they are with sparsity
    "H100": Device(3.35e12, 67e12, 494.5e12, 989.5e12, 989.5e12),
    # NVIDIA H200 Tensor Core GPU data sheet, H200 SXM; tensor rates halved likewise
    "H200": Device(4.8e12, 67e12, 494.5e12, 989.5e12, 989.5e12),
    # NVIDIA Ada GPU architecture white paper, appendix A, GeForce RTX 4090
    "RTX 4090": Device(1.008e12, 82.6e12, 82.6e12, 165.2e12, 165.2e12),
}


def minimum(config, train_config):
    """Return {part: bytes} of a step of one batch, as the head of this file defines them."""
    T, C, L, V = config.block_size, config.n_embd, config.n_layer, config.vocab_size
    N, P = train_config.batch_size * T, count_parameters(config)
    dropped = int(config.dropout > 0)  # then a sublayer's gradient is not that of the stream
    rows = min(N, V) * C
    blocks = 12 * C * C
    floats = {
        # forward: x, w -> y; backward: dy, w -> dx and x, dy -> dw. Widths C to 3C, C, 4C and back
        "products of the blocks": L * (3 * blocks + 3 * N * (4 + 2 + 5 + 5) * C),
        # logits; dx; dw: each has N C, N V and V C numbers
        "products of the head": 3 * (N * C + V * C + N * V),
        "softmax and loss": 2 * N * V,
        # q k v -> y, lse; q k v y dy lse -> dq dk dv
        "attention": L * N * ((4 + 8) * C + 2 * config.n_head),
        # x -> y; x dy -> dx
        "activation": L * N * (8 + 12) * C,
        # h -> y, with dropout x' too; then x h -> x' y. Backward dy x' -> dx, with dropout dh too;
        # then dx dy x' -> dx, dh; the first has no x to give a dx to
        "residual": N * C * ((2 + dropped) + 8 * L)
        + N * C * ((3 + dropped) + (2 * L - 1) * (4 + dropped) + 4),
        "embedding": rows + 2 * T * C + 2 * N * C + (2 * rows if config.tie_head else V * C),
    }
    low = WORD if train_config.dtype in ("float32", "tf32") else 2
    sizes = {part: low * n for part, n in floats.items()}
    sizes["residual"] += WORD * 4 * (2 * L + 1) * N  # mu and rstd, written and read
    sizes["norm and optimizer"] = WORD * 8 * P + (low < WORD) * low * P  # the copy in 16 bit
    sizes["batch"] = 6 * WORD * N  # ids and targets: gathered, then read
    return sizes


def attention_flops(config, train_config):
    """Return FLOPs of attention's products by its lower triangle, 2 forward and 5 backward.

    The backward pass makes the scores again: they were not kept.
    """
    T = config.block_size
    return 7 * config.n_layer * train_config.batch_size * T * (T + 1) * config.n_embd


def seconds(device, kinds, product_format, attention):
    """Return the least time of a step: what each kind of work needs in bytes or in FLOPs.

    Parameters
    ----------
    device : Device
    kinds : {"attention", "kernel", "product", "copy": (launches, bytes, FLOPs)}
    product_format : str
        The format that products are in, a field of Device.
    attention : float
        FLOPs of the attention kernels: in float32, or in 16 bit on tensor cores.
    """
    attention_format = "float32" if product_format == "tf32" else product_format
    flops = {"product": kinds["product"][2] / getattr(device, product_format)}
    if kinds["attention"][0]:
        flops["attention"] = attention / getattr(device, attention_format)
    return sum(max(n / device.bandwidth, flops.get(kind, 0.0)) for kind, (_, n, _) in kinds.items())
