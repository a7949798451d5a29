"""The methods on a real language model: SmolLM2-135M learns the style of a lighthouse keeper by each method.

The runs of full fine-tuning and LoRA are read from the table `finetuning`. The other methods are trained here on the
same conversations, with the same steps and schedule. Each method has its own best learning rate, from a sweep in
factors of three. Other methods of METHODS can be added to `Setting.rates`, for example
{"prefix-mlp": (3e-3, 1e-2, 3e-2)}; if the other runs are finished, the study then trains only the new methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ... import AdamW, PeftModel, Transformer
from ..harness import voice_task
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.voice_task import FineTuning
from .comparison import trained, with_gains
from .settings import R, methods

QUESTION = "How much does a real language model learn and forget with each method?"
METHODS = methods(alpha_over_r=2)  # α/r of harness/voice_task.py
_USUAL, _LOWER = (1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3)
# The first rates of each method. On the model tiny, the best rates of rsLoRA, PiSSA and VeRA are 0.5, 0.25 and 16 times
# LoRA's, and LoRA+'s rate of A is 1/16 of LoRA's. The sweeps start with the same ratios to LoRA's best rate, 3e-3.
RATES: dict[str, Sequence[float]] = {
    **{"qlora": _USUAL, "dora": _USUAL, "prefix": (3e-2, 1e-1, 3e-1), "houlsby": _USUAL},
    **{"rslora": _LOWER, "pissa": _LOWER, "lora-fa": _USUAL, "lora+": (1e-4, 3e-4, 1e-3)},
    **{"vera": (1e-2, 3e-2, 1e-1), "pfeiffer": _USUAL},
}
KEPT = (
    "method",
    "lr",
    "seed",
    "steps",
    "heldout",
    "final",
    "validation",
    "prose",
    "seconds",
    "trainable",
    "share",
    "how",
)


@dataclass(frozen=True)
class MethodFineTuning(FineTuning):
    """The settings of one run with a method of METHODS."""

    how: str = field(init=False)  # the method's settings in METHODS

    def __post_init__(self) -> None:
        object.__setattr__(self, "how", METHODS[self.method].how())

    def load(self) -> Transformer | PeftModel:
        """Return the model, ready for training."""
        return METHODS[self.method].model(self.base_model(), self.seed)

    def optimizer(self) -> AdamW:
        """Return AdamW without weight decay; with LoRA+, the rate of B is a multiple of `lr`."""
        return METHODS[self.method].optimizer(self.lr)


@dataclass(frozen=True)
class Setting:
    """The settings of the study: methods with learning rates, seeds, and the settings that all runs share."""

    rates: Mapping[str, Sequence[float]] = field(default_factory=lambda: RATES)
    seeds: Sequence[int] = (0, 1, 2)
    factor: float = 3.0  # between the rates that are added if the best rate is the first or the last one
    base: FineTuning = field(default_factory=lambda: FineTuning("full", 0.0))


FULL = Setting()


def measure(run: MethodFineTuning) -> dict[str, Any]:
    """Train once and return the row of `voice_task.measure` without the generated answers.

    The losses are None if the run diverged.
    """
    return voice_task.measure(run, lambda model, run: voice_task.losses(model, run) | trained(model))


def comparison_smollm2(
    known: Table, setting: Setting = FULL, workers: int = 1, folder: str | Path | None = None
) -> Table:
    """Compare the methods on SmolLM2-135M. The losses are in nats per token.

    The columns are `method`, `lr`, `seed`, `phase`, `steps`, `heldout`, `final`, `validation`, `prose`, `seconds`,
    `trainable`, `share` and `how`. `known` is the table `finetuning`, with the runs of full fine-tuning and LoRA. `phase` is
    "sweep" or "seeds", as in `comparison`. The rows of "seeds" also have `recovered` and `forgotten`. The settings have
    `base_loss` and `base_prose` (losses of the untrained model) and the number of runs trained here. Each run uses
    several threads, so use one worker.
    """
    base, before = setting.base, known.settings["before"]
    same = {name: value for name, value in asdict(base).items() if name not in ("method", "lr")}
    runs = {MethodFineTuning(name, 0.0, **same): lrs for name, lrs in setting.rates.items()}
    given = voice_task.shared(base)
    ours = at_their_best(measure, runs, setting.seeds, workers, folder, given, setting.factor)
    sizes = {name: trained(METHODS[name].model(base.base_model(), 0)) for name in ("full", "lora")}
    seeds = [row | sizes[row["method"]] for row in known.where(phase="seeds")] + ours.seeds
    rates, seeds = ([{key: row[key] for key in KEPT if key in row} for row in rows] for rows in (ours.rates, seeds))
    labels = {name: METHODS[name].label for name in (*sizes, *setting.rates)}
    settings = asdict(setting) | {"base_loss": before["final"], "base_prose": before["prose"], "r": R}
    settings |= {"labels": labels, "runs": len(ours.runs)}
    rows, command = (
        with_gains(rates, seeds, before["final"], before["prose"]),
        "python -m lora_np study comparison_smollm2",
    )
    return Table("comparison_smollm2", QUESTION, command, settings, rows, seconds=ours.seconds())
