"""One training run with all hyperparameters of LoRA, and the search for the best learning rate of each setting.

The model "tiny" was trained on English prose and learns Python code. The model, the texts and the schedule come from
harness/tiny_task.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import costs, data
from ...nn import Trainable
from ...peft import LoraConfig, get_peft_model
from ...pretrained import load_model
from ...training import evaluate
from ..harness import tiny_task
from ..harness.runs import finished, run_all, sweep, validation
from ..harness.table import Table, rounded
from ..harness.workers import Row

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
GROUPS: dict[str, str | tuple[str, ...]] = {
    "q and v": ("q_proj", "v_proj"),
    "attention": ATTENTION,
    "MLP": MLP,
    "all-linear": "all-linear",
}
CURVES = ("losses", "grad_norms", "steps", "heldout")  # the columns that hold lists


@dataclass(frozen=True)
class HyperparameterRun:
    """The settings of one training run.

    The settings, the weights of the base and the text determine the result of the run.
    """

    method: str  # "full" or "lora"
    lr: float = 0.0
    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    target_modules: str | None = None  # a key of GROUPS, or one name
    lora_dropout: float = 0.0
    batch_size: int = 8
    train_bytes: int | None = None  # train on the first bytes of the text only; None: all of it
    max_steps: int = 100
    eval_every: int = 100
    seed: int = 0
    seq_len: int = 128
    base: str = "tiny"

    def text(self) -> np.ndarray:
        """The training text as bytes, an array of shape (size,) and dtype uint8."""
        return data.corpus("code", "train")[: self.train_bytes]

    def config(self) -> LoraConfig:
        """The adapter's configuration."""
        assert self.r is not None and self.lora_alpha is not None and self.target_modules is not None
        targets = GROUPS.get(self.target_modules, self.target_modules)
        extras: dict[str, Any] = {"lora_dropout": self.lora_dropout, "use_rslora": self.use_rslora}
        return LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules=targets, **extras)

    def model(self) -> Trainable:
        """The model to train: the base with all parameters trainable, or with an adapter."""
        model = load_model(self.base)
        return get_peft_model(model, self.config(), seed=self.seed) if self.method == "lora" else model.unfreeze()


def measure(run: HyperparameterRun) -> Row:
    """Train once. Return the settings of the run and its results; losses are in nats per byte.

    `final` is the loss on one held-out text; settings are compared by this loss. `validation` is the loss on another
    held-out text; learning rates are chosen by this loss. `train` is the mean training loss of the last tenth of the
    steps. `heldout` has the held-out loss after each number of steps in `steps`; `final` is the last loss in `heldout`.
    `losses` has the loss of each step, and `grad_norms` has the gradient norm of each step before clipping. `trainable`
    is the number of trained parameters. If the run diverged, its losses are None.
    """
    began = time.perf_counter()
    try:
        model, history = tiny_task.fine_tune(run)  # type: ignore[arg-type]  # has all attributes of a Run that are read there
    except FloatingPointError:
        nothing = dict.fromkeys(("final", "validation", "train", "trainable"))
        lists: dict[str, list] = {key: [] for key in ("steps", "heldout", "losses", "grad_norms")}
        return asdict(run) | nothing | lists | {"seconds": time.perf_counter() - began}
    losses, norms = history.column("loss"), history.column("grad_norm")
    curve = tiny_task.curve(history, "heldout")
    return asdict(run) | {
        "final": curve["heldout"][-1],
        "validation": evaluate(model, tiny_task.validation_batches()),
        "train": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "trainable": costs.count(model).trainable,
        **curve,
        "losses": [rounded(loss, 5) for loss in losses],
        "grad_norms": [rounded(norm, 5) for norm in norms],
        "seconds": time.perf_counter() - began,
    }


@dataclass(frozen=True)
class Setting:
    """The size of each study: the full size (`FULL`), or a small size that takes a minute (`QUICK`)."""

    r: int = 16  # the common recipe: r = 16, α = 32, all linear layers, no dropout
    lora_alpha: float = 32
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    doubled_ranks: Sequence[int] = (1, 16, 64)  # at these ranks α = 2r is tried too
    alphas: Sequence[float] = (4, 16, 32, 64, 256)
    scaled_ranks: Sequence[int] = (1, 4, 16, 64, 128)
    modules: Sequence[str] = (*ATTENTION, *MLP, *GROUPS)
    module_r: int = 8
    matched_r: Sequence[int] = (7, 28)  # ranks of an adapter in the MLP; the other groups get as many parameters
    dropouts: Sequence[float] = (0.0, 0.1, 0.2)
    small_bytes: int = 8192
    small_steps: int = 100
    batch_sizes: Sequence[int] = (2, 8, 32)
    full_lrs: Sequence[float] = (1e-3, 2e-3)  # the first learning rates of a sweep
    lora_lrs: Sequence[float] = (4e-3, 8e-3)
    bracket: bool = True  # extend a sweep if its best learning rate is at its edge
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 100
    batch_size: int = 8
    seq_len: int = 128
    base: str = "tiny"

    def recipe(self) -> HyperparameterRun:
        """The common recipe with the first seed; its learning rate is not set yet."""
        steps: dict[str, Any] = {"max_steps": self.steps, "eval_every": self.steps, "batch_size": self.batch_size}
        task: dict[str, Any] = {"seq_len": self.seq_len, "seed": self.seeds[0], "base": self.base}
        return HyperparameterRun("lora", 0.0, self.r, self.lora_alpha, target_modules="all-linear", **steps, **task)

    def full(self) -> HyperparameterRun:
        """Full fine-tuning with the first seed; its learning rate is not set yet."""
        return replace(self.recipe(), method="full", r=None, lora_alpha=None, target_modules=None)

    def rates(self, *runs: HyperparameterRun) -> dict[HyperparameterRun, Sequence[float]]:
        """The learning rates to try first for each run."""
        return {run: self.full_lrs if run.method == "full" else self.lora_lrs for run in runs}


