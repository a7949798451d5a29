"""Does LoRA reach what full fine-tuning reaches? Held-out loss by rank and targets, each method at its own best learning rate.

Specialise "tiny", which has read English, to Python code. First a sweep of learning rates with one seed; then, at each
method's best, the other seeds. A sweep whose best learning rate is the smallest or largest tried goes on in that
direction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .. import data
from ..nn import Module
from ..optim import AdamW, WarmupCosine
from ..peft import LoraConfig, get_peft_model
from ..pretrained import load_model
from ..train import History, evaluate, train
from .runs import run_all
from .table import Table

TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all-linear": "all-linear",
}


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its outcome."""

    method: str  # "full" or "lora"
    lr: float
    r: int | None = None
    target_modules: str | None = None  # a key of TARGETS
    seed: int = 0
    alpha_over_r: float = 8
    max_steps: int = 800
    batch_size: int = 8
    seq_len: int = 128
    eval_every: int = 20
    base: str = "tiny"

    def model(self) -> Module:
        """The base, made ready to train: all of it, or an adapter in it."""
        model = load_model(self.base)
        if self.method == "full":
            return model
        config = LoraConfig(self.r, lora_alpha=self.alpha_over_r * self.r, target_modules=TARGETS[self.target_modules])
        return get_peft_model(model, config, seed=self.seed)


@dataclass(frozen=True)
class Setting:
    """How much of the study to run: the committed one, or the quick one that `make reproduce` has time for."""

    ranks: Sequence[int] = (1, 2, 4, 8, 16, 64)
    targets: Sequence[str] = ("all-linear", "attention")
    full_lrs: Sequence[float] = (5e-4, 1e-3, 2e-3)
    lora_lrs: Sequence[float] = (2e-3, 4e-3)
    bracket: bool = True  # extend a sweep whose best is at its edge
    alpha_over_r: float = 8  # the same for every rank, from a pilot at r = 16
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 800
    batch_size: int = 8
    eval_every: int = 80
    base: str = "tiny"

    def methods(self) -> dict[Run, list[float]]:
        """Each method once, with the learning rates to try first."""
        same = {
            "max_steps": self.steps,
            "batch_size": self.batch_size,
            "eval_every": self.eval_every,
            "base": self.base,
        }
        run = Run("full", 0.0, alpha_over_r=self.alpha_over_r, **same)
        lora = [replace(run, method="lora", r=r, target_modules=t) for t in self.targets for r in self.ranks]
        return {run: list(self.full_lrs)} | {each: list(self.lora_lrs) for each in lora}


FULL = Setting()
QUICK = Setting(
    ranks=(1, 8),
    targets=("all-linear",),
    full_lrs=(2e-3,),
    lora_lrs=(4e-3,),
    bracket=False,
    seeds=(0, 1),
    steps=80,
    eval_every=10,
)


@cache
def heldout_batches() -> list:
    """The code that no run trains on."""
    return data.heldout_batches(data.corpus("code", "heldout"), 16, 128, windows=128)


def fine_tune(run: Run, progress: bool = False) -> tuple[Module, History]:
    """Train as `run` says: on code, AdamW without decay, a short warm-up and a cosine, gradients clipped to norm 1."""
    model = run.model()
    history = train(
        model,
        data.Batches(data.corpus("code", "train"), run.batch_size, run.seq_len, run.seed),
        AdamW(lr=run.lr, weight_decay=0.0),
        run.max_steps,
        schedule=WarmupCosine(run.max_steps, warmup=run.max_steps // 20),
        max_grad_norm=1.0,
        heldout=heldout_batches(),
        eval_every=run.eval_every,
        seed=run.seed,
        label=run.method,
        progress=progress,
    )
    return model, history


def measure(run: Run) -> dict[str, Any]:
    """Train once; the row has the held-out loss (nats a byte) over steps and over seconds of training."""
    _, history = fine_tune(run)
    points = [row for row in history.rows if "heldout" in row]
    curve = {"steps": [p["step"] for p in points]} | {key: [p[key] for p in points] for key in ("heldout", "seconds")}
    return asdict(run) | curve | {"final": points[-1]["heldout"]}


def convergence(
    setting: Setting = FULL,
    workers: int = 2,
    folder: str | Path | None = None,
    command: str = "python -m lora_np reproduce --full",
) -> Table:
    """Sweep learning rates with the first seed, then run each method's best with the others.

    The rows have phase "sweep" (first seed, every learning rate) or "seeds" (the best one, every seed);
    settings["base_loss"] is where every run starts. `folder` keeps each finished run, so that a study that was stopped
    goes on where it was.
    """
    started = time.perf_counter()
    first, *others = setting.seeds
    tried: dict[Run, list[dict[str, Any]]] = {method: [] for method in setting.methods()}
    untried = setting.methods()
    while any(untried.values()):
        runs = [replace(method, lr=lr, seed=first) for method, lrs in untried.items() for lr in lrs]
        for row in run_all(measure, runs, workers, folder, "learning rates"):
            tried[next(m for m in tried if _is(row, m))].append(row)
        untried = {method: _beyond_the_edge(rows) if setting.bracket else [] for method, rows in tried.items()}
    best = {method: min(rows, key=lambda row: row["final"]) for method, rows in tried.items()}
    repeats = [replace(method, lr=row["lr"], seed=seed) for method, row in best.items() for seed in others]
    seeds = [*best.values(), *run_all(measure, repeats, workers, folder, "seeds")]
    sweep = [row | {"phase": "sweep"} for rows in tried.values() for row in sorted(rows, key=lambda row: row["lr"])]
    return Table(
        study="convergence",
        question="Does LoRA reach what full fine-tuning reaches?",
        command=command,
        settings=asdict(setting)
        | {
            "workers": workers,
            "base_loss": evaluate(load_model(setting.base), heldout_batches()),
        },
        rows=sweep + [row | {"phase": "seeds"} for row in seeds],
        seconds=time.perf_counter() - started,
    )


def recovered(table: Table) -> list[dict[str, Any]]:
    """For each LoRA run of the seeds: (base − its loss) / (base − full fine-tuning's), full at the same seed."""
    base = table.settings["base_loss"]
    full = {row["seed"]: row["final"] for row in table.where(phase="seeds", method="full")}
    return [
        {key: row[key] for key in ("r", "target_modules", "seed", "lr", "final")}
        | {"recovered": (base - row["final"]) / (base - full[row["seed"]])}
        for row in table.where(phase="seeds", method="lora")
    ]


def _is(row: dict[str, Any], method: Run) -> bool:
    return all(row[key] == getattr(method, key) for key in ("method", "r", "target_modules"))


def _beyond_the_edge(rows: list[dict[str, Any]]) -> list[float]:
    """The next learning rate, a factor of two on, if the best so far is the smallest or the largest tried."""
    rows = sorted(rows, key=lambda row: row["lr"])
    best = min(rows, key=lambda row: row["final"])
    if best is rows[0]:
        return [best["lr"] / 2]
    return [best["lr"] * 2] if best is rows[-1] else []
