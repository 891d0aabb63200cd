"""Checkpoints: the round trip, and what a failing write leaves behind."""

import errno
import io
import json
import math
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from minigpt.backend import to_device, to_host
from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.model import checkpoint
from minigpt.model.checkpoint import load, save
from minigpt.model.gpt import GPTConfig, shapes
from minigpt.model.init import init_params
from minigpt.optim.adamw import AdamW
from minigpt.params import Params
from tests.tools.options import gpt_config

TOKENIZER = CharTokenizer.from_text("Bee3\n")
CONFIG = gpt_config(vocab_size=4, block_size=6, n_layer=2, n_head=2, n_embd=4)
STATE = {"step": 7, "best": 0.1 + 0.2, "worst": -math.pi, "train": {"name": "é"}}


def random_params(rng, config=CONFIG, xp=np):
    params = Params(shapes(config), xp, "float32")
    params.flat[...] = to_device(rng.standard_normal(params.size).astype(np.float32), xp)
    return params


def random_optimizer(rng, params, xp=np):
    optimizer = AdamW(params)
    for moment in (optimizer.m, optimizer.v):
        moment.flat[...] = to_device(rng.random(params.size).astype(np.float32), xp)
    return optimizer


@pytest.fixture
def path(tmp_path, rng):
    """A good checkpoint."""
    path = tmp_path / "last.safetensors"
    save(path, random_params(rng), CONFIG, tokenizer=TOKENIZER, state=STATE)
    return path


@pytest.mark.cupy
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False, "qkv_bias": None},
        {"rotary": True, "bigram": True},
        {"qkv_bias": False, "tie_head": False, "head_bias": True, "activation": "relu"},
        {"n_layer": 1, "n_head": 1, "n_embd": 1, "block_size": 1, "init_scale": "plain"},
    ],
)
def test_what_is_saved_comes_back_to_the_bit(tmp_path, rng, xp, changes):
    config = GPTConfig(**{**vars(CONFIG), **changes})
    params = random_params(rng, config, xp)
    params.flat[:3] = to_device(np.array([-0.0, 1e-45, 3.4e38], np.float32), xp)
    optimizer = random_optimizer(rng, params, xp)
    path = tmp_path / "a.safetensors"
    save(path, params, config, tokenizer=TOKENIZER, state=STATE, optimizer=optimizer)
    found = load(path, xp)
    assert (found.config, found.state) == (config, STATE)
    assert found.tokenizer.chars == TOKENIZER.chars
    pairs = [(found.params, params)]
    pairs += [(found.optimizer_arrays[m], getattr(optimizer, m)) for m in ("m", "v")]
    for came, went in pairs:
        assert isinstance(came.flat, xp.ndarray) and came.flat.dtype == np.float32
        assert to_host(came.flat).tobytes() == to_host(went.flat).tobytes()


def test_the_file_is_plain_safetensors_with_names_in_order(tmp_path, rng):
    params, path = random_params(rng), tmp_path / "a.safetensors"
    optimizer = random_optimizer(rng, params)
    save(path, params, CONFIG, tokenizer=TOKENIZER, state={}, optimizer=optimizer)
    names = [name for name, _ in params.leaves()]
    found = safetensors.numpy.load_file(path)
    expected = {
        f"{prefix}{name}" for prefix in ("", "optimizer.m.", "optimizer.v.") for name in names
    }
    assert found.keys() == expected
    for name, view in params.leaves():
        np.testing.assert_array_equal(found[name], view)
    for name, view in optimizer.v.leaves():
        np.testing.assert_array_equal(found["optimizer.v." + name], view)
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    assert [*header][: 1 + len(names)] == ["__metadata__", *names]
    assert size % 8 == 0  # the arrays are aligned
    assert header["__metadata__"]["format"] == "minigpt 1"


def test_equal_models_give_equal_files(path, tmp_path):
    found = load(path)
    other = tmp_path / "other.safetensors"
    save(other, found.params, found.config, tokenizer=found.tokenizer, state=found.state)
    assert other.read_bytes() == path.read_bytes()


