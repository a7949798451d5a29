"""The seconds of a prompt and of a generated token: the base, an adapter beside it, and the adapter merged."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...peft import LoraConfig, get_peft_model
from ...pretrained import load_model
from ...transformer import generate
from ..harness.table import Table
from ..serving.merging import TIMED

# -------------------------------------------------------------------------------------------------------------- latency

STATES = ("base", "unmerged", "merged")


def latency(
    models: Sequence[str] = ("tiny", "smollm2-135m"),
    prompt: int = 128,
    new_tokens: int = 32,
    rounds: int = 15,
    r: int = 8,
    seed: int = 0,
) -> Table:
    """Rows {model, state, prompt_seconds, token_seconds, prompt_ratio, token_ratio}: medians; ratios to the base's same round.

    All three answer one prompt in each round, in a new random order. The adapter is in every linear layer.
    """
    started, rows = time.perf_counter(), []
    for name in models:
        rng = np.random.default_rng(seed)
        sides = dict(_sides(name, r))
        tokens = rng.integers(0, sides["base"].config.vocab_size, prompt).tolist()
        times = {state: [] for state in STATES}
        for turn in range(-1, rounds):  # the first is to warm up
            for state in rng.permutation(STATES):
                measured = answer_seconds(sides[state], tokens, new_tokens)
                if turn >= 0:
                    times[state].append(measured)
        for state, measured in times.items():
            row = {"model": name, "state": str(state)}
            for i, what in enumerate(("prompt", "token")):
                row[f"{what}_seconds"] = statistics.median(m[i] for m in measured)
                ratios = [m[i] / b[i] for m, b in zip(measured, times["base"], strict=True)]
                row[f"{what}_ratio"] = statistics.median(ratios)
            rows.append(row)
    settings = {"prompt": prompt, "new_tokens": new_tokens, "rounds": rounds, "r": r, "seed": seed}
    question = "What does an adapter cost when the model answers, and what is left of that once it is merged?"
    return Table("merge_latency", question, TIMED, settings, rows, seconds=time.perf_counter() - started)


def _sides(name: str, r: int) -> Iterator[tuple[str, Any]]:
    """Each with weights of its own: those that two share would be in the processor's cache for the second."""
    yield "base", load_model(name).freeze()
    for state in ("unmerged", "merged"):
        model = get_peft_model(
            load_model(name), LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", init_lora_weights=False)
        )
        yield state, model.merge_and_unload() if state == "merged" else model


def answer_seconds(model: Any, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and the median of those from one to the next."""
    stamps = [time.perf_counter()]
    generate(model, [prompt], 1 + new_tokens, on_token=lambda row, token: stamps.append(time.perf_counter()))
    first, *others = np.diff(stamps)
    return float(first), statistics.median(map(float, others))
