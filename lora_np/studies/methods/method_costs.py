"""What does each method cost? A step's seconds and peak memory, and the seconds of an answer beside the base's, in turns.

A command of its own, for a quiet machine: python -m lora_np.studies.methods.method_costs figures/data
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import PeftModel, Transformer, dequantize_model
from ...pretrained import fetched, load_model
from ..harness.table import Table
from ..harness.turns import in_turns, ratio
from ..timing.latency import PARTS, answer_ratios, answer_seconds
from ..timing.machine import limited
from ..timing.step_cost import step_seconds, training_peak
from .comparison import state_bytes
from .settings import METHODS

COMMAND = "python -m lora_np.studies.methods.method_costs figures/data"
SMOLLM2: dict[str, Any] = {"methods": ("full", "lora", "qlora", "dora", "prefix", "houlsby"), "base": "smollm2-135m"}
SMOLLM2 |= {"steps": 1, "rounds": 7, "study": "method_costs_smollm2"}


def method_costs(
    methods: Sequence[str] = tuple(METHODS),
    base: str = "tiny",
    batch_size: int = 8,
    seq_len: int = 128,
    prompt: int = 128,
    new_tokens: int = 32,
    rounds: int = 15,
    steps: int = 3,
    seed: int = 0,
    study: str = "method_costs",
) -> Table:
    """Rows {method, step_seconds, step_ratio, peak_bytes, state_bytes, prompt_ratio, token_ratio, merged_prompt_ratio, …}.

    step_ratio is to full fine-tuning's step of the same round, the other ratios to the base's answer of the same round: medians.
    peak_bytes: what tracemalloc sees at most in a step, and the adapter, but not the base's weights. state_bytes: that function's
    of `comparison`. The merged ones are of the plain Transformer that is left, None where there is no ΔW; a quantised base is
    dequantised to be merged into. One BLAS thread; all sides in each round, in a new random order. With `steps` = 0 no step is
    taken, and the answers alone are timed.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    vocabulary = load_model(base).config.vocab_size
    window = rng.integers(0, vocabulary, (batch_size, seq_len + 1))
    batches = [(window[:, :-1], window[:, 1:])]
    tokens = rng.integers(0, vocabulary, prompt).tolist()

    def ready(name: str) -> Transformer | PeftModel:
        return METHODS[name].model(load_model(base), seed)

    stepping = methods if steps else ()
    peaks = {name: training_peak(ready(name), batches) for name in stepping}
    answering: dict[str, Transformer | PeftModel] = {"base": load_model(base).freeze()}
    answering |= {name: ready(name) for name in methods if name != "full"}
    for name, model in list(answering.items()):
        if isinstance(model, PeftModel) and model.mergeable:
            merged = ready(name)
            assert isinstance(merged, PeftModel)
            if METHODS[name].quant_type:  # four bits take no ΔW in
                dequantize_model(merged.model)
            answering[f"{name}, merged"] = merged.merge_and_unload()
    training = {name: (ready(name), METHODS[name].optimizer(1e-5)) for name in stepping}
    sides: dict[str, Callable[[], Any]]
    sides = {f"{name}, a step": partial(step_seconds, m, batches, o, steps) for name, (m, o) in training.items()}
    sides |= {name: partial(answer_seconds, model, tokens, new_tokens) for name, model in answering.items()}
    with limited(1):
        times = in_turns(sides, rounds, rng=rng)
    rows = []
    for name in methods:
        row: dict[str, Any] = {"method": name}
        if steps:
            step, of_full = (times[f"{side}, a step"] for side in (name, methods[0]))
            row |= {"step_seconds": float(np.median(step)), "step_ratio": ratio(step, of_full)}
            row |= {"peak_bytes": peaks[name], "state_bytes": state_bytes(*training[name], batches[0])}
        own = ("base", "base") if name == "full" else (name, f"{name}, merged")  # full leaves the base's shape
        for prefix, side in zip(("", "merged_"), own, strict=True):
            found = answer_ratios(times[side], times["base"]) if side in times else {}
            row |= {f"{prefix}{what}_ratio": found.get(f"{what}_ratio") for what in PARTS}
        rows.append(row)
    settings = {"base": base, "batch_size": batch_size, "seq_len": seq_len, "prompt": prompt, "new_tokens": new_tokens}
    settings |= {"rounds": rounds, "steps": steps, "labels": {name: METHODS[name].label for name in methods}}
    question = "What does a step of each method cost, and an answer of the model that it makes?"
    return Table(study, question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def main(folder: str) -> None:
    """Make the tables of "tiny" and, where it is here, of SmolLM2-135M, and save each as soon as it is there."""
    print(method_costs().save(Path(folder) / "method_costs.json"))
    try:
        fetched(SMOLLM2["base"])
    except FileNotFoundError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    table = method_costs(**SMOLLM2)
    print(table.save(Path(folder) / f"{table.study}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
