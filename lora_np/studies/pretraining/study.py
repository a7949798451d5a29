"""The pretraining of the base model "tiny", and its model card. How well can a small model learn English in minutes?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ... import AdamW, Transformer, TransformerConfig, WarmupCosine, data, save_model, train
from ...files import write_text
from ..harness.table import Table

TINY = TransformerConfig(
    vocab_size=256,  # bytes
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
SETTINGS: dict[str, Any] = {"steps": 4500, "batch_size": 16, "seq_len": 128, "lr": 3e-3}
SETTINGS |= {"warmup": 200, "weight_decay": 0.1, "seed": 0}


def pretrain(folder: str | Path, steps: int = SETTINGS["steps"]) -> Table:
    """Train the model TINY on English prose; write the model and its card, README.md, to `folder`.

    Training resumes from folder/checkpoint.safetensors if that file exists. The returned table has the held-out losses
    of the model and of two baselines, a unigram model and a bigram model.
    """
    started, settings = time.perf_counter(), SETTINGS | {"steps": steps}
    batch_size, seq_len, seed = (settings[key] for key in ("batch_size", "seq_len", "seed"))
    corpus, heldout = data.corpus("prose", "train"), data.corpus("prose", "heldout")
    model = Transformer.random(TINY, seed=seed)
    checkpoint = Path(folder) / "checkpoint.safetensors"
    history = train(
        model,
        data.Batches(corpus, batch_size, seq_len, seed),
        AdamW(lr=settings["lr"], weight_decay=settings["weight_decay"]),
        steps,
        schedule=WarmupCosine(steps, warmup=min(settings["warmup"], steps // 2), floor=0.05),
        max_grad_norm=1.0,
        heldout=data.heldout_batches(heldout, batch_size, seq_len),
        eval_every=250,
        checkpoint=checkpoint,
        checkpoint_every=250,
        resume=True,
        label="pretrain tiny",
    )
    save_model(model, folder)
    settings["parameters"] = sum(p.value.size for _, p in model.named_parameters())
    settings |= {"train_bytes": corpus.size, "heldout_bytes": heldout.size}
    settings |= {"unigram": data.unigram_loss(corpus, heldout), "bigram": data.bigram_loss(corpus, heldout)}
    rows = [{key: row[key] for key in ("step", "heldout", "seconds")} for row in history.rows if "heldout" in row]
    seconds = history.rows[-1]["seconds"] if history.rows else time.perf_counter() - started
    question = "How well can a million parameters learn to write English in minutes?"
    table = Table("pretrain", question, "python -m lora_np pretrain", settings, rows, seconds=seconds)
    write_text(Path(folder) / "README.md", card(table))
    table.save(Path(folder) / "pretrain.json")
    checkpoint.unlink()  # all files are written: the checkpoint is no longer needed
    return table


def card(table: Table) -> str:
    """Return the model card; all its numbers are read from the table."""
    s, final = table.settings, table.rows[-1]["heldout"]
    return f"""# tiny

This is the base model in the package lora_np. It is a byte-level Llama with {s["parameters"]:,} parameters ({TINY.num_hidden_layers} layers,
d = {TINY.hidden_size}, {TINY.num_attention_heads} query heads on {TINY.num_key_value_heads} key/value heads, MLP width {TINY.intermediate_size},
tied embedding), stored in float32. The English of this model is simple and often wrong. Use the model to try fine-tuning and to inspect
a model, not as a source of facts.

**Data.** The training text is {s["train_bytes"]:,} bytes of English prose from a Python installation: the language reference in `pydoc_data.topics` and
the docstrings of the standard library. Another {s["heldout_bytes"]:,} bytes, from other documents, are held out. The text belongs to
the Python Software Foundation (PSF licence). The weights have the licence of this project.

**Settings.** The model was trained for {s["steps"]:,} steps of {s["batch_size"]} × {s["seq_len"]} bytes with AdamW (weight decay {s["weight_decay"]:g}). The learning rate rises to {s["lr"]:g} in {min(s["warmup"], s["steps"] // 2)} warm-up steps
and then falls to 5 % of this value along a cosine. The gradient norm is clipped to 1, and the random seed is {s["seed"]}.

**Loss on the held-out prose, in nats per byte.**

| model | loss |
|---|---|
| unigram (byte frequencies) | {s["unigram"]:.3f} |
| bigram (the previous byte) | {s["bigram"]:.3f} |
| **tiny** | **{final:.3f}** |

`{table.command}` trained this model in {table.seconds:,.0f} s on {table.versions["cores"]} cores, with Python {table.versions["python"]} and NumPy {table.versions["numpy"]}.
"""
