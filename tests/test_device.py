"""bench/device.py and device.sh, rehearsed where CuPy's kernels run on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.lib import ptxas
from minigpt.errors import UserError

ROOT = Path(__file__).parents[1]
LAUNCH = re.compile(r"launch (\w+) grid \([^)]*\) block \((\d+), (\d+), (\d+)\)")

pytestmark = [pytest.mark.cupy, pytest.mark.slow]


@pytest.fixture(autouse=True)
def stand_in(cupy):
    if os.environ.get("CUPY_ON_CPU") != "1":
        pytest.skip("rehearsed where CuPy's kernels run on the CPU; on a GPU, run bench/device.sh")


def run(command, **settings):
    env = os.environ | {name: str(value) for name, value in settings.items()}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=env)


def test_tiny_models_launch_every_kernel_within_its_bounds():
    """All but those on tensor cores, which take the place of others in 16 bit."""
    command = [sys.executable, "bench/device.py", "--tiny", "--dtype", "float32"]
    done = run(command, CUPY_ON_CPU_TRACE=1)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "DONE"
    blocks = {}
    for name, *sides in LAUNCH.findall(done.stderr):
        x, y, z = map(int, sides)
        blocks[name] = max(blocks.get(name, 0), x * y * z)
    names = ptxas.kernel_names(ptxas.launch_module().source())
    kernels = [name for name in names if "_mma_" not in name]
    assert [name for name in kernels if name not in blocks] == []
    try:
        bounds = ptxas.largest_blocks(ptxas.Compiler(12), "f")
    except UserError as error:
        pytest.skip(str(error))
    assert [name for name in kernels if blocks[name] > bounds[name]] == []


def test_the_device_check_is_rehearsed(tmp_path):
    parts = ["registers", "memcheck", "resume", "host", "ceilings", "half"]
    settings = {"OUT": tmp_path, "REHEARSE": 1, "PYTHON": sys.executable}
    done = run(["bash", "bench/device.sh", *parts], **settings)
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, done.stdout + "".join(logs.values())
    assert logs.keys() == {*parts}
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [re.sub(r"\d+ s$", "", line) for line in summary] == [f"== {n}: rc 0, " for n in parts]
    assert logs["memcheck"].splitlines()[-1] == "DONE" and "weights: equal" in logs["resume"]
    assert (tmp_path / "half.jsonl").read_text().count("train_loss") == 2
    for part in ("registers", "host", "ceilings"):
        assert json.loads((tmp_path / f"{part}.json").read_text())["records"]


def test_a_part_that_fails_or_that_there_is_not_is_seen(tmp_path):
    settings = {"OUT": tmp_path, "REHEARSE": 1, "PYTHON": "false"}
    done = run(["bash", "bench/device.sh", "doctor", "host"], **settings)
    assert done.returncode == 1
    lines = [re.sub(r"\d+ s$", "", line) for line in done.stdout.splitlines()[-2:]]
    assert lines == ["== doctor: rc 1, ", "== host: rc 1, "]
    done = run(["bash", "bench/device.sh", "doctr"], **settings)
    assert done.returncode == 2
    assert done.stderr.startswith("no part doctr; there are: nvidia doctor registers ")
