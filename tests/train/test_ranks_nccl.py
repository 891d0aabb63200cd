"""Runs of two processes whose arrays are CuPy's, through a stand-in for NCCL."""

import numpy as np
import pytest

from tests.tools.mpirun import COMMAND, NEEDS_MPI, end, start, start_alone
from tests.tools.training import TEXT, metrics

pytestmark = [pytest.mark.cupy, pytest.mark.usefixtures("cupy")]
FLAGS = (
    *("--preset=nanogpt-cpu", "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=16"),
    *("--batch-size=3", "--threads=1", "--dropout=0.2", "--max-iters=6", "--eval-interval=3"),
    *("--log-interval=1", "--warmup-iters=2", "--sample-tokens=0", "--backend=cupy"),
)
# Both processes see the same device; they are told apart by their ranks.
STAND_IN = """
from minigpt.train import nccl
from minigpt.train.launch import find_place
from tests.tools import nccl_of_sockets
nccl.load_nccl = lambda: nccl_of_sockets
nccl.device_name = lambda cuda: find_place().rank
"""


@pytest.fixture
def text(tmp_path):
    """A file to train on."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(folder, text, *flags, begin=start, ranks=2):
    """Train; return the losses."""
    flags = [f"--out-dir={folder}", f"--data={text}", *FLAGS, *flags]
    processes = begin(ranks, *flags, code=(STAND_IN if ranks > 1 else "") + COMMAND)
    for process in processes if isinstance(processes, list) else [processes]:
        code, _, said, err = end(process)
        assert (code, said) == (0, []), err
    return np.array([line["train_loss"] for line in metrics(folder)])


@NEEDS_MPI
def test_two_processes_on_gpus_with_a_sharded_optimizer_train_as_one(tmp_path, text):
    sharding = ["--shard-optimizer", "--optimizer=muon"]
    alone = train(tmp_path / "1", text, *sharding, ranks=1)
    both = train(tmp_path / "2", text, *sharding)
    assert len(both) == 6 and abs(both - alone).max() < 1e-6


def test_processes_without_mpi_train_as_one_and_with_sums_in_bfloat16_nearly(tmp_path, text):
    exact = train(tmp_path / "exact", text, begin=start_alone)
    close = train(tmp_path / "close", text, "--sum-dtype=bfloat16", begin=start_alone)
    alone = train(tmp_path / "1", text, ranks=1)
    assert len(exact) == 6 and abs(exact - alone).max() < 1e-6
    assert 1e-6 < abs(close - alone).max() < 0.01


@NEEDS_MPI
def test_two_processes_cannot_share_a_gpu(tmp_path, text):
    flags = [f"--out-dir={tmp_path / 'run'}", f"--data={text}", *FLAGS]
    code, _, said, err = end(start(2, *flags))
    assert code == 2 and len(said) == 1, err
    assert "--backend cupy: 2 processes on " in said[0] and "1 GPU:" in said[0]
