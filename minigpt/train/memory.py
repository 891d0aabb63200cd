"""The memory of a run, known before it starts: what its process holds at its peak.

Nearly all of it follows from the code. The arrays of a step come from the pool of the thread that
makes them (`backend/cpu/pool.py`), by size: at its peak a pool holds, of each size, as many as are
in use at one time. Those are counted here from `model/blocks.py` and the overrides in
`backend/cpu`.
"""

import contextlib
import importlib.util
import math
import re
import sys

from minigpt.backend import is_plain
from minigpt.backend.cpu import attention_tiles as tiles
from minigpt.backend.cpu import blocking, cross_entropy
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.devices import PRECISIONS
from minigpt.model import count_parameters
from minigpt.model.flops import count_layers
from minigpt.model.lora import adapter_shapes, count_adapter
from minigpt.params import leaves
from minigpt.sample import answers
from minigpt.sample.evaluation import EVAL_TOKENS
from minigpt.train.threads import STACK

FLOAT = 4  # bytes of float32
PAGE = 200 * 10**6  # bytes of a page, at the end of a run: the library or activations; measured
PICTURE = 35 * 10**6  # bytes of matplotlib, at the end of a run: measured
DEVICE_SCRATCH = 2**20  # numbers in buffers of a fixed size on a GPU, about


