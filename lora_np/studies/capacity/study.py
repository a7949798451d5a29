"""How much fits into a rank? The bits of random strings that LoRA memorises, against the parameters that it trains.

A random string has no structure, so a model can continue it only from memory. A string begins with a name of KEY
symbols. The model is given the name, so the name is not counted. The name is followed by `length` symbols. Each symbol
is drawn uniformly from 64 symbols, so a symbol carries log₂ 64 = 6 bits. If L is the mean loss in nats per symbol after
training on the strings, then

    memorised = Σ over counted symbols (6 − L / ln 2) bits, and at least 0.

A model that knows only the alphabet holds 0 bits. A model that recites all strings holds all bits of the strings.
The base was trained on other random strings, each written twice. So the base knows the alphabet and can be certain of a
symbol, but it does not know the strings of the study. The measurement follows Morris et al. 2025 (arXiv 2505.24832),
whose strings have no names.
"""

from __future__ import annotations

import hashlib
import math
import string
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...nn import Trainable
from ...ops import IGNORE_INDEX
from ...peft import LoraConfig, get_peft_model
from ...training import AdamW, Batch, WarmupCosine, evaluate, train
from ...transformer import Transformer
from ..harness.runs import Row, finished, run_all, sweep, validation
from ..harness.table import Table
from ..harness.tiny_task import curve, train_by
from ..pretraining.study import TINY

ALPHABET = string.ascii_letters + string.digits + "+/"  # a token is an index into it
BITS = math.log2(len(ALPHABET))  # per symbol
KEY = 2  # symbols in a string's name, so there are 4,096 names
SMALL = replace(TINY, vocab_size=len(ALPHABET), hidden_size=32, head_dim=8, intermediate_size=96, num_hidden_layers=2)
SMALL = replace(SMALL, max_position_embeddings=64)


@dataclass(frozen=True)
class CapacityRun:
    """The settings that determine the result of one training run."""

    method: str  # "full" or "lora"
    lr: float
    r: int | None = None
    strings: int = 128
    length: int = 16
    seed: int = 0  # of the strings, of A, and of the order of the batches
    alpha_over_r: float = 8
    max_steps: int = 2000
    batch_size: int = 64
    base_steps: int = 800

    def model(self) -> Trainable:
        """The base with all parameters trainable, or with an adapter in every linear layer."""
        model = base_model(self.base_steps, KEY + self.length)
        if self.method == "full":
            return model
        assert self.r is not None, "an adapter has a rank"
        config = LoraConfig(r=self.r, lora_alpha=self.alpha_over_r * self.r, target_modules="all-linear")
        return get_peft_model(model, config, seed=self.seed)


@dataclass(frozen=True)
class Setting:
    """The settings of the study: ranks, numbers of strings, learning rates and seeds."""

    run: CapacityRun = CapacityRun("lora", 0.0)
    ranks: Sequence[int] = (1, 2, 4, 8, 16)
    strings_per_rank: int = 32  # rank r trains on r times as many strings: more than 2 bits per trained parameter
    full_strings: int = 640
    lora_lrs: Sequence[float] = (4e-3, 8e-3)
    full_lrs: Sequence[float] = (2e-3, 4e-3)
    bracket: bool = True  # extend a sweep if its best learning rate is at its edge
    seeds: Sequence[int] = (0, 1, 2)
    knee: int = 4  # the rank that trains on different numbers of strings
    offered: Sequence[int] = (16, 48, 96, 192)  # numbers of strings, beside the 128 of the comparison of ranks

    def methods(self) -> dict[CapacityRun, list[float]]:
        """Return the learning rates to try first for each method; each method gets more strings than it can hold."""
        first = replace(self.run, seed=self.seeds[0])
        lora = [replace(first, r=r, strings=r * self.strings_per_rank) for r in self.ranks]
        full = replace(first, method="full", strings=self.full_strings)
        return {each: list(self.lora_lrs) for each in lora} | {full: list(self.full_lrs)}


FULL = Setting()
SHORT = CapacityRun("lora", 0.0, length=8, max_steps=300, base_steps=200)
QUICK = Setting(
    SHORT, (1, 4), full_strings=128, lora_lrs=(8e-3,), full_lrs=(4e-3,), bracket=False, seeds=(0, 1), offered=(16,)
)

# -------------------------------------------------------------------------------------------- strings and their bits


