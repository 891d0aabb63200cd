"""Exported folders: their files, the tensors in them, what is refused."""

import dataclasses
import errno
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from minigpt import __main__ as program
from minigpt import files
from minigpt.data.characters import CharTokenizer
from minigpt.data.tokenizers import read_tokenizer
from minigpt.errors import UserError
from minigpt.interchange.card import Facts
from minigpt.interchange.export import export
from minigpt.library.model import Model
from minigpt.model import checkpoint
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig, gpt_forward, logits
from minigpt.model.init import init_params
from minigpt.params import Params

CHARS = "".join(sorted('\n abcdeé😀|"\\'))
SIZES = {"vocab_size": len(CHARS), "block_size": 9, "n_layer": 2, "n_head": 2, "n_embd": 12}
GPT2 = {**SIZES, "rotary": False, "bigram": False, "bias": True, "activation": "gelu_tanh"}
ROTARY = {**GPT2, "rotary": True}
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


@pytest.fixture
def model(rng):
    """Return what makes a Model of options, with random numbers in every parameter."""

    def make(options):
        config = GPTConfig(**options)
        params = init_params(config, 1)
        params.flat[:] += 0.3 * rng.normal(size=params.flat.shape).astype("f4")
        return Model(config, params, CharTokenizer(CHARS))

    return make


