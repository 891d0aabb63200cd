import math
from dataclasses import replace

import numpy as np
import pytest

from minigpt.backend import to_host
from minigpt.data.pairs import padded
from minigpt.errors import UserError
from minigpt.model import blocks, encoder_decoder, gpt
from minigpt.model.encoder_decoder import (
    Seq2SeqConfig,
    decoder_backward,
    decoder_forward,
    encoder_forward,
    loss_and_gradients,
    loss_backward,
    loss_forward,
    seq2seq_backward,
    seq2seq_forward,
    shapes,
)
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.optim.adamw import AdamW
from tests.tools.calling import leaves, map_tree
from tests.tools.gradcheck import MODEL, assert_same, check_backends, check_backward, check_float32
from tests.tools.options import rows
from tests.tools.rings import fast

TINY = Seq2SeqConfig(5, 5, 1, 2, 4, source_vocab_size=4)
SMALL = Seq2SeqConfig(11, 9, 2, 3, 12, source_vocab_size=8)
TURNED = {"rotary": True, "bigram": True}
OPTIONS = {
    "separate": {},
    "shared": {"share_embedding": True},
    "no biases": {"bias": False, "qkv_bias": None, "activation": "gelu_tanh"},
    "untied": {"tie_head": False, "head_bias": True},
    "untied and shared": {"tie_head": False, "share_embedding": True, "qkv_bias": False},
    "dropout": {"dropout": 0.3},
    "rotary with bigrams": TURNED,
    "shared with bigrams": {"share_embedding": True, "bigram": True},
}
ROWS = rows()
RNG = Rng.of(1337, 0)
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
turned = pytest.mark.parametrize("options", [{}, TURNED], ids=["", "turned"])


def problem(rng, config, lengths=((3, 2), (1, 4))):
    """Return weights that are large and nowhere 0 or 1, and a batch with padding on both sides.

    Parameters
    ----------
    lengths : sequence of (tokens of the source, tokens of the target)
    """
    tree = map_tree(lambda x: rng.standard_normal(x.shape), init_params(config, 0, np).tree)
    sides = zip(*lengths, strict=True)
    sizes = config.source_vocab_size, config.vocab_size
    batch = [
        padded([rng.integers(0, V, n) for n in side]) for V, side in zip(sizes, sides, strict=True)
    ]
    return tree, *batch


def loss_of(config, source, targets, key=RNG):
    """Return the loss as a function of the parameters by name."""
    return lambda **p: loss_forward(source, targets, p, config, key)


@pytest.mark.slow
@options
def test_every_gradient_of_the_loss(rng, options):
    config = replace(TINY, **options)
    tree, source, targets = problem(rng, config)
    assert (source == -1).any() and (targets == -1).any()
    check_backward(loss_of(config, source, targets), loss_backward, **tree, rng=rng, factor=MODEL)


@pytest.mark.parametrize("options", fast(ROWS, *list(ROWS)[2:5]))
def test_every_gradient_of_a_deeper_model_along_random_directions(rng, options):
    config = replace(SMALL, **options)
    tree, source, targets = problem(rng, config, ((5, 3), (2, 6), (7, 1)))
    tree = map_tree(lambda x: 0.5 * x, tree)
    check_backward(loss_of(config, source, targets), loss_backward, **tree, rng=rng, factor=MODEL)


@pytest.mark.slow
@turned
def test_every_gradient_of_the_last_hidden_state(rng, options):
    config = replace(TINY, **options)
    tree, source, targets = problem(rng, config)
    check_backward(
        lambda **p: seq2seq_forward(source, targets, p, config),
        seq2seq_backward,
        **tree,
        rng=rng,
        factor=MODEL,
    )


@pytest.mark.slow
@turned
def test_every_gradient_of_the_decoder(rng, options):
    config = replace(TINY, **options)
    tree, _, ids = problem(rng, config)
    ids *= ids >= 0
    memory, seen = rng.standard_normal((2, 3, 4)), np.array([[True, True, False], [True] * 3])
    del tree["encoder"]

    def forward(memory, **p):
        return decoder_forward(ids, memory, seen, p, config)

    check_backward(forward, decoder_backward, memory, **tree, rng=rng, factor=MODEL)


@options
def test_float32_stays_float32(rng, options):
    config = replace(TINY, **options)
    tree, source, targets = problem(rng, config, ((4, 3), (3, 4)))
    tree = map_tree(lambda x: 0.5 * x, tree)
    check_float32(loss_of(config, source, targets), loss_backward, **tree, rng=rng, rtol=1e-4)


