"""The list of studies for `python -m lora_np study NAME`: the question, the function that makes the table, the quick settings.

A new study needs a folder beside this file with a function `f(setting=FULL, workers=2, folder=None) -> Table`, and one
line in this list. A study that needs the table of another study is listed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pretrained import fetched
from .capacity import study as capacity
from .convergence import study as convergence
from .finetuning import study as finetuning
from .four_bits import qlora
from .harness.table import Table
from .harness.workers import Workers
from .hyperparameters import study as of
from .hyperparameters import sweep as hyperparameters
from .low_rank import intrinsic, spectra, subspaces
from .methods import comparison, comparison_smollm2


@dataclass(frozen=True)
class Study:
    """One study of the catalogue: how to make its table, and what it needs.

    `make(*tables, **options, workers=…, folder=…)` makes the table. With the options in `quick`, the study takes
    minutes. `needs` lists the studies whose tables are passed to `make`; `model` is the model that must be fetched
    first. Finished runs are stored in the folder `runs`, by default a folder with the study's name. If `alone` is true,
    the runs are not parallel, because each run uses all cores.
    """

    question: str
    make: Callable[..., Table]
    quick: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str | None = None
    runs: str | None = None
    alone: bool = False


_LIKE_FULL = "Does LoRA reach the loss of full fine-tuning?"
_RATES = "Is LoRA's best learning rate ten times full fine-tuning's, and independent of the rank?"
_RANKS = "What is the rank of each layer's ΔW, learned by full fine-tuning and by LoRA?"
_SHORT: dict[str, Any] = {"options": {"setting": convergence.SHORT}, "runs": "convergence"}
_AFTER_CONVERGENCE: dict[str, Any] = {"needs": ("convergence",), "runs": "convergence"}
_HYPERPARAMETERS: dict[str, Any] = {"quick": {"setting": hyperparameters.QUICK}, "runs": "hyperparameters"}
_ON_SMOLLM2: dict[str, Any] = {"model": "smollm2-135m", "alone": True}
_FINETUNING: dict[str, Any] = {"runs": "finetuning", **_ON_SMOLLM2}


def _quick(module: Any) -> dict[str, Any]:
    return {"setting": module.QUICK}


STUDIES: dict[str, Study] = {
    "convergence": Study(_LIKE_FULL, convergence.convergence, _quick(convergence)),
    "convergence_short": Study(_LIKE_FULL, convergence.convergence, **_SHORT),
    "shortfall": Study(
        "Why does LoRA of rank 16 not reach full fine-tuning's loss?", convergence.shortfall, **_AFTER_CONVERGENCE
    ),
    "qlora_tiny": Study(qlora.QUESTION, qlora.on_tiny, {"quant_types": ["nf4"], "seeds": [0]}, **_AFTER_CONVERGENCE),
    "finetuning": Study(finetuning.QUESTION, finetuning.finetuning, **_FINETUNING),
    "qlora_smollm2": Study(qlora.QUESTION, qlora.on_smollm2, needs=("finetuning",), **_FINETUNING),
    "comparison": Study(comparison.QUESTION, comparison.comparison, _quick(comparison)),
    "comparison_smollm2": Study(
        comparison_smollm2.QUESTION, comparison_smollm2.comparison_smollm2, needs=("finetuning",), **_ON_SMOLLM2
    ),
    "intrinsic_dimension": Study(
        "How many dimensions does training need, in fine-tuning and from scratch?",
        intrinsic.intrinsic_dimension,
        _quick(intrinsic),
    ),
    "spectra": Study(_RANKS, spectra.spectra, _quick(spectra), model="smollm2-135m"),
    "subspaces": Study(
        "Do two LoRA runs find the same directions, and how large is W in these directions?",
        subspaces.subspaces,
        _quick(subspaces),
    ),
    "learning_rates_by_rank": Study(_RATES, of.learning_rates_by_rank, **_HYPERPARAMETERS),
    "alpha": Study("Is α more than another learning rate?", of.alpha, **_HYPERPARAMETERS),
    "scaling": Study("With which scaling can the rank grow at one learning rate?", of.scaling, **_HYPERPARAMETERS),
    "target_modules": Study("Which matrices need an adapter most?", of.target_modules, **_HYPERPARAMETERS),
    "equal_parameters": Study(
        "Which layers should a given number of parameters adapt?", of.equal_parameters, **_HYPERPARAMETERS
    ),
    "dropout": Study("Does dropout help?", of.dropout, **_HYPERPARAMETERS),
    "batch_size": Study("Does LoRA suffer more from large batches?", of.batch_size, **_HYPERPARAMETERS),
    "capacity": Study("How much fits into a rank?", capacity.capacity, _quick(capacity)),
}
OTHER_NAMES = {"ranks": "convergence"}  # the study of convergence contains the sweep over ranks


def study(name: str) -> tuple[str, Study]:
    """Return the study with this name, and its name in the catalogue; an unknown name raises KeyError."""
    name = OTHER_NAMES.get(name, name)
    if name not in STUDIES:
        raise KeyError(f"unknown study {name!r}; the studies are {', '.join([*STUDIES, *OTHER_NAMES])}")
    return name, STUDIES[name]


def make(
    name: str, tables: Mapping[str, Table], workers: Workers = 2, folder: str | Path | None = None, quick: bool = False
) -> Table:
    """Make the table of a study.

    `tables` contains the tables that the study needs. `folder` is the parent of the folders of finished runs. Raises
    KeyError if the study is unknown or a table is missing. Raises ValueError if `quick` is true but the study has no
    quick settings. Raises FileNotFoundError if the study's model was not fetched.
    """
    name, one = study(name)
    command = f"python -m lora_np study {name}{' --quick' if quick else ''}"
    if quick and one.quick is None:
        raise ValueError(f"the study {name} has no quick setting; run it without --quick")
    for needed in one.needs:
        if needed not in tables:
            first = command.replace(name, needed)
            raise KeyError(f"the study {name} needs the table {needed}; make that table first: {first}")
    if one.model and not quick:
        fetched(one.model)
    less = (one.quick if quick else None) or {}
    options = {**one.options, **less, "folder": folder and Path(folder) / (one.runs or name)}
    if not one.alone:
        options["workers"] = workers
    elif isinstance(workers, str):
        raise ValueError(
            f"the study {name} cannot run on a cluster, because each of its runs uses all cores of this machine"
        )
    table = one.make(*(tables[needed] for needed in one.needs), **options)
    table.command = command
    return table
