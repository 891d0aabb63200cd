"""Files that hold a byte-level BPE: those of Hugging Face, old and new, and those of OpenAI.

    tokenizer.json               all in one; merges are "a b", or ["a", "b"] in newer files
    vocab.json, merges.txt       the id of each token; a merge a line, first learnt, first
    encoder.json, vocab.bpe      the same two, under OpenAI's names

Tokens are written in the alphabet of GPT-2: one printable character for each of the 256 bytes, so
that a space is "Ġ" and "é" is "Ã©".
"""

import json
import operator
from pathlib import Path
from typing import NamedTuple

from minigpt.cli import first_of
from minigpt.errors import UserError
from minigpt.files import decode_utf8, read_bytes

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
PAIRS = ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")
FUSE = {"type": "Fuse"}  # the decoder of a table of characters: they are joined
END_OF_TEXT = "<|endoftext|>"  # GPT-2's
LFS = b"version https://git-lfs"  # how a file begins that stands for one which was not fetched
BY_ID = operator.itemgetter(1)
# Printable bytes stand for themselves, the others for the characters from 256 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)]
BYTE_OF = dict(zip(map(chr, [*PRINTABLE, *range(256, 512 - len(PRINTABLE))]), BYTES, strict=True))


class Table(NamedTuple):
    """What a byte-level BPE is made of.

    Attributes
    ----------
    vocab : dict
        Of ordinary tokens, in the alphabet of BYTE_OF: their ids.
    merges : list of (str, str)
        Of tokens, in the order in which they were learnt.
    special : dict
        Of special tokens, as they are shown: their ids.
    end_of_text : str or None
        One of `special`.
    """

    vocab: dict
    merges: list
    special: dict
    end_of_text: str | None


def read_files(path, where="--tokenizer"):
    """Return the Table in a folder, or in a tokenizer.json.

    Parameters
    ----------
    path : str or path
    where : str
        What named it; errors begin with it.

    Raises
    ------
    UserError
        If there is none, or another kind of tokenizer.
    """
    path = Path(path)
    folder, file = (path, path / TOKENIZER) if path.is_dir() else (path.parent, path)
    try:
        if file.exists() or file == path:
            table = table_of(read_json(file, where), f"{where} {file}")
        else:
            table = read_pair(folder, where)
    except (TypeError, KeyError, AttributeError) as error:  # a list for a dict, and the like
        raise UserError(f"{where} {path} is damaged: {error!r}; get it again") from None
    named = named_end(folder, where)
    return table._replace(end_of_text=named) if named in table.special else table


def read_pair(folder, where):
    """Return the Table of a folder with a vocabulary and a file of merges."""
    for names in PAIRS:
        vocab, merges = (folder / name for name in names)
        if vocab.exists() and merges.exists():
            break
    else:
        raise UserError(
            f"{where} {folder} has no tokenizer: put {TOKENIZER} there, or {' and '.join(names)}, "
            f"or {' and '.join(PAIRS[0])}"
        )
    ids, name = read_json(vocab, where), f"{where} {vocab}"
    lines = decode_utf8(read_whole(merges, where), f"{where} {merges}").split("\n")
    pairs = [line for line in lines if line.strip() and not line.startswith("#version")]
    added = folder / "added_tokens.json"
    more = read_json(added, where) if added.exists() else {}
    if not all(isinstance(found, dict) for found in (ids, more)):
        raise UserError(f"{name} is not a vocabulary: it should be {{token: id}}")
    pairs = [*map(pair_of, pairs)]
    made = {*BYTE_OF, *("".join(pair) for pair in pairs)}
    special = {token: i for token, i in ids.items() if token not in made} | more
    return checked(ids, pairs, special, name)


def table_of(fields, where):
    """Return the Table of the content of a tokenizer.json, or raise a UserError."""
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError(f"{where} is not a {TOKENIZER}: it has no model with a vocabulary")
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece or WordLevel")
    if kind != "BPE":
        raise UserError(f"{where} is a tokenizer of type {kind}; byte-level BPE is needed")
    check_steps(fields, model, where)
    added = fields.get("added_tokens") or []
    inside = [token["content"] for token in added if not token.get("special")]
    if inside:
        raise UserError(
            f"{where}: added tokens that are not special would be searched for in every text: "
            f"{first_of(inside, 3)}; train a tokenizer that has them, or leave them out"
        )
    special = {token["content"]: token["id"] for token in added}
    return checked(model["vocab"], [*map(pair_of, model["merges"])], special, where)


