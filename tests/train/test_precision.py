"""Training in 16 bits and with TF32 products, which a device only has."""

import dataclasses
import importlib

import numpy as np
import pytest

from minigpt.backend import devices, to_device, to_host
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.ops.add_norm import add_norm_forward
from minigpt.ops.layernorm import layernorm_forward
from minigpt.optim.clipping import LOSS_SCALE, SKIPPED, STEPS
from minigpt.params import leaves
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.dtypes import LOW, UNIT, needs_bfloat16
from tests.tools.stepping import CONFIG, IDS, TRAIN, losses, trainer
from tests.tools.training import begin, metrics, refusal, resume

pytestmark = [pytest.mark.cupy, pytest.mark.usefixtures("no_picture")]


# Two layers, and as small as they can be: 200 steps take a while on a CPU.
SMALL = dataclasses.replace(CONFIG, n_head=1, n_embd=24, block_size=12)


@pytest.fixture(scope="module")
def single(request):
    """The losses of 200 steps in float32."""
    if request.config.getoption("--backend") == "numpy":
        pytest.skip("on CuPy only: --backend cupy")
    return losses(importlib.import_module("cupy"), 200, SMALL, batch_size=4, max_iters=200)[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOW)
def test_16_bits_follow_float32_and_are_the_same_bits_twice(cupy, single, dtype):
    """Numbers are rounded by up to a unit of themselves; what comes of it is four at most."""
    recipe = {"batch_size": 4, "max_iters": 200, "dtype": dtype}
    n = 200 if dtype == "bfloat16" else 50
    low, _ = losses(cupy, n, SMALL, **recipe)
    assert single[-1] < single[0] - 0.5 and abs(low - single[:n]).max() > 0
    np.testing.assert_allclose(low, single[:n], rtol=4 * UNIT[dtype])
    again, _ = losses(cupy, 40, SMALL, **recipe)
    np.testing.assert_array_equal(low[:40], again)


@needs_bfloat16
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bfloat16_has_weights_in_float32_and_no_loss_scale(cupy, optimizer):
    """The passes see the weights rounded; steps far smaller than such a rounding add up."""
    with Workers(1) as workers:
        this = trainer(cupy, workers, dtype="bfloat16", optimizer=optimizer, learning_rate=1e-6)
        ids, before = to_device(IDS, cupy), this.params.flat.copy()
        assert this.optimizer.loss_scale == 1.0 and getattr(this.optimizer, "tf32", True)
        for step in range(3):
            this.step(ids, step)
        low = dict(leaves(this.compute_tree))
        assert {str(x.dtype) for x in low.values()} == {"bfloat16"}
        for name, x in leaves(this.params):
            np.testing.assert_array_equal(to_host(low[name]), to_host(x).astype("bfloat16"))
        moved = abs(this.params.flat - before)
        assert this.params.flat.dtype == np.float32 and 0 < float(moved.max()) < 1e-5
        assert this.progress() == (3, 0, 1.0)


@needs_bfloat16
def test_an_adapter_trains_in_bfloat16_with_recomputed_activations(cupy):
    with Workers(1) as workers:
        found = []
        for dtype in ("float32", "bfloat16"):
            lora = {"init_from": "base", "lora_rank": 3, "lora_dropout": 0.1}
            recipe = dataclasses.replace(TRAIN, dtype=dtype, recompute=True, **lora)
            base = init_params(CONFIG, 1337, cupy)
            adapter = init_adapter(CONFIG, recipe.lora, 1, cupy)
            this = Trainer(adapter, CONFIG, recipe, cupy, workers, base)
            found.append([float(this.step(to_device(IDS, cupy), i)[0]) for i in range(4)])
    np.testing.assert_allclose(found[1], found[0], rtol=4 * UNIT["bfloat16"])
    assert found[1] != found[0]


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


@pytest.mark.parametrize("dtype", LOW)
def test_the_layernorm_is_that_of_the_stream_as_it_is_kept(rng, cupy, dtype):
    x, h = cupy.asarray(rng.standard_normal((2, 5, 64)), dtype)
    w, b = cupy.asarray(rng.standard_normal((2, 64)), dtype)
    (stream, y), _ = add_norm_forward(x, h, w, b)
    np.testing.assert_array_equal(to_host(y), to_host(layernorm_forward(stream, w, b)[0]))


@pytest.mark.parametrize("dtype", LOW)
def test_half_precision_is_resumed_to_the_bit(tmp_path, cupy, dtype):
    flags = ("--backend=cupy", f"--dtype={dtype}", "--dropout=0.2", "--lr-decay-iters=12")
    assert begin(tmp_path / "whole", *flags) == 0
    assert begin(tmp_path / "parts", *flags, "--max-iters=4") == 0
    assert resume(tmp_path / "parts", "--max-iters=12") == 0
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == lines
    scaled = {"loss_scale", "skipped_steps"} & lines[-1].keys()
    assert len(scaled) == (2 if dtype == "float16" else 0)
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
    "dtype, tf32",
    [("float32", False), pytest.param("bfloat16", True, marks=needs_bfloat16)],
)
def test_what_a_run_asks_for_wins_over_cupys_variable(tmp_path, cupy, monkeypatch, dtype, tf32):
    """CUPY_TF32=1 in the environment turns TF32 on when CuPy is imported."""
    products = pytest.importorskip("cupy._core._routines_linalg")
    before, seen, original = products.get_compute_type("float32"), set(), Trainer.step

    def step(self, *args):
        seen.add(products.get_compute_type("float32"))
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    products.set_compute_type("float32", products.COMPUTE_TYPE_TF32)
    try:
        flags = ("--backend=cupy", f"--dtype={dtype}", "--max-iters=1")
        assert begin(tmp_path / "run", *flags) == 0
        assert products.get_compute_type("float32") == products.COMPUTE_TYPE_TF32
    finally:
        products.set_compute_type("float32", before)
    assert seen == {products.COMPUTE_TYPE_TF32 if tf32 else products.COMPUTE_TYPE_DEFAULT}


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
