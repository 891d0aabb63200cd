"""No file but the tokenizers takes a token for a character: bytes of UTF-8 go all the way."""

import codecs
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.data.bpe_files import BYTE_OF, Table
from minigpt.data.datasets import PairData, TextData
from minigpt.data.subwords import BpeTokenizer
from minigpt.data.tokenizer import StreamDecoder, Tokenizer
from minigpt.data.tokenizers import KINDS, PairTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import load, save
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.init import init_params
from minigpt.report import attention
from minigpt.sample import text
from minigpt.sample.__main__ import main
from minigpt.sample.answers import answer_lines
from minigpt.sample.tasks import TASKS
from minigpt.sample.text import TextOptions, generate_text, stream_texts
from tests.tools.options import gpt_config

TEXT = "Wörter: 漢字, 😀!\n" * 20
PAIRS = [("é" * i, "漢" * i) for i in range(1, 12)]
TRAIN = SimpleNamespace(seed=1, batch_size=4, sampler="weyl")


class ByteDecoder(StreamDecoder):
    """Shows a character with its last byte."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids):
        return self.decoder.decode(bytes([*ids]))

    def flush(self):
        return self.decoder.decode(b"", final=True)


class Bytes(Tokenizer):
    """One token per byte of UTF-8."""

    kind = "bytes"
    vocab_size = 256

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(self.check_ids(ids)).decode("utf-8", "replace")

    def decoder(self):
        return ByteDecoder()

    def label(self, i):
        return chr(i) if i < 128 else f"<{i:02x}>"

    def to_json(self):
        return json.dumps({"kind": self.kind})

    @classmethod
    def from_json(cls, table):
        return cls()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Checkpoints know the kind."""
    monkeypatch.setitem(KINDS, Bytes.kind, Bytes)


def random_weights(config):
    """Weights of a model, large enough for each token to have its say."""
    params = init_params(config, 0, np)
    params.flat[...] = 0.5 * np.random.default_rng(0).standard_normal(params.size)
    return params


@pytest.fixture
def gpt(tmp_path):
    """Path of the checkpoint of a GPT on bytes."""
    config = gpt_config(vocab_size=256, block_size=16, n_layer=1, n_head=2, n_embd=8)
    path = tmp_path / "best.safetensors"
    save(path, random_weights(config), config, tokenizer=Bytes(), state={})
    return path


@pytest.fixture
def encoder_decoder(tmp_path):
    """Path of the checkpoint of an encoder-decoder from bytes to bytes."""
    sizes = {"vocab_size": 257, "source_vocab_size": 256, "block_size": 16}
    config = Seq2SeqConfig(**sizes, n_layer=1, n_head=2, n_embd=8)
    tokenizer, path = PairTokenizer(Bytes(), Bytes()), tmp_path / "best.safetensors"
    save(path, random_weights(config), config, tokenizer=tokenizer, state={})
    return path


def test_a_text_is_cut_into_batches_of_tokens(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT, "utf-8")
    data, task = TextData(str(tmp_path / "t.txt"), tokenizer=Bytes()), TASKS["text"]
    raw, config = TEXT.encode(), gpt_config(vocab_size=256, block_size=16)
    assert bytes([*data.train, *data.val]) == raw and len(data.train) == int(0.9 * len(raw))
    assert f"{len(TEXT)} characters, {len(raw)} tokens, 256 different" in data.description
    x, y = task.batch(data.train, config, TRAIN, 3, 12)
    assert x.shape == (4, 16) and all(bytes([*row]) in raw for row in x)
    params = random_weights(config)
    loss, _ = task.loss_and_gradients(x, y, params.tree, config)
    assert np.isfinite(loss)
    data.check(16)
    with pytest.raises(UserError, match=f"of {len(raw)} tokens"):
        data.check(len(raw))


