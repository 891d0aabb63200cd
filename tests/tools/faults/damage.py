"""Ways to damage a checkpoint: its bytes, its header, and what the header says."""

import copy
import json
import struct

DEEP = "[" * 100_000
NUMBERS = (0, 1, -1, 7, 2**31, 2**53, 2**63, 10**30, 10**400, 0.5, -1.5, 1e308)
ODD = (None, True, False, "", "x", "\0", "e\u0301\ud800", DEEP, [], {}, [[]], {"a": 1}, [None] * 9)
ODD += (float("nan"), float("inf"), -float("inf"), *NUMBERS)


def parts(raw):
    """Return (header as a dict, the bytes after it) of a safetensors file."""
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(header, data):
    """Return a safetensors file of a header, a dict or bytes, and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flips(raw, others, rng):
    """Flip a few bits, half of the times in the header."""
    raw = bytearray(raw)
    end = len(raw) if rng.random() < 0.5 else 8 + len(json.dumps(parts(raw)[0]))
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(min(end, len(raw)))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def truncation(raw, others, rng):
    """Cut the end off, or add to it."""
    if rng.random() < 0.2:
        return raw + rng.randbytes(rng.randint(1, 100))
    return raw[: rng.randrange(len(raw))]


def swapped_header(raw, others, rng):
    """Put the header of one file before the data of another."""
    header, data = parts(raw)[0], parts(rng.choice(others))[1]
    return joined(header, data)


def splice(raw, others, rng):
    """Go on as another file from some place on; or leave out, or repeat, a part."""
    other = rng.choice([raw, *others])
    return raw[: rng.randrange(len(raw))] + other[rng.randrange(len(other)) :]


def forged_length(raw, others, rng):
    """Let the header claim another length."""
    size = struct.unpack("<Q", raw[:8])[0]
    lengths = (0, 1, 2, size - 1, size + 1, 2 * size, len(raw), 10**8, 2**31, 2**63, 2**64 - 1)
    return struct.pack("<Q", rng.choice((*lengths, rng.getrandbits(64)))) + raw[8:]


def forged_tensor(raw, others, rng):
    """Let the header claim another shape, type, place or name of a tensor."""
    header, data = parts(raw)
    name = rng.choice([name for name in header if name != "__metadata__"])
    for _ in range(rng.randint(1, 2)):
        entry, kind = header.get(name, {}), rng.randrange(5)
        if kind == 0:
            entry["shape"] = rng.choice(([2**40, 2**40], [0], [-1], [], [2**63], rng.choice(ODD)))
        elif kind == 1:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I8", "U64", "BOOL", "x", None))
        elif kind == 2:
            entry["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
        elif kind == 3:
            header[rng.choice(("", "wte", "h.99.ln_1.w", "a\nb", "optimizer.m.wte"))] = entry
        else:
            header.pop(name, None)
    return joined(header, data)


def places(value, path=()):
    """Yield the paths of all that is inside a value of JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inside:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def forge(value, rng):
    """Change, leave out or add something in a value of JSON, in place."""
    long = "max_seconds", "max_passes"  # it would take so long
    found = [path for path in places(value) if path[-1] not in long]
    if not found:
        return
    *path, key = rng.choice(found)
    for step in path:
        value = value[step]
    kind, old = rng.randrange(4), value[key]
    if kind == 0 and isinstance(value, dict):
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[f"{key}s"] = old
    elif kind == 2 and type(old) in (int, float):
        value[key] = old * rng.choice((-1, 2, 0.5, 1000)) + rng.choice((-1, 0, 1))
    else:
        value[key] = copy.deepcopy(rng.choice(ODD))


def forged_metadata(raw, others, rng, keys=("config", "model", "format")):
    """Let the metadata say something else."""
    header, data = parts(raw)
    metadata, key = header["__metadata__"], rng.choice(keys)
    if key in ("model", "format") or rng.random() < 0.1:
        texts = ("", "gpt", "seq2seq", "minigpt 1", "minigpt 2", "\0", DEEP, "null", "[]", "1e999")
        metadata[key] = rng.choice(texts)
    else:
        value = json.loads(metadata[key])
        for _ in range(rng.randint(1, 3)):
            forge(value, rng)
        metadata[key] = json.dumps(value)
    if rng.random() < 0.05:
        del metadata[key]
    return joined(header, data)


def forged_state(raw, others, rng):
    """Let the state of the run be another."""
    return forged_metadata(raw, others, rng, keys=("state",))


def forged_table(raw, others, rng):
    """Let the tokenizer's table be another."""
    if rng.random() < 0.3:
        header, data = parts(raw)
        other = parts(rng.choice(others))[0]["__metadata__"]["tokenizer"]
        table = bytearray(rng.choice((other, header["__metadata__"]["tokenizer"])).encode())
        for _ in range(rng.randint(0, 3)):
            table[rng.randrange(len(table))] = rng.choice(b'[]{}",:\\019azu ')
        header["__metadata__"]["tokenizer"] = table.decode()
        return joined(header, data)
    return forged_metadata(raw, others, rng, keys=("tokenizer",))


OF_BYTES = (flips, truncation, swapped_header, splice, forged_length, forged_tensor)
CHECKPOINTS = (*OF_BYTES, forged_metadata, forged_state, forged_state)
TABLES = (forged_table,)
