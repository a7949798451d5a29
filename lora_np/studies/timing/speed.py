"""How long does a LoRA step take in this library and in PyTorch with PEFT?

The study also measures how this library's time grows with the tokens, the rows, the rank and the layers.

A step is forward, backward and AdamW. The floor is a lower bound of the time. It is the time of the products with
frozen matrices alone, which every LoRA step on NumPy's BLAS must compute. Each competitor runs in its own process
(competitors.py). In each round, every process is timed once (benchmark.py).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...costs import MODELS, Architecture
from ...pretrained import fetched
from ...pretrained.download import MODELS as TO_FETCH
from ..harness.table import Table, versions
from . import machine
from .benchmark import Competitor, run_rounds
from .competitors import LEARNING_RATE, Case

Say = Callable[[str], None]

CORES = os.cpu_count() or 1
COMMAND = "python -m lora_np bench --json figures/data"
SAME_LOSS = 1e-4  # nats per token; a larger difference means that two competitors compute different things


def shape_of(model: Architecture, **changes: int) -> dict[str, int]:
    """Return the arguments of TransformerConfig for a published Llama, with `changes` applied."""
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": next(linear.out for linear in model.linears if linear.name == "mlp.up_proj"),
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "tie_word_embeddings": model.tied,
    } | changes


SMOLLM2, LLAMA_7B = MODELS["smollm2-135m"], MODELS["llama-2-7b"]
CASES = (
    Case("tiny", 16, 128, "tiny"),
    Case("smollm2-135m", 2, 256, "smollm2-135m"),
    Case("llama-2-7b-block", 2, 256, shape=shape_of(LLAMA_7B, num_hidden_layers=1, vocab_size=256)),
)
GENERATION = (
    Case("tiny", 1, 64, "tiny", new_tokens=64),
    Case("smollm2-135m", 1, 64, "smollm2-135m", new_tokens=64),
    Case("smollm2-135m", 8, 64, "smollm2-135m", new_tokens=64),
    Case("smollm2-135m", 32, 64, "smollm2-135m", new_tokens=64),
)
SWEEPS: Mapping[
    str, Sequence[Case]
] = {  # the quantity that grows → its cases; the weights are random, which does not change the time
    "tokens": [Case("", 2, n, shape=shape_of(SMOLLM2)) for n in (32, 128, 256, 512)],
    "batch": [Case("", n, 256, shape=shape_of(SMOLLM2)) for n in (2, 4, 6)],
    "r": [Case("", 2, 256, shape=shape_of(SMOLLM2), r=n) for n in (1, 4, 16, 64)],
    # A small vocabulary: SmolLM2's head costs as much as eight layers and would hide the cost of the layers.
    "layers": [Case("", 2, 256, shape=shape_of(SMOLLM2, num_hidden_layers=n, vocab_size=256)) for n in (1, 10, 20, 30)],
}


def speed(
    cases: Sequence[Case] = CASES, threads: int = CORES, rounds: int = 9, compiled: bool = True, say: Say = print
) -> Table:
    """Time a LoRA step of each competitor on each case, and measure its memory.

    The columns are `case`, `competitor`, `seconds`, `tokens_per_second`, `ratio`, `floor_share`, `peak_bytes`,
    `losses`, `rounds` and others. `seconds` is the median time per step over the rounds. `ratio` is the median over the
    rounds of the competitor's time divided by this library's time; `ratio_range` has the quartiles. If the losses
    differ by more than 1e-4, `ratio` and `ratio_range` are None, and `say` is called with a message. `floor_share` is
    the floor's time divided by the competitor's time. `peak_bytes` is the peak resident memory during the steps,
    including weights and libraries. `loaded_bytes` is the memory before the first step. Only the row of the floor has
    `flops`.

    The competitor "ours" splits a batch among as many workers as there are threads (parallel.py); in "ours, one
    worker", the BLAS uses all threads. If PyTorch, PEFT or transformers is missing, only this library and the floor are
    timed. If this library or the floor fails, the function raises CompetitorFailed.
    """
    comparison, rows = Comparison(threads, rounds, say), []
    names = ["floor", "ours", "ours, one worker"]
    if oracles_installed(say):
        names += ["PEFT", "PEFT compiled"] if compiled else ["PEFT"]
    cases = available(cases, say)
    for case in cases:
        floor, *others = comparison.run(names, case, f"a step on {case.name}")
        rows.append(floor.row() | {"floor_share": 1.0, "flops": floor.about["results"][0]})
        for other, row in zip(others, compared(others, different_losses, say), strict=True):
            rows.append(row | {"floor_share": ratios(floor, other)["ratio"], "losses": other.about["results"]})
    settings = {"target_modules": "all-linear", "dtype": "float32", "learning_rate": LEARNING_RATE}
    settings |= {"cases": {case.name: asdict(case) for case in cases}}
    return comparison.table("speed", "What does a step of LoRA cost, here and in PyTorch?", settings, rows)


def generation_speed(
    cases: Sequence[Case] = GENERATION, threads: int = CORES, rounds: int = 5, say: Say = print
) -> Table:
    """Time greedy generation in this library and in transformers, without an adapter, and the floor of a new token.

    The columns are the columns of `speed` and the additional columns `batch_size`, `token_seconds` and `token_ratio`. A
    step is one whole call, including the prompts; `tokens_per_second` counts only new tokens. `token_seconds` is the
    time of one new token of every row, without the prompts: a call that writes one token is timed in the same round,
    and its time is subtracted. `token_ratio` is computed like `ratio`, from `token_seconds`. The floor computes only
    the products of the new tokens with the frozen matrices and the head, and `floor_share` is the floor's time divided
    by `token_seconds`. `ratio` and `token_ratio` are None if the generated texts differ.
    """
    comparison, rows = Comparison(threads, rounds, say), []
    names = ["ours, generating", *(["transformers"] if oracles_installed(say) else [])]
    for case in available(cases, say):
        entries = [(name, replace(case, new_tokens=n)) for n in (case.new_tokens, 1) for name in names]
        label = f"generation on {case.name}, batch {case.batch_size}"
        floor, *ran = comparison.run_entries([("floor, generating", case), *entries], label)
        whole = [each for each in ran if each.case.new_tokens == case.new_tokens]
        first = {each.name: each for each in ran if each.case.new_tokens == 1}
        token = {each.name: per_token(each, first[each.name]) for each in whole if each.name in first}
        of_floor = [seconds / case.new_tokens for seconds in floor.turns]
        batch = {"batch_size": case.batch_size}
        rows.append(floor.row() | batch | {"token_seconds": statistics.median(of_floor), "floor_share": 1.0})
        for row in compared(whole, different_texts, say):
            mine, each = token[names[0]], token.get(row["competitor"])
            if each is not None:
                row |= {
                    "token_seconds": statistics.median(each),
                    "floor_share": ratio_and_range(of_floor, each)["ratio"],
                }
                row |= {"token_ratio": None if row["ratio"] is None else ratio_and_range(each, mine)["ratio"]}
            rows.append(row | batch)
    settings = {"prompt_tokens": cases[0].seq_len, "new_tokens": cases[0].new_tokens, "decoding": "greedy"}
    return comparison.table("generation_speed", "How fast does it write, here and in transformers?", settings, rows)


def per_token(whole: Competitor, first: Competitor) -> list[float]:
    """Return the seconds of one new token in each round, without the prompt.

    `whole` writes all new tokens, and `first` writes only the first new token of the same prompts.
    """
    return [(a - b) / (whole.case.new_tokens - 1) for a, b in zip(whole.turns, first.turns, strict=True)]


def quantized_speed(
    cases: Sequence[Case] = CASES[:2], threads: int = CORES, rounds: int = 9, say: Say = print
) -> Table:
    """Time a step of LoRA, a step of QLoRA, and the part of a QLoRA step that dequantises the weights.

    The columns are `case`, `competitor`, `seconds`, `ratio`, `peak_bytes`, `losses`, `rounds` and others. The
    competitor "ours" is LoRA over a base in float32; "ours, NF4 base" is QLoRA over a base in four bits. The competitor
    "dequantising" only dequantises the weights, as often as a QLoRA step does. `ratio` is a competitor's time divided
    by the time of "ours" in the same round. The losses differ because the bases differ.
    """
    comparison, rows, cases = Comparison(threads, rounds, say), [], available(cases, say)
    for case in cases:
        ran = comparison.run(["ours", "ours, NF4 base", "dequantising"], case, f"QLoRA on {case.name}")
        rows += [each.row() | ratios(each, ran[0]) | {"losses": each.about["results"]} for each in ran]
    settings = {"target_modules": "all-linear", "learning_rate": LEARNING_RATE}
    settings |= {"cases": {case.name: asdict(case) for case in cases}}
    return comparison.table("quantized_speed", "What does a step cost over a base of four bits?", settings, rows)


def speed_scaling(
    sweeps: Mapping[str, Sequence[Case]] = SWEEPS, threads: int = CORES, rounds: int = 9, say: Say = print
) -> Table:
    """Time a LoRA step while one quantity grows: the tokens per row, the rows, the rank, or the layers.

    The columns are `sweep`, `x`, `batch_size`, `seq_len`, `r`, `layers`, `vocab_size`, `seconds`, `ratio`, `rounds` and
    `peak_bytes`. `sweep` is the quantity that grows: "tokens", "batch" (the number of rows), "r" or "layers". `x` is
    the value of this quantity. `ratio` is the time divided by the time of the first case in the sweep. The setting
    "lines" has, for each sweep, `slope`, `intercept` and `r_squared` of the line seconds ≈ slope · x + intercept.
    """
    comparison, rows, lines = Comparison(threads, rounds, say), [], {}
    for sweep, cases in sweeps.items():
        ran = comparison.run(["ours"], cases, f"how the cost grows with {sweep}")
        for timed, case in zip(ran, cases, strict=True):
            size = {"batch_size": case.batch_size, "seq_len": case.seq_len, "r": case.r}
            size |= {"layers": case.shape["num_hidden_layers"], "vocab_size": case.shape["vocab_size"]}
            x = ({"tokens": case.tokens, "batch": case.batch_size} | size)[sweep]
            measured = {key: value for key, value in timed.row().items() if key in ("seconds", "rounds", "peak_bytes")}
            rows.append({"sweep": sweep, "x": x} | size | measured | ratios(timed, ran[0]))
        points = [(row["x"], row["seconds"]) for row in rows if row["sweep"] == sweep]
        line = straight_line(*zip(*points, strict=True))
        lines[sweep] = dict(zip(("slope", "intercept", "r_squared"), line, strict=True))
    settings = {"shape": "smollm2-135m", "weights": "random", "target_modules": "all-linear", "dtype": "float32"}
    return comparison.table("speed_scaling", "How does the cost of a step grow?", settings | {"lines": lines}, rows)


def available(cases: Sequence[Case], say: Say) -> list[Case]:
    """Return the cases whose model is on this machine.

    For each other case, `say` is called with the command that fetches the model.
    """
    found = []
    for case in cases:
        try:
            if case.model in TO_FETCH:
                fetched(case.model)
            found.append(case)
        except FileNotFoundError as error:
            say(f"left out: {error}")
    return found


def oracles_installed(say: Say) -> bool:
    """Return True if PyTorch, PEFT and transformers are installed; otherwise call `say` with the missing names."""
    missing = [name for name in ("torch", "peft", "transformers") if find_spec(name) is None]
    if missing:
        say(f"no comparison: {', '.join(missing)} not installed; run pip install 'lora-np[oracles]'")
    return not missing


def compared(
    competitors: Sequence[Competitor], difference: Callable[[Any, Any], str], say: Say
) -> list[dict[str, Any]]:
    """Return the competitors' rows with `ratios`: each time is divided by the time of the first competitor.

    The ratios are None if `difference` finds that a competitor computes a different result.
    """
    ours, rows = competitors[0], []
    for other in competitors:
        found = ratios(other, ours)
        if wrong := difference(ours.about["results"], other.about["results"]):
            say(f"{other.case.name}: no ratio, because {other.name} computes a different result: {wrong}")
            found = dict.fromkeys(found)
        rows.append(other.row() | found)
    return rows


def ratios(competitor: Competitor, reference: Competitor) -> dict[str, Any]:
    """Return `ratio` and `ratio_range` of two competitors' times."""
    return ratio_and_range(competitor.turns, reference.turns)