def test_pairs_are_as_long_as_their_tokens(tmp_path):
    (tmp_path / "p.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in PAIRS), "utf-8")
    tokenizer, task = PairTokenizer(Bytes(), Bytes()), TASKS["seq2seq"]
    data = PairData(str(tmp_path / "p.tsv"), tokenizer=tokenizer)
    assert data.sizes == {"vocab_size": 257, "source_vocab_size": 256, "block_size": 34}
    (held,) = data.val_pairs
    lengths = {pair: 3 * i + 1 for i, pair in enumerate(PAIRS, 1)}
    assert data.val.lengths.tolist() == [lengths.pop(held)]
    assert data.train.lengths.tolist() == [*lengths.values()]
    data.check(34)
    with pytest.raises(UserError, match=r"2 of 11 pairs .* needs 34 \(tokens of a source, or of a"):
        data.check(30)
    ((source, targets),) = task.eval_batches(data.val, None, 4)
    assert bytes([*source[0]]).decode() == held[0]
    assert targets[0, -1] == tokenizer.end and bytes([*targets[0, :-1]]).decode() == held[1]
    config = Seq2SeqConfig(vocab_size=257, source_vocab_size=256, block_size=34)
    batch, params = task.batch(data.train, config, TRAIN, 0, 0), random_weights(config)
    assert np.isfinite(task.loss_and_gradients(*batch, params.tree, config)[0])


@pytest.mark.parametrize("cut, end", [(None, ""), (-1, "\ufffd"), (-6, "\ufffd")])
def test_a_stream_shows_whole_characters_alone(gpt, monkeypatch, cut, end):
    checkpoint, raw = load(gpt), "aé漢b😀".encode()[:cut]
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    monkeypatch.setattr(text, "generate", lambda *_, **__: ([i] for i in raw))
    pieces = [*generate_text(*model, "x", TextOptions())]
    whole = raw.decode("utf-8", "ignore")
    assert pieces == [*whole, *end]


def test_a_text_ends_before_a_stop_string_of_several_tokens(gpt, monkeypatch):
    checkpoint = load(gpt)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    monkeypatch.setattr(text, "generate", lambda *_, **__: ([i] for i in "aé漢b😀é漢".encode()))
    for stop, pieces in (("漢", "aé"), ("é😀", "aé漢b😀é漢"), ("😀é", "aé漢b"), ("é漢b", "a")):
        assert "".join(generate_text(*model, "x", TextOptions(stop=stop))) == pieces


@pytest.fixture
def subwords(tmp_path):
    """Path of the checkpoint of a GPT on bytes, "ab", "é漢" and two special tokens, 258 and 259."""
    tokens = [*BYTE_OF, "ab", "Ã©æ"]  # the second has the first byte of 漢
    merges = [("a", "b")]
    special = {"<pad>": 258, "<end>": 259}
    table = Table({token: i for i, token in enumerate(tokens)}, merges, special, "<end>")
    config = gpt_config(vocab_size=260, block_size=16, n_layer=1, n_head=2, n_embd=8)
    path = tmp_path / "best.safetensors"
    save(path, random_weights(config), config, tokenizer=BpeTokenizer(table), state={})
    return path


def draws(monkeypatch, *rows):
    """Make these the ids that are drawn, one row a text."""
    steps = zip(*rows, strict=True)
    monkeypatch.setattr(text, "generate", lambda *_, **__: (np.array(step) for step in steps))


def test_subwords_that_share_a_character_are_shown_with_its_last_byte(subwords, monkeypatch):
    checkpoint = load(subwords)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    vocab = checkpoint.tokenizer.vocab
    ids = [vocab["ab"], vocab["Ã©æ"], vocab["¼"], vocab["¢"], 258, vocab["æ"]]
    draws(monkeypatch, ids)
    assert [*generate_text(*model, "", TextOptions())] == ["ab", "é", "漢", "<pad>", "\ufffd"]
    draws(monkeypatch, ids)
    assert "".join(generate_text(*model, "", TextOptions(stop=""))) == "abé漢<pad>\ufffd"


@pytest.mark.bpe
def test_a_stop_string_may_end_within_a_subword(subwords, monkeypatch):
    checkpoint = load(subwords)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    c, ab = checkpoint.tokenizer.vocab["c"], checkpoint.tokenizer.vocab["ab"]
    cases = ("a", "c"), ("b", "ca"), ("bc", "ca"), ("ba", "cabcc"), ("cabcab", "cabcc")
    for stop, shown in cases:
        draws(monkeypatch, [c, ab, c, c])
        assert "".join(generate_text(*model, "", TextOptions(stop=stop))) == shown


def test_the_end_of_a_text_ends_it_and_is_not_shown(subwords, monkeypatch, capsys):
    checkpoint = load(subwords)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    draws(monkeypatch, [256, 97 - 33, 259, 256])
    assert "".join(generate_text(*model, "", TextOptions())) == "aba"
    rows = [65, 259, 65, 65], [66, 66, 66, 66], [67, 67, 259, 67]
    draws(monkeypatch, *rows)
    *_, last = stream_texts(*model, [0], TextOptions(stop="d" * 3), range(3))
    assert last == (["b", "cccc", "dd"], [False] * 3, [True, False, True])
    draws(monkeypatch, [65, 259, 65], [66, 66, 259])
    assert len([*stream_texts(*model, [0], TextOptions(), range(2))]) == 3  # all have ended


def test_the_command_says_how_a_text_without_the_stop_string_ended(subwords, monkeypatch, capsys):
    tokenizer = load(subwords).tokenizer
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: np.zeros(0, np.int32))

    def run(*rows):
        draws(monkeypatch, *rows)
        n = f"--num-samples={len(rows)}"
        main(["--checkpoint", str(subwords), "--max-new-tokens=3", "--stop=zz", n])
        return capsys.readouterr()

    shown = run([65, 259, 65])
    assert shown.out == "b\n"
    assert "--stop 'zz' did not come in the text, which ended by itself" in shown.err
    assert "which ended at 3 tokens" in run([65, 65, 65]).err
    shown = run([65, 259, 65], [66, 66, 66], [89, 89, 259])  # the last one meets it
    assert "in 2 of 3 texts, which ended by themselves or at 3 tokens" in shown.err


