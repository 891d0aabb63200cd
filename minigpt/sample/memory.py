"""How many rows fit in memory side by side: texts, or candidates of a beam search.

The bytes of a row are measured bounds on what a step allocates, not exact.
"""

from minigpt.errors import UserError

BYTES = 2**30  # that may be used beside the weights
LINE_BYTES = 2**28  # for the lines of a batch, unless one takes more: more is no faster
ROWS = 256  # texts side by side at most: more are hardly faster, and all are printed at the end
COPIES = 6  # arrays of float64 that sampling and beam search make of the logits, at most


def cache_bytes(config):
    """Return the bytes of the keys and values of a row, float32, for a whole context."""
    return 2 * config.n_layer * config.block_size * config.n_embd * 4


def token_bytes(config):
    """Return the bytes of the activations of a token in all layers, float32."""
    return 4 * config.n_layer * (16 * config.n_embd + config.n_head * config.block_size)


def step_bytes(config):
    """Return the bytes of a row in a decoding step: activations and probabilities."""
    return token_bytes(config) + 8 * COPIES * config.vocab_size


def source_bytes(config):
    """Return the bytes that the encoder takes for a source of block_size tokens."""
    return config.block_size * token_bytes(config)


def texts_that_fit(config):
    """Return how many texts of a GPT are made side by side, 1 or more."""
    return max(1, min(ROWS, BYTES // (cache_bytes(config) + step_bytes(config))))


def lines_that_fit(config, beam, name="beam"):
    """Return how many lines are answered side by side, 1 or more.

    Parameters
    ----------
    config : Seq2SeqConfig
    beam : int
        Candidates for each line.
    name : str
        What an error calls it.

    Raises
    ------
    UserError
        If the candidates of one line do not fit; it names the largest beam that does.
    """
    source = source_bytes(config)
    # Three caches: the decoder's own, the memory's, and a copy where hypotheses change places.
    candidate = 3 * cache_bytes(config) + step_bytes(config)
    if beam > 1 and source + beam * candidate > BYTES:
        largest = max(1, (BYTES - source) // candidate)
        raise UserError(
            f"{name} is {beam}, but of this model only {largest:,} candidates fit in "
            f"{BYTES / 2**30:g} GiB; use a {name} of {largest} or less"
        )
    return max(1, min(BYTES, LINE_BYTES) // (source + beam * candidate))
