"""The studies by name, for `python -m lora_np study NAME`: the question, what makes the table, and how much is quick.

A new study is a folder beside this file, with `f(setting=FULL, workers=2, folder=None) -> Table`, and a line here. Those that need
another study's table stand after it.
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
from .hyperparameters import sweep as knobs
from .low_rank import intrinsic, spectra, subspaces
from .methods import comparison, comparison_smollm2


@dataclass(frozen=True)
class Study:
    """`make(*tables, **options, workers=…, folder=…)` makes the table; `quick` are options with which it takes minutes.

    `needs` names the studies whose tables it takes, `model` what must have been fetched. Finished runs are kept in the folder
    `runs`, or in one of the study's own name. A study `alone` takes a machine to itself: its runs use all cores, one by one.
    """

    question: str
    make: Callable[..., Table]
    quick: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str | None = None
    runs: str | None = None
    alone: bool = False


_LIKE_FULL = "Does LoRA reach what full fine-tuning reaches?"
_RATES = "Is LoRA's best learning rate ten times full fine-tuning's, and independent of the rank?"
_RANKS = "Which rank has the ΔW of each layer, learned by full fine-tuning and by LoRA?"
_SHORT: dict[str, Any] = {"options": {"setting": convergence.SHORT}, "runs": "convergence"}
_AFTER_CONVERGENCE: dict[str, Any] = {"needs": ("convergence",), "runs": "convergence"}
_KNOB: dict[str, Any] = {"quick": {"setting": knobs.QUICK}, "runs": "hyperparameters"}
_ON_SMOLLM2: dict[str, Any] = {"model": "smollm2-135m", "alone": True}
_FINETUNING: dict[str, Any] = {"runs": "finetuning", **_ON_SMOLLM2}


def _quick(module: Any) -> dict[str, Any]:
    return {"setting": module.QUICK}


STUDIES: dict[str, Study] = {
    "convergence": Study(_LIKE_FULL, convergence.convergence, _quick(convergence)),
    "convergence_short": Study(_LIKE_FULL, convergence.convergence, **_SHORT),
    "shortfall": Study(
        "What keeps LoRA of rank 16 from full fine-tuning's loss?", convergence.shortfall, **_AFTER_CONVERGENCE
    ),
    "qlora_tiny": Study(qlora.QUESTION, qlora.on_tiny, {"quant_types": ["nf4"], "seeds": [0]}, **_AFTER_CONVERGENCE),
    "finetuning": Study(finetuning.QUESTION, finetuning.finetuning, **_FINETUNING),
    "qlora_smollm2": Study(qlora.QUESTION, qlora.on_smollm2, needs=("finetuning",), **_FINETUNING),
    "comparison": Study(comparison.QUESTION, comparison.comparison, _quick(comparison)),
    "comparison_smollm2": Study(
        comparison_smollm2.QUESTION, comparison_smollm2.comparison_smollm2, needs=("finetuning",), **_ON_SMOLLM2
    ),
    "intrinsic_dimension": Study(
        "How many numbers must train, in fine-tuning and from scratch?",
        intrinsic.intrinsic_dimension,
        _quick(intrinsic),
    ),
    "spectra": Study(_RANKS, spectra.spectra, _quick(spectra), model="smollm2-135m"),
    "subspaces": Study(
        "Do two LoRA runs find the same directions, and what does W have in them?",
        subspaces.subspaces,
        _quick(subspaces),
    ),
    "learning_rates_by_rank": Study(_RATES, of.learning_rates_by_rank, **_KNOB),
    "alpha": Study("Is α more than another learning rate?", of.alpha, **_KNOB),
    "scaling": Study("Which scaling lets the rank grow while the learning rate stays?", of.scaling, **_KNOB),
    "target_modules": Study("Which matrices need an adapter most?", of.target_modules, **_KNOB),
    "equal_parameters": Study("Where should a given number of parameters go?", of.equal_parameters, **_KNOB),
    "dropout": Study("Does dropout help?", of.dropout, **_KNOB),
    "batch_size": Study("Does LoRA suffer more from large batches?", of.batch_size, **_KNOB),
    "capacity": Study("How much fits into a rank?", capacity.capacity, _quick(capacity)),
}
OTHER_NAMES = {"ranks": "convergence"}  # the sweep over ranks is the comparison's


def study(name: str) -> tuple[str, Study]:
    """The study of that name, or of its other name. Raises KeyError with the names that there are."""
    name = OTHER_NAMES.get(name, name)
    if name not in STUDIES:
        raise KeyError(f"there is no study {name!r}; the studies are {', '.join([*STUDIES, *OTHER_NAMES])}.")
    return name, STUDIES[name]


def make(
    name: str, tables: Mapping[str, Table], workers: Workers = 2, folder: str | Path | None = None, quick: bool = False
) -> Table:
    """The table of a study; `tables` has those that it needs, `folder` has a folder of finished runs for each study.

    Raises ValueError where there is no quick setting, KeyError where a table is missing, FileNotFoundError where a model is.
    """
    name, one = study(name)
    command = f"python -m lora_np study {name}{' --quick' if quick else ''}"
    if quick and one.quick is None:
        raise ValueError(f"the study {name} has no quick setting.")
    for needed in one.needs:
        if needed not in tables:
            first = command.replace(name, needed)
            raise KeyError(f"the study {name} needs the table {needed}: make it first, with {first}")
    if one.model and not quick:
        fetched(one.model)
    less = (one.quick if quick else None) or {}
    options = {**one.options, **less, "folder": folder and Path(folder) / (one.runs or name)}
    if not one.alone:
        options["workers"] = workers
    elif isinstance(workers, str):
        raise ValueError(f"the runs of {name} use all cores of this machine, one by one, and no cluster.")
    table = one.make(*(tables[needed] for needed in one.needs), **options)
    table.command = command
    return table
