"""Launches and bytes of a training step on CuPy, counted without a GPU: python bench/launches.py

Where CuPy's kernels run on the CPU (CUPY_ON_CPU is set), every launch is seen, and of each the
distinct bytes of device memory that it reads and writes are counted (traffic.py). Beside them stand
the bytes that the arithmetic needs (roofline.py), and the time that both allow on three GPUs,
which is a prediction from their data sheets: nothing here has run on a GPU.

Presets are too big to be counted whole. A step of 1 and 2 layers, on batches of 1 and 2, gives what
a layer, a sequence, and a layer and sequence together add; every count is linear in these, and is
taken to the preset's own size. So it is with the number of parts that sums over rows are taken in,
which does not grow with the batch; where biases are summed, 16 of them are one, so that block sizes
are multiples of 128 there. `--whole` counts at the preset's size at once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import report, roofline, traffic
from minigpt import cli
from minigpt.backend.cores import usable_cores
from minigpt.errors import UserError
from minigpt.train.cost import human

PRESETS = ("nanogpt-cpu", "nanogpt-baby", "lecture", "gpt2")
# Of the products, by dtype.
FORMATS = {"float32": ("float32", "tf32")} | {name: (name,) for name in ("float16", "bfloat16")}
SMALL = (1, 1), (2, 1), (1, 2), (2, 2)  # layers and sequences
NOTE = """
before: the ops of minigpt/ops on CuPy; after: with the overrides in backend/gpu. A step is one
batch and the optimizer. kernels: launches outside of matrix products. copies: memory set or copied
by the runtime. bytes: distinct bytes that each launch reads and writes, added up; products:
operands once, result once. x bound: over the lower bound that bench/lib/roofline.py defines."""
PREDICTED = """
Predicted, not measured: the larger of bytes / bandwidth and FLOPs / peak for products, attention
and the rest, added up. A launch costs Python some 10 us: where kernels + products + copies take
longer than that, the host is the limit."""


def scaled(found, n_layer, batch_size):
    """Return what a step of that size counts, from the counts of `SMALL`.

    count(L, B) = a + b L + c B + d L B holds for each entry: parameters, layers and tokens are what
    work is done on.
    """
    sums = {}
    for name in dict.fromkeys(name for counts in found for name in counts):
        entries = zip(*(counts.get(name, (0, 0, 0)) for counts in found), strict=True)
        sums[name] = [at(n_layer - 1, batch_size - 1, *four) for four in entries]
    return sums


def at(layers, sequences, one, two_layers, two_sequences, both):
    """Return the bilinear function through four corners, so many steps from the first."""
    layer, sequence = two_layers - one, two_sequences - one
    together = both - one - layer - sequence
    return one + layer * layers + sequence * sequences + together * layers * sequences


def with_parts(few, many, wanted):
    """Return what a step counts whose sums over rows have `wanted` parts.

    `few` and `many` are (parts, counts) of one with so many, and of one with twice as many.
    """
    (n, few), (_, many) = few, many
    return {
        name: [a + (b - a) * (wanted - n) // n for a, b in zip(few[name], entry, strict=True)]
        for name, entry in many.items()
    }


def by_kind(counts):
    """Return {kind: [times, bytes, FLOPs]} of {"KIND NAME": ...}."""
    sums = {kind: [0, 0, 0] for kind in traffic.KINDS}
    for name, entry in counts.items():
        kind = sums[name.split()[0]]
        kind[:] = [a + b for a, b in zip(kind, entry, strict=True)]
    return sums


def check_parts(config, args):
    """Raise a UserError where sums of biases would not be counted as `--whole` counts them."""
    if config.bias and config.block_size % 128 and not args.whole:
        raise UserError(
            f"--block-size {config.block_size}: sums of biases are counted by 128 tokens; take "
            "a multiple of 128, or --whole"
        )


def bench(preset, args):
    """Count one preset before and after; return its records."""
    config, train_config = traffic.problem(preset, **sizes(args), dtype=args.dtype)
    own = config.n_layer, train_config.batch_size
    check_parts(config, args)
    # Of one sequence's rows, so that sums over those of two have no more; twice, to see their part.
    parts = max(1, config.block_size // (2 * traffic.ROWS))
    corners = [(*own, None)] if args.whole else [(*s, p) for p in (parts, 2 * parts) for s in SMALL]
    variants = [fused for fused in (False, True) if fused or not args.no_before]
    requests = [
        {"preset": preset, "fused": fused, "n_layer": n_layer, "batch_size": batch_size}
        | {"block_size": config.block_size, "dtype": args.dtype, "whole_batch": own[1]}
        | {"parts": most}
        for fused in variants
        for n_layer, batch_size, most in corners
    ]
    found = traffic.counts(requests)
    bound, records = roofline.minimum(config, train_config), []
    for i, fused in enumerate(variants):
        counts = found[len(corners) * i : len(corners) * (i + 1)]
        if args.whole:
            counts = counts[0]
        else:
            few, many = (scaled(counts[at : at + 4], *own) for at in (0, 4))
            wanted = min(-(-own[1] * config.block_size // traffic.ROWS), traffic.PARTS)
            counts = with_parts((parts, few), (2 * parts, many), wanted)
        kinds = by_kind(counts)
        attention = roofline.attention_flops(config, train_config)
        record = {"preset": preset, "variant": "after" if fused else "before"}
        record |= {"n_layer": own[0], "batch_size": own[1], "block_size": config.block_size}
        record |= {"dtype": args.dtype, "whole": args.whole, "kinds": kinds, "counts": counts}
        record |= {"launches": kinds["kernel"][0] + kinds["attention"][0]}
        record |= {"bytes": sum(entry[1] for entry in kinds.values())}
        record |= {"minimum_bytes": bound, "ratio": record["bytes"] / sum(bound.values())}
        record["predicted_s"] = {
            f"{name} {format}": roofline.seconds(device, kinds, format, attention)
            for name, device in roofline.DEVICES.items()
            for format in FORMATS[args.dtype]
        }
        records.append(record)
    return records


def sizes(args):
    """Return the options of a model and its batch that the command line gives."""
    names = ("n_layer", "batch_size", "block_size")
    return {name: getattr(args, name) for name in names if getattr(args, name)}


def title(record):
    """Return the name and size of a record's problem."""
    size = f"{record['n_layer']} layers, {record['batch_size']} x {record['block_size']}"
    return f"{record['preset']}, {size}"


