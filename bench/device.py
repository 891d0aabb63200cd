"""What a GPU does for minigpt, part by part: python bench/device.py --host

bench/device.sh runs these parts, the tests and the other benches on a machine with a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import host_time, report
from minigpt import cli
from minigpt.backend.cores import usable_cores
from minigpt.backend.devices import PRECISIONS, load_backend

PRESETS = ("nanogpt-cpu", "nanogpt-baby", "lecture", "gpt2")


def host(args):
    """Print how long the host takes for a step of each preset; return the records."""
    records = host_time.host_time(args.preset, args.dtype, args.seconds)
    rows = []
    for r in records:
        row = [r["preset"], r["dtype"], *(report.milliseconds(r[t]) for t in ("time", "cpu_time"))]
        row += [f"{1e3 * r['cpu_time']['min_s']:.3g}"]
        row += [f"{r['counts'][name]:,}" if r["counts"] else "" for name in host_time.COUNTS]
        rows.append(row)
    headings = ["preset", "dtype", "ms", "CPU ms", "least CPU ms", *host_time.COUNTS]
    report.print_table(headings, rows)
    print(
        "\nTime in which Python starts the work of a step, which is not waited for: by the clock,\n"
        "which other programs lengthen, and of the processor. Median, +- half the distance of the\n"
        "quartiles. Counts are of one step."
    )
    return records


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/device.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    parts = parser.add_mutually_exclusive_group(required=True)
    parts.add_argument(
        "--host", dest="part", action="store_const", const=host, help="the host's time of a step"
    )
    add("--preset", nargs="+", choices=PRESETS, default=["nanogpt-baby"], help="of --host")
    add("--dtype", choices=tuple(PRECISIONS), default="float32", help="default: float32")
    add("--seconds", type=float, default=5.0, metavar="X", help="for each figure (default: 5)")
    add("--json", metavar="FILE", help="also write the figures there")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the part that is asked for; print and write what it finds."""
    args = arguments(argv)
    env = report.environment(usable_cores(), load_backend("cupy"))
    report.print_environment(env)
    args.plot = None
    report.finish(args, args.part.__name__, env, args.part(args), None)
    return 0


if __name__ == "__main__":
    report.run(main)
