"""A model as a picture: its parts in the order of the forward pass, with their parameters."""

import math

from minigpt.cli import plural
from minigpt.params import leaves
from minigpt.report.page import Section, escape, paragraph

# Parts in the order of the forward pass: name of the tree, in words, colour.
BEFORE = ("wte", "token embedding", 1), ("wpe", "position embedding", 1)
BEFORE += (("wbe", "bigram embedding", 1),)
BLOCK = (
    ("ln_1", "layernorm", 6),
    ("attn", "self-attention", 2),
    ("ln_2", "layernorm", 6),
    ("cross", "cross attention", 5),
    ("ln_3", "layernorm", 6),
    ("mlp", "MLP", 3),
)
AFTER = ("ln_f", "final layernorm", 6), ("lm_head", "head", 4)
GROUPS = {1: "embeddings", 2: "self-attention", 5: "cross attention", 3: "MLPs", 4: "head"}
GROUPS |= {6: "layernorms"}


def anatomy_section(run):
    """Return the Section of the model of a Shown run."""
    config = run.checkpoint.config
    tree = dict(config.shapes())
    encoder = tree.pop("encoder", None)
    stacks = {"": tree} if encoder is None else {"Encoder": encoder, "Decoder": tree}
    counts = by_group(stacks.values())
    total = sum(counts.values())
    bar = "".join(
        f'<span class="part-{kind}" style="flex-grow:{n / total:.5f}"></span>'
        for kind, n in counts.items()
    )
    legend = "".join(
        f'<li><span class="swatch part-{kind}"></span>{GROUPS[kind]} {n:,} '
        f'<span class="quiet">{100 * n / total:.1f} %</span></li>'
        for kind, n in counts.items()
    )
    boxes = "".join(stack(name, shapes, config, total) for name, shapes in stacks.items())
    lead = paragraph(
        f"{total:,} parameters, from tokens at the top to predictions at the bottom. The bar under "
        "each part is its share of all parameters."
    )
    body = f'<div class="share" aria-hidden="true">{bar}</div>\n<ul class="legend">{legend}</ul>\n'
    return Section("model", "The model", f'{lead}{body}<div class="model">{boxes}</div>\n')


def by_group(stacks):
    """Return {colour: number of parameters} of all parts of a model, in the order of GROUPS."""
    counts = dict.fromkeys(GROUPS, 0)
    for tree in stacks:
        for parts, shapes in ((BEFORE + AFTER, [tree]), (BLOCK, tree["h"])):
            for name, _, kind in parts:
                counts[kind] += sum(count(shape[name]) for shape in shapes if name in shape)
    return {kind: n for kind, n in counts.items() if n}


def count(tree):
    """Return the number of parameters in a shape or a tree of shapes."""
    if isinstance(tree, tuple):
        return math.prod(tree)
    return sum(math.prod(shape) for _, shape in leaves(tree))


def stack(name, tree, config, total):
    """Return the parts of a GPT, an encoder or a decoder as HTML, from top to bottom."""
    blocks = tree["h"]
    inner = "".join(part(*each, blocks[0], total, len(blocks)) for each in BLOCK)
    size = count(blocks[0])
    share = f"{100 * size * len(blocks) / total:.1f} %"
    title = f"{plural(len(blocks), 'block')} of {size:,}, {'together ' * (len(blocks) > 1)}{share}"
    tied = "lm_head" not in tree and name != "Encoder"
    head = '<li class="box quiet">head: the token embedding once more</li>' if tied else ""
    shared = "wte" not in tree and '<li class="box quiet">token embedding: the decoder\'s</li>'
    heading = f"<h3>{escape(name)}</h3>" if name else ""
    return (
        f'<div class="stack">{heading}<ol>{shared or ""}'
        f"{''.join(part(*each, tree, total) for each in BEFORE)}"
        f'<li class="blocks"><p>{escape(title)}<span class="quiet"> ({config.n_head} heads)</span>'
        f"</p><ol>{inner}</ol></li>"
        f"{''.join(part(*each, tree, total) for each in AFTER)}{head}</ol></div>\n"
    )


def part(name, words, kind, tree, total, times=1):
    """Return a part of a model as HTML; nothing, if the tree has none of that name."""
    if name not in tree:
        return ""
    shapes = {"": tree[name]} if isinstance(tree[name], tuple) else dict(leaves(tree[name]))
    matrices = [
        f"{key.removesuffix('.w').removesuffix('w')} {' × '.join(f'{n:,}' for n in shape)}".strip()
        for key, shape in shapes.items()
        if len(shape) > 1
    ]
    n = count(tree[name])
    return (
        f'<li class="box part-{kind}" style="--share:{n * times / total:.5f}"><span>{escape(words)}'
        f'</span> <span class="quiet">{escape(", ".join(matrices))}</span> '
        f'<span class="count">{n:,}</span></li>'
    )