@pytest.mark.cupy
@options
def test_backends_agree(rng, xp, options):
    config = replace(SMALL, **options)
    tree, source, targets = problem(rng, config, ((4, 3), (3, 4)))
    tree = map_tree(lambda x: 0.5 * x, tree)

    def forward(source, targets, **p):
        return loss_forward(source, targets, p, config, RNG)

    arrays = {"source": source, "targets": targets}
    check_backends(forward, loss_backward, **tree, rng=rng, xp=xp, options=arrays)


@options
def test_padding_changes_nothing(rng, options):
    config = replace(SMALL, **{**options, "dropout": 0.0})
    tree, source, targets = problem(rng, config, ((5, 3), (2, 6), (7, 1)))
    loss, cache = loss_forward(source, targets, tree, config)
    grads = loss_backward(1.0, cache)
    wider = [np.pad(x, ((0, 0), (0, 2)), constant_values=-1) for x in (source, targets)]
    loss2, cache = loss_forward(*wider, tree, config)
    assert_same(loss2, loss, 1e-12)
    assert_same(loss_backward(1.0, cache), grads, 1e-12)
    alone = [
        loss_forward(s[None, s >= 0], t[None, t >= 0], tree, config, count=10)
        for s, t in zip(source, targets, strict=True)
    ]
    assert_same(sum(loss for loss, _ in alone), loss, 1e-12)
    parts = [dict(leaves(loss_backward(1.0, cache))) for _, cache in alone]
    added = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert_same(added, dict(leaves(grads)), 1e-12)


@pytest.mark.parametrize("key", [None, RNG], ids=["", "dropout"])
def test_padding_gets_no_gradient(rng, key):
    config = replace(SMALL, tie_head=False, dropout=0.2)
    tree, source, targets = problem(rng, config, ((3, 2), (5, 4)))
    source, targets = np.pad(source, ((0, 0), (0, 2)), constant_values=-1), targets + (targets == 0)
    source += source == 0  # so that padding alone looks up token 0
    grads = loss_backward(1.0, loss_of(config, source, targets, key)(**tree)[1])
    assert not grads["encoder"]["wpe"][5:].any() and grads["encoder"]["wpe"][:5].any(axis=1).all()
    assert not grads["wpe"][4:].any() and grads["wpe"][:4].any(axis=1).all()
    assert not grads["encoder"]["wte"][0].any() and not grads["wte"][0].any()


def test_long_sequences_go_the_same_way(rng):
    """Beyond 64 tokens attention runs by tiles."""
    config = replace(SMALL, block_size=150, n_layer=1)
    tree, source, targets = problem(rng, config, ((150, 20), (3, 140)))
    tree = map_tree(lambda x: 0.3 * x, tree)
    loss, cache = loss_forward(source, targets, tree, config)
    alone = [
        loss_forward(s[None, s >= 0], t[None, t >= 0], tree, config, count=160)
        for s, t in zip(source, targets, strict=True)
    ]
    assert_same(sum(loss for loss, _ in alone), loss, 1e-12)
    parts = [dict(leaves(loss_backward(1.0, cache))) for _, cache in alone]
    added = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert_same(added, dict(leaves(loss_backward(1.0, cache))), 1e-11)


def test_who_sees_whom(rng):
    tree, source, targets = problem(rng, SMALL, ((6, 6), (6, 6)))
    memory, seen, _ = encoder_forward(source, tree, SMALL)
    x, _ = seq2seq_forward(source, targets, tree, SMALL)
    for t in range(6):
        changed = source.copy()
        changed[:, t] = (source[:, t] + 1) % SMALL.source_vocab_size
        assert (encoder_forward(changed, tree, SMALL)[0] != memory).any(axis=-1).all()
        assert (seq2seq_forward(changed, targets, tree, SMALL)[0] != x).any(axis=-1).all()
        changed = targets.copy()
        changed[:, t] = (targets[:, t] + 1) % SMALL.vocab_size
        other = seq2seq_forward(source, changed, tree, SMALL)[0]
        np.testing.assert_array_equal(other[:, : t + 1], x[:, : t + 1])
        assert (other[:, t + 1 :] != x[:, t + 1 :]).any(axis=-1).all()


def test_the_decoder_begins_with_end_and_goes_on_from_the_targets(rng):
    tree, source, targets = problem(rng, SMALL, ((4, 3), (2, 3)))
    ids = np.concatenate([[[10], [10]], targets[:, :-1]], axis=1)
    memory, seen, _ = encoder_forward(source, tree, SMALL)
    x, _ = decoder_forward(ids, memory, seen, tree, SMALL)
    np.testing.assert_array_equal(x, seq2seq_forward(source, targets, tree, SMALL)[0])


