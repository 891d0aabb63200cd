"""The files of a byte-level BPE: all that hold one are read, others are refused by name."""

import json
from pathlib import Path

import pytest

from minigpt.data.bpe_files import BYTE_OF, END_OF_TEXT, Table, json_of
from minigpt.data.characters import CharTokenizer
from minigpt.data.subwords import BpeTokenizer
from minigpt.data.tokenizers import read_tokenizer
from minigpt.errors import UserError
from tests.tools.reference import vocabulary

MERGES = [("t", "h"), ("Ġ", "th"), ("Ġth", "e")]
TOKENS = [*BYTE_OF, *("".join(pair) for pair in MERGES)]
VOCAB = {token: i for i, token in enumerate(TOKENS)}
TABLE = Table(VOCAB, MERGES, {END_OF_TEXT: 259}, END_OF_TEXT)
IDS = [*map(tuple, json.loads(Path(__file__).with_name("gpt2_ids.json").read_text("utf-8")))]


@pytest.fixture
def write(tmp_path):
    """Write files into a folder, values as JSON, text as it is; return its path."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return tmp_path

    return write


def changed(**parts):
    """Return a tokenizer.json, a dict, with other parts; those of the model by "model_NAME"."""
    fields = json_of(TABLE)
    for name, value in parts.items():
        into = fields["model"] if name.startswith("model_") else fields
        into[name.removeprefix("model_")] = value
    return fields


def refused(folder):
    with pytest.raises(UserError) as error:
        read_tokenizer(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--tokenizer {folder}")
    return str(error.value)


def same_as_table(tokenizer):
    assert (tokenizer.vocab, tokenizer.merges, tokenizer.special) == TABLE[:3]
    assert tokenizer.end_of_text == 259 and tokenizer.vocab_size == 260
    return True


def test_a_tokenizer_json_is_read_as_it_was_written(write):
    tokenizer = BpeTokenizer(TABLE)
    folder = write(tokenizer__json=tokenizer.tokenizer_json())
    for path in (folder, str(folder), folder / "tokenizer.json"):
        assert same_as_table(read_tokenizer(path))
        assert BpeTokenizer.read(path).tokenizer_json() == tokenizer.tokenizer_json()


@pytest.mark.bpe
def test_a_tokenizer_json_is_one_of_the_library_with_the_same_ids():
    import tokenizers

    for special, first in (({END_OF_TEXT: 259}, 0), ({}, 0), ({END_OF_TEXT: 0, "<pad>": 1}, 2)):
        vocab = {token: first + i for token, i in VOCAB.items()}
        ours = BpeTokenizer(Table(vocab, MERGES, special, None))
        theirs = tokenizers.Tokenizer.from_str(ours.tokenizer_json())
        text = " the thing, naïve 😀"
        assert theirs.encode(text).ids == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text)) == text
        assert theirs.get_vocab_size() == ours.vocab_size
        assert all(theirs.token_to_id(token) == i for token, i in special.items())


def test_old_and_new_files_are_the_same_tokenizer(write):
    old = changed(model_merges=[" ".join(pair) for pair in MERGES])
    del old["model"]["type"], old["pre_tokenizer"]["use_regex"]  # as in GPT-2's own file
    assert same_as_table(read_tokenizer(write(tokenizer__json=old)))


@pytest.mark.parametrize("names", [("vocab__json", "merges__txt"), ("encoder__json", "vocab__bpe")])
def test_two_files_are_the_same_tokenizer(write, names):
    lines = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES)
    files = dict(zip(names, (VOCAB | TABLE.special, lines), strict=True))
    assert same_as_table(read_tokenizer(write(**files)))


def test_added_tokens_and_the_end_of_a_text_come_from_files_of_their_own(write):
    lines = "".join(f"{a} {b}\n" for a, b in MERGES)
    folder = write(
        vocab__json=VOCAB,
        merges__txt=lines,
        added_tokens__json={"<end>": 259, "<pad>": 260},
        tokenizer_config__json={"eos_token": {"content": "<end>"}},
    )
    tokenizer = read_tokenizer(folder)
    assert tokenizer.special == {"<end>": 259, "<pad>": 260} and tokenizer.end_of_text == 259
    write(tokenizer_config__json={"eos_token": "<pad>"})
    assert read_tokenizer(folder).end_of_text == 260
    write(tokenizer_config__json={"eos_token": "<else>"})
    assert read_tokenizer(folder).end_of_text is None


def test_characters_come_back_from_their_tokenizer_json(write):
    chars = "".join(sorted({*"\n the cat, é漢😀"}))
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(chars)}, "merges": []}
    fields = {"model": model, "pre_tokenizer": None, "decoder": {"type": "Fuse"}}
    tokenizer = read_tokenizer(write(tokenizer__json=fields))
    assert type(tokenizer) is CharTokenizer and tokenizer.chars == chars
    model["vocab"] = dict(zip(chars[::-1], range(len(chars)), strict=True))
    assert "the pre-tokenizer none" in refused(write(tokenizer__json=fields))


@pytest.mark.parametrize(
    "fields, message",
    [
        (changed(model_type="Unigram", model_vocab=[["a", 0.0]]), "of type Unigram; byte-level"),
        ({"model": {"vocab": {"a": 0}}}, "of type WordPiece or WordLevel; byte-level"),
        (changed(normalizer={"type": "Sequence"}), "by the normalizer Sequence"),
        (changed(pre_tokenizer={"type": "Metaspace"}), "the pre-tokenizer Metaspace; ByteLevel"),
        (
            changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
            "another pre_tokenizer.add_prefix_space than",
        ),
        (
            changed(pre_tokenizer={"type": "ByteLevel", "use_regex": False}),
            "another pre_tokenizer.use_regex than",
        ),
        (changed(model_byte_fallback=True), "another model.byte_fallback than"),
        (changed(model_ignore_merges=True), "another model.ignore_merges than"),
        (changed(model_continuing_subword_prefix="##"), "another model.continuing_subword_prefix"),
        (changed(model_end_of_word_suffix="</w>"), "another model.end_of_word_suffix than"),
        (changed(model_dropout=0.1), "another model.dropout than"),
        (
            changed(added_tokens=[{"id": 259, "content": "<x>", "special": False}]),
            "not special would be searched for in every text: <x>",
        ),
        (changed(model_merges=["t h e"]), "the merge 't h e' is not of tokens that it has"),
        (changed(model_merges=[["t", "z"]]), "the merge 't z' is not of tokens that it has"),
        (changed(model_vocab={**VOCAB, "the": 300}), "are not the numbers from 0 to 260, each"),
        (changed(model_vocab={**VOCAB, "the": 3}), "the ids of 261 tokens are not the numbers"),
        (changed(model_vocab={**VOCAB, "▁the": 260}), "is not byte-level: '▁the' are not written"),
        (changed(model_merges=7), "is damaged: TypeError"),
        (changed(added_tokens=[7]), "is damaged: AttributeError"),
        (changed(added_tokens=[{"special": True}]), "is damaged: KeyError"),
        ([], "is not a tokenizer.json: it has no model with a vocabulary"),
        ("{", "is not JSON: "),
        ("[" * 10**5, "is not JSON: "),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            "tokenizer.json is a pointer of Git LFS, not the file itself: fetch it by `git lfs",
        ),
    ],
)
def test_another_kind_of_tokenizer_is_refused_by_name(write, fields, message):
    assert message in refused(write(tokenizer__json=fields))


def test_a_folder_without_a_tokenizer_says_what_to_put_there(write):
    message = refused(write(vocab__json=VOCAB))
    assert "has no tokenizer: put tokenizer.json there, or encoder.json and vocab.bpe" in message
    assert message.endswith("or vocab.json and merges.txt")


@pytest.mark.parametrize(
    "vocab, merges, message",
    [
        ([], "t h\n", "is not a vocabulary: it should be {token: id}"),
        (VOCAB, "t h\nx\n", "the merge 'x' is not of tokens that it has"),
        (VOCAB, "version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("version https://git-lfs.github.com/spec/v1\n", "t h\n", "is a pointer of Git LFS"),
    ],
)
def test_damaged_files_are_named(write, vocab, merges, message):
    assert message in refused(write(vocab__json=vocab, merges__txt=merges))


@pytest.fixture(scope="module")
def gpt2():
    return BpeTokenizer.read(vocabulary())


@pytest.mark.bpe
@pytest.mark.parametrize("text, ids", IDS)
def test_ids_are_those_of_gpt2(gpt2, text, ids):
    assert gpt2.encode(text).tolist() == ids
    assert gpt2.decode(ids) == text


@pytest.mark.bpe
def test_gpt2s_table_has_an_end_of_text_and_so_many_bytes(gpt2):
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.label(50256) == END_OF_TEXT and gpt2.byte_lengths[50256] == 0
    assert gpt2.byte_lengths.max() == 128 and gpt2.byte_lengths[:50256].min() == 1
    assert BpeTokenizer.from_json(gpt2.to_json()).to_json() == gpt2.to_json()
