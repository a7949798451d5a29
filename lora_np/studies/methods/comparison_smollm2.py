"""The methods on a real language model: SmolLM2-135M learns a voice by each of them, beside full fine-tuning and LoRA.

The runs of the study finetuning are read from its table; the others are trained here on the same records, steps and schedule. Each
is at its own best rate of a sweep by factors of three. What else is in METHODS can be put into `Setting.rates`:
{"pissa": (1e-3, 3e-3, 1e-2)}, say.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...nn import Module
from ...training import evaluate
from ..harness import voice_task
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.voice_task import FineTuning
from .comparison import trained
from .settings import R, methods

METHODS = methods(alpha_over_r=2)  # as harness/voice_task.py has it
KEPT = ("method", "lr", "seed", "steps", "heldout", "final", "validation", "prose", "seconds")


@dataclass(frozen=True)
class MethodFineTuning(FineTuning):
    """One run by a method of METHODS."""

    how: str = field(init=False)  # what METHODS has under that name

    def __post_init__(self) -> None:
        object.__setattr__(self, "how", METHODS[self.method].how())

    def load(self) -> Module:
        """The model, made ready to train."""
        return METHODS[self.method].model(self.base_model(), self.seed)


@dataclass(frozen=True)
class Setting:
    """How much of the study to run."""

    rates: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {
            "qlora": (1e-3, 3e-3, 1e-2),
            "dora": (1e-3, 3e-3, 1e-2),
            "prefix": (3e-2, 1e-1, 3e-1),
            "houlsby": (1e-3, 3e-3, 1e-2),
        }
    )
    seeds: Sequence[int] = (0, 1, 2)
    factor: float = 3.0  # by which a sweep whose best is at its edge goes on
    base: FineTuning = field(default_factory=lambda: FineTuning("full", 0.0))


FULL = Setting()


def measure(run: MethodFineTuning) -> dict[str, Any]:
    """Train once: the row of `voice_task.measure`, without answers. The losses are None where it diverged."""
    try:
        model, history = voice_task.fine_tune(run)
    except FloatingPointError:
        lost = dict.fromkeys(("validation", "final", "prose"))
        return asdict(run) | lost | {"steps": [], "heldout": [], "seconds": []}
    points = [row for row in history.rows if "heldout" in row]
    row = {"steps": [p["step"] for p in points]} | {key: [p[key] for p in points] for key in ("heldout", "seconds")}
    choosing, judging = voice_task.heldout(run)
    texts = {"validation": choosing, "final": judging, "prose": voice_task.prose(run)}
    return asdict(run) | row | {name: evaluate(model, batches) for name, batches in texts.items()} | trained(model)


def comparison_smollm2(
    known: Table, setting: Setting = FULL, workers: int = 1, folder: str | Path | None = None
) -> Table:
    """Rows {method, lr, seed, phase, steps, heldout, final, validation, prose, seconds, trainable, share}, in nats a token.

    known is the table of `finetuning`, with the runs of full fine-tuning and LoRA. phase is "sweep" or "seeds", as in
    `comparison`, and those of "seeds" have `recovered` and `forgotten` too. settings: base_loss and base_prose, of the model
    untouched; runs, how many were trained here. A run has threads of its own, so one worker is meant.
    """
    settings = {
        key: getattr(setting.base, key) for key in FineTuning.__dataclass_fields__ if key not in ("method", "lr")
    }
    runs = {MethodFineTuning(name, 0.0, **settings): lrs for name, lrs in setting.rates.items()}
    given = voice_task.shared(setting.base)
    ours = at_their_best(measure, runs, setting.seeds, workers, folder, given, setting.factor)
    sizes = {name: trained(METHODS[name].model(setting.base.base_model(), 0)) for name in ("full", "lora")}
    seeds = [row | sizes[row["method"]] for row in known.where(phase="seeds")] + ours.seeds
    before = known.settings["before"]
    full = statistics.mean(row["final"] for row in seeds if row["method"] == "full")
    kept = (*KEPT, "trainable", "share")
    labels = {name: METHODS[name].label for name in (*sizes, *setting.rates)}
    return Table(
        study="comparison_smollm2",
        question="What does a real language model learn and forget by each method?",
        command="python -m lora_np study comparison_smollm2",
        settings=asdict(setting)
        | {
            "base_loss": before["final"],
            "base_prose": before["prose"],
            "r": R,
            "labels": labels,
            "runs": len(ours.runs),
        },
        rows=[{key: row[key] for key in kept if key in row} | {"phase": "sweep"} for row in ours.rates]
        + [
            {key: row[key] for key in kept if key in row}
            | {"phase": "seeds", "recovered": (before["final"] - row["final"]) / (before["final"] - full)}
            | {"forgotten": row["prose"] - before["prose"]}
            for row in seeds
        ],
        seconds=ours.seconds(),
    )
