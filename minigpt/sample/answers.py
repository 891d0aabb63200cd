"""What an encoder-decoder answers to each line of the prompt, or of standard input."""

import sys

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.data.pairs import padded
from minigpt.model.blocks import block_weights
from minigpt.model.encoder_decoder import seq2seq_forward
from minigpt.sample.beam import search
from minigpt.sample.prompt import encode_line, prompt_lines

BATCH = 64  # validation pairs that are answered side by side
MAP_KINDS = ("cross", "encoder", "decoder")
START, END = "start", "end"  # of what an encoder-decoder writes, in attention maps


def print_answers(checkpoint, options, given):
    """Print what an encoder-decoder makes of each line."""
    config, (source, target) = checkpoint.config, checkpoint.tokenizer
    for batch in prompt_lines(options, given):
        ids = [encode_line(*line, source, config.block_size) for line in batch]
        found = search(padded(ids), checkpoint.params.tree, config, options.beam)
        for (_, line), hypotheses in zip(batch, found, strict=True):
            if options.verbose:
                print(line)
                for best in hypotheses:
                    more = "" if best.ended else " ..."  # no room for more
                    text = target.decode(best.ids) + more
                    print(f"{best.log_prob:10.4f} {best.score:9.4f} per token  {text}")
            else:
                print(target.decode(hypotheses[0].ids))
        sys.stdout.flush()


def count_solved(source, targets, params, config):
    """Return how many of a batch of pairs greedy search answers exactly as the targets say."""
    end = config.vocab_size - 1
    found = search(source, params.tree, config)
    rows = zip(found, targets.tolist(), strict=True)
    return sum(best.ended and best.ids == target[: target.index(end)] for (best,), target in rows)


def attention_maps(checkpoint, prompt, kind="cross"):
    """Run an encoder-decoder on a prompt and take its attention weights.

    Parameters
    ----------
    kind : str
        Of MAP_KINDS: how the answer is aligned with the prompt, how the prompt looks at itself, how
        the answer looks at what it has written before.

    Returns
    -------
    weights : list of n_layer arrays (H, Tq, Tk), NumPy
    rows, columns : lists of str
        The tokens: Tq queries and Tk keys. A row of a decoder is named after the token that it
        writes.
    """
    config, p, tokenizer = checkpoint.config, checkpoint.params.tree, checkpoint.tokenizer
    xp = array_module(p["wte"])
    ids = encode_line("--prompt", prompt, tokenizer.source, config.block_size)[None]
    ((best,),) = search(ids, p, config)
    targets = np.array([[*best.ids, *[config.vocab_size - 1] * best.ended]], np.int32)
    x, y = to_device(ids, xp), to_device(targets, xp)
    _, (encoder, decoder, _) = seq2seq_forward(x, y, p, config)
    *_, blocks, _ = encoder if kind == "encoder" else decoder
    which = "cross" if kind == "cross" else "self"
    written = [*tokenizer.target.decode(best.ids), *[END] * best.ended]
    rows = [*prompt] if kind == "encoder" else written
    columns = [START, *written[:-1]] if kind == "decoder" else [*prompt]
    return [to_host(block_weights(block)[which][0]) for block in blocks], rows, columns
