"""Compare methods: how much each method learns of new text and forgets of old text, and how many parameters it trains.

The model "tiny", which knows English prose, learns Python code, as in convergence/study.py. Each method has its own
best learning rate, which is chosen on other held-out code. Each evaluation measures the loss on held-out code and on
held-out prose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ... import data, load_model
from ...nn import Trainable
from ...training import Batch, History, Optimizer, evaluate
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.tiny_task import curve, heldout_batches, recovered, shared, train_by, validation_batches
from ..harness.workers import Row
from .settings import METHODS, R

QUESTION = "How much does each method learn and forget, and how many parameters does it train?"
FIRST = {  # method → the first learning rate of its sweep, from pilot runs of 40 steps; LoRA+: A's rate, B's is 16 times as large
    **{"full": 5e-4, "lora": 2e-3, "qlora": 2e-3, "rslora": 1e-3, "dora": 2e-3, "pissa": 2.5e-4, "lora-fa": 1e-3},
    **{"lora+": 6.25e-5, "vera": 3.2e-2, "prefix": 4e-2, "prefix-mlp": 4e-3, "houlsby": 2e-3, "pfeiffer": 2e-3},
}
RATES: dict[str, Sequence[float]] = {name: (lr, 2 * lr, 4 * lr) for name, lr in FIRST.items()}


@dataclass(frozen=True)
class Run:
    """The settings of one training run. With the base and the text, these settings determine the result of the run."""

    method: str  # a name in METHODS
    lr: float
    seed: int = 0
    max_steps: int = 200
    batch_size: int = 8
    seq_len: int = 128
    eval_every: int = 25
    base: str = "tiny"
    how: str = field(init=False)  # the method's settings in METHODS: if they change, it is another run

    def __post_init__(self) -> None:
        object.__setattr__(self, "how", METHODS[self.method].how())

    def model(self) -> Trainable:
        """Return the base, ready for training."""
        return METHODS[self.method].model(load_model(self.base), self.seed)


@dataclass(frozen=True)
class Setting:
    """The settings of the study: methods with learning rates, seeds and steps."""

    rates: Mapping[str, Sequence[float]] = field(default_factory=lambda: RATES)
    bracket: bool = True  # extend a sweep if its best rate is the first or the last one
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 200
    batch_size: int = 8
    eval_every: int = 25
    base: str = "tiny"

    def runs(self) -> dict[Run, list[float]]:
        """Return one run per method with the learning rates to try."""
        same = {"max_steps": self.steps, "batch_size": self.batch_size, "eval_every": self.eval_every}
        return {Run(name, 0.0, base=self.base, **same): list(lrs) for name, lrs in self.rates.items()}


FULL = Setting()
QUICK = Setting({name: RATES[name][1:2] for name in ("full", "lora", "prefix", "houlsby")}, False, (0,), 60)


@cache
def prose_batches() -> list[Batch]:
    """Return held-out English prose: the base was trained on similar text, and no run trains on this prose."""
    return data.heldout_batches(data.corpus("prose", "heldout"), 16, 128, windows=64)


def fine_tune(run: Run) -> tuple[Trainable, Optimizer, History]:
    """Train with the settings of `run` on the standard task, and evaluate on code and on prose."""
    model, optimizer = run.model(), METHODS[run.method].optimizer(run.lr)
    batches = data.Batches(data.corpus("code", "train"), run.batch_size, run.seq_len, run.seed)
    heldout = {"heldout": heldout_batches(), "prose": prose_batches()}
    options: dict[str, Any] = {"eval_every": run.eval_every, "label": run.method, "progress": False}
    return model, optimizer, train_by(run, model, batches, heldout, optimizer, **options)


def measure(run: Run) -> dict[str, Any]:
    """Train once. The row has the losses on held-out code ("heldout") and prose in nats per byte, over steps and seconds.

    `final` is the last loss on code. `validation` is the loss on other held-out code, which is used to choose the
    learning rate. `final` and `validation` are None if the run diverged. The function `trained` returns the columns
    `trainable` and `share`; the function `state_bytes` returns the column `state_bytes`.
    """
    columns = ("heldout", "prose", "seconds")
    try:
        model, optimizer, history = fine_tune(run)
    except FloatingPointError:
        return asdict(run) | curve(None, *columns) | dict.fromkeys(("final", "validation"))
    row = asdict(run) | curve(history, *columns)
    row |= {"final": row["heldout"][-1], "validation": evaluate(model, validation_batches())}
    return row | trained(model) | {"state_bytes": state_bytes(model, optimizer, heldout_batches()[0])}


def lora_by_rank(compared: Table, ranks: Table) -> Table | None:
    """Return the runs of LoRA in all linear layers, at every rank of the table `convergence`.

    The columns are `r`, `seed`, `trainable` and `recovered`. Returns None if full fine-tuning, or LoRA of rank R, has
    different final losses in the two tables: the runs were then not trained in the same way.
    """
    runs = ranks.where(phase="seeds", method="lora", target_modules="all-linear")
    alike = {"full": ranks.where(phase="seeds", method="full"), "lora": [row for row in runs if row["r"] == R]}
    for method, theirs in alike.items():
        ours = compared.where(phase="seeds", method=method)
        if not ours or {row["seed"]: row["final"] for row in ours} != {row["seed"]: row["final"] for row in theirs}:
            return None
    each = compared.where(phase="seeds", method="lora")[0]["trainable"] / R  # trained numbers per rank
    rows = [{key: row[key] for key in ("r", "seed", "recovered")} for row in sorted(runs, key=lambda row: row["r"])]
    rows = [row | {"trainable": round(each * row["r"])} for row in rows]
    return Table("lora_by_rank", ranks.question, ranks.command, {"r": R}, rows)


def trained(model: Trainable) -> dict[str, Any]:
    """Return the number of trained parameters, and this number divided by the number of the base's parameters."""
    added = {id(p) for p in model.adapter_parameters()} if hasattr(model, "adapter_parameters") else ()
    parameters = [p for _, p in model.named_parameters()]
    size = sum(p.value.size for p in parameters if p.trainable)
    return {"trainable": size, "share": size / sum(p.value.size for p in parameters if id(p) not in added)}


