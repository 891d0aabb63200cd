"""Training and sampling on a device: as on NumPy, and without waiting for it.

With `--backend numpy` what is of a device only is skipped.
"""

import contextlib
import dataclasses
import gc
import json
import warnings

import numpy as np
import pytest

from minigpt import cli
from minigpt.backend import to_device, to_host
from minigpt.data.batches import eval_batches, random_batch
from minigpt.data.characters import CharTokenizer
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.model.init import init_params
from minigpt.optim.clipping import LOSS_SCALE, SKIPPED, STEPS
from minigpt.sample import __main__ as sample
from minigpt.sample.generate import generate
from minigpt.train.begin import new_run as begun
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.run import Run
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.dtypes import DTYPES, UNIT
from tests.tools.stepping import CONFIG, IDS, dates, losses, trainer
from tests.tools.training import FLAGS, TEXT, begin, metrics, refusal, resume

pytestmark = [pytest.mark.cupy, pytest.mark.usefixtures("no_picture")]


def cpu_recipe():
    """The model and recipe of nanogpt-cpu."""
    config, train = resolve(PRESETS["nanogpt-cpu"] | {"backend": "cupy"}, {"vocab_size": 65})
    return config, {field.name: getattr(train, field.name) for field in dataclasses.fields(train)}


@contextlib.contextmanager
def waiting(allowed):
    """Let it be an error to wait for the device, or to the contrary."""
    import cupyx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not sure to find all
        with cupyx.allow_synchronize(allowed):
            yield


def test_batches_are_those_of_numpy(xp):
    ids = to_device(IDS, xp)
    for step in (0, 7):
        for one, other in zip(
            random_batch(IDS, 3, step, 4, 8), random_batch(ids, 3, step, 4, 8), strict=True
        ):
            assert type(other) is xp.ndarray and other.dtype == np.int32
            np.testing.assert_array_equal(one, to_host(other))
    for one, other in zip(
        eval_batches(IDS[:100], 8, 4), eval_batches(ids[:100], 8, 4), strict=True
    ):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, to_host(y))


