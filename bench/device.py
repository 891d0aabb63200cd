"""What a GPU does for minigpt, part by part: python bench/device.py --ceilings

bench/device.sh runs these parts, the tests and the other benches where there is a GPU. --ptxas
needs none, only NVIDIA's compiler (pip install -e '.[kernels]') and a CuPy that loads. Where CuPy's
kernels run on the CPU (CUPY_ON_CPU is set), --rehearse runs the other parts on small sizes, to see
that they work: their figures mean nothing there.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from safetensors.numpy import load_file

from bench import same_bits
from bench.lib import host_time, ptxas, rates, report, tiny, traffic
from minigpt import cli
from minigpt.backend.cores import usable_cores
from minigpt.backend.devices import PRECISIONS, check_precision, load_backend
from minigpt.errors import UserError
from minigpt.files import LAST, METRICS

PRESETS = ("nanogpt-cpu", "nanogpt-baby", "lecture", "gpt2")
ARCHITECTURES = (75, 80, 90, 120)
SMALL = {"n_layer": 1, "batch_size": 2, "block_size": 17, "n_embd": 48, "n_head": 2}
SMALL |= {"vocab_size": 257}


def able(args):
    """Return cupy and those of the precisions of --dtype that the GPU has; say what it has not."""
    cupy, found = load_backend("cupy"), []
    for name in args.dtype:
        try:
            check_precision(name, cupy)
            found.append(name)
        except UserError as error:
            print(f"left out: {error}")
    return cupy, found


def host(args):
    """Print how long the host takes for a step of each preset; return the records."""
    _, precisions = able(args)
    sizes = SMALL if args.rehearse else {}
    records = [
        record
        for dtype in precisions
        for record in host_time.host_time(args.preset, dtype, args.seconds, **sizes)
    ]
    rows = []
    for r in records:
        row = [r["preset"], r["dtype"], report.milliseconds(r["time"])]
        for which in ("cpu_time", "python_time"):
            row += [report.milliseconds(r[which]), f"{1e3 * r[which]['min_s']:.3g}"]
        row += [f"{r['counts'][name]:,}" if r["counts"] else "" for name in host_time.COUNTS]
        rows.append(row)
    headings = [
        "preset",
        "dtype",
        "ms",
        "CPU ms",
        "least",
        "without",
        "least of it",
        *host_time.COUNTS,
    ]
    report.print_table(headings, rows)
    print(
        "\nTime in which Python starts the work of a step, which is not waited for: by the clock,\n"
        "which other programs lengthen, and of the processor; `without`: the same where our\n"
        "functions that start kernels, and products but for Muon's, return at once. Median, +-\n"
        "half the distance of the quartiles. Counts are of one step."
    )
    return records


def ceilings(args):
    """Print the rates of copies, products and kernels; return the records."""
    cupy, precisions = able(args)
    copied = rates.copy_rate(cupy, 2**16 if args.rehearse else rates.COPIED)
    print(f"copy: {copied / 1e9:,.0f} GB/s, read plus written\n")
    records = [{"copy_bytes_per_s": copied}]
    for preset in args.preset:
        sizes = SMALL if args.rehearse else {}
        config, train_config = traffic.problem(preset, **sizes)
        tokens = train_config.batch_size * config.block_size
        found = list(rates.products(cupy, config, tokens, precisions))
        print(f"products of {preset}, {tokens:,} tokens")
        report.print_table(["product", *precisions], product_rows(found, precisions))
        records += [{"preset": preset} | r for r in found]
        for dtype in precisions:
            found = rates.kernels(cupy, preset, dtype, rates.recorded(preset, dtype), **sizes)
            print(f"\nkernels of {preset} in {dtype}")
            headings = ["kernel", "launches", "ms", "GB", "GB/s", "of copy"]
            report.print_table(headings, [kernel_row(r, copied) for r in found])
            records += [{"preset": preset, "dtype": dtype} | r for r in found]
        print()
    print(
        "Products in TFLOP/s; gaps: rows of the result padded to a multiple of 64. A kernel's\n"
        "bytes are those that bench/launches.py has counted for a step (bench/results)."
    )
    return records


def product_rows(found, precisions):
    """Return the cells of a table of products: a row per product, a column per precision."""
    rates_of = {(r["product"], r["way"], r["precision"]): r["flops_per_s"] / 1e12 for r in found}
    names = dict.fromkeys((r["product"], r["way"]) for r in found)
    return [
        [f"{name}: {way}", *(f"{rates_of[name, way, precision]:,.3g}" for precision in precisions)]
        for name, way in names
    ]


def kernel_row(record, copied):
    """Return the cells of a table of kernels."""
    row = [record["kernel"], f"{record['launches']:,}", f"{1e3 * record['seconds']:.3g}"]
    if "bytes" not in record:
        return [*row, "", "", ""]
    if record["launches"] != record["launches_counted"]:
        row[1] += f" ({record['launches_counted']:,} counted)"
    rate = record["bytes_per_s"]
    row += [f"{record['bytes'] / 1e9:.3g}", f"{rate / 1e9:,.0f}"]
    return [*row, f"{100 * rate / copied:.0f}%"]


def registers(args):
    """Print what every kernel takes on this GPU; return the records."""
    cupy, precisions = able(args)
    launch, records = ptxas.launch_module(), []
    dtypes = {dtype.char: dtype for dtype in map(rates.dtype_of, precisions)}
    for dtype in dtypes.values():
        launch.kernel("column_sums", dtype)  # compiles, or says why it does not
        for name in ptxas.kernel_names(launch.source()):
            try:
                function = launch.kernel(name, dtype)
            except UserError:  # those on tensor cores are for 16 bits
                print(f"{name}: none in {dtype}")
                continue
            record = {"kernel": name, "dtype": dtype.name, "registers": function.num_regs}
            record |= {"shared": function.shared_size_bytes, "local": function.local_size_bytes}
            records.append(record | {"threads": function.max_threads_per_block})
    headings = ["kernel", "dtype", "registers", "shared", "local", "threads"]
    report.print_table(headings, [[str(r[h]) for h in headings] for r in records])
    print(
        "\nPer thread: registers, local (bytes of spills and stack). Per block: shared (bytes,\n"
        "without what a launch asks for), threads (at most)."
    )
    arch = 0 if cupy.cuda.runtime.is_hip else int(cupy.cuda.Device().compute_capability)
    spilled = [r for r in records if r["local"] > ptxas.allowed_spill(r["kernel"], arch)]
    if spilled:
        names = ", ".join(f"{r['kernel']} ({r['dtype']}) {r['local']}" for r in spilled)
        raise report.WrongResult(f"kernels spill registers, bytes of a thread: {names}")
    return records


def ptxas_table(args):
    """Print what NVIDIA's compiler says of every kernel, for several GPUs; return the records."""
    chars = [rates.dtype_of(name).char for name in args.dtype if name != "tf32"]
    names, kernels = ptxas.launch_module().NAMES, {}
    for r in ptxas.records(args.cuda, args.sm, chars):
        kernel = kernels.setdefault(r["kernel"], {"threads": r["threads"], "compiled": {}})
        kernel["shared"] = max(kernel.get("shared", 0), r["shared"])
        spilled = max(r["spill_stores"], r["spill_loads"])
        target = kernel["compiled"].setdefault(f"{r['nvrtc']} sm_{r['sm']}", {})
        target[names[r["dtype"]]] = [r["registers"], spilled] if spilled else [r["registers"]]
    targets = list(dict.fromkeys(t for kernel in kernels.values() for t in kernel["compiled"]))
    rows = []
    for name, kernel in sorted(kernels.items()):
        cells = [kernel["compiled"].get(target, {}).values() for target in targets]
        texts = (" ".join("+".join(map(str, used)) for used in cell) for cell in cells)
        rows.append([name, str(kernel["threads"]), str(kernel["shared"]), *texts])
    report.print_table(["kernel", "threads", "shared", *targets], rows)
    print(
        f"\nRegisters of a thread in {', '.join(names[char] for char in chars)}, + bytes that it\n"
        "spills; of a block, at most: threads, and shared memory (bytes) beside what a launch\n"
        "asks for."
    )
    return [{"kernel": name} | kernel for name, kernel in sorted(kernels.items())]