def state_bytes(model: Trainable, optimizer: Optimizer, batch: Batch) -> int:
    """Return the bytes of the trained parameters, their gradients and the optimizer's state after a step."""
    _, kept = model.loss(*batch)
    model.backward(kept)
    arrays = [x for _, p in model.named_parameters() if p.trainable for x in (p.value, p.grad) if x is not None]
    arrays += [x for slots in optimizer.state.values() for x in slots.values()]
    model.zero_grad()
    return sum(x.nbytes for x in arrays)


def comparison(setting: Setting = FULL, workers: int = 2, folder: str | Path | None = None) -> Table:
    """Try several learning rates for each method with the first seed. Then run the best rate with the other seeds.

    The rows are the rows of `measure` with the additional column `phase`: "sweep" (first seed, every rate) or "seeds"
    (best rate, every seed). The rows of the phase "seeds" have two more columns. `recovered` is the share of full
    fine-tuning's gain; `forgotten` is the loss on prose minus the base's loss on prose, in nats per byte. The settings
    have `base_loss`, `base_validation` and `base_prose` (losses of the untrained base), the methods' labels, and the
    number of runs. `folder` keeps each finished run, so that a stopped study can be resumed.
    """
    given = hashlib.sha256(shared(setting.base).encode())  # a digest of the data that all runs share
    for tokens, _ in prose_batches():
        given.update(tokens.tobytes())
    factor = 2.0 if setting.bracket else None
    found = at_their_best(measure, setting.runs(), setting.seeds, workers, folder, given.hexdigest(), factor)
    texts = {"base_loss": heldout_batches(), "base_validation": validation_batches(), "base_prose": prose_batches()}
    start = {name: evaluate(load_model(setting.base), batches) for name, batches in texts.items()}
    labels = {name: METHODS[name].label for name in setting.rates}
    rows = with_gains(found.rates, found.seeds, start["base_loss"], start["base_prose"])
    settings = asdict(setting) | start | {"labels": labels, "runs": len(found.runs)}
    command = "python -m lora_np study comparison"
    return Table("comparison", QUESTION, command, settings, rows, seconds=found.seconds())


def with_gains(rates: Sequence[Row], seeds: Sequence[Row], base_loss: float, base_prose: float) -> list[Row]:
    """Return the rows of both phases; the rows of the phase "seeds" also have `recovered` and `forgotten`."""
    rows = [row | {"phase": "sweep"} for row in rates]
    for row, share in zip(seeds, recovered(seeds, base_loss), strict=True):
        prose = row["prose"][-1] if isinstance(row["prose"], list) else row["prose"]  # a curve, or its last value
        rows.append(row | {"phase": "seeds", "recovered": share, "forgotten": prose - base_prose})
    return rows