def table(records):
    """Print a row per preset and variant, then the times predicted from them."""
    headings = ["preset", "", "kernels", "products", "copies", "bytes", "lower bound", "x bound"]
    rows = []
    for r in records:
        times = [f"{r['kinds'][kind][0]:,}" for kind in ("product", "copy")]
        bound = sum(r["minimum_bytes"].values())
        rows.append([title(r), r["variant"], f"{r['launches']:,}", *times])
        rows[-1] += [human(r["bytes"], "B"), human(bound, "B"), f"{r['ratio']:.2f}"]
    report.print_table(headings, rows)
    print(f"{NOTE}\n")
    names = list(records[0]["predicted_s"])
    rows = [
        [title(r), r["variant"], *(report.three_digits(1e3 * r["predicted_s"][n]) for n in names)]
        for r in records
    ]
    report.print_table(["predicted ms", "", *names], rows)
    print(PREDICTED)


def profile(records):
    """Print what each kernel does, the one that moves most first."""
    for r in records:
        print(f"\n{title(r)}, {r['variant']}")
        most = sorted(r["counts"].items(), key=lambda item: -item[1][1])
        rows = [[name, f"{n:,}", human(size, "B")] for name, (n, size, _) in most if n]
        report.print_table(["kind and name", "times", "bytes"], rows)
        rows = [[part, human(size, "B")] for part, size in r["minimum_bytes"].items()]
        report.print_table(["lower bound of", "bytes"], rows)


def draw(path, records, env):
    """Draw the bytes of each preset as multiples of its minimum."""
    presets = list(dict.fromkeys(r["preset"] for r in records))
    with report.figure(path) as [axes]:
        for i, variant in enumerate(dict.fromkeys(r["variant"] for r in records)):
            mine = [r for r in records if r["variant"] == variant]
            positions = [presets.index(r["preset"]) + 0.4 * i - 0.2 for r in mine]
            bars = axes.bar(positions, [r["ratio"] for r in mine], 0.38, label=variant)
            texts = [f"{r['launches']:,}\nkernels" for r in mine]
            axes.bar_label(bars, texts, fontsize=8, padding=2)
        axes.axhline(1, color="0.3", linewidth=1)
        axes.set_xticks(range(len(presets)), presets)
        axes.margins(y=0.2)
        dtype = records[0]["dtype"]
        report.label(
            axes, "", "bytes (lower bound = 1)", f"A training step on CuPy, {dtype}, counted"
        )


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/launches.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--preset", nargs="+", choices=PRESETS, default=list(PRESETS), help="default: all")
    add("--dtype", choices=tuple(FORMATS), default="float32", help="default: float32")
    add("--whole", action="store_true", help="count at the whole size, not by layer and sequence")
    add("--no-before", action="store_true", help="leave out the reference ops")
    add("--profile", action="store_true", help="by kernel as well")
    for name in ("--n-layer", "--batch-size", "--block-size"):
        report.add_number(parser, name, None, "instead of the preset's own")
    add("--json", metavar="FILE", help="also write the figures there")
    add("--plot", metavar="FILE", help="also draw a picture there (matplotlib)")
    args = parser.parse_args(argv)
    if args.dtype != "float32" and not args.no_before:
        raise UserError(f"--dtype {args.dtype} has no ops to compare with: give --no-before")
    return args


def main(argv=None):
    """Count every preset; print, write and draw what was found."""
    args = arguments(argv)
    env = report.environment(usable_cores())
    env["packages"] |= report.installed("cupy-rocm-7-0")
    records = [r for preset in args.preset for r in bench(preset, args)]
    table(records)
    if args.profile:
        profile(records)
    report.finish(args, "launches", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
