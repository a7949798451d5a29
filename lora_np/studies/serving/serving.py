"""How much time and memory do many adapters on one base need?

The study compares this library with PEFT and with merged models.

This command writes the tables:

    python -m lora_np.studies.serving.serving figures/data        # writes serving.json, serving_step.json and merge_latency.json
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import AdapterServer, Context, LoraConfig, PeftModel, Transformer, load_model
from ...peft.mixed import AdapterRows
from ...transformer import KeyValueCache
from ..harness.table import Table
from ..harness.turns import in_turns, ratio
from ..timing import machine
from ..timing.benchmark import PAUSE
from ..timing.competitors import in_peft
from ..timing.latency import COMMAND, latency
from ..timing.speed import Say, oracles_installed

WORKLOADS = ("identical", "distinct", "uniform", "zipf 1.5", "skewed")
SAME_LOGITS = 1e-3  # of the largest logit: with a larger difference, two competitors do not compute the same, and no ratio is given
TURN = 0.1  # seconds of one measurement of `serving_step`: a single step of a few milliseconds is mostly noise
PROMPT = 64  # tokens in the key/value cache before the first step

Step = Callable[[], np.ndarray]  # one token for each row: the logits (b, v)


def workload(kind: str, rows: int, adapters: int, seed: int = 0) -> list[int]:
    """Return the index of the adapter of each row of a batch, for one workload of Punica (Chen et al. 2023).

    "identical": all rows use one adapter. "distinct": each row uses a different adapter, if there are enough adapters.
    "uniform": each adapter is equally probable. "zipf 1.5": the k-th adapter has a probability ∝ k^−1.5. "skewed": half
    of the rows use one adapter; the adapters of the other rows are drawn uniformly. Raises ValueError for another kind.
    """
    rng, p = np.random.default_rng(seed), np.arange(1, adapters + 1) ** -1.5
    any_of_them = rng.integers(0, adapters, rows)
    drawn = {
        "identical": np.zeros(rows, int),
        "distinct": np.arange(rows) % adapters,
        "uniform": any_of_them,
        "zipf 1.5": rng.choice(adapters, rows, p=p / p.sum()),
        "skewed": np.where(rng.permutation(rows) < rows / 2, 0, any_of_them),
    }
    if kind not in drawn:
        raise ValueError(f"unknown workload {kind!r}; use one of {', '.join(drawn)}")
    return drawn[kind].tolist()


def serving(
    adapters: Sequence[int] = (1, 8, 32, 128, 1000),
    model: str = "tiny",
    rows: int = 32,
    rounds: int = 7,
    threads: int = 1,
    say: Say = print,
) -> Table:
    """Measure a decode step with many adapters on one base, with merged models and with PEFT.

    The columns are `workload`, `adapters`, `distinct`, `seconds`, `tokens_per_second`, `served_per_second`, `bytes`,
    `adapter_bytes`, `merged_seconds`, `merged_ratio`, `merged_bytes`, `peft_seconds` and `peft_ratio`. A ratio is a
    time divided by `seconds`. `seconds` is the time of one decode step of `rows` rows. The workload chooses an adapter
    for each row, and `distinct` is the number of different adapters in the batch. `merged_seconds` is the time of the
    same rows with one merged model per adapter; the models run one after another. `peft_seconds` is the time of PEFT's
    mixed batch, which loads only the adapters of the batch. All times are medians over `rounds`. `served_per_second` is
    the engine's number of new tokens per second, for 4 · rows requests of 16 tokens with 16 new tokens each. `bytes`
    counts the base and all adapters; `merged_bytes` counts one merged model per adapter.
    """
    started, found = time.perf_counter(), []
    peft_model = with_adapters(model, max(adapters))
    base_bytes = sum(p.value.nbytes for name, p in peft_model.named_parameters() if "lora_" not in name)
    own = sum(p.value.nbytes for name, p in peft_model.named_parameters() if name.endswith(".0.weight"))
    theirs = frozen_in_peft(with_adapters(model, min(rows, max(adapters)))) if oracles_installed(say) else None
    tokens = prompts(peft_model, rows)
    for n, kind in itertools.product(adapters, WORKLOADS):
        say(f"{n} adapters, {kind}")
        drawn = workload(kind, rows, n)
        with machine.limited(threads):
            sides = {"ours": ours(peft_model, drawn, tokens), "merged": merged(peft_model.model, drawn, tokens)}
            if theirs is not None:
                dense = {k: i for i, k in enumerate(dict.fromkeys(drawn))}
                sides["peft"] = peft_decoding(theirs, [dense[k] for k in drawn], tokens)
            turns = take_turns(sides, rounds, threads)
            new_tokens = served(peft_model, kind, n, rows)
        seconds = {side: statistics.median(each) for side, each in turns.items()}
        row: dict[str, Any] = {"workload": kind, "adapters": n, "distinct": len(set(drawn))}
        row["seconds"] = seconds.pop("ours")
        row |= {"tokens_per_second": rows / row["seconds"], "served_per_second": new_tokens}
        row |= {"bytes": base_bytes + n * own, "adapter_bytes": own, "merged_bytes": n * base_bytes}
        row |= {f"{side}_seconds": each for side, each in seconds.items()}
        found.append(row | {f"{side}_ratio": ratio(turns[side], turns["ours"]) for side in seconds})
    settings = {"model": model, "rows": rows, "r": 8, "target_modules": "all-linear", "prompt": PROMPT}
    return _table("serving", "What do many adapters on one base cost?", settings, found, rounds, threads, started)


def serving_step(
    models: Sequence[str] = ("tiny", "smollm2-135m"),
    rows: int = 32,
    rounds: int = 7,
    threads: int = 1,
    say: Say = print,
) -> Table:
    """Time a decode step of `rows` rows: all rows with one adapter, or each row with a different adapter.

    The rows have `model`, `competitor`, `seconds`, `rounds`, `to_one` and `to_ours`. `to_one` is the time divided by
    the time of the same library with one adapter. `to_ours` is the time divided by our time for the same rows, or None
    if the logits differ. The ratios `to_one` and `to_ours` are medians over the rounds.
    """
    started, found = time.perf_counter(), []
    for model in models:
        try:
            peft_model = with_adapters(model, rows)
        except FileNotFoundError as error:
            say(f"left out: {error}")
            continue
        tokens = prompts(peft_model, rows)
        drawn: dict[str, int | list[int]] = {"one": 0, "each": list(range(rows))}
        sides = {f"ours, {which}": ours(peft_model, ids, tokens) for which, ids in drawn.items()}
        if oracles_installed(say):
            theirs = frozen_in_peft(peft_model)
            sides |= {f"PEFT, {which}": peft_decoding(theirs, ids, tokens) for which, ids in drawn.items()}
        with machine.limited(threads):
            first = {side: step() for side, step in sides.items()}
            turns = take_turns(sides, rounds, threads, TURN)
        for side, seconds in turns.items():
            library, which = side.split(", ")
            row = {"model": model, "competitor": side, "seconds": statistics.median(seconds), "rounds": seconds}
            z, z0 = first[side], first[f"ours, {which}"]
            same = np.abs(z - z0).max() <= SAME_LOGITS * np.abs(z0).max()
            row |= {"to_one": ratio(seconds, turns[f"{library}, one"])}
            found.append(row | {"to_ours": ratio(seconds, turns[f"ours, {which}"]) if same else None})
    settings = {"rows": rows, "r": 8, "target_modules": "all-linear", "prompt": PROMPT}
    question = "How much longer does a step take when each row has its own adapter?"
    return _table("serving_step", question, settings, found, rounds, threads, started)


def _table(study: str, question: str, settings: dict, rows: list, rounds: int, threads: int, started: float) -> Table:
    settings |= {"rounds": rounds, "threads": threads, "processor": machine.processor()}
    return Table(study, question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def with_adapters(model: str, n: int) -> PeftModel:
    """Return `model` with n adapters "0", "1", … of rank 8 in every linear layer; each adapter changes the output."""
    peft_model = PeftModel(load_model(model, device="numpy").freeze())
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    for i in range(n):
        peft_model.add_adapter(str(i), config, seed=i)
    return peft_model


def prompts(peft_model: PeftModel, rows: int) -> np.ndarray:
    """Return random tokens, shape (rows, PROMPT)."""
    return np.random.default_rng(0).integers(0, peft_model.config.vocab_size, (rows, PROMPT))


def ours(peft_model: PeftModel, adapters: int | list[int], tokens: np.ndarray) -> Step:
    """Return a function that runs one decode step of this library after `tokens`, with one adapter or a mixed batch."""
    adapter = str(adapters) if isinstance(adapters, int) else AdapterRows([str(i) for i in adapters])
    return decoding(peft_model.model, adapter, tokens)


def decoding(model: Transformer, adapter: str | AdapterRows | None, tokens: np.ndarray) -> Step:
    """Return a function that decodes one token per row; the key/value cache holds `tokens` and the tokens of earlier
    steps.
    """
    past, context = KeyValueCache(model.config), Context(adapter=adapter)
    model.read(tokens, context, past)

    def step() -> np.ndarray:
        return model.logits(model.read(tokens[:, :1], context, past)[:, -1], context)

    return step


def merged(model: Transformer, drawn: list[int], tokens: np.ndarray) -> Step:
    """Return a decode step with one merged model per adapter.

    The models run one after another, each with its rows of the batch. The base stands in for each merged model, because
    both have the same cost.
    """
    ids = np.array(drawn)
    steps = [decoding(model, None, tokens[ids == k]) for k in dict.fromkeys(drawn)]
    return lambda: np.concatenate([step() for step in steps])


def frozen_in_peft(peft_model: PeftModel) -> Any:
    """Return the model and its adapters in PyTorch with PEFT, with all weights frozen."""
    import torch

    return in_peft(peft_model).requires_grad_(False).to(torch.float32).eval()


def peft_decoding(model: Any, adapters: int | list[int], tokens: np.ndarray) -> Step:
    """Return PEFT's decode step: with the active adapter (the first adapter) for all rows, or with `adapter_names`."""
    import torch
    import transformers

    past, read = transformers.DynamicCache(), torch.from_numpy(tokens)
    names = {} if isinstance(adapters, int) else {"adapter_names": [str(i) for i in adapters]}

    @torch.no_grad()
    def step(ids: Any = read[:, :1]) -> np.ndarray:
        found = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1, **names)
        return found.logits[:, -1].numpy()

    step(read)
    return step