@pytest.mark.bpe
def test_a_prompt_that_ends_in_a_space_is_worth_a_note(subwords, capsys):
    for prompt, notes in (("ab ", 1), ("ab", 0), ("", 0)):
        main(["--checkpoint", str(subwords), "--max-new-tokens=3", f"--prompt={prompt}"])
        assert capsys.readouterr().err.count("the prompt ends in a space, which is a part") == notes


def test_an_empty_prompt_begins_after_the_end_of_a_text(subwords, monkeypatch):
    seen, checkpoint = [], load(subwords)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    monkeypatch.setattr(text, "generate", lambda p, c, ids, *_, **__: seen.append(ids) or [])
    assert "".join(generate_text(*model, "", TextOptions())) == ""
    assert [ids.tolist() for ids in seen] == [[[259]]]


def test_the_command_samples_and_continues_a_new_line(gpt, capsys):
    def run(*flags):
        main(["--checkpoint", str(gpt), "--temperature=2", "--max-new-tokens=40", *flags])
        return capsys.readouterr()

    checkpoint = load(gpt)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    options = TextOptions(temperature=2.0, max_new_tokens=40)
    assert run("--prompt=é").out == "é" + "".join(generate_text(*model, "é", options)) + "\n"
    assert "\n" + run().out == run("--prompt=\n").out
    assert "the prompt's 18 tokens, the model sees the last 16" in run("--prompt=漢字漢字漢字").err
    assert run("--num-samples=3").out.count("-" * 15) == 2


def test_lines_are_answered(encoder_decoder, capsys, monkeypatch):
    checkpoint = load(encoder_decoder)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    lines = ["é", "漢字", "a"]
    answers = answer_lines(*model, lines)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    main(["--checkpoint", str(encoder_decoder)])
    assert capsys.readouterr().out == "".join(f"{best.text}\n" for (best,) in answers)
    with pytest.raises(UserError, match="^line 2 has 18 tokens, but the model reads 1 to 16"):
        answer_lines(*model, ["a", "漢字漢字漢字"])


def test_attention_is_labelled_by_token(gpt, capsys, tmp_path, monkeypatch):
    checkpoint = load(gpt)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    (weights,), rows, columns = TASKS["text"].maps(*model, "aé")
    assert weights.shape == (2, 3, 3) and rows == columns == ["a", "<c3>", "<a9>"]
    monkeypatch.chdir(tmp_path)  # for the picture, where there is matplotlib
    attention.main(["--checkpoint", str(gpt), "--prompt", "aé", "--head=0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].strip() == "a??" and [line.split()[0] for line in lines[2:5]] == rows


def test_attention_of_an_encoder_decoder_is_labelled_by_token(encoder_decoder):
    checkpoint = load(encoder_decoder)
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    for kind in ("cross", "encoder", "decoder"):
        (weights,), rows, columns = TASKS["seq2seq"].maps(*model, "aé", kind)
        assert weights.shape == (2, len(rows), len(columns))
        assert (columns == ["a", "<c3>", "<a9>"]) == (kind != "decoder")
