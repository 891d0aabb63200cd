"""Training on subwords, from the command line to the sample: --tokenizer, --vocab-size."""

import numpy as np
import pytest

import minigpt
from minigpt.data.bpe_files import BYTE_OF, Table
from minigpt.data.datasets import PairData
from minigpt.data.subwords import BpeTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import load
from minigpt.sample import __main__ as sample
from minigpt.sample import score
from minigpt.train import __main__ as train
from minigpt.train.config import resolve, train_config_of
from minigpt.train.presets import configs_of
from tests.tools.training import TEXT, begin, metrics, refusal, resume, same

pytestmark = pytest.mark.usefixtures("no_picture")

BPE = ("--tokenizer=bpe", "--vocab-size=280", "--block-size=6")
PAIRS = [(f"{n} times {m}", f"{n * m} is it") for n in range(9) for m in range(9)]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 40, "max_iters": 4, "threads": 1}


@pytest.fixture
def bytes_alone(tmp_path):
    """The folder of a tokenizer.json that has the bytes and an end of text."""
    table = Table({token: i for i, token in enumerate(BYTE_OF)}, [], {"<end>": 256}, None)
    folder = tmp_path / "bytes"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(BpeTokenizer(table).tokenizer_json(), "utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    return folder


@pytest.mark.bpe
def test_a_run_on_subwords_in_all_its_parts(tmp_path, capsys):
    assert begin(tmp_path / "run", *BPE) == 0
    shown = capsys.readouterr().out
    assert "text.txt: 2,000 characters, " in shown and " tokens, 280 different" in shown
    found = load(tmp_path / "run" / "best.safetensors")
    assert type(found.tokenizer) is BpeTokenizer
    assert found.tokenizer.to_json() == BpeTokenizer.train([TEXT[:1800]], 280).to_json()
    assert found.config.vocab_size == 280 and not found.config.bigram
    for line in metrics(tmp_path / "run"):
        if "val_loss" in line:  # a token of this text has more than one byte
            assert 0 < line["val_bpb"] < line["val_loss"] / np.log(2)
    sample.main([f"--out-dir={tmp_path / 'run'}", "--max-new-tokens=9", "--prompt=Line 7"])
    assert capsys.readouterr().out.startswith("Line 7")
    assert score.main([f"--out-dir={tmp_path / 'run'}", f"--data={tmp_path / 'text.txt'}"]) == 0
    assert "bits" in capsys.readouterr().out


@pytest.mark.bpe
def test_a_resumed_run_is_the_whole_one_to_the_bit(tmp_path):
    begin(tmp_path / "whole", *BPE, "--dropout=0.2")
    begin(tmp_path / "parts", *BPE, "--dropout=0.2", "--max-iters=4", "--lr-decay-iters=12")
    resume(tmp_path / "parts", "--max-iters=12", "--tokenizer=bpe")
    same(tmp_path / "whole", tmp_path / "parts", "last.safetensors")


@pytest.mark.bpe
def test_a_resumed_run_keeps_its_tokenizer(tmp_path, capsys):
    begin(tmp_path / "run", *BPE, "--max-iters=2", "--warmup-iters=0")
    error = refusal(capsys, resume, tmp_path / "run", "--max-iters=4", "--tokenizer=char")
    assert "--resume: tokenizer is bpe in" in error and "leave it out" in error
    error = refusal(capsys, resume, tmp_path / "run", "--max-iters=4", "--vocab-size=290")
    assert "vocab_size is 280 in" in error


@pytest.mark.bpe
def test_a_table_from_a_file_keeps_its_ids_and_may_be_padded(tmp_path, bytes_alone, capsys):
    flags = "--block-size=6", "--max-iters=2", "--warmup-iters=0"
    for name in (bytes_alone, bytes_alone / "tokenizer.json"):
        begin(tmp_path / "run", f"--tokenizer={name}", "--overwrite", *flags)
        found = load(tmp_path / "run" / "last.safetensors")
        assert (found.config.vocab_size, found.tokenizer.end_of_text) == (257, 256)
    begin(tmp_path / "run", f"--tokenizer={bytes_alone}", "--overwrite", "--vocab-size=300", *flags)
    found = load(tmp_path / "run" / "last.safetensors")
    assert (found.config.vocab_size, found.tokenizer.vocab_size) == (300, 257)
    few = f"--tokenizer={bytes_alone}", "--overwrite", "--vocab-size=200"
    error = refusal(capsys, begin, tmp_path / "run", *few)
    assert error.endswith(f"200, but --tokenizer {bytes_alone} has 257 different tokens")


def test_what_contradicts_is_one_line(tmp_path, capsys):
    error = refusal(capsys, begin, tmp_path / "run", "--tokenizer=bpe", "--vocab-size=256")
    assert "vocab_size is 256, but bpe needs at least 257" in error
    error = refusal(capsys, begin, tmp_path / "run", "--tokenizer=word")
    assert error.startswith("error: --tokenizer word is neither char nor bpe, no folder")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_trained_table_sets_the_size_of_the_model():
    options = {"tokenizer": "bpe", "vocab_size": 1024, "bigram": "auto"}
    train_config_of(options)
    config, _ = resolve(options, {"vocab_size": 900})
    assert config.vocab_size == 900 and not config.bigram
    config, _ = configs_of("gpt2", vocab_size=700, tokenizer="bpe")
    assert config.vocab_size == 700
    with pytest.raises(UserError, match="vocab_size is 256, but bpe needs"):
        train_config_of(options | {"vocab_size": 256})


@pytest.mark.bpe
def test_fit_and_a_file_of_options_take_a_tokenizer(tmp_path, bytes_alone):
    options = {**SMALL, "block_size": 8, "progress": False, "warmup_iters": 0}
    model = minigpt.fit(text=TEXT, tokenizer="bpe", vocab_size=270, **options)
    assert model.tokenizer.vocab_size == model.config.vocab_size == 270
    assert len(model.generate("Line", max_new_tokens=5)) > 0
    model = minigpt.fit(text=TEXT, tokenizer=str(bytes_alone), **options)
    assert model.config.vocab_size == 257
    (tmp_path / "run.toml").write_text('tokenizer = "bpe"\nvocab_size = 260\nblock_size = 6\n')
    begin(tmp_path / "run", f"--config={tmp_path / 'run.toml'}", "--block-size=6")
    assert load(tmp_path / "run" / "last.safetensors").tokenizer.vocab_size == 260


@pytest.mark.bpe
def test_the_cost_of_a_run_is_that_of_its_table(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT)
    train.main([f"--data={tmp_path / 't.txt'}", "--dry-run", *BPE])
    assert "vocabulary 280" in capsys.readouterr().out


@pytest.mark.bpe
@pytest.mark.parametrize("shared", [False, True])
def test_pairs_have_a_table_each_or_a_shared_one(tmp_path, shared):
    path = tmp_path / "p.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    data = PairData(str(path), shared=shared, kind="bpe", vocab_size=270)
    source, target = data.tokenizer
    assert (source is target) == shared
    held = {*data.val_pairs}
    sides = [*zip(*(pair for pair in PAIRS if pair not in held), strict=True)]
    sides = [sides[0] + sides[1]] * 2 if shared else sides
    for tokenizer, texts in zip(data.tokenizer, sides, strict=True):
        parts = [part for text in texts for part in (text, "")]
        assert tokenizer.to_json() == BpeTokenizer.train(parts, 270).to_json()
    assert data.sizes["vocab_size"] == target.vocab_size + 1 == data.tokenizer.end + 1
    i = data.train.order[0]
    ids = data.train.rows([i])[1][0].tolist()
    assert ids[-1] == data.tokenizer.end
    assert data.train.target.lengths[i] == len(ids)
    assert target.decode(ids[:-1]) == [pair for pair in PAIRS if pair not in held][i][1]


@pytest.mark.bpe
@pytest.mark.parametrize("shared", [False, True])
def test_an_encoder_decoder_answers_in_subwords(tmp_path, capsys, shared):
    options = {**SMALL, "tokenizer": "bpe", "vocab_size": 270, "share_embedding": shared}
    options |= {"out_dir": tmp_path / "run", "progress": False, "warmup_iters": 0}
    model = minigpt.fit(pairs=PAIRS, **options)
    source, target = load(tmp_path / "run" / "best.safetensors").tokenizer
    sizes = source.vocab_size, target.vocab_size + 1
    assert (model.config.source_vocab_size, model.config.vocab_size) == sizes
    assert "exact_match" in [*metrics(tmp_path / "run")][-1]
    answer = model.answer("3 times 4")
    assert isinstance(answer, str)
    weights, rows, columns = model.attention("3 times 4")[:3]
    assert columns == [source.label(i) for i in source.encode("3 times 4")]
    sample.main([f"--out-dir={tmp_path / 'run'}", "--prompt=3 times 4", "--beam=3"])
    assert capsys.readouterr().out.count("\n") == 1
    path = tmp_path / "p.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    assert score.main([f"--out-dir={tmp_path / 'run'}", f"--data={path}"]) == 0


def test_a_table_for_pairs_has_no_padding(bytes_alone, tmp_path, capsys):
    path = tmp_path / "p.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    flags = f"--data={path}", "--task=seq2seq", f"--tokenizer={bytes_alone}", "--vocab-size=300"
    pytest.importorskip("tokenizers")
    error = refusal(capsys, train.main, [*flags, f"--out-dir={tmp_path / 'run'}"])
    assert error.endswith("vocab_size is 300, but the pairs need 258: leave it out")
