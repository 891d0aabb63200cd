"""Random texts, pairs, configs and flags, by hypothesis."""

import dataclasses
import string

import hypothesis
from hypothesis import strategies as st

from minigpt.data import __main__ as data
from minigpt.data.__main__ import WalkConfig
from minigpt.files import BEST
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.report.step import command as walk
from minigpt.report.step.command import StepConfig
from minigpt.sample import __main__ as sample
from minigpt.sample.command import SampleConfig
from minigpt.train import __main__ as train
from minigpt.train.config import TrainConfig

# Flags that would only make a run long or large, which is what they are for.
SMALL = (
    *("--n-layer=1", "--n-head=1", "--n-embd=4", "--block-size=4", "--batch-size=2"),
    *(
        "--gradient-accumulation-steps=1",
        "--threads=1",
        "--max-iters=1",
        "--warmup-iters=0",
        "--vocab-size=99",
    ),
)
ODD = st.sampled_from(
    [
        *("", "-1", "0", "1e999", "nan", "inf", "2**3", "9" * 400, "0x10", "1_000", " 1"),
        *("auto", "\udcff", "%s"),
    ]
)
VALUES = st.one_of(
    ODD,
    st.integers(-3, 99).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=9).filter(lambda text: "\0" not in text),
)


def names(*classes):
    """Return the flags of config classes, without dashes; none that writes where a text says."""
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    return sorted({f.name for f in fields if f.metadata.get("flag")} - {"max_seconds", "page"})


def flags(*classes):
    """Return a strategy for lists of flags, some of them misspelt or without a value."""
    known = st.sampled_from([name.replace("_", "-") for name in names(*classes)])
    unknown = st.text(string.ascii_lowercase + "-=", max_size=8)
    name = st.one_of(known, known, known, unknown)
    return st.lists(
        st.one_of(
            st.builds("--{}={}".format, name, VALUES),
            st.builds("--no-{}".format, name),
            st.builds("--{}".format, name),
            VALUES,
        ),
        max_size=4,
    )


def toml(value):
    """Return a value as TOML writes it."""
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower()


def tomls():
    """Return a strategy for the bytes of configs."""
    scalar = st.one_of(
        st.booleans(), st.integers(-3, 99), st.integers(), st.floats(), st.text(max_size=9)
    )
    value = st.one_of(scalar, scalar, scalar, st.lists(scalar, max_size=2))
    known = st.sampled_from(names(TrainConfig, Seq2SeqConfig))
    pair = st.tuples(st.one_of(known, known, known, st.text(string.ascii_lowercase)), value)
    lines = st.lists(pair.map(lambda p: f"{p[0]} = {toml(p[1])}"), max_size=5)
    return st.one_of(lines.map(lambda x: "\n".join(x).encode()), st.binary(max_size=60))


def texts():
    """Return a strategy for the bytes of texts and of pairs."""
    line = st.text(st.characters(codec="utf-8"), max_size=30)
    pair = st.builds("{}\t{}".format, line, line)
    lines = st.lists(st.one_of(line, pair, pair, pair), max_size=40)
    return st.one_of(
        lines.map(lambda x: "\n".join(x).encode()),
        st.lists(pair, min_size=10, max_size=40).map(lambda x: "\n".join(x).encode()),
        st.text(max_size=300).map(lambda x: (3 * x).encode()),
        st.text(max_size=100).map(lambda x: x.encode("utf-16")),
        st.binary(max_size=300),
    )


def text_commands(raw, base):
    """Yield the commands that read a text."""
    path = base / "given"
    path.write_bytes(raw)
    run = [f"--data={path}", f"--out-dir={base / 'new'}", "--overwrite", *SMALL[:-1]]
    yield data.main, [f"--data={path}", "--block-size=3"]
    yield walk.main, ["--step", f"--data={path}", "--block-size=3"]
    yield train.main, run
    yield train.main, ["--task=seq2seq", *run, "--block-size=64"]


def config_commands(raw, base):
    """Yield the commands that read a config."""
    path = base / "given"
    path.write_bytes(raw)
    yield train.main, [f"--config={path}", "--dry-run"]
    run = [f"--config={path}", f"--data={base / 'text.txt'}", f"--out-dir={base / 'new'}"]
    yield train.main, [*run, "--overwrite", *SMALL]


def flag_commands(given, base):
    """Yield the commands that take flags."""
    of_train, of_sample, of_data = given
    yield train.main, [*of_train, "--dry-run"]
    run = [f"--data={base / 'text.txt'}", f"--out-dir={base / 'new'}", "--overwrite", *SMALL]
    yield train.main, [*of_train, *run]
    few = ["--max-new-tokens=2", "--num-samples=1"]
    yield sample.main, [*of_sample, f"--checkpoint={base / 'text' / BEST}", *few]
    yield sample.main, [*of_sample, f"--checkpoint={base / 'seq2seq' / BEST}", "--prompt=2"]
    yield walk.main, [*of_data, f"--data={base / 'text.txt'}", "--block-size=3"]
    yield walk.main, ["--step", *of_data, f"--data={base / 'text.txt'}", "--block-size=3"]


GIVEN = {
    "texts": (texts(), text_commands),
    "configs": (tomls(), config_commands),
    "flags": (
        st.tuples(
            flags(TrainConfig, Seq2SeqConfig), flags(SampleConfig), flags(WalkConfig, StepConfig)
        ),
        flag_commands,
    ),
}


def search(kind, trials, seed, base, judge):
    """Let hypothesis look for input that a command does not end cleanly on; return failures."""
    strategy, commands = GIVEN[kind]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=trials,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(strategy)
    def ends_cleanly(given):
        for main, argv in commands(given, base):
            fault = judge(main, argv)
            assert fault is None, f"{argv}: {fault}"

    try:
        ends_cleanly()
    except Exception as error:
        return [f"{given_of(error)}{error}"]
    return []


def given_of(error):
    """Return what hypothesis notes about an example, as text."""
    return "".join(f"{note}; " for note in getattr(error, "__notes__", ()))
