"""How long does a step of LoRA take, here, in PyTorch with PEFT, and at least? And how does that grow?

A step is forward, backward and AdamW. The floor is the frozen matrix products alone, in NumPy's own BLAS: no implementation
of LoRA on it avoids them. Each side runs in a process of its own (competitors.py), and they take turns (benchmark.py).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...costs import MODELS, Architecture
from ...pretrained import fetched
from ...pretrained.download import MODELS as TO_FETCH
from ..harness.table import Table, versions
from . import machine
from .benchmark import Side, race
from .competitors import LEARNING_RATE, Case

Say = Callable[[str], None]

CORES = os.cpu_count() or 1
COMMAND = "python -m lora_np bench --json figures/data"
SAME_LOSS = 1e-4  # nats a token: further apart, two sides do not compute the same, and a ratio of theirs means nothing


def shape_of(model: Architecture, **changes: int) -> dict[str, int]:
    """TransformerConfig's arguments for a published Llama, with `changes` to them."""
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
)
SWEEPS: Mapping[str, Sequence[Case]] = {  # what grows → the cases; random weights, which take the same time as others
    "tokens": [Case("", 2, n, shape=shape_of(SMOLLM2)) for n in (32, 128, 256, 512)],
    "batch": [Case("", n, 256, shape=shape_of(SMOLLM2)) for n in (2, 4, 6)],
    "r": [Case("", 2, 256, shape=shape_of(SMOLLM2), r=n) for n in (1, 4, 16, 64)],
    # SmolLM2's head costs as much as eight of its layers: with a small vocabulary the layers are what is seen.
    "layers": [Case("", 2, 256, shape=shape_of(SMOLLM2, num_hidden_layers=n, vocab_size=256)) for n in (1, 10, 20, 30)],
}


def speed(
    cases: Sequence[Case] = CASES, threads: int = CORES, rounds: int = 9, compiled: bool = True, say: Say = print
) -> Table:
    """Rows {case, side, seconds, tokens_per_second, ratio, floor_share, peak_bytes, losses, rounds, …}, one a case and side.

    seconds: of one step, the median over `rounds`. ratio: how many times as long as ours, the median of the rounds' own
    ratios, and ratio_range their quartiles; None where the losses differ by more than 1e-4, of which `say` is told.
    floor_share: the floor's seconds over the side's. peak_bytes: the most that was resident during the steps, with the
    weights and the libraries themselves; loaded_bytes: what was before the first one. flops: of the floor.

    "ours" shares a batch among as many workers as there are threads (parallel.py), "ours, one worker" leaves the threads to
    the BLAS. Without PyTorch, PEFT and transformers it is ours and the floor alone. Raises SideFailed where one of these fails.
    """
    races, rows = Races(threads, rounds, say), []
    names = ["floor", "ours", "ours, one worker"]
    if oracles_installed(say):
        names += ["PEFT", "PEFT compiled"] if compiled else ["PEFT"]
    cases = available(cases, say)
    for case in cases:
        floor, *others = races.race(names, case, f"a step on {case.name}")
        rows.append(floor.row() | {"floor_share": 1.0, "flops": floor.about["results"][0]})
        for side, row in zip(others, compared(others, different_losses, say), strict=True):
            rows.append(row | {"floor_share": ratios(floor, side)["ratio"], "losses": side.about["results"]})
    settings = {"target_modules": "all-linear", "dtype": "float32", "learning_rate": LEARNING_RATE}
    settings |= {"cases": {case.name: asdict(case) for case in cases}}
    return races.table("speed", "What does a step of LoRA cost, here and in PyTorch?", settings, rows)


def generation_speed(
    cases: Sequence[Case] = GENERATION, threads: int = CORES, rounds: int = 5, say: Say = print
) -> Table:
    """Rows as those of `speed`, and batch_size, for greedy generation with the base's weights alone.

    A step is a whole call, prompts and all; tokens_per_second counts new tokens. ratio is None where the texts differ.
    """
    races, rows = Races(threads, rounds, say), []
    names = ["ours, generating", *(["transformers"] if oracles_installed(say) else [])]
    for case in available(cases, say):
        ran = races.race(names, case, f"generation on {case.name}, batch {case.batch_size}")
        rows += [row | {"batch_size": case.batch_size} for row in compared(ran, different_texts, say)]
    settings = {"prompt_tokens": cases[0].seq_len, "new_tokens": cases[0].new_tokens, "decoding": "greedy"}
    return races.table("generation_speed", "How fast does it write, here and in transformers?", settings, rows)


def quantized_speed(
    cases: Sequence[Case] = CASES[:2], threads: int = CORES, rounds: int = 9, say: Say = print
) -> Table:
    """Rows {case, side, seconds, ratio, peak_bytes, losses, rounds, …}: a step of LoRA, of QLoRA, and dequantising alone.

    "ours" is over a base in float32, "ours, NF4 base" over one of four bits, and "dequantising" decodes as much as the second
    does, and nothing else. ratio: to "ours" of the same round. The losses differ, as the bases do.
    """
    races, rows, cases = Races(threads, rounds, say), [], available(cases, say)
    for case in cases:
        ran = races.race(["ours", "ours, NF4 base", "dequantising"], case, f"QLoRA on {case.name}")
        rows += [side.row() | ratios(side, ran[0]) | {"losses": side.about["results"]} for side in ran]
    settings = {"target_modules": "all-linear", "learning_rate": LEARNING_RATE}
    settings |= {"cases": {case.name: asdict(case) for case in cases}}
    return races.table("quantized_speed", "What does a step cost over a base of four bits?", settings, rows)


