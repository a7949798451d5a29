"""What does each method cost? The study measures the time and memory of a training step, and the time of an answer.

Run the study with one BLAS thread: OPENBLAS_NUM_THREADS=1 python -m lora_np.studies.methods.method_costs figures/data

All times are CPU seconds of the process. The wall clock would also count the time in which the system runs
other processes. Other processes delay slow tokens more than fast tokens, so on a busy machine the wall clock changes
even the ratios of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import PeftModel, Transformer, dequantize_model, generate
from ...nn import Trainable
from ...pretrained import fetched, load_model
from ...training import AdamW, Batch, train
from ..harness.table import Table
from ..harness.turns import in_turns, ratio
from ..timing.latency import PARTS, answer_ratios
from ..timing.machine import limited
from ..timing.step_cost import training_peak
from .comparison import state_bytes
from .settings import METHODS

COMMAND = "python -m lora_np.studies.methods.method_costs figures/data"
SMOLLM2: dict[str, Any] = {"methods": ("full", "lora", "qlora", "dora", "prefix", "houlsby"), "base": "smollm2-135m"}
SMOLLM2 |= {"steps": 1, "rounds": 7, "answer_rounds": 7, "copies": 5, "study": "method_costs_smollm2"}


def method_costs(
    methods: Sequence[str] = tuple(METHODS),
    base: str = "tiny",
    batch_size: int = 8,
    seq_len: int = 128,
    prompt: int = 128,
    new_tokens: int = 32,
    rounds: int = 15,
    answer_rounds: int = 60,
    copies: int = 8,
    steps: int = 3,
    seed: int = 0,
    study: str = "method_costs",
) -> Table:
    """Measure a training step of each method, and an answer of the resulting model before and after the merge.

    The columns are `method`, `step_seconds`, `step_ratio`, `peak_bytes`, `state_bytes`, `prompt_ratio`, `token_ratio`,
    `merged_prompt_ratio` and `merged_token_ratio`. `step_ratio` is the time of a step divided by the time of a full
    fine-tuning step in the same round. The other ratios divide the time of an answer by the time of the base's answers
    in the same round. The base exists in several `copies`, and the divisor of a ratio is the median time of the copies.
    If there were only one copy, an error in its time would change all ratios in the same direction. Each ratio is the
    median over the rounds. The base's copies and the merged models are built in the same way (`plain`). The setting
    `base_ratios` has the ratios of the copies of the base. The spread of these ratios shows the error of the
    measurement. A model that cannot be merged has None in the merged columns. A quantised base is dequantised before
    the merge.

    `peak_bytes` is the peak memory of a step that tracemalloc measures, with the adapter but without the weights of the
    base. `state_bytes` is computed by the function `state_bytes` of comparison.py. All measurements use one BLAS
    thread, and each round has a new random order. With `steps` = 0 only the answers are timed.
    """
    if copies < 3:
        raise ValueError(f"copies = {copies}; expected at least 3, because the median of two times is their mean")
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
    training = {name: (ready(name), METHODS[name].optimizer(1e-5)) for name in stepping}
    with limited(1):
        step_times = in_turns(
            {name: partial(step_seconds, m, batches, o, steps) for name, (m, o) in training.items()}, rounds, rng=rng
        )
    state = {name: state_bytes(*training[name], batches[0]) for name in stepping}
    training.clear()

    bases = [f"base {i}" for i in range(copies)]
    answering: dict[str, Transformer | PeftModel] = {name: ready(name) for name in methods if name != "full"}
    mergeable = [name for name, model in answering.items() if isinstance(model, PeftModel) and model.mergeable]
    answering |= {f"{name}, merged": plain(ready(name)) for name in mergeable}
    answering |= {name: plain(load_model(base)) for name in bases}
    with limited(1):
        times = in_turns(
            {name: partial(answer_seconds, model, tokens, new_tokens) for name, model in answering.items()},
            answer_rounds,
            rng=rng,
        )
    of_base = [tuple(each) for each in np.median([times[name] for name in bases], axis=0)]  # one pair per round
    ratios = {name: answer_ratios(each, of_base) for name, each in times.items()}
    rows = []
    for name in methods:
        row: dict[str, Any] = {"method": name}
        if steps:
            step, of_full = step_times[name], step_times["full"]
            row |= {"step_seconds": float(np.median(step)), "step_ratio": ratio(step, of_full)}
            row |= {"peak_bytes": peaks[name], "state_bytes": state[name]}
        for prefix, model in (("", name), ("merged_", f"{name}, merged")):
            found = {} if name == "full" else ratios.get(model, {})
            same = 1.0 if name == "full" else None  # full fine-tuning leaves a model of the base's form
            row |= {f"{prefix}{what}_ratio": found.get(f"{what}_ratio", same) for what in PARTS}
        rows.append(row)
    settings = {"base": base, "batch_size": batch_size, "seq_len": seq_len, "prompt": prompt, "new_tokens": new_tokens}
    settings |= {"rounds": rounds, "answer_rounds": answer_rounds, "copies": copies, "steps": steps}
    settings["base_ratios"] = {what: [ratios[name][f"{what}_ratio"] for name in bases] for what in PARTS}
    settings["labels"] = {name: METHODS[name].label for name in methods}
    question = "What does a training step cost with each method, and what does an answer of the resulting model cost?"
    return Table(study, question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def step_seconds(model: Trainable, batches: Sequence[Batch], optimizer: AdamW, steps: int) -> float:
    """Return the CPU seconds of one training step."""
    started = time.process_time()
    train(model, batches, optimizer, steps, progress=False)
    return (time.process_time() - started) / steps


def answer_seconds(model: Transformer | PeftModel, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Return the CPU seconds to the first token, and the median CPU seconds between two tokens."""
    stamps = [time.process_time()]
    generate(model, [prompt], 1 + new_tokens, on_token=lambda row, token: stamps.append(time.process_time()))
    first, *others = np.diff(stamps)
    return float(first), statistics.median(map(float, others))


def plain(model: Transformer | PeftModel) -> Transformer:
    """Return a frozen Transformer with newly allocated weights, into which the adapter (if any) is merged.

    The base and the merged models are both built by this function, so they differ only in the values of the weights.
    """
    if isinstance(model, PeftModel):
        dequantize_model(model.model)
        model = model.merge_and_unload()
    for _, parameter in model.named_parameters():
        parameter.value = parameter.value.copy()
    return model.freeze()


def main(folder: str) -> None:
    """Make the table of "tiny", and the table of SmolLM2-135M if its files are present.

    Save each table when it is complete.
    """
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
