"""The same GPT in torch, written as torch users write it: what minigpt is timed against.

Modules, names and shapes follow nanoGPT's model, with torch's fused attention; every option of
GPTConfig is there, so that both compute the same function of the same weights.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from bench.lib import timing
from minigpt.params import leaves

ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(C, 3 * C, bias=config.qkv_bias)
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (h.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for h in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.c_proj = nn.Linear(4 * C, C, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """Attention and MLP, each after a layernorm, with a residual connection."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Decoder-only transformer for a minigpt GPTConfig."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tie_head:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids, targets=None):
        """Return the loss in nats per token; without targets the logits (B, V) of the last ids."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1])
        logits = self.lm_head(x)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    @torch.no_grad()
    def generate(self, ids, max_new_tokens):
        """Return ids (B, T) with tokens added, each from the whole context as in nanoGPT."""
        for _ in range(max_new_tokens):
            logits = self(ids[:, -self.config.block_size :])
            new = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
            ids = torch.cat((ids, new), dim=1)
        return ids

    def tensors(self, named=None):
        """Return {minigpt's name: tensor} of the parameters, or of what `named` maps them to."""
        return {_name(name): (named or _itself)(x) for name, x in self.named_parameters()}

    @torch.no_grad()
    def load(self, tree):
        """Take over the weights of a minigpt parameter tree."""
        mine = self.tensors()
        for name, array in leaves(tree):
            mine[name].copy_(as_torch(name, array))


def _itself(x):
    return x


def _name(name):
    """h.0.mlp.c_fc.weight -> h.0.mlp.c_fc.w; wte.weight -> wte."""
    if name in ("wte.weight", "wpe.weight"):
        return name[:3]
    return name.replace(".weight", ".w").replace(".bias", ".b")


def as_torch(name, array):
    """Return a minigpt parameter or gradient as torch has it: linears are (out, in)."""
    x = torch.from_numpy(array)
    return x.T if name.endswith(".w") and x.ndim == 2 and name != "lm_head.w" else x


def optimizer(model, train_config, kind):
    """Return AdamW with decay on matrices alone; kind is "foreach" or "fused"."""
    matrices = [x for x in model.parameters() if x.ndim >= 2]
    rest = [x for x in model.parameters() if x.ndim < 2]
    groups = [{"params": matrices, "weight_decay": train_config.weight_decay}]
    groups.append({"params": rest, "weight_decay": 0.0})
    betas = (train_config.beta1, train_config.beta2)
    return torch.optim.AdamW(groups, lr=train_config.min_lr, betas=betas, **{kind: True})


def faster_optimizer(config, train_config):
    """Return "foreach" or "fused", whichever of torch's AdamW takes less time on this model."""
    model = GPT(config)
    for x in model.parameters():
        x.grad = 1e-3 * torch.randn_like(x)
    kinds = {kind: optimizer(model, train_config, kind).step for kind in ("foreach", "fused")}
    times = timing.measure(kinds, seconds=1.0)
    return min(kinds, key=lambda kind: times[kind].median)


def steps(config, train_config, weights, ids, kind, names):
    """Return {name: function}, each of which takes a training step; they share one model.

    Parameters
    ----------
    config : GPTConfig
    train_config : TrainConfig
    weights : tree of minigpt parameters
        What training starts from.
    ids : (N,) int array
        The training split.
    kind : str
        Of the optimizer.
    names : sequence of str
        Which ways: "torch eager", "torch compiled", "torch bf16" (autocast).
    """
    model = GPT(config)
    model.load(weights)
    adamw = optimizer(model, train_config, kind)
    data, T = torch.from_numpy(ids).long(), config.block_size

    def step(forward=model, bf16=False):
        starts = torch.randint(len(data) - T, (train_config.batch_size,)).tolist()
        x = torch.stack([data[i : i + T] for i in starts])
        y = torch.stack([data[i + 1 : i + 1 + T] for i in starts])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train_config.grad_clip or math.inf)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    ways = {
        "torch eager": lambda: step,
        "torch compiled": lambda: functools.partial(step, torch.compile(model)),
        "torch bf16": lambda: functools.partial(step, bf16=True),
    }
    return {name: ways[name]() for name in names}