@options
def test_shards_of_a_batch_add_up_to_the_whole(rng, options):
    config = replace(SMALL, **options)
    tree, source, targets = problem(rng, config, ((3, 2), (5, 4), (1, 4)))
    loss, cache = loss_forward(source, targets, tree, config, RNG)
    losses, grads = [], []
    for s in (slice(0, 1), slice(1, 3)):
        part, part_cache = loss_forward(
            source[s], targets[s], tree, config, RNG._replace(row=s.start), count=10
        )
        losses.append(part)
        grads.append(dict(leaves(loss_backward(1.0, part_cache))))
    np.testing.assert_allclose(sum(losses), loss, rtol=1e-12)
    added = {name: grads[0][name] + grads[1][name] for name in grads[0]}
    assert_same(added, dict(leaves(loss_backward(1.0, cache))), 1e-11)


def test_every_dropout_draws_its_own_bits(rng, monkeypatch):
    keys = []

    def record(module, name):
        op = getattr(module, name)

        def recorded(*args, **options):
            keys.append(options["rng"].key)
            return op(*args, **options)

        monkeypatch.setattr(module, name, recorded)

    record(blocks, "attention_forward")
    record(blocks, "add_norm_forward")
    record(gpt, "add_norm_forward")
    record(encoder_decoder, "add_norm_forward")
    tree, source, targets = problem(rng, SMALL)
    loss_forward(source, targets, tree, replace(SMALL, dropout=0.1), RNG)
    per_layer = 1 + 2 + 2 + 3  # attention layers and residual ops, of the encoder and the decoder
    assert len(set(keys)) == len(keys) == SMALL.n_layer * per_layer + 2


def test_it_learns_to_reverse(rng):
    """Without cross attention, nothing tells the decoder any token of the target."""
    config = Seq2SeqConfig(7, 6, 1, 2, 16, source_vocab_size=6)
    params = init_params(config, 0, np)
    source = rng.integers(0, 6, (32, 5), dtype=np.int32)
    targets = np.pad(source[:, ::-1], ((0, 0), (0, 1)), constant_values=6)
    grads, adamw = params.zeros_like(), AdamW(params, beta2=0.99, weight_decay=0.0)
    for _ in range(200):
        loss, cache = loss_forward(source, targets, params.tree, config)
        found = dict(leaves(loss_backward(1.0, cache)))
        for name, into in grads.leaves():
            into[...] = found[name]
        adamw.step(grads.flat, 1e-2)
    assert loss < 0.02


def test_initialization():
    config = Seq2SeqConfig(300, 100, 4, 2, 64, source_vocab_size=200)
    for name, w in init_params(config, 3, np).leaves():
        if w.ndim == 1:
            assert (w == (0 if name.endswith(".b") else 1)).all(), name
        else:
            depth = 1
            if name.endswith("c_proj.w"):
                depth = 8 if name.startswith("encoder.") else 12
            std = 0.02 / math.sqrt(depth)
            assert abs(w.std() / std - 1) < 5 / math.sqrt(2 * w.size), name


def test_names_and_number_of_parameters():
    names = [name for name, _ in init_params(TINY, 0, np).leaves()]
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    cross = ["cross.c_q", "cross.c_kv", "cross.c_proj", "ln_3"]
    layers = [f"h.0.{name}" for name in block + cross] + ["ln_f"]
    layers += [f"encoder.h.0.{name}" for name in block] + ["encoder.ln_f"]
    expected = {f"{name}.{kind}" for name in layers for kind in "wb"}
    assert set(names) == expected | {"wte", "wpe", "encoder.wte", "encoder.wpe"}
    shared = shapes(replace(TINY, share_embedding=True))
    assert "wte" in shared and "wte" not in shared["encoder"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"source_vocab_size": 0}, "source_vocab_size is 0; it must be at least 1"),
        ({"n_embd": 5}, "n_embd is 5, not a multiple"),
        (
            {"share_embedding": True, "source_vocab_size": 12},
            "source_vocab_size is 12, but with share_embedding it must not exceed vocab_size, 11",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        replace(SMALL, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.cupy
@options
def test_both_passes_at_once_give_what_the_pair_gives(rng, xp, options):
    config = replace(SMALL, **options)
    tree, source, targets = problem(rng, config)
    tree = map_tree(lambda x: 0.5 * x, tree)
    tree, source, targets = map_tree(xp.asarray, (tree, source, targets))
    loss, cache = loss_forward(source, targets, tree, config, RNG, count=7)
    grads = loss_backward(0.3, cache)
    assert_same(
        map_tree(to_host, loss_and_gradients(source, targets, tree, config, RNG, 7, 0.3)),
        map_tree(to_host, (loss, grads)),
        1e-12,
    )
    assert_same(map_tree(np.shape, grads), config.shapes(), 0)