FULL = Setting()
QUICK = Setting(
    ranks=(1, 16),
    doubled_ranks=(1, 16),
    alphas=(16, 32),
    scaled_ranks=(1, 16, 64),
    modules=("attention", "MLP"),
    matched_r=(7,),
    dropouts=(0.0, 0.1),
    small_steps=40,
    batch_sizes=(4, 8),
    full_lrs=(2e-3,),
    lora_lrs=(8e-3,),
    bracket=False,
    seeds=(0, 1),
    steps=20,
)


class Tuner:
    """Trains the runs of one study, each run once, and makes the table of the runs."""

    def __init__(self, setting: Setting, workers: int, folder: str | Path | None) -> None:
        self.setting, self.workers, self.folder = setting, workers, folder
        self.given = tiny_task.shared(setting.base)
        self.done: dict[HyperparameterRun, Row] = {}

    def tune(self, *runs: HyperparameterRun, neighbours: bool = False) -> list[Row]:
        """Find the best learning rate of each run, then repeat the run at this rate with every seed.

        The phase "sweep" runs the first seed at several learning rates. The phase "seeds" runs every seed at the best
        rate. If `neighbours` is true, the phase "near" runs every seed at the two neighbouring rates. `with_own_bests`
        adds the column `own_best`.
        """
        rates, factor = self.setting.rates(*runs), 2.0 if self.setting.bracket else None
        tried = sweep(measure, rates, self.workers, self.folder, self.given, factor)
        best = {run: min(found, key=validation)["lr"] for run, found in tried.items()}
        rows = [self._keep(row) | {"phase": "sweep"} for found in tried.values() for row in found]
        rows += self.repeat(*(replace(run, lr=lr) for run, lr in best.items()))
        if neighbours:
            beside = {run: beside_in([row["lr"] for row in tried[run]], lr) for run, lr in best.items()}
            rows += self.repeat(*(replace(run, lr=lr) for run, lrs in beside.items() for lr in lrs), phase="near")
        return with_own_bests(rows)

    def repeat(self, *runs: HyperparameterRun, phase: str = "seeds") -> list[Row]:
        """Train each run with every seed. Raises FloatingPointError if a run of phase "seeds" diverged."""
        wanted = [replace(run, seed=seed) for seed in self.setting.seeds for run in runs]
        todo = [run for run in wanted if run not in self.done]
        for row in run_all(measure, todo, self.workers, self.folder, phase, self.given):
            self._keep(row)
        rows = [self.done[run] for run in wanted]
        return [row | {"phase": phase} for row in (finished(rows) if phase == "seeds" else rows)]

    def best_rate(self, run: HyperparameterRun) -> float:
        """The best learning rate of `run`."""
        return next(row["lr"] for row in self.tune(run) if row["phase"] == "seeds")

    def table(self, study: str, question: str, rows: list[Row], keep: Sequence[str] = (), **settings: Any) -> Table:
        """Make the table of these rows.

        The table has a column of CURVES only if the column is in `keep`. The table's settings include the fields of
        `Setting`, the number of runs, and the given `settings`. `base_loss` is the loss of the base in nats per byte.
        The seconds of the table are the sum over all runs; a run uses one worker with one BLAS thread.
        """
        dropped = set(CURVES) - set(keep)
        rows = [{key: value for key, value in row.items() if key not in dropped} for row in rows]
        base_loss = evaluate(load_model(self.setting.base), tiny_task.heldout_batches())
        known = asdict(self.setting) | {"base_loss": base_loss, "runs": len(self.done)} | settings
        seconds = sum(row["seconds"] for row in self.done.values())
        return Table(study, question, f"python -m lora_np study {study}", known, rows, seconds=seconds)

    def _keep(self, row: Row) -> Row:
        """Store the row of a run, unless it is already stored.

        The column `grad_norm` has the norm of the first gradient of the run.
        """
        return self.done.setdefault(_run(row), row | {"grad_norm": next(iter(row["grad_norms"]), None)})


def _run(row: Row) -> HyperparameterRun:
    """Return the settings of the run that a row belongs to."""
    return HyperparameterRun(**{f.name: row[f.name] for f in fields(HyperparameterRun)})


def with_own_bests(rows: Sequence[Row]) -> list[Row]:
    """Add the column `own_best`.

    The column is true for the row with the lowest validation loss among the learning rates of one run and seed.
    """
    of = [replace(_run(row), lr=0.0) for row in rows]
    best: dict[HyperparameterRun, Row] = {}
    for run, row in zip(of, rows, strict=True):
        if run not in best or validation(row) < validation(best[run]):
            best[run] = row
    return [row | {"own_best": best[run] is row} for run, row in zip(of, rows, strict=True)]


def beside_in(rates: Sequence[float], lr: float) -> list[float]:
    """Return the next lower and the next higher learning rate of `rates`, as far as they exist."""
    ordered = sorted(rates)
    place = ordered.index(lr)
    return ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2]
