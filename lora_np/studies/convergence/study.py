"""Does LoRA reach the loss of full fine-tuning? The study compares the held-out losses.

The study trains "tiny", a model of English prose, on Python code, with several ranks and choices of target modules.
First, each method is trained at several learning rates with one seed. Then each method is trained at its best rate with
the other seeds. If a best rate is the smallest or the largest that was tried, a smaller or a larger rate is tried too.
The rates are chosen on one held-out text, and the methods are compared on another held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...pretrained import load_model
from ...training import evaluate
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.tiny_task import Run, heldout_batches, measure, recovered, shared, validation_batches
from ..harness.workers import Row, Workers


@dataclass(frozen=True)
class Setting:
    """The settings of the study: methods, learning rates, seeds and steps."""

    ranks: Sequence[int] = (1, 2, 4, 8, 16, 64)
    targets: Sequence[str] = ("all-linear", "attention")
    full_lrs: Sequence[float] = (5e-4, 1e-3, 2e-3)
    lora_lrs: Sequence[float] = (2e-3, 4e-3, 8e-3)
    bracket: bool = True  # extend a sweep if its best rate is at its edge
    alpha_over_r: float = 8  # equal for all ranks; chosen in a pilot run with r = 16 on an earlier base
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 200
    batch_size: int = 8
    eval_every: int = 20
    base: str = "tiny"

    def methods(self) -> dict[Run, list[float]]:
        """Return each method with the learning rates of its first sweep."""
        run = Run("full", 0.0, alpha_over_r=self.alpha_over_r, max_steps=self.steps, base=self.base)
        run = replace(run, batch_size=self.batch_size, eval_every=self.eval_every)
        lora = [replace(run, method="lora", r=r, target_modules=t) for t in self.targets for r in self.ranks]
        return {run: list(self.full_lrs)} | {each: list(self.lora_lrs) for each in lora}


FULL = Setting()
# The same study with a quarter of the steps, to test whether the result depends on the length of training.
SHORT = replace(FULL, ranks=(1, 8, 16), targets=("all-linear",), steps=50, eval_every=10)
QUICK = replace(SHORT, ranks=(1, 8), full_lrs=(2e-3,), lora_lrs=(4e-3,), bracket=False, seeds=(0,), steps=80)


def convergence(setting: Setting = FULL, workers: Workers = 2, folder: str | Path | None = None) -> Table:
    """Train each method at several learning rates with the first seed, then at the best rate with all seeds.

    The column `phase` is "sweep" (first seed, all learning rates) or "seeds" (best rate, all seeds). The rows of
    "seeds" also have the column `recovered`. The setting "base_loss" is the base model's loss on the text that is used
    to compare the methods. The setting "base_validation" is the base model's loss on the text that is used to choose
    the learning rates. Finished runs are stored in `folder`, so that an interrupted study can resume.
    """
    given, factor = shared(setting.base), 2.0 if setting.bracket else None
    found = at_their_best(measure, setting.methods(), setting.seeds, workers, folder, given, factor)
    texts = {"base_loss": heldout_batches(), "base_validation": validation_batches()}
    bases = {key: evaluate(load_model(setting.base), batches) for key, batches in texts.items()}
    rows = [row | {"phase": "sweep"} for row in found.rates]
    rows += [row | {"phase": "seeds", "recovered": share} for row, share in _shares(found.seeds, bases["base_loss"])]
    question, command = "Does LoRA reach the loss of full fine-tuning?", "python -m lora_np study convergence"
    return Table("convergence", question, command, asdict(setting) | bases, rows, seconds=found.seconds())


def _shares(rows: Sequence[Row], base_loss: float) -> Iterator[tuple[Row, float]]:
    """Yield each row with the share of full fine-tuning's gain that the run recovers."""
    return zip(rows, recovered(rows, base_loss), strict=True)


def shortfall(table: Table, r: int = 16, workers: Workers = 2, folder: str | Path | None = None) -> Table:
    """Measure why LoRA does not reach full fine-tuning's loss: the low rank, or the frozen embedding and norms.

    The method "linear" is full fine-tuning of the linear layers only, without a low rank. The method "lora+rest" trains
    LoRA of rank r, the embedding and the norms. `table` is the result of `convergence`. The columns are `method`, `r`,
    `lr`, `seed`, `final` and `recovered`. There is one row per seed for each method, at the method's best learning
    rate.
    """
    full = table.where(phase="seeds", method="full")
    lora = table.where(phase="seeds", method="lora", r=r, target_modules="all-linear")
    seeds = [row["seed"] for row in full]
    known = {key: full[0][key] for key in ("max_steps", "batch_size", "eval_every", "base", "alpha_over_r")}
    runs = {
        Run(name, 0.0, of["r"], of["target_modules"], **known): [of["lr"] / 2, of["lr"], 2 * of["lr"]]
        for name, of in {"linear": full[0], "lora+rest": lora[0]}.items()
    }
    factor, base_loss = 2.0 if table.settings["bracket"] else None, table.settings["base_loss"]
    found = at_their_best(measure, runs, seeds, workers, folder, shared(known["base"]), factor)
    measured = sorted([*full, *found.seeds, *lora], key=lambda row: seeds.index(row["seed"]))
    kept = ("method", "r", "lr", "seed", "final")
    rows = [{key: row[key] for key in kept} | {"recovered": share} for row, share in _shares(measured, base_loss)]
    question = f"Why does LoRA of rank {r} not reach full fine-tuning's loss?"
    settings = known | {"base_loss": base_loss, "runs": len(found.runs)}
    command = "python -m lora_np study shortfall"
    return Table("shortfall", question, command, settings, rows, seconds=found.seconds())
