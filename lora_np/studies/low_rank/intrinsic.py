"""How many numbers must be trained?

The study measures the intrinsic dimension d90 of fine-tuning, and of learning from random weights. All weights move,
but only within a random subspace of d dimensions (training/subspace.py). The dimension d90 is the smallest d that
reaches 90 % of the gain of full training after equally many steps (Li et al. 2018, arXiv 1804.08838; for fine-tuning
Aghajanyan et al. 2020, arXiv 2012.13255). Training starts from "tiny", which was trained on English prose, or from
random weights in the same architecture. From both starts the model learns Python code.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ... import costs, data
from ...nn import Trainable
from ...peft import LoraConfig, get_peft_model
from ...pretrained import load_model
from ...training.subspace import DenseProjection, Projection, SparseProjection, SubspaceModel
from ...transformer import Transformer
from ..harness.runs import finished, run_all, sweep, validation
from ..harness.table import Table, rounded
from ..harness.tiny_task import Run, measure, shared
from ..harness.workers import Row
from ..pretraining.study import TINY

PROJECTIONS: dict[str, type[Projection]] = {"sparse": SparseProjection, "dense": DenseProjection}


def smallest(
    reaches: Callable[[int], bool], start: int, most: int, factor: float = 2, resolution: float = 1
) -> int | None:
    """Return the smallest d ≤ `most` with `reaches(d)`, or None if `reaches(most)` is false.

    d starts at `start` and is multiplied by `factor` until `reaches(d)` is true. Then the last interval is bisected in
    log d, until its upper end is at most `resolution` times its lower end. With `resolution` = 1 the two ends become
    neighbouring integers. The function assumes that `reaches` is true for every larger d.
    """
    low, high = 0, min(start, most)
    while not reaches(high):
        if high == most:
            return None
        low, high = high, min(most, math.ceil(high * factor))
    while high - low > 1 and high > resolution * low:
        middle = min(max(round(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class SubspaceRun(Run):
    """A run that trains d numbers, or all weights (d = None).

    The seed determines the subspace, the batches and, for the base "random", the weights.
    """

    d: int | None = None
    projection: str = "sparse"  # a key of PROJECTIONS

    def base_model(self) -> Transformer:
        """The model before training: the base, or for "random" an untrained model with the architecture of "tiny"."""
        return Transformer.random(TINY, self.seed) if self.base == "random" else load_model(self.base)

    def model(self) -> Trainable:
        """The model to train: θ₀ + P z, or all weights if d is None."""
        model = self.base_model()
        if self.d is None:
            return model
        return SubspaceModel(model, PROJECTIONS[self.projection](size(model), self.d, self.seed, np.float32))


def size(model: Trainable) -> int:
    """Return D, the number of parameters of a model."""
    return sum(p.value.size for _, p in model.named_parameters())


@dataclass(frozen=True)
class Setting:
    """The settings of the study: bases, numbers of dimensions, learning rates and seeds.

    In a subspace the learning rates are multiplied by √(D/d). AdamW moves each zⱼ by about the learning rate. Therefore
    each weight moves by about √(d/D) times the learning rate. With the factor √(D/d) the weights move as far as in full
    training.
    """

    bases: Sequence[str] = ("tiny", "random")
    # the first d to try; the search for d90 continues by the same factor
    dimensions: Sequence[int] = (1024, 4096, 16384, 65536, 262144)
    # base → the first learning rates of full training
    lrs: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("tiny", (1e-3, 2e-3, 4e-3)),
        # many rates: from random weights the loss may fall, rise and fall again as the rate grows
        ("random", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)),
    )
    share: float = 0.9  # the share of the gain that d90 must reach
    resolution: float = 2**0.5  # the factor within which d90 is found
    # in the search, the first seed decides alone further than this from `share`, nearer the mean over all seeds
    margin: float = 0.05
    control: int | None = 128  # a d at which a dense subspace is compared with the sparse subspace: P needs 4·D·d bytes
    bracket: bool = True  # extend a sweep if its best learning rate is at its edge
    seeds: Sequence[int] = (0, 1, 2)
    repeated: Sequence[str] = ("random",)  # bases that train every d with every seed: their curve can fall as d grows
    steps: int = 200
    batch_size: int = 8

    def run(self, base: str, d: int | None, projection: str = "sparse") -> SubspaceRun:
        """A run of d dimensions with the first seed; its learning rate is not set yet."""
        run = SubspaceRun("full" if d is None else "subspace", 0.0, base=base, d=d, projection=projection)
        return replace(run, seed=self.seeds[0], max_steps=self.steps, batch_size=self.batch_size, eval_every=self.steps)


FULL = Setting()
QUICK = Setting(
    ("tiny",),
    (1024, 16384),
    (("tiny", (2e-3,)),),
    share=0.5,
    resolution=4,
    control=None,
    bracket=False,
    seeds=(0, 1),
    steps=40,
)


class SubspaceSearch:
    """Trains one base in subspaces of several d: a sweep of learning rates, and more seeds near the goal.

    The attribute `done` maps each d (D: full training) to one row per seed at the best learning rate. The attribute
    `tried` has the rows of the sweeps, and `repeats` has the rows of the other seeds.
    """

    def __init__(
        self, setting: Setting, base: str, workers: int, folder: str | Path | None, projection: str = "sparse"
    ) -> None:
        self.setting, self.base, self.workers, self.folder, self.projection = setting, base, workers, folder, projection
        self.D = size(setting.run(base, None).base_model())
        self.given = shared("tiny" if base == "random" else base)
        self.done: dict[int, list[Row]] = {}
        self.tried: list[Row] = []
        self.repeats: list[Row] = []

    def learn(self, dimensions: Sequence[int], rates: Sequence[float], bracket: bool = False) -> None:
        """Train each d of `dimensions` at several learning rates: the `rates` of full training times √(D/d)."""
        methods = {}
        for d in dimensions:
            run = self.setting.run(self.base, None if d == self.D else d, self.projection)
            methods[run] = [rounded(lr * math.sqrt(self.D / d), 3) for lr in rates]
        tried = sweep(measure, methods, self.workers, self.folder, self.given, 2.0 if bracket else None)
        for run, rows in tried.items():
            self.done[run.d or self.D] = finished([min(rows, key=validation)])
            self.tried += rows

    def repeat(self, *dimensions: int) -> None:
        """Train each d of `dimensions` with the seeds that have no run yet."""
        known = [self.done[d][0] for d in dimensions if len(self.done[d]) < len(self.setting.seeds)]
        rates = {self.setting.run(self.base, row["d"], self.projection): row["lr"] for row in known}
        runs = [replace(run, lr=lr, seed=seed) for run, lr in rates.items() for seed in self.setting.seeds[1:]]
        repeats = finished(run_all(measure, runs, self.workers, self.folder, "seeds", self.given))
        for row in repeats:
            self.done[row["d"] or self.D].append(row)
        self.repeats += repeats

    def gain(self, d: int) -> float:
        """Return the gain with d dimensions in nats per byte: the mean over the seeds that were trained."""
        return statistics.mean(row["heldout"][0] - row["final"] for row in self.done[d])

    def reaches(self, d: int) -> bool:
        """Return whether d dimensions reach the wanted share of the gain.

        If d is new, it is first trained at the best learning rates of the next smaller and the next larger d.
        """
        if d not in self.done:
            beside = [*sorted(k for k in self.done if k < d)[-1:], *sorted(k for k in self.done if k > d)[:1]]
            rates = {rounded(self.done[k][0]["lr"] / math.sqrt(self.D / k), 2) for k in beside}
            self.learn([d], sorted(rates), self.setting.bracket)
        if abs(self.gain(d) / self.gain(self.D) - self.setting.share) <= self.setting.margin:
            self.repeat(d)
        return self.gain(d) >= self.setting.share * self.gain(self.D)

    def rows(self, full_gain: float) -> list[Row]:
        """Return the rows of all runs; the rows of the phase "seeds" also have the share of `full_gain`."""
        keys = ("base", "projection", "seed", "lr", "final", "validation")

        def row(run: Row, phase: str) -> Row:
            start = run["heldout"][0] if run["heldout"] else None
            return {"phase": phase, "d": run["d"] or self.D} | {key: run[key] for key in keys} | {"start": start}

        seeds = [row(run, "seeds") for d in sorted(self.done) for run in self.done[d]]
        seeds = [run | {"share": (run["start"] - run["final"]) / full_gain} for run in seeds]
        return [row(run, "sweep") for run in self.tried] + seeds


def intrinsic_dimension(setting: Setting = FULL, workers: int = 2, folder: str | Path | None = None) -> Table:
    """Measure d90 of each start, and the gain against d.

    The columns are `phase`, `base`, `d`, `projection`, `seed`, `lr`, `start`, `final` and `validation`. The phase
    "sweep" runs the first seed at every learning rate of z. The rows of the phase "seeds" have the best learning rate
    and the column `share`: the gain divided by the mean gain of full training. For the bases in `repeated`, this phase
    runs every seed at each d. For other bases, it runs every seed near d90, at D and at the control, and only the first
    seed at other d. d = D is full training. `start` and `final` are the losses before and after training in nats per
    byte. The settings have `D` and the number of runs. The setting "d90" has d90 by base, or None if no d reached the
    goal. The setting "unigram" is the loss of a model that knows only the byte frequencies. The setting "lora" has the
    number of LoRA's parameters in all linear layers, by rank. If `control` is set, the first base is also trained in a
    dense and in a sparse subspace of this d. Finished runs are saved in `folder`.
    """
    d90, learners, rows, rates = {}, [], [], dict(setting.lrs)
    for base in setting.bases:
        learner = SubspaceSearch(setting, base, workers, folder)
        learner.learn([*setting.dimensions, learner.D], rates[base], setting.bracket)
        learner.repeat(learner.D)
        first, factor = setting.dimensions[0], setting.dimensions[1] / setting.dimensions[0]
        d90[base] = smallest(learner.reaches, first, learner.D, factor, setting.resolution)
        if base in setting.repeated:
            learner.repeat(*learner.done)
        rows += learner.rows(learner.gain(learner.D))
        learners.append(learner)
    if setting.control:
        for projection in PROJECTIONS:
            control = SubspaceSearch(setting, setting.bases[0], workers, folder, projection)
            control.learn([setting.control], rates[setting.bases[0]], setting.bracket)
            control.repeat(setting.control)
            rows += control.rows(learners[0].gain(learners[0].D))
            learners.append(control)
    runs = [run for learner in learners for run in [*learner.tried, *learner.repeats]]
    question = "How many dimensions does training need, in fine-tuning and from scratch?"
    command = "python -m lora_np study intrinsic_dimension"
    settings = asdict(setting) | {"D": learners[0].D, "d90": d90, "runs": len(runs), "lora": lora_parameters()}
    settings["unigram"] = data.unigram_loss(data.corpus("code", "train"), data.corpus("code", "heldout"))
    seconds = sum(run["seconds"][-1] for run in runs if run["seconds"])
    return Table("intrinsic_dimension", question, command, settings, rows, seconds=seconds)


def lora_parameters(ranks: Sequence[int] = (1, 2, 4, 8, 16, 64)) -> dict[str, int]:
    """Return the number of LoRA's parameters in all linear layers of "tiny", by rank."""
    adapted = {r: get_peft_model(load_model("tiny"), LoraConfig(r=r, target_modules="all-linear")) for r in ranks}
    return {str(r): costs.count(model).trainable for r, model in adapted.items()}