def speed_scaling(
    sweeps: Mapping[str, Sequence[Case]] = SWEEPS, threads: int = CORES, rounds: int = 9, say: Say = print
) -> Table:
    """Rows {sweep, x, batch_size, seq_len, r, layers, vocab_size, seconds, ratio, rounds, peak_bytes}.

    In each sweep one thing grows: sweep is "tokens" (in longer rows), "batch" (in more rows), "r" or "layers", x its value,
    and ratio how many times as long as the sweep's first row. settings["lines"][sweep] is {slope, intercept, r_squared} of
    the straight line seconds ≈ slope · x + intercept.
    """
    races, rows, lines = Races(threads, rounds, say), [], {}
    for sweep, cases in sweeps.items():
        ran = races.race(["ours"], cases, f"how the cost grows with {sweep}")
        for side, case in zip(ran, cases, strict=True):
            size = {"batch_size": case.batch_size, "seq_len": case.seq_len, "r": case.r}
            size |= {"layers": case.shape["num_hidden_layers"], "vocab_size": case.shape["vocab_size"]}
            x = ({"tokens": case.tokens, "batch": case.batch_size} | size)[sweep]
            measured = {key: value for key, value in side.row().items() if key in ("seconds", "rounds", "peak_bytes")}
            rows.append({"sweep": sweep, "x": x} | size | measured | ratios(side, ran[0]))
        points = [(row["x"], row["seconds"]) for row in rows if row["sweep"] == sweep]
        line = straight_line(*zip(*points, strict=True))
        lines[sweep] = dict(zip(("slope", "intercept", "r_squared"), line, strict=True))
    settings = {"shape": "smollm2-135m", "weights": "random", "target_modules": "all-linear", "dtype": "float32"}
    return races.table("speed_scaling", "How does the cost of a step grow?", settings | {"lines": lines}, rows)


def available(cases: Sequence[Case], say: Say) -> list[Case]:
    """The cases whose model is on this machine; `say` is told how to get another."""
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
    """Whether there is something to compare with; `say` is told what is missing."""
    missing = [name for name in ("torch", "peft", "transformers") if find_spec(name) is None]
    if missing:
        say(f"nothing to compare with, {', '.join(missing)} not installed: pip install 'lora-np[oracles]'")
    return not missing


def compared(sides: Sequence[Side], difference: Callable[[Any, Any], str], say: Say) -> list[dict[str, Any]]:
    """The sides' rows with `ratios` to the first side, ours, or None where `difference(ours, theirs)` says anything."""
    ours, rows = sides[0], []
    for side in sides:
        found = ratios(side, ours)
        if wrong := difference(ours.about["results"], side.about["results"]):
            say(f"{side.case.name}: no ratio, for {side.name} does not compute the same: {wrong}")
            found = dict.fromkeys(found)
        rows.append(side.row() | found)
    return rows


def ratios(side: Side, to: Side) -> dict[str, Any]:
    """ratio: the median over rounds of how many times as long `side` took; ratio_range: the quartiles."""
    found = [a / b for a, b in zip(side.turns, to.turns, strict=True)]
    return {"ratio": statistics.median(found), "ratio_range": np.percentile(found, [25, 75]).tolist()}


def different_losses(mine: list[float], theirs: list[float]) -> str:
    """Where two lists of losses are further apart than `SAME_LOSS`, a sentence that says so; otherwise ""."""
    same = all(abs(a - b) <= SAME_LOSS for a, b in zip(mine, theirs, strict=True))  # NaN is the same as nothing
    return "" if same else f"losses {mine} here and {theirs} there"


def different_texts(mine: list[list[list[int]]], theirs: list[list[list[int]]]) -> str:
    """Where two runs wrote different tokens, a sentence that says so; otherwise ""."""
    differing = sum(a != b for a, b in zip(mine[0], theirs[0], strict=True))
    return f"{differing} of {len(mine[0])} texts differ" if differing else ""


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, R²) of the least-squares line ŷ through the points; R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²."""
    slope, intercept = np.polyfit(x, y, 1)
    left = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), float(1 - left.var() / np.var(y))


@dataclass
class Races:
    """The races of one study: the sides that ran, and its table, which says what their numbers depend on."""

    threads: int
    rounds: int
    say: Say
    ran: list[Side] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def race(self, names: Sequence[str], cases: Case | Sequence[Case], label: str) -> list[Side]:
        """Every side on every case, in turns."""
        contestants = [(name, case) for case in ([cases] if isinstance(cases, Case) else cases) for name in names]
        sides = race(contestants, self.threads, self.rounds, self.say, label)
        self.ran += sides
        return sides

    def table(self, study: str, question: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
        """settings get threads, rounds, processor, blas (of each side), warnings and peak_is_of_the_steps besides."""
        blas = {side.name: side.about["blas"] for side in self.ran}
        warnings = machine.warnings_for(self.threads) + [
            f"{name} runs {used['threads']} threads where {self.threads} were asked for"
            for name, used in blas.items()
            if used["threads"] != self.threads
        ]
        settings = settings | {"threads": self.threads, "rounds": self.rounds, "processor": machine.processor()}
        settings |= {"blas": blas, "warnings": warnings}
        settings |= {"peak_is_of_the_steps": all(side.about["peak_is_of_the_steps"] for side in self.ran)}
        known = versions()
        for side in self.ran:
            known |= side.about["versions"]
        return Table(study, question, COMMAND, settings, rows, known, time.perf_counter() - self.started)
