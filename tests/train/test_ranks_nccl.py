"""Runs of two processes whose arrays are CuPy's, through a stand-in for NCCL."""

import numpy as np
import pytest

from tests.tools.mpirun import COMMAND, NEEDS_MPI, end, start
from tests.tools.training import TEXT, metrics

pytestmark = [
    NEEDS_MPI,
    pytest.mark.cupy,
    pytest.mark.usefixtures("cupy"),
]
FLAGS = (
    *("--preset=nanogpt-cpu", "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=16"),
    *("--batch-size=3", "--threads=1", "--dropout=0.2", "--max-iters=6", "--eval-interval=3"),
    *("--log-interval=1", "--warmup-iters=2", "--sample-tokens=0", "--backend=cupy"),
)
# Both processes see the same device; they are told apart by their ranks.
STAND_IN = """
from minigpt.train import nccl
from minigpt.train.launch import find_place
from tests.tools import nccl_of_mpi
nccl.load_nccl = lambda: nccl_of_mpi
nccl.device_name = lambda cuda: find_place().rank
"""


def train(ranks, folder, text, *flags, code=STAND_IN + COMMAND):
    """Train; return the losses."""
    flags = [f"--out-dir={folder}", f"--data={text}", *FLAGS, *flags]
    code, _, said, err = end(start(ranks, *flags, code=code))
    assert (code, said) == (0, []), err
    return np.array([line["train_loss"] for line in metrics(folder)])


@pytest.mark.parametrize("sharding", [[], ["--shard-optimizer", "--optimizer=muon"]])
def test_two_processes_on_gpus_train_as_one(tmp_path, sharding):
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    alone = train(1, tmp_path / "1", text, *sharding, code=COMMAND)
    both = train(2, tmp_path / "2", text, *sharding)
    assert len(both) == 6 and abs(both - alone).max() < 1e-6


def test_two_processes_cannot_share_a_gpu(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    flags = [f"--out-dir={tmp_path / 'run'}", f"--data={text}", *FLAGS]
    code, _, said, err = end(start(2, *flags))
    assert code == 2 and len(said) == 1, err
    assert "--backend cupy: 2 processes on " in said[0] and "1 GPU:" in said[0]
