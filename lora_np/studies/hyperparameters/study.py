"""The effect of each hyperparameter of LoRA: rank and learning rate, α, α/r or α/√r, target modules, dropout, batch size.

Each study changes one hyperparameter of the common recipe (r = 16, α = 32, all linear layers, no dropout). The model is "tiny",
and it learns Python code. Each setting has its own best learning rate, except where a study compares settings at one
fixed rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import costs
from ..harness.table import Table
from .sweep import FULL, HyperparameterRun, Setting, Tuner

Folder = str | Path | None
RULES = ("α/r", "α/√r", "α = 2r")


def learning_rates_by_rank(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Measure whether LoRA's best rate is ten times full fine-tuning's at every rank, as Schulman et al. (2025) found.

    The rows with the rule "α/r" are runs of full fine-tuning, and of LoRA at each rank with s = α/r and the recipe's α.
    They include every seed at the best learning rate and at the two neighbouring rates. The rows with the rule "α = 2r"
    are runs at some of the ranks; s = 2 at all of these ranks.
    """
    tuner, recipe = Tuner(setting, workers, folder), setting.recipe()
    fixed = tuner.tune(setting.full(), *(replace(recipe, r=r) for r in setting.ranks), neighbours=True)
    doubled = tuner.tune(*(by_rule(setting, "α = 2r", r) for r in setting.doubled_ranks))
    rows = [row | {"rule": "α/r"} for row in fixed] + [row | {"rule": "α = 2r"} for row in doubled]
    question = "Is LoRA's best learning rate ten times full fine-tuning's, and independent of the rank?"
    return tuner.table("learning_rates_by_rank", question, rows)


def alpha(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Compare values of α at the recipe's best learning rate (phase "fixed") and at the best rate of each α."""
    tuner, recipe = Tuner(setting, workers, folder), setting.recipe()
    lr = tuner.best_rate(recipe)
    runs = [replace(recipe, lora_alpha=a) for a in setting.alphas]
    rows = tuner.tune(*runs) + tuner.repeat(*(replace(run, lr=lr) for run in runs), phase="fixed")
    return tuner.table("alpha", "Is α more than another learning rate?", rows, fixed_lr=lr)


def scaling(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Train with several ranks and three rules for s, at one learning rate; measure losses and gradient norms.

    The rules are s = α/r with the recipe's α, s = α/√r (rsLoRA, Kalajdzievski 2023), and s = 2 (α = 2r). At the rank of
    the recipe the three rules give the same s.
    """
    tuner = Tuner(setting, workers, folder)
    lr = tuner.best_rate(setting.recipe())
    rows = []
    for rule in RULES:
        runs = (replace(by_rule(setting, rule, r), lr=lr) for r in setting.scaled_ranks)
        rows += [row | {"rule": rule} for row in tuner.repeat(*runs, phase="fixed")]
    question = "With which scaling can the rank grow at one learning rate?"
    return tuner.table("scaling", question, rows, keep=["grad_norms"], fixed_lr=lr)


def by_rule(setting: Setting, rule: str, r: int) -> HyperparameterRun:
    """Return the recipe with rank r and with the scale s that `rule`, one of RULES, gives.

    At the rank of the recipe all rules give the same s.
    """
    recipe = setting.recipe()
    if r == recipe.r or rule == "α/r":
        return replace(recipe, r=r)
    if rule == "α/√r":
        return replace(recipe, r=r, use_rslora=True, lora_alpha=setting.lora_alpha / setting.r**0.5)
    return replace(recipe, r=r, lora_alpha=setting.lora_alpha / setting.r * r)


def target_modules(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Train adapters of one rank in each kind of matrix alone, and in the usual groups of matrices."""
    tuner = Tuner(setting, workers, folder)
    runs = (replace(setting.recipe(), r=setting.module_r, target_modules=name) for name in setting.modules)
    return tuner.table("target_modules", "Which matrices need an adapter most?", tuner.tune(*runs))


def equal_parameters(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Compare attention alone, the MLP alone and all layers with equally many parameters (Schulman et al. 2025)."""
    tuner = Tuner(setting, workers, folder)
    rows = []
    for r in setting.matched_r:
        matched = with_equal_parameters(setting, r)
        rows += [row | {"matched_r": r} for row in tuner.tune(*matched)]
    return tuner.table("equal_parameters", "Which layers should a given number of parameters adapt?", rows)


def with_equal_parameters(setting: Setting, r: int, within: float = 0.02) -> list[HyperparameterRun]:
    """Return a run for the MLP with rank r, and runs for attention and all layers with about equally many parameters.

    A group of layers has no run if, at every rank, its number of parameters differs from the MLP's number by more than
    the share `within`.
    """
    recipe = setting.recipe()
    wanted = trainable(replace(recipe, target_modules="MLP", r=r))
    found = []
    for group in ("attention", "MLP", "all-linear"):
        run = replace(recipe, target_modules=group, r=1)
        run = replace(run, r=max(1, round(wanted / trainable(run))))
        if abs(trainable(run) / wanted - 1) <= within:
            found.append(run)
    return found


def trainable(run: HyperparameterRun) -> int:
    """Return the number of parameters that a run trains."""
    return costs.count(run.model()).trainable


def dropout(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Measure whether dropout helps, on little text that is read many times and on much text that is read only in part.

    The runs of the phase "fixed" use both texts and the recipe's best learning rate. On the little text, each
    probability is also trained at its own best learning rate.
    """
    tuner, recipe = Tuner(setting, workers, folder), setting.recipe()
    lr = tuner.best_rate(recipe)
    much = [replace(recipe, lora_dropout=p) for p in setting.dropouts]
    steps = setting.small_steps
    small: dict[str, Any] = {"train_bytes": setting.small_bytes, "max_steps": steps, "eval_every": max(1, steps // 4)}
    little = [replace(run, **small) for run in much]
    rows = tuner.repeat(*(replace(run, lr=lr) for run in [*little, *much]), phase="fixed")
    rows += tuner.tune(*little)
    return tuner.table("dropout", "Does dropout help?", rows, keep=["steps", "heldout"], fixed_lr=lr)


def batch_size(setting: Setting = FULL, workers: int = 2, folder: Folder = None) -> Table:
    """Measure whether large batches raise the loss of LoRA more than the loss of full fine-tuning (Schulman et al. 2025).

    All runs read the same number of tokens.
    """
    tuner = Tuner(setting, workers, folder)
    runs = [with_batch(run, b) for b in setting.batch_sizes for run in (setting.full(), setting.recipe())]
    return tuner.table("batch_size", "Does LoRA suffer more from large batches?", tuner.tune(*runs))


def with_batch(run: HyperparameterRun, batch_size: int) -> HyperparameterRun:
    """Return the run with another batch size, and with as many steps as it needs to read the same number of tokens."""
    steps = run.max_steps * run.batch_size // batch_size
    return replace(run, batch_size=batch_size, max_steps=steps, eval_every=steps)


STUDIES: Sequence = (learning_rates_by_rank, equal_parameters, scaling, alpha, target_modules, batch_size, dropout)
