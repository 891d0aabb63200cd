"""What `import minigpt` offers."""

import dataclasses
import inspect
import pydoc
import re
from pathlib import Path

import pytest

import minigpt
from minigpt import cli

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "max_iters": 3, "batch_size": 4}


def test_the_package_offers_few_names_and_a_help_of_one_screen():
    assert set(dir(minigpt)) == {
        *("fit", "load", "Model", "GPTConfig", "Seq2SeqConfig", "TrainConfig", "configs"),
        *("check", "plain", "UserError", "__version__"),
    }
    for name in dir(minigpt):
        assert getattr(minigpt, name) is getattr(minigpt, name)
        assert name in minigpt.__doc__ or name == "__version__"
    assert minigpt.__version__ == cli.VERSION
    assert pydoc.render_doc(minigpt).count("\n") < 60
    with pytest.raises(AttributeError, match="'minigpt' has no attribute 'GPT'"):
        minigpt.GPT  # noqa: B018


def test_what_the_package_offers_says_what_it_does_with_an_example():
    for f in (minigpt.fit, minigpt.load, minigpt.Model, minigpt.configs, minigpt.check):
        assert ">>>" in f.__doc__
    fields = {field.name for field in dataclasses.fields(minigpt.Model)}
    for name, method in vars(minigpt.Model).items():
        assert name.startswith("_") or name in fields or getattr(method, "__doc__", None)
    assert all(f"\n{name} : " in inspect.getdoc(minigpt.Model) for name in fields)


def test_the_name_of_a_preset_becomes_configs():
    model_config, train_config = minigpt.configs("lecture", vocab_size=65)
    assert isinstance(model_config, minigpt.GPTConfig) and model_config.n_embd == 384
    assert isinstance(train_config, minigpt.TrainConfig) and train_config.max_iters == 5000


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    section = readme.partition("\n## From Python\n")[2].partition("\n## ")[0]
    lines = section.partition("```python\n")[2].partition("```")[0]
    assert len(lines.splitlines()) >= 8
    (tmp_path / "my.txt").write_text("Once upon a time there was a text.\n" * 60, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    fit = minigpt.fit
    monkeypatch.setattr(minigpt, "fit", lambda data, **given: fit(data, **{**given, **SMALL}))
    exec(lines, {})
    out = capsys.readouterr().out
    assert 0 < float(re.search(r"(\d\.\d+) \(16, 48\)", out)[1]) < 4  # loss, shape of a gradient
    assert "(1, 2, 9, 9)" in out  # attention
    assert isinstance(minigpt.load("my.safetensors"), minigpt.Model)
