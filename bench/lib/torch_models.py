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

PRECISIONS = ("float32", "tf32", "bfloat16")
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

    def forward(self, x, past=None):
        """Return what the layer adds; `past` is a list for the keys and values of all tokens."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (h.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for h in (q, k, v))
        first = not past
        if past is not None:
            if past:
                k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
            past[:] = k, v
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=first)
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

    def forward(self, x, past=None):
        x = x + self.attn(self.ln_1(x), past)
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

    def forward(self, ids, targets=None, past=None, start=0):
        """Return the loss in nats per token; without targets the logits (B, V) of the last ids.

        `past` is a list of lists, one per layer, that holds the `start` tokens before.
        """
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        for i, block in enumerate(self.h):
            x = block(x, past and past[i])
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

    @torch.no_grad()
    def generate_with_cache(self, ids, max_new_tokens):
        """Return the same with a cache of keys and values; all has to fit into the context."""
        past, start, new = [[] for _ in self.h], 0, ids
        for _ in range(max_new_tokens):
            logits = self(new, past=past, start=start)
            start = ids.shape[1]
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
    groups = [{"params": matrices, "weight_decay": train_config.weight_decay or 0.0}]
    groups.append({"params": rest, "weight_decay": 0.0})
    betas = (train_config.beta1, train_config.beta2)
    return torch.optim.AdamW(groups, lr=train_config.min_lr, betas=betas, **{kind: True})


def faster_optimizer(config, train_config, device="cpu"):
    """Return "foreach" or "fused", whichever of torch's AdamW takes less time on this model."""
    if device == "cuda":
        return "fused"  # one launch for many tensors: made for this
    model = GPT(config)
    for x in model.parameters():
        x.grad = 1e-3 * torch.randn_like(x)
    kinds = {kind: optimizer(model, train_config, kind).step for kind in ("foreach", "fused")}
    times = timing.measure(kinds, seconds=1.0)
    return min(kinds, key=lambda kind: times[kind].median)


def way_of(name):
    """Return whether a candidate's model is compiled, and its precision: of "torch eager tf32"."""
    words = name.split()
    named = next((word for word in words if word in PRECISIONS), "float32")
    return "compiled" in words, "bfloat16" if "bf16" in words else named


def steps(config, train_config, weights, ids, kind, names, device="cpu"):
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
        Which ways: "torch", then "eager" or "compiled", then a precision, float32 if there is none;
        "torch bf16" is bfloat16, eager. TF32 is of products alone, bfloat16 is autocast.
    device : str
        "cpu" or "cuda".
    """
    model = GPT(config)
    model.load(weights)
    model.to(device)
    adamw = optimizer(model, train_config, kind)
    data, T = torch.from_numpy(ids).long().to(device), config.block_size
    within = torch.arange(T, device=device)

    def step(forward, precision):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        starts = torch.randint(len(data) - T, (train_config.batch_size, 1), device=device)
        x, y = data[starts + within], data[starts + within + 1]
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train_config.grad_clip or math.inf)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    ways = {}
    for name in names:
        compiled, precision = way_of(name)
        ways[name] = functools.partial(step, torch.compile(model) if compiled else model, precision)
    return ways
