"""What does a training step cost? Seconds and peak memory of full fine-tuning and of LoRA on "tiny", side by side in one run."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from ..nn import Module
from ..optim import AdamW
from ..peft import LoraConfig, get_peft_model
from ..pretrained import load_model
from ..train import train
from ..transformer import Transformer
from .table import Table


def step_cost(
    r: int = 8,
    batch_size: int = 16,
    seq_len: int = 128,
    repeats: int = 7,
    steps: int = 5,
    load: Callable[[], Transformer] = lambda: load_model("tiny"),
) -> Table:
    """Rows {method, r, target_modules, seconds, peak_bytes, trainable}.

    seconds: the median over `repeats` of one step's time, the methods taking turns so that a noisy machine hits all
    alike.
    peak_bytes: what tracemalloc sees at most in training, from building what is trainable on: gradients, optimizer
    state, activations and temporaries, but not the base's weights, which all methods hold alike.
    """
    rng = np.random.default_rng(0)
    window = rng.integers(0, load().config.vocab_size, (batch_size, seq_len + 1))
    batches = [(window[:, :-1], window[:, 1:])]
    methods: dict[tuple[str, str | None], Callable[[Transformer], Module]] = {
        ("full", None): lambda model: model,
        ("lora", "all-linear"): lambda m: get_peft_model(m, LoraConfig(r, 2 * r, "all-linear")),
        ("lora", "attention"): lambda m: get_peft_model(
            m, LoraConfig(r, 2 * r, ("q_proj", "k_proj", "v_proj", "o_proj"))
        ),
    }
    started = time.perf_counter()
    rows, running, times = [], {}, {key: [] for key in methods}
    for (method, target_modules), adapt in methods.items():
        base = load()
        tracemalloc.start()
        model, optimizer = adapt(base), AdamW(lr=1e-4)
        train(model, batches, optimizer, steps=2, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        running[method, target_modules] = model, optimizer
        trainable = sum(p.value.size for _, p in model.named_parameters() if p.trainable)
        rows.append(
            {
                "method": method,
                "r": None if method == "full" else r,
                "target_modules": target_modules,
                "peak_bytes": peak,
                "trainable": trainable,
            }
        )
    for _ in range(repeats):
        for key, (model, optimizer) in running.items():
            history = train(model, batches, optimizer, steps=steps, progress=False)
            times[key].append(history.rows[-1]["seconds"] / steps)
    for row in rows:
        row["seconds"] = statistics.median(times[row["method"], row["target_modules"]])
    settings = {"batch_size": batch_size, "seq_len": seq_len, "repeats": repeats, "steps": steps}
    return Table(
        "step_cost",
        "What does a training step cost?",
        "python -m lora_np bench",
        settings,
        rows,
        seconds=time.perf_counter() - started,
    )