def test_fifty_steps_are_those_of_numpy_and_the_same_twice(cupy):
    expected, _ = losses(np, 50)
    (one, weights), (two, again) = (losses(cupy, 50) for _ in range(2))
    np.testing.assert_allclose(one, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(weights, again)
    assert one[-1] < one[0] - 0.5


def test_steps_of_the_cpu_recipe_are_those_of_numpy_and_the_same_twice(cupy):
    config, recipe = cpu_recipe()
    expected, _ = losses(np, 5, config, **recipe)
    (one, weights), (two, again) = (losses(cupy, 5, config, **recipe) for _ in range(2))
    np.testing.assert_allclose(one, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(weights, again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_decoder_trains_as_on_numpy_and_nobody_waits(cupy, dtype):
    config, pairs = dates()
    expected, _ = losses(np, 8, config, pairs)
    came, _ = losses(cupy, 8, config, pairs, dtype=dtype)
    np.testing.assert_allclose(came, expected, rtol=max(1e-5, 4 * UNIT[dtype]))
    with Workers(1) as workers, waiting(allowed=False):
        this = trainer(cupy, workers, config, dtype=dtype)
        for step in range(8):
            this.step(pairs, step)


def test_an_evaluation_is_that_of_numpy(xp):
    with Workers(1) as workers:
        one = trainer(np, workers).evaluate(IDS)
        other = trainer(xp, workers).evaluate(to_device(IDS, xp))
    assert other == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [1, 2])
def test_nobody_waits_for_a_step(tmp_path, cupy, dtype, batches):
    silent = {"log_interval": 100, "eval_interval": 100}  # where it logs, it waits
    run = tiny_run(
        tmp_path, dtype=dtype, gradient_accumulation_steps=batches, dropout=0.2, **silent
    )
    with Workers(1) as workers:
        run.start(workers)
        run.advance()  # compiles
        with waiting(allowed=False):
            for _ in range(3):
                run.advance()
            with pytest.raises(Exception, match="synchronization was detected"):
                run.read()
        assert run.read()["grad_norm"] > 0 and 0 < run.losses.mean < 10


def test_a_device_is_asked_at_lines_of_the_log_only(tmp_path, cupy, monkeypatch):
    steps, read = [], Run.read
    monkeypatch.setattr(Run, "read", lambda self: steps.append(self.state.step) or read(self))
    assert begin(tmp_path / "run", "--backend=cupy", "--log-interval=5", "--eval-interval=8") == 0
    assert sorted({*steps}) == [5, 8, 10, 12]
    monkeypatch.undo()
    assert begin(tmp_path / "numpy", "--threads=1", "--log-interval=5", "--eval-interval=8") == 0
    for line, other in zip(metrics(tmp_path / "run"), metrics(tmp_path / "numpy"), strict=True):
        assert line == pytest.approx(other, rel=1e-4)


def tiny_run(folder, **changes):
    """A run of the tests' tiny model on the device, not begun."""
    (folder / "text.txt").write_text(TEXT)
    values = dict(flag.removeprefix("--").split("=") for flag in FLAGS[1:])  # but the preset
    values = {name.replace("-", "_"): json.loads(value) for name, value in values.items()}
    values |= {"data": str(folder / "text.txt"), "out_dir": str(folder / "run"), "backend": "cupy"}
    return begun(values | {"threads": 1, "log_interval": 100} | changes, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_takes_no_memory_that_those_before_did_not(cupy, dtype):
    asked = []

    def malloc(size):
        asked.append(size)
        return cupy.cuda.memory._malloc(size)

    pool = cupy.cuda.MemoryPool(malloc)
    with cupy.cuda.using_allocator(pool.malloc), Workers(1) as workers:
        this, ids = trainer(cupy, workers, dtype=dtype), to_device(IDS, cupy)
        loss = 0.0
        for step in range(8):
            if step == 3:
                assert asked
                asked.clear()
                total = pool.total_bytes()
            loss = loss + this.step(ids, step)[0]
        assert asked == [] and pool.total_bytes() == total
        del this, ids, loss
        gc.collect()


def test_a_run_may_change_its_backend_and_precision(tmp_path, cupy):
    flags = ("--dropout=0.2", "--lr-decay-iters=12", "--threads=1")
    assert begin(tmp_path / "numpy", *flags) == 0
    expected = metrics(tmp_path / "numpy")
    for first, second in (("cupy", "numpy"), ("numpy", "cupy")):
        folder = tmp_path / first
        begin(folder, *flags, f"--backend={first}", "--max-iters=4", "--overwrite")
        assert resume(folder, f"--backend={second}", "--max-iters=12") == 0
        for line, other in zip(metrics(folder), expected, strict=True):
            assert line == pytest.approx(other, rel=1e-3)
    more = ("--dtype=float16", "--backend=cupy", "--max-iters=16")
    assert resume(tmp_path / "cupy", *more) == 0
    state = checkpoint.load(tmp_path / "cupy" / LAST).state["optimizer"]
    assert state[STEPS] + state[SKIPPED] == 16 and state[LOSS_SCALE] > 1
    assert resume(tmp_path / "cupy", "--dtype=float32", "--backend=numpy", "--max-iters=20") == 0


def test_a_checkpoint_is_one_copy_of_each_buffer(tmp_path, cupy, monkeypatch):
    copied = []
    monkeypatch.setattr(checkpoint, "to_host", lambda x: copied.append(x.size) or to_host(x))
    with Workers(1) as workers:
        this = trainer(cupy, workers)
    chars = CharTokenizer("".join(map(chr, range(40, 105))))
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, this.params, CONFIG, tokenizer=chars, state={}, optimizer=this.optimizer)
    assert copied == [this.params.size] * 3
    for where in (np, cupy):
        loaded = checkpoint.load(path, where).params.flat
        assert type(loaded) is where.ndarray
        np.testing.assert_array_equal(to_host(loaded), to_host(this.params.flat))


def test_a_token_is_read_back_once(cupy, monkeypatch):
    reads = []

    def read(x):
        reads.append(x.shape)
        with waiting(allowed=True):
            return to_host(x)

    monkeypatch.setattr("minigpt.sample.generate.to_host", read)
    p, prompt = init_params(CONFIG, 1, cupy).tree, np.array([[1, 2, 3], [4, 5, 6]])
    settings = {"temperature": 0.8, "top_k": 5, "seed": 3}
    list(generate(p, CONFIG, prompt, 2, **settings))  # compiles
    reads.clear()
    with waiting(allowed=False):
        came = list(generate(p, CONFIG, prompt, 30, **settings))
    assert reads == [(2, 65)] * 30
    p = init_params(CONFIG, 1, np).tree
    np.testing.assert_array_equal(came, list(generate(p, CONFIG, prompt, 30, **settings)))


def test_too_little_device_memory(tmp_path, cupy, capsys):
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=2**20)
    with cupy.cuda.using_allocator(pool.malloc):
        flags = ("--backend=cupy", "--batch-size=128", "--n-embd=64")
        error = refusal(capsys, begin, tmp_path / "run", *flags)
        gc.collect()
    assert error.startswith("error: out of memory in a training step (Out of memory allocating ")
    assert " bytes" in error and "--batch-size" in error


def test_too_little_device_memory_to_sample(tmp_path, cupy, capsys):
    begin(tmp_path / "run", "--max-iters=2")
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=2**16)
    with cupy.cuda.using_allocator(pool.malloc):
        flags = [
            f"--out-dir={tmp_path / 'run'}",
            "--backend=cupy",
            "--num-samples=256",
            "--max-new-tokens=2",
        ]
        error = refusal(capsys, sample.main, flags)
        gc.collect()
    assert error.startswith("error: out of memory ") and "Out of memory allocating " in error
    assert " bytes" in error and "--num-samples" in error


def test_a_device_that_fails(tmp_path, cupy, capsys, monkeypatch):
    def fail(self, *_):
        raise cupy.cuda.runtime.CUDARuntimeError(700)

    monkeypatch.setattr(Trainer, "step", fail)
    error = refusal(capsys, begin, tmp_path / "run", "--backend=cupy")
    assert error.startswith("error: the GPU failed (") and "`minigpt doctor`" in error
    assert "700" in error or "IllegalAddress" in error


def test_a_device_that_fails_for_good_ends_in_two_lines(tmp_path, cupy, capsys, monkeypatch):
    """After a fault in a kernel all calls fail: nothing can be saved any more."""
    step = Trainer.step

    def fail(*_):
        raise cupy.cuda.runtime.CUDARuntimeError(700)

    def until_3(self, split, number, *args, **options):
        if number == 3:
            monkeypatch.setattr(checkpoint, "to_host", fail)
            fail()
        return step(self, split, number, *args, **options)

    monkeypatch.setattr(Trainer, "step", until_3)
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: begin(tmp_path / "run", "--backend=cupy"))
    told = [line for line in capsys.readouterr().err.splitlines() if "GPU" in line]
    assert leaving.value.code == 2 and len(told) == 2
    assert told[0].startswith("step 3 is not saved: the GPU failed (")
    assert told[1].startswith("error: the GPU failed (")


def test_steps_in_a_stream_of_its_own_have_the_same_bits(cupy):
    """All work goes into the current stream, and none of it needs the default one."""
    expected, weights = losses(cupy, 4)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found, again = losses(cupy, 4)
        stream.synchronize()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again, weights)