def read(folder):
    """Return the config.json and the tensors of an exported folder."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return config, safetensors.numpy.load_file(folder / "model.safetensors")


def our_name(name):
    """Return the name here of a tensor of GPT-2."""
    name = name.removeprefix("transformer.").replace(".weight", ".w").replace(".bias", ".b")
    return {"wte.w": "wte", "wpe.w": "wpe"}.get(name, name)


def linear(x, t, name):
    """y = x W^T + b of torch.nn.Linear."""
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def norm(x, t, name, eps):
    """torch.nn.LayerNorm."""
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def rotated(x, theta):
    """The rotation of transformers: channel i turns with channel i + D / 2. x is (H, T, D)."""
    D = x.shape[-1]
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(0, D, 2) / D)
    cos, sin = (np.concatenate([f(angle), f(angle)], -1) for f in (np.cos, np.sin))
    half = np.concatenate([-x[..., D // 2 :], x[..., : D // 2]], -1)
    return x * cos + half * sin


def starcoder2_logits(ids, config, t):
    """Starcoder2ForCausalLM in NumPy, of one row of ids, with ReLU."""
    t = {name: x.astype(np.float64) for name, x in t.items()}
    H, eps, theta = config["num_attention_heads"], config["norm_epsilon"], config["rope_theta"]
    x = t["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = norm(x, t, layer + "input_layernorm", eps)
        q, k, v = (
            linear(y, t, f"{layer}self_attn.{c}_proj").reshape(len(ids), H, -1).swapaxes(0, 1)
            for c in "qkv"
        )
        q, k = rotated(q, theta), rotated(k, theta)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        w = np.exp(scores - scores.max(-1, keepdims=True))
        y = (w / w.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = x + linear(y, t, layer + "self_attn.o_proj")
        y = norm(x, t, layer + "post_attention_layernorm", eps)
        x = x + linear(np.maximum(linear(y, t, layer + "mlp.c_fc"), 0), t, layer + "mlp.c_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, t, "model.norm", eps) @ t[f"{head}.weight"].T


@pytest.mark.parametrize("n_head", [1, 2, 3, 6])  # D = 12, 6, 4, 2
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"bias": False, "qkv_bias": True}, {"tie_head": False}],
    ids=["bias", "no bias", "qkv bias", "untied"],
)
def test_starcoder2_of_the_exported_files_gives_the_same_logits(model, tmp_path, n_head, options):
    it = model({**ROTARY, "activation": "relu", "n_head": n_head, **options})
    it.export(tmp_path / "m")
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])
    theirs = starcoder2_logits(ids, *read(tmp_path / "m"))
    np.testing.assert_allclose(it.logits(ids)[0], theirs, rtol=0, atol=2e-5 * abs(theirs).max())


def test_a_gpt2_is_written_bit_for_bit_under_its_own_names(model, tmp_path):
    it = model({**GPT2, "tie_head": False})
    it.export(tmp_path / "m")
    _, tensors = read(tmp_path / "m")
    shapes = {name: x.shape for name, x in tensors.items()}
    assert shapes["transformer.wte.weight"] == (len(CHARS), 12)
    assert shapes["transformer.wpe.weight"] == (9, 12)
    assert shapes["transformer.h.1.attn.c_attn.weight"] == (12, 36)
    assert shapes["transformer.h.0.mlp.c_proj.bias"] == (12,)
    assert shapes["lm_head.weight"] == (len(CHARS), 12)
    assert len(tensors) == 5 + 12 * 2
    for name, x in tensors.items():
        np.testing.assert_array_equal(dict(it.params.leaves())[our_name(name)], x)


def test_the_file_is_one_that_transformers_takes_and_is_the_same_each_time(model, tmp_path):
    it = model(GPT2)
    for name in "ab":
        it.export(tmp_path / name)
    with safetensors.safe_open(tmp_path / "a" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("options", [GPT2, ROTARY], ids=["gpt2", "starcoder2"])
def test_the_head_is_said_to_be_tied_where_it_is(model, tmp_path, options, tie):
    model({**options, "tie_head": tie}).export(tmp_path / "m")
    config, tensors = read(tmp_path / "m")
    assert config["tie_word_embeddings"] is tie
    assert ("lm_head.weight" in tensors) is not tie


@pytest.mark.parametrize("options", [GPT2, ROTARY], ids=["gpt2", "starcoder2"])
def test_what_readers_would_fill_in_by_themselves_is_written(model, tmp_path, options):
    it = model({**options, "dropout": 0.25})
    it.export(tmp_path / "m")
    config, _ = read(tmp_path / "m")
    assert config["bos_token_id"] is config["eos_token_id"] is None
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["vocab_size"] == len(CHARS)
    assert sorted(x for x in config.values() if x == 0.25) == [0.25] * 3
    length = {"n_positions", "n_ctx", "max_position_embeddings"} & config.keys()
    assert {config[name] for name in length} == {9}


@pytest.mark.parametrize(
    "ours, theirs", [("gelu", "gelu"), ("gelu_tanh", "gelu_new"), ("relu", "relu")]
)
def test_activations_have_the_names_of_transformers(model, tmp_path, ours, theirs):
    model({**GPT2, "activation": ours}).export(tmp_path / "m")
    assert read(tmp_path / "m")[0]["activation_function"] == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"bias": True, "qkv_bias": False, "tie_head": False},
        {"tie_head": False, "head_bias": True},
        {"bias": False, "tie_head": False, "head_bias": True},
        {"vocab_size": len(CHARS) + 5},
        {"vocab_size": len(CHARS) + 5, "tie_head": False, "head_bias": True},
    ],
    ids=["no bias", "qkv bias off", "head bias", "head bias alone", "padded", "padded head bias"],
)
def test_what_gpt2_lacks_is_rewritten_and_the_logits_stay(model, tmp_path, options):
    it = model({**GPT2, **options})
    it.export(tmp_path / "m")
    described, tensors = read(tmp_path / "m")
    assert described["vocab_size"] == len(CHARS)
    config = dataclasses.replace(
        it.config, vocab_size=len(CHARS), bias=True, qkv_bias=True, head_bias=False
    )
    params = Params(config.shapes(), np, "float32")
    assert {our_name(name) for name in tensors} == dict(params.leaves()).keys()
    views = dict(params.leaves())
    for name, x in tensors.items():
        views[our_name(name)][...] = x
    ids = np.array([[3, 1, 4, 1, 5]], np.int32)
    x, _ = gpt_forward(ids, params.tree, config)
    wanted = it.logits(ids)[..., : len(CHARS)]
    np.testing.assert_allclose(
        logits(x, params.tree), wanted, rtol=0, atol=1e-5 * abs(wanted).max()
    )


@pytest.mark.parametrize(
    "options, needed",
    [
        ({**GPT2, "bigram": True}, "--no-bigram"),
        ({**GPT2, "n_embd": 4, "tie_head": False, "head_bias": True}, "--no-head-bias"),
    ],
    ids=["bigram", "head bias"],
)
def test_what_has_no_counterpart_names_the_flag_and_writes_nothing(
    model, tmp_path, options, needed
):
    with pytest.raises(UserError, match=needed):
        model(options).export(tmp_path / "m")
    assert [*tmp_path.iterdir()] == []


def test_an_encoder_decoder_is_refused(tmp_path):
    config = Seq2SeqConfig(**SIZES)
    with pytest.raises(UserError, match="encoder-decoder.*--task text"):
        export(tmp_path / "m", init_params(config, 1), config)
    assert [*tmp_path.iterdir()] == []


def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(model, tmp_path):
    it = model(GPT2)
    it.params["h"][1]["mlp"]["c_fc"]["w"][2, 3] = np.nan
    with pytest.raises(UserError, match="h.1.mlp.c_fc.w"):
        it.export(tmp_path / "m")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_not_empty_is_left_alone_without_force(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty.*--force"):
        model(GPT2).export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_force_replaces_what_is_in_the_way_and_keeps_the_rest(model, tmp_path):
    for name in ("mine.txt", "config.json", "pytorch_model.bin", "model.safetensors.index.json"):
        (tmp_path / name).write_text("old")
    model(GPT2).export(tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", *FILES}
    assert read(tmp_path)[0]["model_type"] == "gpt2"


def test_an_export_that_fails_half_way_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("old")
    write = files.replace

    def fail(path, parts):
        if path.name == "README.md":
            raise OSError(errno.EROFS, "no more")
        write(path, parts)

    monkeypatch.setattr(files, "replace", fail)
    with pytest.raises(UserError, match="no more"):
        model(GPT2).export(tmp_path / "m", force=True)
    with pytest.raises(UserError, match="no more"):
        model(GPT2).export(tmp_path / "new" / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "config.json").read_text() == "old"


def test_a_file_in_the_place_of_the_folder_is_refused(model, tmp_path):
    (tmp_path / "m").write_text("")
    with pytest.raises(UserError, match="is a file"):
        model(GPT2).export(tmp_path / "m", force=True)


def test_the_characters_are_a_bpe_without_merges(model, tmp_path):
    model(GPT2).export(tmp_path / "m")
    table = json.loads((tmp_path / "m" / "tokenizer.json").read_text("utf-8"))
    assert table["model"]["type"] == "BPE" and table["model"]["merges"] == []
    assert table["model"]["vocab"] == {char: i for i, char in enumerate(CHARS)}
    assert table["decoder"] == {"type": "Fuse"}
    assert table["pre_tokenizer"] is table["normalizer"] is table["post_processor"] is None
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text("utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["clean_up_tokenization_spaces"] is False


def test_characters_are_read_back_and_other_tables_are_not(model, tmp_path):
    model(GPT2).export(tmp_path / "m")
    text = (tmp_path / "m" / "tokenizer.json").read_text("utf-8")
    assert read_tokenizer(tmp_path / "m").chars == CHARS
    for other in (text.replace("Fuse", "ByteLevel"), text[:-9], "[]", '{"model": {"vocab": 3}}'):
        (tmp_path / "m" / "tokenizer.json").write_text(other, "utf-8")
        with pytest.raises(UserError):
            read_tokenizer(tmp_path / "m")


@pytest.mark.bpe
def test_characters_are_read_by_tokenizers_without_loss(model, tmp_path):
    import tokenizers

    model(GPT2).export(tmp_path / "m")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    text = CHARS[::-1] + "é \n\n  a"
    assert theirs.encode(text).ids == CharTokenizer(CHARS).encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text


def test_a_model_without_a_tokenizer_is_exported_for_ids_alone(model, tmp_path):
    it = model({**GPT2, "vocab_size": 40})
    export(tmp_path / "m", it.params, it.config)
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES - {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert read(tmp_path / "m")[0]["vocab_size"] == 40


def test_the_card_tells_config_data_and_loss(model, tmp_path):
    it = model(ROTARY)
    facts = Facts("a|b.txt", 250, 1.5, 2.25)
    export(tmp_path / "m", it.params, it.config, it.tokenizer, facts)
    card = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    for line in (
        "| data | a\\|b.txt |",
        "| steps | 250 |",
        "| validation loss | 1.5000 nats per token, 2.2500 bits per byte |",
        "| rotary | on |",
        "| channels | 12 |",
        'AutoModelForCausalLM.from_pretrained("m")',
    ):
        assert line in card, line


def test_the_command_exports_the_model_of_a_checkpoint(model, tmp_path, capsys):
    it = model(GPT2)
    state = {"val_loss": 1.25, "step": 7, "data_name": "poems.txt"}
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "best.safetensors"
    checkpoint.save(path, it.params, it.config, tokenizer=it.tokenizer, state=state)
    lines = [{"step": 7, "val_loss": 1.25, "val_bpb": 1.75}, {"step": 9, "val_loss": 2.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = [f"--out-dir={tmp_path / 'run'}", f"--to={tmp_path / 'm'}"]
    assert program.main(["export", *flags]) == 0
    assert "GPT2LMHeadModel" in capsys.readouterr().out
    card = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "| data | poems.txt |" in card and "1.2500 nats per token, 1.7500 bits" in card
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES
    with pytest.raises(UserError, match="--to FOLDER"):
        program.main(["export", flags[0]])