def resident():
    """Return the bytes of memory that this process holds, and their peak so far.

    Where the system does not tell the first, the peak stands for both.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        text = file.read()
        found = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
        return tuple(1024 * int(kilobytes[1]) for kilobytes in found)
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


def attention_weights(config, B, Tq, Tk):
    """Return the weights that an attention layer keeps: those of short sequences alone."""
    return B * config.n_head * Tq * Tk if Tq * Tk <= tiles.KEPT else 0


def adapted_widths(config, lora):
    """Return {layer: (C_in, r)} of the adapters in a block: attn.c_attn and others."""
    factors = leaves(adapter_shapes(config, lora))
    found = (name.split(".", 2)[2].rpartition(".") + (shape,) for name, shape in factors)
    return {layer: shape for layer, _, factor, shape in found if factor == "lora_a"}


def saved_by_token(config, lora):
    """Return the numbers that a block keeps of each token, but for attention's weights.

    With C = n_embd: 5 C are the sums that the two layernorms see, what they return, and what
    attention returns; 3 C are q, k and v; 8 C the MLP's activation and its slope. With LoRA the
    inputs of the linear layers, 6 C of these and once more what attention returns, are kept for
    adapters alone: as they are, or as dropout leaves them.
    """
    C = config.n_embd
    if lora is None:
        return 16 * C
    widths = adapted_widths(config, lora)
    if not lora.dropout and "attn.c_proj" in widths:
        widths["attn.c_proj"] = (0, lora.rank)  # attention keeps it in any case
    return 10 * C + sum(map(sum, widths.values()))


def saved_by_block(config, lora, B, Tq, Tk=0):
    """Return the numbers that a block keeps for its backward pass, of B rows of Tq tokens.

    Cross attention adds a layernorm, q and its result (4 C), and 2 C for each of Tk tokens of
    memory.
    """
    C = config.n_embd
    numbers = B * Tq * saved_by_token(config, lora) + attention_weights(config, B, Tq, Tq)
    if Tk:
        numbers += 4 * B * Tq * C + 2 * B * Tk * C + attention_weights(config, B, Tq, Tk)
    return numbers


def saved_by_blocks(config, lora, recompute, B, Tq, Tk=0):
    """Return the numbers that all blocks of a stack keep, of B rows of Tq tokens; see above.

    Where they are run again in the backward pass, that is their two inputs.
    """
    kept = 2 * B * Tq * config.n_embd if recompute else saved_by_block(config, lora, B, Tq, Tk)
    return config.n_layer * kept


def in_flight(config, lora, T, training):
    """Return the numbers per token that are in use for a moment, in one block or at the ends.

    Outside of the blocks: the final layernorm and its input, and the sums of the embeddings, which
    do not come from the pool. Forward: the MLP's product before its activation, and q, k and v
    before their rotation. Backward: gradients of 4 C numbers twice, of q, k and v once, or twice
    with rotation; of C numbers the head's, the stream's before and after a layernorm (each twice
    with dropout, which keeps the sublayer's apart), those into and out of a sublayer, and k and v
    turned around. Dropout of an adapter has the gradient of its input twice, before and after it.
    """
    C = config.n_embd
    transposed = 1 if T * T <= tiles.KEPT else 2
    ends = 2 + 3 + config.bigram
    if not training:
        return (ends + 4 + 3 * config.rotary + transposed + 2) * C
    stream, of_adapter = 2 + 2 * bool(config.dropout), 0
    if lora is not None and lora.dropout:
        of_adapter = C + max(n_in for n_in, _ in adapted_widths(config, lora).values())
    return (ends + 8 + 3 + 3 * config.rotary + 1 + stream + 2 + transposed) * C + of_adapter


def scratch(config, T):
    """Return the numbers in a thread's buffers of a fixed size: tiles of attention and blocks."""
    rows = columns = T
    if T * T > tiles.KEPT:
        rows, columns = tiles.query_rows(T, causal=True), min(T, tiles.KEYS)
    heads = min(config.n_head, max(1, tiles.TILE // (rows * columns)))
    tile = heads * max(rows * columns, max(rows, columns) * config.n_embd // config.n_head)
    drops = 4 * tile if config.dropout else 0  # random words and what becomes of them
    return 3 * tile + drops + 6 * blocking.BLOCK


def logits(config, n, training):
    """Return the numbers of the head that exist at one time, for n tokens of a thread."""
    V = config.vocab_size
    if not training:
        return min(n * V, cross_entropy.LOGITS)
    rows = min(n, max(1, cross_entropy.KEPT // V))
    return rows * (V + config.n_embd)


def passes(config, lora, B, T, Ts, training, recompute=False):
    """Return the numbers that a thread makes for B rows of T tokens, beside gradients of weights.

    Of an encoder-decoder Ts is that of the sources, else 0.
    """
    numbers = scratch(config, max(T, Ts)) + logits(config, B * T, training)
    numbers += B * T * in_flight(config, lora, T, training)
    numbers += saved_by_blocks(config, lora, recompute, B, T, Ts)
    if recompute:  # the cache of one block at a time, and its output, which is not needed then
        numbers += saved_by_block(config, lora, B, T, Ts) + B * T * config.n_embd
    if Ts:  # the encoder; its ends, memory and the two gradients that are summed up to that of it
        encoder = saved_by_blocks(config, lora, recompute, B, Ts)
        numbers += encoder + B * Ts * (5 + 3) * config.n_embd
    return numbers


def activations(config, train_config, T, Ts):
    """Return the numbers that all threads make in the passes, beside gradients of weights.

    Of a step or, if that takes more, an evaluation, whose arrays also take the place of a thread's
    gradients. A thread without rows of a batch evaluates, too.
    """
    rows, lora = max(1, EVAL_TOKENS // config.block_size), train_config.lora
    evaluation = passes(config, lora, rows, T, Ts, training=False, recompute=True)
    shards = shard_rows(train_config)
    total = (train_config.workers() - len(shards)) * evaluation
    for B in shards:
        step = passes(config, lora, B, T, Ts, training=True, recompute=train_config.recompute)
        total += max(step, evaluation - shard_gradients(config, train_config, B, T, Ts))
    return total


def shard_rows(train_config):
    """Return the number of rows of each shard of a batch."""
    shards = shard_slices(train_config.batch_size, train_config.shards())
    return [rows.stop - rows.start for rows in shards]


def products(config, T, Ts):
    """Yield (shape, tokens of a row, whether it is the head) of weights of linear layers."""
    head = "wte" if config.tie_head else "lm_head.w"
    for name, shape in leaves(config.shapes()):
        if name == head or len(shape) == 2 and re.search(r"\bh\.\d+\..*\.w$", name):
            of_source = name.startswith("encoder.") or ".c_kv." in name
            yield shape, Ts if of_source else T, name == head


def shard_gradients(config, train_config, B, T, Ts):
    """Return the numbers of gradients that a shard of B rows makes in memory of its own.

    Those of weights of linear layers it leaves in their places, if it is the only one; of several,
    each keeps x and dy, where they are smaller: see `backend/places.py`. x is in the cache anyway,
    but for recomputed blocks.
    """
    rows, further = shard_rows(train_config), train_config.gradient_accumulation_steps > 1
    numbers = count_weights(config, train_config.lora)[1]
    if train_config.lora is not None or is_plain():
        return numbers
    largest, stacks, all_rows = 0, set(), sum(rows)
    for shape, tokens, is_head in products(config, T, Ts):
        size, (x, dy) = math.prod(shape), shape[::-1] if is_head else shape
        if len(rows) == 1:
            numbers -= 0 if is_head and further else size
            largest = max(largest, 0 if is_head else size * further)
        elif max(rows) * tokens * sum(shape) <= size:
            numbers += B * tokens * (dy + x * train_config.recompute) - size
            n = all_rows * tokens
            stacks |= {n * shape[1], min(n * shape[0], STACK), min(size, STACK) * further}
    return numbers + largest + sum(stacks)


def count_weights(config, lora):
    """Return the numbers of parameters in all, and of those that are trained."""
    n = count_parameters(config)
    trained = n if lora is None else count_adapter(config, lora)
    return n if lora is None else n + trained, trained


def moments(config, train_config):
    """Return the numbers of the optimizer that are ever written.

    The second moment of Muon's matrices stays 0 and takes no memory: the system hands zeros out
    without keeping them.
    """
    _, n = count_weights(config, train_config.lora)
    if train_config.optimizer != "muon":
        return 2 * n
    named = leaves(config.shapes())
    matrices = (shape for name, shape in named if re.search(r"\bh\.\d+\..*\.w$", name))
    return 2 * n - sum(math.prod(shape) for shape in matrices if len(shape) > 1)


def answering(config, Ts):
    """Return the numbers that a thread keeps while it answers pairs, to measure exact match.

    They are the keys and values of as many answers as go side by side, and, twice for a moment, of
    their sources.
    """
    rows = answers.BATCH if Ts else 0
    return 2 * config.n_layer * rows * config.n_embd * (config.block_size + 2 * Ts)


def memory(config, train_config, lengths=None):
    """Return {part: bytes} of training: on a CPU at its peak, on a GPU of the GPU's memory.

    The threads share the weights.

    Parameters
    ----------
    lengths : (int, int), optional
        The most tokens of a text or a target, and of a source or 0; block_size by default.
    """
    if train_config.backend != "numpy":
        return device_memory(config, train_config)
    (n, trained), threads = count_weights(config, train_config.lora), train_config.workers()
    rows, T = shard_rows(train_config), config.block_size
    T, Ts = lengths or (T, T if train_config.task == "seq2seq" else 0)
    numbers = {
        "weights": n,
        "gradients": trained + sum(shard_gradients(config, train_config, B, T, Ts) for B in rows),
        "optimizer": moments(config, train_config),
        "activations": activations(config, train_config, T, Ts),
        "answers at evaluations": threads * answering(config, Ts),
    }
    return {part: FLOAT * count for part, count in numbers.items() if count}


def device_memory(config, train_config):
    """Return {part: bytes} of training on a GPU.

    What the passes see and make may have 16 bits; all else is float32. Gradients are made where
    they belong: see `backend/places.py`.
    """
    lora, (blocks, _, crosses) = train_config.lora, count_layers(config)
    n, trained = count_weights(config, lora)
    itemsize = 4 if PRECISIONS[train_config.dtype].compute_dtype == "float32" else 2
    C, tokens = config.n_embd, train_config.batch_size * config.block_size
    of_block = saved_by_token(config, lora)
    kept = of_block * blocks + 6 * C * crosses
    if train_config.recompute:
        kept = 2 * C * blocks + of_block + 6 * C * (crosses > 0)
    made = tokens * (kept + 24 * C)  # 24: of one layer, fitted
    return {
        "weights": 4 * n + (2 * n if itemsize == 2 else 0),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": itemsize * (made + DEVICE_SCRATCH),
    }


def run_peak(parts, loaded, load_peak):
    """Return the peak of the process of a run on a CPU, in bytes.

    Parameters
    ----------
    parts : dict
        As of `memory`.
    loaded, load_peak : int
        Bytes of libraries and data, and the most while they were loaded.
    """
    # At the end the sample has weights of its own, beside the file that they are read from, and
    # all of the run but activations is still there.
    end = parts["weights"] * 3 + parts["gradients"] + parts["optimizer"]
    if importlib.util.find_spec("matplotlib"):
        end += PICTURE
    if importlib.util.find_spec("vl_convert"):
        end += PAGE + parts["weights"]  # and a gradient of each
    return max(load_peak, loaded + max(sum(parts.values()), end))


def longest(data):
    """Return the lengths that `memory` takes of a PairData; None for a text, whose are equal."""
    if not hasattr(data, "val_pairs"):
        return None
    targets, sources = data.train.target.lengths, data.train.source.lengths
    i = (targets + sources).argmax()
    return int(targets[i]), int(sources[i])


def smaller_step(train_config):
    """Return what takes less memory in a training step of a run, for its user."""
    rows, batches = train_config.batch_size, train_config.gradient_accumulation_steps
    ways = []
    if rows > 1:
        same = ""
        if rows % 2 == 0 and train_config.sampler == "weyl":
            same = " (a step then has the same tokens)"
        ways.append(
            f"--batch-size {-(-rows // 2)} with --gradient-accumulation-steps {2 * batches}{same}"
        )
    if train_config.shards() > 1:
        ways.append("fewer --threads")
    ways += [] if train_config.recompute else ["--recompute"]
    ways.append("a smaller --block-size or model")
    return f"use {', or '.join(ways)}; --dry-run shows what is needed"
