"""The model card of an exported model: README.md, what its readers should know.

Format: https://huggingface.co/docs/hub/model-cards; the lines between the dashes are for the hub.
"""

import os
from typing import NamedTuple

from minigpt import cli
from minigpt.cli.characters import quoted
from minigpt.model import count_parameters


class Facts(NamedTuple):
    """What is known of a model's training; None where it is not.

    Attributes
    ----------
    data : str or None
        The name of the text.
    step : int or None
    loss : float or None
        On the validation split, in nats per token.
    bits_per_byte : float or None
        The same loss, per byte of the text.
    """

    data: str | None = None
    step: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None


NOTHING = Facts()
HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- minigpt
---
"""
USE = """
## Use

```python
from transformers import {classes}

model = AutoModelForCausalLM.from_pretrained("{folder}")
{rest}
```
"""
WITH_TOKENIZER = """tokenizer = AutoTokenizer.from_pretrained("{folder}")
ids = tokenizer({prompt}, return_tensors="pt").input_ids
ids = model.generate(ids, max_new_tokens={new}, do_sample=True, temperature=0.8)
print(tokenizer.decode(ids[0]))"""
OF_ADAPTER = """---
library_name: peft
{base_model}pipeline_tag: text-generation
tags:
- lora
- minigpt
---
# {name}

A LoRA adapter of minigpt, whose gradients are written by hand, in the format of peft.
{tables}
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
```
"""
WITHOUT_TOKENIZER = "# It came without a tokenizer: it takes token ids, and gives token ids."


def facts_of(state, history=()):
    """Return the Facts in the state of a checkpoint and the metrics of its run.

    Parameters
    ----------
    state : dict
        As model/checkpoint.py loads it.
    history : iterable of dict
        The lines of metrics.jsonl, which say how a loss is counted per byte.
    """
    loss, step = state.get("val_loss"), state.get("step")
    bits = [line.get("val_bpb") for line in history if line.get("val_loss") == loss]
    return Facts(state.get("data_name"), step, loss, bits[-1] if bits and loss else None)


def facts_of_best(history, data=None):
    """Return the Facts of the best checkpoint of a run, from the lines of its metrics.jsonl."""
    evaluations = [line for line in history if line.get("val_loss") is not None]
    best = min(evaluations, key=lambda line: line["val_loss"], default={})
    return Facts(data, best.get("step"), best.get("val_loss"), best.get("val_bpb"))


def card(name, described, config, tokenizer, facts):
    """Return the text of a model card.

    Parameters
    ----------
    name : str
        Of the model: its folder's.
    described : dict
        Its config.json.
    config : GPTConfig
        As it was trained.
    tokenizer : Tokenizer or None
    facts : Facts
    """
    about = (
        f"A GPT of minigpt, whose gradients are written by hand, in the format of transformers: "
        f"`{described['architectures'][0]}`."
    )
    tables = [table("Model", model_rows(described, config, tokenizer))]
    if any(fact is not None for fact in facts):
        tables.append(table("Training", training_rows(facts)))
    return f"{HEAD}# {name}\n\n{about}\n{''.join(tables)}{usage(name, config, tokenizer)}"


def adapter_card(name, described, trained, facts):
    """Return the text of the model card of an adapter.

    Parameters
    ----------
    name : str
        Of the adapter: its folder's.
    described : dict
        Its adapter_config.json.
    trained : int
        How many parameters it has.
    facts : Facts
    """
    base = described["base_model_name_or_path"]
    rows = {
        "base": base or "a model of minigpt, exported by itself",
        "parameters": f"{trained:,}",
        "rank": described["r"],
        "alpha": f"{described['lora_alpha']:g}",
        "dropout": described["lora_dropout"],
        "layers": ", ".join(described["target_modules"]),
        "rsLoRA": shown(described["use_rslora"]),
    }
    tables = table("Adapter", rows)
    if any(fact is not None for fact in facts):
        tables += table("Training", training_rows(facts))
    on_hub = f"base_model: {base}\n" if base and not os.path.isabs(base) else ""
    return OF_ADAPTER.format(name=name, base_model=on_hub, base=base or "BASE", tables=tables)


def model_rows(described, config, tokenizer):
    """Return {name: value} of what a model is."""
    unit = tokenizer.unit if tokenizer else "tokens"
    options = "bias", "qkv_bias", "rotary", "activation", "tie_head", "head_bias", "dropout"
    return {
        "parameters": f"{count_parameters(config):,}",
        "vocabulary": f"{described['vocab_size']:,} {unit}",
        "context": cli.plural(config.block_size, "tokens"),
        "layers": config.n_layer,
        "heads": config.n_head,
        "channels": config.n_embd,
        **{name.replace("_", " "): shown(getattr(config, name)) for name in options},
    }


def training_rows(facts):
    """Return {name: value} of what is known of a model's training."""
    rows = {"data": facts.data and cli.printable(facts.data), "steps": facts.step}
    if facts.loss is not None:
        bits = facts.bits_per_byte
        per_byte = "" if bits is None else f", {bits:.4f} bits per byte"
        rows["validation loss"] = f"{facts.loss:.4f} nats per token{per_byte}"
    return {name: value for name, value in rows.items() if value is not None}


def shown(value):
    """Return the value of an option as it is shown: a bool as on or off."""
    return ("off", "on")[value] if isinstance(value, bool) else value


def table(title, rows):
    """Return a section of Markdown with a table of two columns."""
    cells = ((name, str(value).replace("|", r"\|")) for name, value in rows.items())
    lines = [f"| {name} | {value} |" for name, value in cells]
    return "\n".join(("", f"## {title}", "", "| | |", "| --- | --- |", *lines, ""))


def usage(name, config, tokenizer):
    """Return the section of Markdown that shows how to load a model, and to make text with it."""
    if tokenizer is None:
        return USE.format(classes="AutoModelForCausalLM", folder=name, rest=WITHOUT_TOKENIZER)
    begin = tokenizer.decode(tokenizer.default_prompt()) or "\n"
    new = max(1, min(200, config.block_size - 1))
    rest = WITH_TOKENIZER.format(folder=name, prompt=quoted(begin), new=new)
    return USE.format(classes="AutoModelForCausalLM, AutoTokenizer", folder=name, rest=rest)
