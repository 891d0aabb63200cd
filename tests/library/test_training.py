"""minigpt.fit gives what `minigpt train` gives, and leaves all else as it was."""

import itertools
import os
import signal
import sys
import threading
import warnings

import numpy as np
import pytest

import minigpt
from minigpt.library import training
from minigpt.model import checkpoint
from minigpt.optim.adamw import AdamW
from minigpt.train.step import Trainer
from tests.library.runs import OPTIONS, assert_equal, blas
from tests.tools.training import TEXT, begin, metrics, resume, same


@pytest.fixture(params=["main thread", "another"])
def in_thread(request):
    """Call a function in the main thread, or in another one."""

    def call(f):
        if request.param == "main thread":
            return f()
        results = []
        thread = threading.Thread(target=lambda: results.append(f()))
        thread.start()
        thread.join()
        return results[0]

    return call


def test_fit_gives_what_the_command_gives_to_the_bit(tmp_path, no_picture, model):
    assert begin(tmp_path / "command") == 0
    mine = minigpt.fit(tmp_path / "text.txt", out_dir=tmp_path / "fit", progress=False, **OPTIONS)
    assert_equal(mine, minigpt.load(tmp_path / "command"))
    assert_equal(mine, model)  # from the text itself, in a folder that is gone
    assert metrics(tmp_path / "fit") == metrics(tmp_path / "command")
    one, other = (
        checkpoint.load(tmp_path / name / "last.safetensors") for name in ("fit", "command")
    )
    np.testing.assert_array_equal(one.params.flat, other.params.flat)
    for moment in ("m", "v"):
        np.testing.assert_array_equal(*(c.optimizer_arrays[moment].flat for c in (one, other)))


def test_fit_returns_the_best_checkpoint_and_the_history(model, monkeypatch, tmp_path):
    assert [line["step"] for line in model.history] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in model.history if "val_loss" in line] == [4, 8, 12]
    losses = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: next(losses))
    best = minigpt.fit(text=TEXT, out_dir=tmp_path, progress=False, **OPTIONS)
    assert_equal(best, minigpt.load(tmp_path / "best.safetensors"))
    assert not np.array_equal(
        best.params.flat, minigpt.load(tmp_path / "last.safetensors").params.flat
    )


def test_fit_resumes_a_run_of_the_command_and_the_command_one_of_fit(tmp_path, no_picture, model):
    options = {**OPTIONS, "max_iters": 8, "lr_decay_iters": 12}
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    minigpt.fit(text, out_dir=tmp_path / "one", progress=False, **options)
    assert resume(tmp_path / "one", "--max-iters=12") == 0
    assert begin(tmp_path / "two", "--max-iters=8", "--lr-decay-iters=12") == 0
    last = minigpt.fit(out_dir=tmp_path / "two", resume=True, progress=False, max_iters=12)
    same(tmp_path / "one", tmp_path / "two", "last.safetensors")
    assert_equal(minigpt.load(tmp_path / "one"), model)
    assert_equal(last, model)


