"""Small tables with known numbers, like the tables of the studies of hyperparameters, for tests of pictures and claims."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

from lora_np.studies.harness.table import Table
from lora_np.studies.hyperparameters.study import RULES
from lora_np.studies.hyperparameters.sweep import FULL, HyperparameterRun, with_own_bests

SEEDS = (0, 1, 2)


def table(study: str, rows: list[dict[str, Any]], **settings: Any) -> Table:
    known = asdict(FULL) | {"base_loss": 1.55, "runs": len(rows), "fixed_lr": 4e-3} | settings
    return Table(study, "?", f"python -m lora_np study {study}", known, rows, seconds=3210.9)


def row(phase: str, final: float, seed: int = 0, spread: float = 0.003, **hyperparameters: Any) -> dict[str, Any]:
    """One run that ended at `final`; with seed 1 a little above, with seed 2 a little below."""
    found = final + spread * (0, 1, -1)[seed]
    more = {"final": found, "validation": found + 0.07, "train": found - 0.1, "trainable": 194_560, "seconds": 10.0}
    return (
        asdict(HyperparameterRun(**{"method": "lora", "seed": seed} | hyperparameters))
        | more
        | {"phase": phase, "grad_norm": 0.5}
    )


def swept(
    final: float, best: float, width: int = 2, near: bool = False, **hyperparameters: Any
) -> list[dict[str, Any]]:
    """Learning rates around `best` with a parabola of losses, and every seed at the best rate (`near`: at its neighbours too)."""
    rows = [row("sweep", final + 0.01 * n * n, lr=best * 2.0**n, **hyperparameters) for n in range(-width, width + 1)]
    rows += [row("seeds", final, seed, lr=best, **hyperparameters) for seed in SEEDS]
    if near:
        rows += [row("near", final + 0.01, seed, lr=best * f, **hyperparameters) for seed in SEEDS for f in (0.5, 2.0)]
    return with_own_bests(rows)


def by_rank(ratio: float = 4.0, drift: float = 0.5) -> Table:
    """LoRA's best rate is `ratio` times full fine-tuning's; with α = 2r it falls as r to the −`drift`."""
    rows = swept(1.30, 1e-3, near=True, method="full")
    for r in FULL.ranks:
        rows += swept(1.32 + 0.05 / r, ratio * 1e-3, near=True, r=r, lora_alpha=32, target_modules="all-linear")
    rows = [x | {"rule": "α/r"} for x in rows]
    for r in FULL.doubled_ranks:
        found = swept(1.32 + 0.05 / r, 4e-3 * (16 / r) ** drift, r=r, lora_alpha=2 * r, target_modules="all-linear")
        rows += [x | {"rule": "α = 2r"} for x in found]
    return table("learning_rates_by_rank", rows)


def alphas(power: float = 0.5) -> Table:
    """The best rate falls as α to the −`power`."""
    rows = []
    for a in FULL.alphas:
        rows += swept(1.33, 4e-3 * (32 / a) ** power, r=16, lora_alpha=a)
        rows += [
            row("fixed", 1.33 + 0.02 * abs(a / 32 - 1) ** 0.5, seed, lr=4e-3, r=16, lora_alpha=a) for seed in SEEDS
        ]
    return table("alpha", rows)


def scaled() -> Table:
    """Gradient norms that grow as √r·s, and losses that differ above r = 16."""
    rows = []
    for rule, r, seed in itertools.product(RULES, FULL.scaled_ranks, SEEDS):
        s = {"α/r": 32 / r, "α/√r": 8 / r**0.5, "α = 2r": 2.0}[rule]
        final = 1.33 + (0.02 if r < 16 else 0.001 * max(1, s * r / 32) ** 2)
        rows.append(row("fixed", final, seed, lr=4e-3, r=r) | {"rule": rule, "grad_norm": 0.06 * s * r**0.5})
    return table("scaling", rows)


def targets() -> Table:
    rows = []
    for i, name in enumerate(FULL.modules):
        size = 10_000 * (i + 1)
        found = swept(1.50 - 0.015 * i, 4e-3, width=1, r=8, target_modules=name)
        rows += [x | {"trainable": size} for x in found]
    return table("target_modules", rows)


def equal(mlp_ahead: float = 0.01) -> Table:
    rows = []
    for matched, name, r in ((7, "attention", 12), (7, "MLP", 7), (28, "attention", 48), (28, "MLP", 28)):
        final = 1.37 - 0.001 * matched - (mlp_ahead if name == "MLP" else 0)
        found = swept(final, 4e-3, width=1, r=r, target_modules=name)
        rows += [x | {"trainable": 7_680 * matched, "matched_r": matched} for x in found]
    return table("equal_parameters", rows)


def dropouts(helps: float = 0.01) -> Table:
    """On little text p = 0.1 lowers the loss by `helps`; on all of the text it raises the loss by as much."""
    rows = []
    for p in FULL.dropouts:
        off = helps * abs(p - 0.1) / 0.1
        rows += swept(1.45 + off, 1e-3, width=1, lora_dropout=p, train_bytes=FULL.small_bytes)
        for seed in SEEDS:
            rows.append(row("fixed", 1.52 + 2 * off, seed, lr=4e-3, lora_dropout=p, train_bytes=FULL.small_bytes))
            rows.append(row("fixed", 1.34 + helps * p / 0.1, seed, lr=4e-3, lora_dropout=p))
    return table("dropout", rows)


def batches(extra: float = 0.02) -> Table:
    """The gap between LoRA and full fine-tuning grows by `extra` with each larger batch."""
    rows = []
    for i, b in enumerate(FULL.batch_sizes):
        known = {"batch_size": b, "max_steps": 800 // b}
        rows += swept(1.32 + 0.02 * i, 1e-3, width=1, method="full", **known)
        rows += swept(1.33 + (0.02 + extra) * i, 4e-3, width=1, spread=0.006, r=16, **known)
    return table("batch_size", rows)


def converged() -> Table:
    """The learning rates of a table of `convergence`: α = 8r, and the best rate falls as the rank grows."""
    known = {"method": "lora", "target_modules": "all-linear", "phase": "seeds"}
    rows = [known | {"r": r, "lr": 8e-3 / max(1, r / 4), "seed": seed} for r in (1, 4, 16, 64) for seed in SEEDS]
    return Table("convergence", "?", "?", {"alpha_over_r": 8, "steps": 200, "seeds": SEEDS}, rows)


EVERY = {
    "learning_rates_by_rank": by_rank,
    "alpha": alphas,
    "scaling": scaled,
    "target_modules": targets,
    "equal_parameters": equal,
    "dropout": dropouts,
    "batch_size": batches,
}
