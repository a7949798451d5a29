"""Time prompts and generated tokens for the base model, the base with an adapter, and the merged model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ... import LoraConfig, generate, get_peft_model, load_model
from ..harness.table import Table
from ..harness.turns import in_turns, ratio

COMMAND = "python -m lora_np.studies.serving.serving figures/data"  # it makes the other tables of serving too
STATES = ("base", "unmerged", "merged")
PARTS = ("prompt", "token")


def latency(
    models: Sequence[str] = ("tiny", "smollm2-135m"),
    prompt: int = 128,
    new_tokens: int = 32,
    rounds: int = 15,
    r: int = 8,
    seed: int = 0,
) -> Table:
    """Time the answers of the base model, of the base with an adapter on all linear layers, and of the merged model.

    The columns are `model`, `state`, `prompt_seconds`, `token_seconds`, `prompt_ratio` and `token_ratio`: medians over
    the rounds. In each round, all three models answer the same prompt, in random order. A ratio is a model's time
    divided by the base model's time in the same round.
    """
    started, rows = time.perf_counter(), []
    for name in models:
        rng, models_by_state = np.random.default_rng(seed), dict(_states(name, r))
        tokens = rng.integers(0, models_by_state["base"].config.vocab_size, prompt).tolist()
        answering = {
            state: partial(answer_seconds, model, tokens, new_tokens) for state, model in models_by_state.items()
        }
        times = in_turns(answering, rounds, rng=rng)
        for state, measured in times.items():
            row, ratios = {"model": name, "state": state}, answer_ratios(measured, times["base"])
            for i, what in enumerate(PARTS):
                row[f"{what}_seconds"] = statistics.median(t[i] for t in measured)
                row[f"{what}_ratio"] = ratios[f"{what}_ratio"]
            rows.append(row)
    settings = {"prompt": prompt, "new_tokens": new_tokens, "rounds": rounds, "r": r, "seed": seed}
    question = "What does an adapter cost when the model answers, and what is left of that once it is merged?"
    return Table("merge_latency", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def _states(name: str, r: int) -> Iterator[tuple[str, Any]]:
    """Yield the name of each state and the model in this state.

    The models do not share weights, because shared weights would already be in the processor's cache.
    """
    yield "base", load_model(name).freeze()
    for state in ("unmerged", "merged"):
        model = get_peft_model(
            load_model(name), LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", init_lora_weights=False)
        )
        yield state, model.merge_and_unload() if state == "merged" else model


def answer_seconds(model: Any, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token, and the median seconds between two tokens."""
    stamps = [time.perf_counter()]
    generate(model, [prompt], 1 + new_tokens, on_token=lambda row, token: stamps.append(time.perf_counter()))
    first, *others = np.diff(stamps)
    return float(first), statistics.median(map(float, others))


def answer_ratios(times: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return `prompt_ratio` and `token_ratio`: medians of a time divided by the base's time in the same round."""
    return {f"{what}_ratio": ratio([t[i] for t in times], [t[i] for t in base]) for i, what in enumerate(PARTS)}