def tiny_models(args):
    """Train tiny models that launch every kernel, for a sanitizer; print DONE last."""
    cupy, precisions = able(args)
    records = []
    for precision in precisions:
        for name, losses in tiny.run(cupy, precision, 1 if args.rehearse else None):
            print(precision, name, *(f"{loss:.4f}" for loss in losses), flush=True)
            records.append({"model": name, "dtype": precision, "losses": losses})
    print("DONE")
    return records


def same(args):
    """Raise WrongResult unless two runs have the same metrics and weights, to the last bit."""
    runs = []
    for folder in args.same:
        lines = (Path(folder) / METRICS).read_text("utf-8").splitlines()
        metrics = {line["step"]: line for line in map(json.loads, lines)}
        runs.append((metrics, load_file(Path(folder) / LAST)))
    found = same_bits.compare(*runs)
    for name, difference in found.items():
        print(f"{name}: {same_bits.cell(*difference)}")
    if any(difference for difference, _ in found.values()):
        raise report.WrongResult(f"{args.same[0]} and {args.same[1]} differ")
    return [{name: difference for name, (difference, _) in found.items()}]


PARTS = {
    "--ceilings": (ceilings, "rates of copies, products and kernels"),
    "--registers": (registers, "what every kernel takes on this GPU"),
    "--host": (host, "the host's time of a step"),
    "--tiny": (tiny_models, "a few steps of tiny models, for compute-sanitizer"),
    "--ptxas": (ptxas_table, "registers and spills as the compiler reports them; needs no GPU"),
}


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/device.py", __doc__.split("\n\n")[0])
    add, parts = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    for flag, (part, help) in PARTS.items():
        parts.add_argument(flag, dest="part", action="store_const", const=part, help=help)
    parts.add_argument("--same", nargs=2, metavar="FOLDER", help="are two runs equal to the bit")
    add("--preset", nargs="+", choices=PRESETS, help="default: nanogpt-baby; --ceilings gpt2, too")
    add("--dtype", nargs="+", choices=tuple(PRECISIONS), help="default: all; float32 of --host")
    add("--seconds", type=float, default=5.0, metavar="X", help="of --host (default: 5)")
    add("--sm", nargs="+", type=int, default=ARCHITECTURES, metavar="N", help="of --ptxas")
    add("--cuda", nargs="+", type=int, choices=ptxas.WHEELS, default=list(ptxas.WHEELS))
    add("--rehearse", action="store_true", help="small sizes, where CuPy runs on the CPU")
    add("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    args.part = args.part or same
    if not args.preset:
        args.preset = ["nanogpt-baby", "gpt2"] if args.part is ceilings else ["nanogpt-baby"]
    if not args.dtype:
        args.dtype = ["float32"] if args.part is host else list(PRECISIONS)
    return args


def main(argv=None):
    """Run the part that is asked for; print and write what it finds."""
    args = arguments(argv)
    without_gpu = args.part in (ptxas_table, same)
    env = report.environment(usable_cores(), np if without_gpu else load_backend("cupy"))
    report.print_environment(env)
    args.plot = None
    flag = next((flag for flag, (part, _) in PARTS.items() if part is args.part), "--same")
    report.finish(args, f"device {flag}", env, args.part(args), None)
    return 0


if __name__ == "__main__":
    report.run(main)