def characters_of(fields):
    """Return the tokens of a tokenizer.json whose tokens are characters, in order, or None.

    `minigpt export` writes such: see interchange/tokenizer_files.py.
    """
    model = fields.get("model") if isinstance(fields, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or model.get("merges") != [] or fields.get("pre_tokenizer"):
        return None
    if fields.get("normalizer") or {*map(len, vocab)} != {1}:
        return None
    if (fields.get("decoder") or FUSE) != FUSE:
        return None
    chars = sorted(vocab)
    return "".join(chars) if [vocab[char] for char in chars] == [*range(len(vocab))] else None


def check_steps(fields, model, where):
    """Raise a UserError if what a tokenizer does before its merges is not what GPT-2's does."""
    normalizer, before = fields.get("normalizer"), fields.get("pre_tokenizer")
    if normalizer:
        raise UserError(
            f"{where} changes the text first, by the normalizer {normalizer.get('type')}; "
            "byte-level BPE without one is needed"
        )
    kind = before.get("type") if before else "none"
    if kind != "ByteLevel":
        raise UserError(f"{where} has the pre-tokenizer {kind}; ByteLevel is needed, as GPT-2 has")
    wrong = ["pre_tokenizer.add_prefix_space"] * bool(before.get("add_prefix_space"))
    wrong += ["pre_tokenizer.use_regex"] * (not before.get("use_regex", True))
    names = "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"
    wrong += [f"model.{name}" for name in (*names, "ignore_merges") if model.get(name)]
    if wrong:
        raise UserError(f"{where} has another {' and '.join(wrong)} than GPT-2's tokenizer")


def pair_of(merge):
    """Return a merge, "a b" or ["a", "b"], as a pair, which `checked` looks at."""
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)


def checked(ids, merges, special, where):
    """Return the Table of ids, merges and special tokens, or say what is wrong with them."""
    vocab = {token: i for token, i in ids.items() if token not in special}
    everything = [*vocab.values(), *special.values()]
    if sorted(everything, key=str) != sorted(range(len(everything)), key=str):
        raise UserError(
            f"{where}: the ids of {len(everything)} tokens are not the numbers from 0 to "
            f"{len(everything) - 1}, each once"
        )
    alien = [token for token in vocab if not token or not BYTE_OF.keys() >= {*token}]
    if alien:
        raise UserError(
            f"{where} is not byte-level: {first_of([*map(repr, alien)], 3)} are not written in "
            "the characters that stand for bytes"
        )
    for pair in merges:
        if len(pair) != 2 or not vocab.keys() >= {*pair, "".join(pair)}:
            raise UserError(f"{where}: the merge {' '.join(pair)!r} is not of tokens that it has")
    return Table(vocab, merges, special, END_OF_TEXT if END_OF_TEXT in special else None)


def named_end(folder, where):
    """Return the end of a text that a folder's tokenizer_config.json names, or None."""
    path = folder / TOKENIZER_CONFIG
    fields = read_json(path, where) if path.exists() else {}
    token = fields.get("eos_token") if isinstance(fields, dict) else None
    return token.get("content") if isinstance(token, dict) else token


def read_whole(path, where, what="tokenizer"):
    """Return the bytes of a file, or raise a UserError; see `files.read_bytes`."""
    raw = read_bytes(path, where, what)
    check_fetched(raw, where, path)
    return raw


def check_fetched(raw, where, path):
    """Raise a UserError if a file, by the bytes that it begins with, is a pointer of Git LFS."""
    if raw.startswith(LFS):
        raise UserError(
            f"{where} {path} is a pointer of Git LFS, not the file itself: fetch it by "
            f"`git lfs pull` in {Path(path).parent}"
        )


def read_json(path, where, what="tokenizer"):
    """Return what a JSON file holds, or raise a UserError; the parameters are read_whole's."""
    text = decode_utf8(read_whole(path, where, what), f"{where} {path}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} {path} is not JSON: {error}; get it again") from None


def json_of(table):
    """Return a Table as the content of a tokenizer.json; `table_of` reads it."""
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True}
            for token, i in sorted(table.special.items(), key=BY_ID)
        ],
        "normalizer": None,
        "pre_tokenizer": {**split, "use_regex": True},
        "post_processor": {**split, "use_regex": True, "trim_offsets": False},
        "decoder": {**split, "use_regex": True},
        "model": model_of(
            dict(sorted((table.vocab | table.special).items(), key=BY_ID)),
            [*map(list, table.merges)],
        ),
    }


def model_of(vocab, merges):
    """Return the model of a tokenizer.json: a BPE of those ids and merges, without options."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
