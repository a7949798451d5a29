"""What is the rank of a learned ΔW? The study measures the singular values of each layer's ΔW.

The ΔW come from full fine-tuning and from LoRA. The study has two models: "tiny" learns Python code (tiny_task.py), and
SmolLM2-135M learns the style of a lighthouse keeper (voice_task.py). Each method is trained at its best learning rate.
Each ΔW is compared with a random matrix of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...nn import Trainable
from ...peft import PeftModel
from ...peft.placement import adaptable_layers, adapted_layers
from ...transformer import Transformer
from ..harness import tiny_task, voice_task
from ..harness.runs import run_all
from ..harness.table import Table, rounded
from ..harness.tiny_task import Run
from ..harness.voice_task import FineTuning
from ..harness.workers import Row


def effective_rank(sigma: np.ndarray) -> float:
    """Return exp(H(p)) with p = σ/Σσ and H = −Σ pᵢ ln pᵢ (Roy and Vetterli 2007).

    For n equal singular values the result is n.
    """
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def rank_for_energy(sigma: np.ndarray, share: float = 0.9) -> int:
    """Return the smallest r with σ₁² + … + σᵣ² ≥ share · Σσ² (Biderman et al. 2024, §5)."""
    energy = np.cumsum(np.sort(sigma)[::-1] ** 2)
    return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12)) + 1)


def deltas(trained: Trainable, base: Transformer) -> dict[str, np.ndarray]:
    """Return ΔW (out, in) of every linear layer by name: s·BA of an adapter, or the fine-tuned weight minus the base's weight.

    `base` is an untrained copy of the base.
    """
    if isinstance(trained, PeftModel):
        return {name: layer.delta_weight("default") for name, layer in adapted_layers(trained.model).items()}
    before, after = dict(base.named_parameters()), dict(trained.named_parameters())
    names = [
        name for name in adaptable_layers(base) if f"{name}.weight" in after
    ]  # a tied head has no weight of its own
    return {name: after[f"{name}.weight"].value - before[f"{name}.weight"].value for name in names}


def layer_and_module(name: str) -> dict[str, Any]:
    """Return {"layer": 2, "module": "q_proj"} for the name "model.layers.2.self_attn.q_proj"."""
    parts = name.split(".")
    return {"layer": int(parts[2]), "module": parts[-1]}


@cache
def random_spectrum(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return the singular values of a Gaussian random matrix (out, in), which has no structure."""
    return np.linalg.svd(np.random.default_rng(seed).standard_normal(shape), compute_uv=False)


def measure(run: Run | FineTuning) -> Row:
    """Train, and return the ranks and singular values of each ΔW as {"spectra": rows, "seconds": seconds}."""
    study = voice_task if isinstance(run, FineTuning) else tiny_task
    model, history = study.fine_tune(run)
    rows = []
    for name, delta in deltas(model, run.base_model()).items():
        sigma = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
        chance = random_spectrum(delta.shape)
        sizes = {"norm": float(np.linalg.norm(delta)), "effective_rank": effective_rank(sigma)}
        sizes["random_effective_rank"] = effective_rank(chance)
        row = (
            layer_and_module(name)
            | {"shape": list(delta.shape)}
            | {key: rounded(value) for key, value in sizes.items()}
        )
        row |= {"rank90": rank_for_energy(sigma), "random_rank90": rank_for_energy(chance)}
        rows.append(row | {"sigma": [rounded(sigma[i - 1]) for i in powers_of_two(len(sigma))]})
    return {"spectra": rows, "seconds": history.rows[-1]["seconds"]}


def powers_of_two(n: int) -> list[int]:
    """Return 1, 2, 4, … up to n.

    The table stores the singular values at these positions; position 1 is the largest singular value.
    """
    return [2**i for i in range(n.bit_length())]


@dataclass(frozen=True)
class Setting:
    """The runs, each at the best learning rate of its study: "tiny" with all seeds, SmolLM2 with the first seed."""

    tiny: Sequence[Run] = (Run("full", 1e-3, eval_every=200), Run("lora", 4e-3, 8, "all-linear", eval_every=200))
    smollm2: Sequence[FineTuning] = (
        FineTuning("full", 3e-4, eval_every=40),
        FineTuning("lora", 3e-3, 8, eval_every=40),
    )
    seeds: Sequence[int] = (0, 1, 2)


FULL = Setting()
QUICK = Setting(tiny=(Run("full", 1e-3, max_steps=40, eval_every=40),), smollm2=(), seeds=(0, 1))


def spectra(setting: Setting = FULL, workers: int = 2, folder: str | Path | None = None) -> Table:
    """Measure the rank of each learned ΔW: one row per matrix.

    The rows have `model`, `method`, `r`, `seed`, `layer`, `module`, `shape`, `norm`, `effective_rank`, `rank90`,
    `random_effective_rank`, `random_rank90` and `sigma`. `norm` is ‖ΔW‖_F. `rank90` is the number of directions that
    hold 90 % of ‖ΔW‖²_F. `random_effective_rank` and `random_rank90` are the values of a Gaussian random matrix of the
    same shape. `sigma` has the largest singular value, the second, the fourth, the eighth and so on. The settings have
    the number of runs.
    """
    runs: list[Any] = [replace(run, seed=seed) for seed in setting.seeds for run in setting.tiny]
    measured = run_all(measure, runs, workers, folder, "spectra", tiny_task.shared("tiny"))
    if setting.smollm2:
        given, label = voice_task.shared(setting.smollm2[0]), "spectra of SmolLM2"
        measured += run_all(
            measure, setting.smollm2, 1, folder, label, given
        )  # one worker: its threads share the cores
        runs += setting.smollm2
    rows = []
    for run, row in zip(runs, measured, strict=True):
        who = {"model": _model(run), "method": run.method, "r": run.r, "seed": run.seed, "lr": run.lr}
        rows += [who | each for each in row["spectra"]]
    question = "What is the rank of each layer's ΔW, learned by full fine-tuning and by LoRA?"
    command, settings = "python -m lora_np study spectra", asdict(setting) | {"runs": len(runs)}
    return Table("spectra", question, command, settings, rows, seconds=sum(row["seconds"] for row in measured))


def _model(run: Run | FineTuning) -> str:
    return run.model if isinstance(run, FineTuning) else run.base
