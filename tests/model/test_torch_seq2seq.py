"""The encoder-decoder against torch's own Transformer, live, in float64."""

from dataclasses import replace

import numpy as np
import pytest

from minigpt.model.encoder_decoder import loss_backward, loss_forward, shapes
from minigpt.params import Params
from tests.model.test_encoder_decoder import OPTIONS, SMALL, problem
from tests.tools.gradcheck import assert_same, leaves

NOT_TORCHS = {"dropout", "rotary", "bigram"}  # its bits are others; it has neither


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def of_torch(model, config, get):
    """Yield (name, array) of what `get` takes from the parameters of torch's Transformer."""
    C = config.n_embd

    def pairs(prefix, w, b):
        yield f"{prefix}.w", w.T if w.ndim == 2 else w
        if b is not None:
            yield f"{prefix}.b", b

    def layer(prefix, module):
        bias = module.bias if hasattr(module, "bias") else None
        yield from pairs(prefix, get(module.weight), None if bias is None else get(bias))

    for prefix, stack in (("encoder.", model.encoder), ("", model.decoder)):
        for i, block in enumerate(stack.layers):
            at = f"{prefix}h.{i}"
            attention = block.self_attn
            w, b = attention.in_proj_weight, attention.in_proj_bias
            yield from pairs(f"{at}.attn.c_attn", get(w), None if b is None else get(b))
            yield from layer(f"{at}.attn.c_proj", attention.out_proj)
            yield from layer(f"{at}.ln_1", block.norm1)
            yield from layer(f"{at}.ln_2", block.norm2)
            yield from layer(f"{at}.mlp.c_fc", block.linear1)
            yield from layer(f"{at}.mlp.c_proj", block.linear2)
            if not prefix:
                cross = block.multihead_attn
                w = get(cross.in_proj_weight)
                b = None if cross.in_proj_bias is None else get(cross.in_proj_bias)
                for name, part in (("c_q", slice(0, C)), ("c_kv", slice(C, 3 * C))):
                    yield from pairs(f"{at}.cross.{name}", w[part], None if b is None else b[part])
                yield from layer(f"{at}.cross.c_proj", cross.out_proj)
                yield from layer(f"{at}.ln_3", block.norm3)
        yield from layer(f"{prefix}ln_f", stack.norm)


def torch_loss(torch, model, tables, source, targets, config):
    """Return the loss of torch's Transformer between our embeddings and head."""
    source, targets = torch.tensor(source).long(), torch.tensor(targets).long()
    B, T = targets.shape
    ids = torch.cat([torch.full((B, 1), config.vocab_size - 1), targets[:, :-1].clamp(min=0)], 1)
    read = tables.get("encoder.wte", tables["wte"])[source.clamp(min=0)]
    x = model(
        read + tables["encoder.wpe"][: source.shape[1]],
        tables["wte"][ids] + tables["wpe"][:T],
        tgt_mask=torch.ones(T, T).triu(1).bool(),
        src_key_padding_mask=source < 0,
        memory_key_padding_mask=source < 0,
        tgt_is_causal=True,
    )
    z = x @ tables.get("lm_head.w", tables["wte"]).T + tables.get("lm_head.b", 0)
    return torch.nn.functional.cross_entropy(
        z.reshape(B * T, -1), targets.reshape(-1), ignore_index=-1
    )


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize(
    "name", [name for name in OPTIONS if not NOT_TORCHS & OPTIONS[name].keys()]
)
def test_loss_and_every_gradient_are_those_of_torchs_transformer(torch, rng, name, activation):
    options = {**OPTIONS[name], "activation": activation, "qkv_bias": None}
    config = replace(SMALL, block_size=12, **options)
    params = Params(shapes(config), np, "float64")
    params.flat[...] = 0.5 * rng.standard_normal(params.size)
    _, source, targets = problem(rng, config, ((7, 3), (12, 12), (1, 5)))
    model = torch.nn.Transformer(
        config.n_embd,
        config.n_head,
        config.n_layer,
        config.n_layer,
        4 * config.n_embd,
        dropout=0.0,
        activation=activation,
        norm_first=True,
        batch_first=True,
        bias=config.bias,
        dtype=torch.float64,
    )
    ours = dict(params.leaves())
    with torch.no_grad():
        for name, w in of_torch(model, config, lambda w: w.data):
            w[...] = torch.tensor(ours[name])
    tables = ("wte", "wpe", "encoder.wte", "encoder.wpe", "lm_head.w", "lm_head.b")
    tables = {n: torch.tensor(ours[n], requires_grad=True) for n in tables if n in ours}
    expected = torch_loss(torch, model, tables, source, targets, config)
    expected.backward()
    grads = dict(of_torch(model, config, lambda w: w.grad.numpy()))
    grads |= {name: w.grad.numpy() for name, w in tables.items()}
    loss, cache = loss_forward(source, targets, params.tree, config)
    assert_same(loss, expected.detach().numpy(), 1e-9)
    assert_same(dict(leaves(loss_backward(1.0, cache))), grads, 1e-9)