def strings(count: int, length: int, seed: int) -> np.ndarray:
    """Draw random strings: an array of shape (count, KEY + length) with tokens from 0 to 63.

    Each row begins with a name that no other row has; `length` uniform symbols follow the name. Raises ValueError if
    there are more strings than names.
    """
    n = len(ALPHABET)
    if not 1 <= count <= n**KEY:
        raise ValueError(
            f"count = {count}; expected 1 to {n**KEY} strings, because there are only {n**KEY} different names of {KEY} symbols"
        )
    rng = np.random.default_rng([seed, count, length])
    names = rng.choice(n**KEY, count, replace=False)
    digits = np.stack([names // n**i % n for i in reversed(range(KEY))], axis=1)  # (count, KEY)
    return np.concatenate([digits, rng.integers(0, n, (count, length))], axis=1)


def batch(rows: np.ndarray) -> Batch:
    """Return the tokens and the targets of b strings: two arrays of shape (b, KEY + length − 1).

    The symbols of a name are not counted as targets.
    """
    targets = rows[:, 1:].copy()
    targets[:, : KEY - 1] = IGNORE_INDEX
    return rows[:, :-1], targets


def memorised(loss: float, symbols: int) -> float:
    """Return how many bits a model holds: symbols · (6 − loss / ln 2), at least 0, with the loss in nats per symbol."""
    return max(0.0, symbols * (BITS - loss / math.log(2)))


class Epochs:
    """Batches of strings: `batches[i]` is the pair (tokens, targets).

    Each epoch shows every string once, in a new order, in batches of nearly equal size.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.parts = math.ceil(len(rows) / batch_size)

    def __getitem__(self, i: int) -> Batch:
        epoch, part = divmod(i, self.parts)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return batch(self.rows[np.array_split(order, self.parts)[part]])


# ------------------------------------------------------------------------------------------------------------ the base


class RepeatedStrings:
    """Batches of 32 new random strings, each written twice.

    The model cannot predict the first copy of a string, but it can predict the second copy from the first copy.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed = length, seed

    def __getitem__(self, i: int) -> Batch:
        once = np.random.default_rng([self.seed, i]).integers(0, len(ALPHABET), (32, self.length))
        rows = np.concatenate([once, once], axis=1)
        return rows[:, :-1], rows[:, 1:]


def base_model(steps: int, length: int) -> Transformer:
    """Return a copy of the base: `SMALL`, trained once per process to repeat random strings of `length` symbols."""
    model = Transformer.empty(SMALL)
    weights = _base(steps, length)
    for name, p in model.named_parameters():
        p.value = weights[name].copy()
    return model


def matrices() -> int:
    """Return the number of matrices of SMALL that an adapter changes."""
    adapted = get_peft_model(Transformer.empty(SMALL), LoraConfig(r=1, target_modules="all-linear"))
    return sum(name.endswith(".weight") and "lora_A" in name for name, _ in adapted.named_parameters())


@cache
def _base(steps: int, length: int) -> dict[str, np.ndarray]:
    model = Transformer.random(SMALL, seed=0)
    schedule = WarmupCosine(steps, warmup=steps // 20, floor=0.05)
    train(model, RepeatedStrings(length), AdamW(lr=5e-3), steps, schedule=schedule, max_grad_norm=1.0, progress=False)
    return {name: p.value for name, p in model.named_parameters()}


# ----------------------------------------------------------------------------------------------------------- the study


def memorise(run: CapacityRun) -> tuple[Trainable, dict[str, Any]]:
    """Train on the strings of the run, and return the model and its row.

    In the row, `trained` is the number of trained parameters, and `offered` and `memorised` are numbers of bits.
    `validation` is the last loss in nats per symbol. `bits` has the bits held after each number of steps in `steps`.
    """
    rows, model = strings(run.strings, run.length, run.seed), run.model()
    symbols = run.strings * run.length
    trained = sum(p.value.size for _, p in model.named_parameters() if p.trainable)
    of_all = [batch(rows[i : i + 256]) for i in range(0, len(rows), 256)]  # the training strings themselves
    batches, every = Epochs(rows, run.batch_size, run.seed), max(1, run.max_steps // 10)
    on_the_way = curve(train_by(run, model, batches, of_all, eval_every=every, progress=False), "heldout")
    bits = [memorised(loss, symbols) for loss in on_the_way["heldout"]]
    row = asdict(run) | {"trained": trained, "offered": symbols * BITS, "steps": on_the_way["steps"], "bits": bits}
    return model, row | {"memorised": bits[-1], "validation": on_the_way["heldout"][-1]}


def measure(run: CapacityRun) -> dict[str, Any]:
    """Train once. Return the row with the CPU seconds; if the run diverged, `memorised` and `validation` are None."""
    started = time.process_time()
    try:
        row = memorise(run)[1]
    except FloatingPointError:
        nothing: Row = {
            "trained": None,
            "offered": None,
            "steps": [],
            "bits": [],
            "memorised": None,
            "validation": None,
        }
        row = asdict(run) | nothing
    return row | {"seconds": time.process_time() - started}


def shared(run: CapacityRun) -> str:
    """Return a digest of the base that all runs share: its shape and its weights."""
    weights = _base(run.base_steps, KEY + run.length)
    return hashlib.sha256(b"".join([repr(SMALL).encode(), *(w.tobytes() for w in weights.values())])).hexdigest()


def better_of_two_rates(
    runs: Sequence[CapacityRun], seeds: Sequence[int], workers: int, folder: str | Path | None
) -> tuple[list, list]:
    """Train each of these settings with every seed, at the setting's learning rate and at half of this rate.

    Return the rows of the better rates and the rows of the worse rates. The better of the two rates has the lower mean
    loss over the seeds. At a learning rate that is best for one seed, a run with another seed or with other data may
    diverge.
    """
    tried = [replace(run, lr=lr, seed=seed) for run in runs for lr in (run.lr, run.lr / 2) for seed in seeds]
    rows, n = run_all(measure, tried, workers, folder, "capacity", shared(runs[0])), len(seeds)
    kept: list[Row] = []
    lost: list[Row] = []
    for i in range(0, len(rows), 2 * n):
        better, worse = sorted((rows[i : i + n], rows[i + n : i + 2 * n]), key=lambda same: sum(map(validation, same)))
        kept += finished(better)
        lost += worse
    return kept, lost


def capacity(setting: Setting = FULL, workers: int = 2, folder: str | Path | None = None) -> Table:
    """Measure the bits that each rank and full fine-tuning hold, each at its own best learning rate.

    The phase "sweep" runs the first seed at every learning rate. The phase "seeds" runs every seed at the best rate;
    the strings of these runs contain more than 2 bits per trained parameter. The phase "half" runs the first seed at the best rate
    with half the steps, to show how many bits the second half adds. The phase "offered" runs every seed of rank `knee`
    with fewer or more strings. The phase "rejected" contains the runs at the worse rates of `better_of_two_rates`.
    """
    first, seeds = setting.seeds[:1], setting.seeds
    given, factor = shared(setting.run), 2.0 if setting.bracket else None
    sweeps = sweep(measure, setting.methods(), workers, folder, given, factor)
    best = [replace(method, lr=min(rows, key=validation)["lr"]) for method, rows in sweeps.items()]
    halves = [replace(run, max_steps=run.max_steps // 2) for run in best]
    knee = next(run for run in best if run.r == setting.knee)
    offers = [replace(knee, strings=n) for n in setting.offered]
    phases: dict[str, list] = {"sweep": [row for rows in sweeps.values() for row in rows], "rejected": []}
    for phase, runs, of in (("seeds", best, seeds), ("half", halves, first), ("offered", offers, seeds)):
        phases[phase], lost = better_of_two_rates(runs, of, workers, folder)
        phases["rejected"] += lost
    different = {tuple((key, row[key]) for key in asdict(setting.run)): row for rows in phases.values() for row in rows}
    base, fresh = base_model(setting.run.base_steps, KEY + setting.run.length), strings(256, setting.run.length, 99)
    settings = asdict(setting) | {"bits_per_symbol": BITS}
    settings["base_bits_per_symbol"] = evaluate(base, [batch(fresh)]) / math.log(2)  # on strings that it has not read
    settings["runs"] = len(different)
    rows = [row | {"phase": phase} for phase, found in phases.items() for row in found]
    command, seconds = "python -m lora_np study capacity", sum(row["seconds"] for row in different.values())
    return Table("capacity", "How much fits into a rank?", command, settings, rows, seconds=seconds)