def test_a_text_is_kept_in_its_out_dir_so_that_its_run_can_be_resumed(
    tmp_path, no_picture, monkeypatch
):
    folder = tmp_path / "run"
    minigpt.fit(text=TEXT, out_dir=folder, progress=False, **{**OPTIONS, "max_iters": 4})
    assert (folder / "data.txt").read_bytes() == TEXT.encode()
    assert resume(folder, "--max-iters=8") == 0
    minigpt.fit(text=TEXT, out_dir=folder, resume=True, progress=False, max_iters=10)
    with monkeypatch.context() as patch:
        patch.setattr(training, "keep", None)  # nothing is written before the folder is looked at
        with pytest.raises(minigpt.UserError, match="holds another run"):
            minigpt.fit(text="abc" * 500, out_dir=folder, progress=False, **OPTIONS)
    assert (folder / "data.txt").read_bytes() == TEXT.encode()
    short = {**OPTIONS, "max_iters": 2}
    minigpt.fit(text="abc\r\n" * 500, out_dir=folder, overwrite=True, progress=False, **short)
    assert (folder / "data.txt").read_bytes() == b"abc\r\n" * 500


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path):
    for text, options in (("short", OPTIONS), (TEXT, {**OPTIONS, "n_head": 3})):
        with pytest.raises(minigpt.UserError):
            minigpt.fit(text=text, out_dir=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"resume": True, "max_iters": 2},  # it is complete
        {"resume": True, "n_embd": 16},
        {"overwrite": True, "n_layer": 1, "n_head": 3},
    ],
)
def test_a_run_that_cannot_begin_leaves_the_text_of_the_one_before(tmp_path, no_picture, options):
    folder = tmp_path / "run"
    minigpt.fit(text=TEXT, out_dir=folder, progress=False, **{**OPTIONS, "max_iters": 2})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(minigpt.UserError):
        minigpt.fit(text=TEXT[::-1], out_dir=folder, progress=False, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert resume(folder, "--max-iters=3") == 0


def break_at(owner, name, call, broken):
    """Return `owner.name` that calls `broken(self)`, then raises KeyboardInterrupt, at a call."""
    right, calls = getattr(owner, name), itertools.count(1)

    def interrupted(self, *args, **kwargs):
        if next(calls) == call:
            broken(self)
            raise KeyboardInterrupt
        return right(self, *args, **kwargs)

    return interrupted


def begin_step(optimizer):
    """Change what an optimizer changes first: from here on, its step is not to be repeated."""
    optimizer.step_count += 1
    optimizer.params.flat[...] = 0


@pytest.mark.parametrize(
    "owner, name, call, broken, step",
    [
        (Trainer, "gradients", 7, lambda trainer: None, 6),
        (AdamW, "step", 7, begin_step, 4),
        (Trainer, "evaluate", 2, lambda trainer: None, 8),
    ],
    ids=["a step", "an update", "an evaluation"],
)
def test_an_interrupt_leaves_a_run_that_is_resumed_to_the_bit(
    tmp_path, monkeypatch, model, owner, name, call, broken, step
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, break_at(owner, name, call, broken))
        with pytest.raises(KeyboardInterrupt):
            minigpt.fit(text=TEXT, out_dir=tmp_path / "run", progress=False, **OPTIONS)
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").state["step"] == step
    assert_equal(minigpt.fit(out_dir=tmp_path / "run", resume=True, progress=False), model)


@pytest.mark.parametrize("owner, name", [(Trainer, "gradients"), (AdamW, "step")])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError("no more")])
def test_before_its_first_step_is_done_a_run_touches_nothing(
    tmp_path, monkeypatch, model, owner, name, error
):
    def broken(self, *_, **__):
        if name == "step":
            begin_step(self)
        raise error

    def fail(**more):
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, minigpt.UserError)):
            patch.setattr(owner, name, broken)
            minigpt.fit(text=TEXT, out_dir=tmp_path / "run", progress=False, **OPTIONS, **more)

    fail()
    assert not (tmp_path / "run").exists()
    minigpt.fit(text=TEXT[::-1], out_dir=tmp_path / "run", progress=False, **OPTIONS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    fail(overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def surroundings():
    """What training must leave as it was."""
    return {
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "errors of NumPy": np.geterr(),
        "BLAS": blas(),
        "folder": os.getcwd(),
        "arguments": list(sys.argv),
        "environment": dict(os.environ),
        "threads": {t.name for t in threading.enumerate() if t.name.startswith("shard")},
        "random numbers": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


def test_fit_leaves_the_process_as_it_was(in_thread, model, monkeypatch):
    seen = []
    evaluate = Trainer.evaluate

    def watched(self, *args):
        seen.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
        return evaluate(self, *args)

    monkeypatch.setattr(Trainer, "evaluate", watched)
    monkeypatch.setattr(sys, "argv", ["notebook", "-f", "kernel.json"])
    before = surroundings()
    assert_equal(in_thread(lambda: minigpt.fit(text=TEXT, progress=False, **OPTIONS)), model)
    with pytest.raises(minigpt.UserError):
        minigpt.fit(text="short", **OPTIONS)
    after = surroundings()
    for name, value in before.items():
        if name != "threads":  # they end a moment later
            assert after[name] == value, name
    assert seen == [before["signals"]] * 3


def test_trainings_at_the_same_time_do_not_disturb_each_other(model):
    before, results = surroundings(), {}

    def train(seed):
        results[seed] = minigpt.fit(text=TEXT, progress=False, **OPTIONS, seed=seed)

    threads = [threading.Thread(target=train, args=[seed]) for seed in (1337, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_equal(results[1337], model)
    assert not np.array_equal(results[1].params.flat, results[2].params.flat)
    assert blas() == before["BLAS"]
    assert list(warnings.filters) == before["warnings"]


def test_progress_is_shown_or_not(capsys):
    options = {**OPTIONS, "max_iters": 8}
    minigpt.fit(text=TEXT, progress=False, **options)
    assert capsys.readouterr() == ("", "")
    minigpt.fit(text=TEXT, **options)
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[1] for line in lines] == ["4", "8"]
    assert all("validation" in line and "tokens/s" in line for line in lines)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"data": "no.txt"}, r"data 'no.txt' is no file; give a text itself by text="),
        ({"data": 3}, "data is 3; it must be the path of a file"),
        ({"data": ["*.none"]}, "no file has a name like that"),
        ({"data": "a", "text": "b"}, "give one of data, text and pairs"),
        ({"text": b"abc"}, "text is b'abc'; it must be a string"),
        ({"text": "a\ud800"}, r"text holds '\\ud800' at position 1"),
        ({"text": ""}, "is empty"),
        ({"text": TEXT, "n_layers": 3}, "unknown option 'n_layers'; did you mean 'n_layer'"),
        ({"text": TEXT, "n_layer": 2.5}, "n_layer is 2.5; it must be a whole number"),
        ({"text": TEXT, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"text": TEXT, "task": "texts"}, "task is 'texts'; choose from text, seq2seq"),
        ({"text": TEXT, "preset": "quik"}, "preset is 'quik'.*did you mean 'quick'"),
        ({"text": "abc"}, "the text is too short"),
        ({"pairs": [("a", "b", "c")]}, r"pairs\[0\] is \('a', 'b', 'c'\); it must be two strings"),
        ({"pairs": ["ab", ("a", 1)]}, r"pairs\[1\] is \('a', 1\); it must be two strings"),
        ({"pairs": [("a\tb", "c")]}, r"pairs\[0\] holds a TAB or a line break"),
        ({"pairs": [("a", "")]}, r"^pairs\[0\] has an empty target"),
        ({"pairs": [("a", "b"), ("c", "\ud800")]}, r"^pairs\[1\] has '\\ud800' in its target"),
        ({"pairs": [1, 2]}, r"pairs\[0\] is 1; it must be two strings"),
        ({"pairs": 7}, "pairs is 7; it must be a list of"),
        ({"pairs": []}, "^pairs is empty; give a list of"),
        ({"pairs": [("a", "b")]}, "holds 1 different source; a tenth of them is"),
        ({"resume": True}, "resume needs out_dir"),
        ({"resume": True, "out_dir": "x", "preset": "quick"}, "leave out preset"),
        ({"resume": True, "out_dir": "x", "overwrite": True}, "leave out overwrite"),
        ({"resume": True, "out_dir": "x"}, "there is no x/last.safetensors to resume from"),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_one_line(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(minigpt.UserError, match=sentence) as caught:
        minigpt.fit(**{"progress": False, **arguments})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