def test_moments_are_read_only_where_asked_for(tmp_path, rng, monkeypatch):
    params, path = random_params(rng), tmp_path / "a.safetensors"
    optimizer = random_optimizer(rng, params)
    save(path, params, CONFIG, tokenizer=TOKENIZER, state={}, optimizer=optimizer)
    read = []

    class Recorder:
        def __init__(self, *args, **kwargs):
            self.file = safetensors.safe_open(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self.file, name)

    class Library:
        safe_open, SafetensorError = Recorder, safetensors.SafetensorError

    monkeypatch.setattr(checkpoint, "safetensors", Library)
    assert load(path, with_optimizer=False).optimizer_arrays is None
    assert read == [name for name, _ in params.leaves()]
    assert load(path).optimizer_arrays.keys() == {"m", "v"}


def test_there_need_not_be_moments(path):
    assert load(path).optimizer_arrays is None


def test_saving_copies_nothing_and_loading_one_tensor_at_a_time(tmp_path):
    config = gpt_config(vocab_size=4, block_size=64, n_layer=8, n_head=1, n_embd=128)
    params, path = init_params(config, 0, np), tmp_path / "a.safetensors"
    tracemalloc.start()
    try:
        save(path, params, config, tokenizer=TOKENIZER, state={})
        assert tracemalloc.get_traced_memory()[1] < 0.05 * params.flat.nbytes
        tracemalloc.reset_peak()
        load(path)
        largest = max(view.nbytes for _, view in params.leaves())
        assert tracemalloc.get_traced_memory()[1] < params.flat.nbytes + 3 * largest
    finally:
        tracemalloc.stop()


def test_the_file_has_the_permissions_of_any_other(path, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_float64_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="float64"):
        params = init_params(CONFIG, 0, np, "float64")
        save(tmp_path / "a", params, CONFIG, tokenizer=TOKENIZER, state={})
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.FileIO):
    """A file that takes 700 bytes and then no more."""

    room = 700

    def write(self, part):
        self.room -= memoryview(part).nbytes
        if self.room < 0:
            no_space()
        return super().write(part)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where, what, error",
    [
        ("open", FullDisk, UserError),
        ("os.fsync", no_space, UserError),
        ("os.replace", no_space, UserError),
        ("os.fsync", interrupt, KeyboardInterrupt),
    ],
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, rng, where, what, error):
    old = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"minigpt.files.{where}", what, raising=False)
        with pytest.raises(error) as caught:
            save(path, random_params(rng), CONFIG, tokenizer=TOKENIZER, state={})
    if error is UserError:
        assert str(caught.value) == (
            f"{path}: cannot save the checkpoint (5 kB): No space left on device; "
            "what was there before is unchanged"
        )
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_the_system_refuses(path, rng):
    resource = pytest.importorskip("resource")
    config = gpt_config(vocab_size=4, block_size=64, n_layer=1, n_head=1, n_embd=128)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = path.read_bytes()
    params = init_params(config, 0, np)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot save the checkpoint \(\d+ kB\): File too large"
        ):
            save(path, params, config, tokenizer=TOKENIZER, state={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next(path, rng):
    for name in ("last.safetensors.tmp", "last.safetensors.0a1b2c3d.tmp"):
        (path.parent / name).write_bytes(b"half a checkpoint")
        os.utime(path.parent / name, (1e9, 1e9))
    other = path.parent / "last.safetensors.4d3c2b1a.tmp"
    other.write_bytes(b"of a process that is writing it")
    save(path, random_params(rng), CONFIG, tokenizer=TOKENIZER, state={"step": 8})
    assert {*path.parent.iterdir()} == {path, other}
    assert load(path).state == {"step": 8}


def test_a_folder_that_is_not_there(tmp_path, rng):
    with pytest.raises(UserError, match="cannot save the checkpoint .*: No such file or directory"):
        save(tmp_path / "a" / "b", random_params(rng), CONFIG, tokenizer=TOKENIZER, state={})