def served(peft_model: PeftModel, kind: str, adapters: int, rows: int) -> float:
    """Return the engine's number of new tokens per second; the time includes reading the prompts."""
    server = AdapterServer(peft_model, max_batch=rows, max_queue=4 * rows)
    for i, k in enumerate(workload(kind, 4 * rows, adapters)):
        server.submit(np.random.default_rng(i).integers(0, server.config.vocab_size, 16), str(k), 16)
    started = time.perf_counter()
    server.run()
    return 4 * rows * 16 / (time.perf_counter() - started)


def take_turns(sides: Mapping[str, Step], rounds: int, threads: int, turn: float = 0.0) -> dict[str, list[float]]:
    """Return the seconds of each competitor's step in each round.

    Each competitor is measured once per round, so that noise affects all competitors equally. Every measurement has the
    same number of steps: as many as the fastest competitor does in `turn` seconds.
    """

    def seconds(step: Step, steps: int = 1) -> float:
        if threads > 1:
            time.sleep(PAUSE)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - started) / steps

    first = in_turns(
        {side: partial(seconds, step) for side, step in sides.items()}, 1
    )  # the first call allocates the buffers that later calls reuse
    steps = max(1, math.ceil(turn / min(one for (one,) in first.values())))
    return in_turns({side: partial(seconds, step, steps) for side, step in sides.items()}, rounds, warm_up=0)


def main(folder: str) -> None:
    """Make the tables of this file and of `latency` with one thread, and save each table when it is complete."""
    for make in (serving_step, serving, latency):
        with machine.limited(1):
            table = make()
        print(table.save(Path(folder) / f"{table.study}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
