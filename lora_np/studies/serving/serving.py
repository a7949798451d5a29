"""What do many adapters on one base cost, against a merged model for each, and against PEFT's mixed batch?

python -m lora_np.studies.serving.serving figures/data        # writes serving.json, serving_step.json and merge_latency.json there
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
SAME_LOGITS = 1e-3  # of the largest: further apart, two sides do not compute the same, and a ratio means nothing
TURN = 0.1  # seconds of a turn where a ratio of two steps is the answer: one of a few milliseconds is mostly noise
PROMPT = 64  # tokens in the key/value cache before the first step

Step = Callable[[], np.ndarray]  # one token for each row: the logits (b, v)


def workload(kind: str, rows: int, adapters: int, seed: int = 0) -> list[int]:
    """The adapter, 0 … adapters − 1, of each row of a batch, as Punica (Chen et al. 2023) names the ways to draw them.

    identical: all rows one. distinct: each row another, as far as there are so many. uniform: any, all alike. zipf 1.5:
    the k-th with probability ∝ k^−1.5. skewed: half of the rows one, the others any. Raises ValueError for another kind.
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
        raise ValueError(f"workload {kind!r}; there are {', '.join(drawn)}")
    return drawn[kind].tolist()


def serving(
    adapters: Sequence[int] = (1, 8, 32, 128, 1000),
    model: str = "tiny",
    rows: int = 32,
    rounds: int = 7,
    threads: int = 1,
    say: Say = print,
) -> Table:
    """Rows {workload, adapters, distinct, seconds, tokens_per_second, served_per_second, bytes, adapter_bytes, merged_…, peft_…}.

    seconds: of a decode step of `rows` rows whose adapters the workload draws, `distinct` of them. merged_seconds: of the same
    rows through one merged model for each adapter, one after another; peft_seconds: of PEFT's mixed batch, which holds the
    batch's adapters alone. Medians of `rounds` in turn. served_per_second: the engine's new tokens for 4 · rows requests of
    16 tokens and 16 new ones. bytes: of the base and all adapters; merged_bytes: of a merged model for each.
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
    """Time a decode step of `rows` rows: all rows with one adapter, or each row with its own.

    The rows are {model, competitor, seconds, rounds, to_one, to_ours}. to_one is the time divided by that of the same
    library with one adapter. to_ours is the time divided by ours for the same rows, and None if the logits differ. Both are
    medians over the rounds.
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
    question = "How much longer does a step take when each row has an adapter of its own?"
    return _table("serving_step", question, settings, found, rounds, threads, started)


def _table(study: str, question: str, settings: dict, rows: list, rounds: int, threads: int, started: float) -> Table:
    settings |= {"rounds": rounds, "threads": threads, "processor": machine.processor()}
    return Table(study, question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def with_adapters(model: str, n: int) -> PeftModel:
    """The base `model` with n adapters "0", "1", … of r = 8 in every linear layer, none of which is the identity."""
    peft_model = PeftModel(load_model(model, device="numpy").freeze())
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    for i in range(n):
        peft_model.add_adapter(str(i), config, seed=i)
    return peft_model


def prompts(peft_model: PeftModel, rows: int) -> np.ndarray:
    """(rows, PROMPT) random tokens."""
    return np.random.default_rng(0).integers(0, peft_model.config.vocab_size, (rows, PROMPT))


def ours(peft_model: PeftModel, adapters: int | list[int], tokens: np.ndarray) -> Step:
    """A decode step of this library behind `tokens`: all rows on one adapter, or a mixed batch."""
    adapter = str(adapters) if isinstance(adapters, int) else AdapterRows([str(i) for i in adapters])
    return decoding(peft_model.model, adapter, tokens)


def decoding(model: Transformer, adapter: str | AdapterRows | None, tokens: np.ndarray) -> Step:
    """One token a row, behind `tokens` in the key/value cache and those of the steps before."""
    past, context = KeyValueCache(model.config), Context(adapter=adapter)
    model.hidden(tokens, context, past)

    def step() -> np.ndarray:
        return model.logits(model.hidden(tokens[:, :1], context, past)[0][:, -1], context)

    return step


def merged(model: Transformer, drawn: list[int], tokens: np.ndarray) -> Step:
    """One merged model for each adapter, which costs what the base costs, on its rows of the batch, one after another."""
    ids = np.array(drawn)
    steps = [decoding(model, None, tokens[ids == k]) for k in dict.fromkeys(drawn)]
    return lambda: np.concatenate([step() for step in steps])


def frozen_in_peft(peft_model: PeftModel) -> Any:
    """The same model and adapters in PyTorch with PEFT."""
    import torch

    return in_peft(peft_model).requires_grad_(False).to(torch.float32).eval()


def peft_decoding(model: Any, adapters: int | list[int], tokens: np.ndarray) -> Step:
    """`ours` in PEFT: the active adapter, which is the first, or `adapter_names`."""
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
    """The engine's new tokens a second, prompts and all."""
    server = AdapterServer(peft_model, max_batch=rows, max_queue=4 * rows)
    for i, k in enumerate(workload(kind, 4 * rows, adapters)):
        server.submit(np.random.default_rng(i).integers(0, server.config.vocab_size, 16), str(k), 16)
    started = time.perf_counter()
    server.run()
    return 4 * rows * 16 / (time.perf_counter() - started)


def take_turns(sides: Mapping[str, Step], rounds: int, threads: int, turn: float = 0.0) -> dict[str, list[float]]:
    """side → the seconds of its step in each round; every side once a round, so that a noisy machine hits all alike.

    A turn is as many steps, the same number for all, as the fastest side needs for `turn` seconds.
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
    )  # make what later ones use again
    steps = max(1, math.ceil(turn / min(one for (one,) in first.values())))
    return in_turns({side: partial(seconds, step, steps) for side, step in sides.items()}, rounds, warm_up=0)


def main(folder: str) -> None:
    """Make these tables and that of `latency`, each saved as soon as it is there; latency on one thread."""
    for make in (serving_step, serving, latency):
        with machine.limited(1):
            table = make()
        print(table.save(Path(folder) / f"{table.study}.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