def ratio_and_range(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Return `ratio` and `ratio_range`: median and quartiles over the rounds of `seconds` divided by `reference`."""
    found = [a / b for a, b in zip(seconds, reference, strict=True)]
    return {"ratio": statistics.median(found), "ratio_range": np.percentile(found, [25, 75]).tolist()}


def different_losses(mine: list[float], theirs: list[float]) -> str:
    """Return a description if two lists of losses differ by more than `SAME_LOSS`, otherwise ""."""
    same = all(abs(a - b) <= SAME_LOSS for a, b in zip(mine, theirs, strict=True))  # NaN differs from every number
    return "" if same else f"losses {mine} here and {theirs} there"


def different_texts(mine: list[list[list[int]]], theirs: list[list[list[int]]]) -> str:
    """Return a description if two runs wrote different tokens, otherwise ""."""
    differing = sum(a != b for a, b in zip(mine[0], theirs[0], strict=True))
    return f"{differing} of {len(mine[0])} texts differ" if differing else ""


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return (slope, intercept, R²) of the least-squares line ŷ through the points; R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²."""
    slope, intercept = np.polyfit(x, y, 1)
    left = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), float(1 - left.var() / np.var(y))


@dataclass
class Comparison:
    """The timing of all competitors in one study, and the table of the measurements and their conditions."""

    threads: int
    rounds: int
    say: Say
    ran: list[Competitor] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def run(self, names: Sequence[str], cases: Case | Sequence[Case], label: str) -> list[Competitor]:
        """Time each named competitor on each case, once per round."""
        every = [cases] if isinstance(cases, Case) else cases
        return self.run_entries([(name, case) for case in every for name in names], label)

    def run_entries(self, entries: Sequence[tuple[str, Case]], label: str) -> list[Competitor]:
        """Time each (name, case) once per round."""
        ran = run_rounds(entries, self.threads, self.rounds, self.say, label)
        self.ran += ran
        return ran

    def table(self, study: str, question: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
        """Return the table, with threads, rounds, processor, blas (per competitor) and warnings added to `settings`."""
        blas = {competitor.name: competitor.about["blas"] for competitor in self.ran}
        settings = settings | machine.conditions(self.threads, self.rounds, blas)
        settings |= {"peak_is_of_the_steps": all(each.about["peak_is_of_the_steps"] for each in self.ran)}
        known = versions()
        for competitor in self.ran:
            known |= competitor.about["versions"]
        return Table(study, question, COMMAND, settings, rows, known, time.perf_counter() - self.started)
