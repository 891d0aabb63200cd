"""Training in float16 and with TF32 products, which a device only has."""

import numpy as np
import pytest

from minigpt.backend import devices, to_device, to_host
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.ops.add_norm import add_norm_forward
from minigpt.ops.layernorm import layernorm_forward
from minigpt.optim.clipping import LOSS_SCALE, SKIPPED, STEPS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.stepping import IDS, losses, trainer
from tests.tools.training import begin, metrics, refusal, resume

pytestmark = [pytest.mark.cupy, pytest.mark.usefixtures("no_picture")]


def test_half_precision_follows_single(cupy):
    """Numbers are rounded by up to 2^-11 of themselves; what comes of it is bounded by 2^-9."""
    single, _ = losses(cupy, 50)
    half, low = losses(cupy, 50, dtype="float16")
    assert abs(half - single).max() > 0
    np.testing.assert_allclose(half, single, rtol=2**-9)
    again, same = losses(cupy, 50, dtype="float16")
    np.testing.assert_array_equal(half, again)
    np.testing.assert_array_equal(low, same)


def test_an_overflow_skips_a_step_and_halves_the_loss_scale(cupy):
    with Workers(1) as workers:
        this, ids = trainer(cupy, workers, dtype="float16"), to_device(IDS, cupy)
        this.step(ids, 0)
        before = to_host(this.params.flat)
        this.optimizer.state[LOSS_SCALE] = 2.0**24
        loss, norm, _ = this.step(ids, 1)
        np.testing.assert_array_equal(to_host(this.params.flat), before)
        assert not np.isfinite(float(norm)) and np.isfinite(float(loss))
        taken, skipped, scale = this.progress()
        assert (taken, skipped, scale) == (1, 1, 2.0**23)
        for step in range(2, 50):
            loss, norm, _ = this.step(ids, step)
        taken, skipped, scale = this.progress()
        assert taken + skipped == 50 and taken > 20
        assert np.isfinite(float(norm)) and 2.0**10 < scale < 2.0**23
        assert abs(to_host(this.params.flat) - before).max() > 1e-3


def test_an_evaluation_is_in_single_precision(cupy):
    ids, found = to_device(IDS, cupy), []
    with Workers(1) as workers:
        for dtype in ("float32", "float16"):
            this = trainer(cupy, workers, dtype=dtype)
            this.params.flat *= 10  # so that rounding shows
            this.optimizer.restore({})
            found.append(this.evaluate(ids))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_the_layernorm_is_that_of_the_stream_as_it_is_kept(rng, cupy):
    x, h = cupy.asarray(rng.standard_normal((2, 5, 64)), "float16")
    w, b = cupy.asarray(rng.standard_normal((2, 64)), "float16")
    (stream, y), _ = add_norm_forward(x, h, w, b)
    np.testing.assert_array_equal(to_host(y), to_host(layernorm_forward(stream, w, b)[0]))


def test_half_precision_is_resumed_to_the_bit(tmp_path, cupy):
    flags = ("--backend=cupy", "--dtype=float16", "--dropout=0.2", "--lr-decay-iters=12")
    assert begin(tmp_path / "whole", *flags) == 0
    assert begin(tmp_path / "parts", *flags, "--max-iters=4") == 0
    assert resume(tmp_path / "parts", "--max-iters=12") == 0
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == lines
    assert {"loss_scale", "skipped_steps"} <= lines[-1].keys()
    one, other = (checkpoint.load(tmp_path / run / LAST) for run in ("whole", "parts"))
    np.testing.assert_array_equal(one.params.flat, other.params.flat)
    assert one.state["optimizer"] == other.state["optimizer"]
    assert one.state["optimizer"][STEPS] + one.state["optimizer"][SKIPPED] == 12


def test_tf32_is_on_for_the_run_only(tmp_path, cupy, monkeypatch):
    products = pytest.importorskip("cupy._core._routines_linalg")
    before = products.get_compute_type("float32")
    seen = []
    original = Trainer.step

    def step(self, *args):
        seen.append(products.get_compute_type("float32"))
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr("minigpt.train.run.check_precision", lambda name, xp: None)
    assert begin(tmp_path / "run", "--backend=cupy", "--dtype=tf32", "--max-iters=2") == 0
    assert seen == [products.COMPUTE_TYPE_TF32] * 2
    assert products.get_compute_type("float32") == before != products.COMPUTE_TYPE_TF32
    with pytest.raises(RuntimeError), devices.tf32_products(True):
        raise RuntimeError
    assert products.get_compute_type("float32") == before


@pytest.mark.parametrize(
    "is_hip, capability, told",
    [(True, "110", "on NVIDIA GPUs only"), (False, "75", "capability 7.5, has no TF32 products")],
)
def test_a_device_without_tf32(tmp_path, cupy, monkeypatch, capsys, is_hip, capability, told):
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", is_hip)
    this = type("", (), {"compute_capability": capability})
    monkeypatch.setattr(cupy.cuda, "Device", lambda: this)
    error = refusal(capsys, begin, tmp_path / "run", "--backend=cupy", "--dtype=tf32")
    assert told in error and not (tmp_path / "run").exists()
