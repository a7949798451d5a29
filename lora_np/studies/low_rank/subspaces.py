"""Do two LoRA runs find the same directions, and how large is W in these directions? (Hu et al. 2021, §7.2 and §7.3.)

The runs train LoRA in all linear layers of "tiny", with several ranks and seeds. The overlap φ compares the top
directions of two runs. The amplification (table 7 of the paper) is ‖ΔW‖ divided by the size of the frozen weight W in
the directions of ΔW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ... import PeftModel
from ...peft.lora.layer import LoraAdapter
from ...peft.placement import adapted_layers
from ..harness.runs import run_all
from ..harness.table import Table, rounded
from ..harness.tiny_task import Run, fine_tune, shared
from ..harness.workers import Row
from .spectra import layer_and_module, powers_of_two

MODULES = ("q_proj", "v_proj")  # their directions are compared, as in the paper
MAPPED = 2  # the middle layer: its φ is kept for every i and j


def directions(matrix: np.ndarray) -> np.ndarray:
    """Return the right singular vectors of a matrix (out, in) as columns of V (in, n), the largest singular value first."""
    return np.linalg.svd(matrix.astype(np.float64), full_matrices=False)[2].T


def similarity(V1: np.ndarray, V2: np.ndarray) -> np.ndarray:
    """Return φ(i, j) = ‖V₁[:, :i]ᵀ V₂[:, :j]‖²_F / min(i, j) for all i and j.

    φ is the share of the smaller span that lies in the larger span. V1 (d, n) and V2 (d, m) have orthonormal columns.
    The result has the shape (n, m); the element [i − 1, j − 1] is φ(i, j). If one span contains the other span, φ is 1;
    if the two spans are orthogonal, φ is 0. The squares of the entries of V₁ᵀV₂ are squared cosines. The sum of these
    squares over the first i rows and the first j columns, divided by min(i, j), is φ(i, j).
    """
    n, m = V1.shape[1], V2.shape[1]
    sums = np.cumsum(np.cumsum((V1.T @ V2) ** 2, axis=0), axis=1)  # (n, m)
    return sums / np.minimum(np.arange(1, n + 1)[:, None], np.arange(1, m + 1))


def chance(n: int, m: int, d: int) -> np.ndarray:
    """Return the mean of φ over random subspaces of R^d: max(i, j)/d, as an array (n, m).

    Each of the i·j squared cosines has the mean 1/d. The sum of these squared cosines has the mean i·j/d. To get φ, the
    sum is divided by min(i, j); i·j/min(i, j) = max(i, j).
    """
    return np.maximum(np.arange(1, n + 1)[:, None], np.arange(1, m + 1)) / d


def amplification(W: np.ndarray, delta: np.ndarray, r: int) -> dict[str, float]:
    """Measure W (out, in) in the top r directions of ΔW (out, in), as in table 7 of Hu et al. 2021.

    If U (out, r) and V (in, r) are the top r singular vectors of a matrix, ‖Uᵀ W V‖_F is the size of W in the
    directions of this matrix. `in_delta` is the size of W in the directions of ΔW, and `in_W` is the size of W in the
    directions of W. `in_random` is the root mean square of the size of W over random directions, r ‖W‖_F / √(out·in).
    `norm_W` and `norm_delta` are ‖W‖_F and ‖ΔW‖_F. `factor` is the amplification, norm_delta / in_delta.
    """

    def inside(matrix: np.ndarray) -> float:
        U, _, Vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        return float(np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T))

    norm_W, norm_delta, in_delta = float(np.linalg.norm(W)), float(np.linalg.norm(delta)), inside(delta)
    held = {"in_delta": in_delta, "in_W": inside(W), "in_random": r * norm_W / float(np.sqrt(W.size))}
    return {"norm_W": norm_W, "norm_delta": norm_delta, **held, "factor": norm_delta / in_delta}


def measure(run: Run) -> Row:
    """Train.

    Return a dict: "amplification" (one row per layer), "factors" ([A before training, A, B] by name), "seconds".
    """
    untrained, (model, history) = run.model(), fine_tune(run)
    assert isinstance(untrained, PeftModel) and isinstance(model, PeftModel) and run.r is not None
    before, base, amplified, factors = adapted_layers(untrained.model), run.base_model().state_dict(), [], {}
    for name, layer in adapted_layers(model.model).items():
        amplified.append(
            layer_and_module(name) | amplification(base[f"{name}.weight"], layer.delta_weight("default"), run.r)
        )
        if name.endswith(MODULES):
            start, lora = before[name].adapters["default"], layer.adapters["default"]
            assert isinstance(start, LoraAdapter) and isinstance(lora, LoraAdapter)
            three = [start.lora_A.value, *lora.factors(np.float32)]
            factors[name] = [[[rounded(x, 7) for x in row] for row in M] for M in three]
    return {"amplification": amplified, "factors": factors, "seconds": history.rows[-1]["seconds"]}


@dataclass(frozen=True)
class Setting:
    """The runs: each rank with its best learning rate in the study "convergence"."""

    rates: tuple[tuple[int, float], ...] = ((4, 4e-3), (8, 4e-3), (64, 5e-4))
    low: int = 8  # `low` is compared with `high`, and `high` with `high`
    high: int = 64
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 200
    base: str = "tiny"

    def run(self, r: int, seed: int) -> Run:
        """The run of one rank and seed."""
        steps = {"max_steps": self.steps, "eval_every": self.steps}
        return Run("lora", dict(self.rates)[r], r, "all-linear", seed, base=self.base, **steps)


FULL = Setting()
QUICK = Setting(rates=((4, 4e-3), (16, 2e-3)), low=4, high=16, seeds=(0, 1), steps=40)


def subspaces(setting: Setting = FULL, workers: int = 2, folder: str | Path | None = None) -> Table:
    """Compute φ of pairs of runs, and the amplification of each run.

    The rows of the kind "similarity" have `of`, `layer`, `module`, `r`, `seeds`, `d`, `i`, `j` and `phi`, where
    phi[k][l] is φ(i[k], j[l]). The rows of the layer MAPPED and the first pair of seeds also have `map`, with φ for all
    i and j. `of` is "A" for the right singular vectors of A, the directions in R^in that the adapter reads. `of` is "B"
    for the left singular vectors of B, the directions in R^out that the adapter writes. `of` is "A at the start" for A
    before training, which is random. The ranks of a pair of runs are `low` and `high`, or `high` and `high`. The two
    runs have different seeds, because with the same seed the matrices A of the first layer would start with the same
    rows. The rows of the kind "amplification" have `r`, `seed`, `layer`, `module` and the columns of `amplification`.
    """
    runs = [setting.run(r, seed) for seed in setting.seeds for r, _ in setting.rates]
    measured = dict(zip(runs, run_all(measure, runs, workers, folder, "subspaces", shared(setting.base)), strict=True))
    rows: list[Row] = []
    pairs = list(zip(setting.seeds, [*setting.seeds[1:], setting.seeds[0]], strict=True))
    for ranks in ((setting.low, setting.high), (setting.high, setting.high)):
        for seeds in pairs if len(setting.seeds) > 2 else pairs[:1]:
            one, other = (measured[setting.run(r, s)]["factors"] for r, s in zip(ranks, seeds, strict=True))
            for name in one:
                who = {"r": list(ranks), "seeds": list(seeds)} | layer_and_module(name)
                whole = who["layer"] == MAPPED and seeds == pairs[0]
                found = _compared(one[name], other[name], whole)
                rows += [{"kind": "similarity", "of": row["of"]} | who | row for row in found]
    for run, row in measured.items():
        for each in row["amplification"]:
            short = {key: rounded(x) if isinstance(x, float) else x for key, x in each.items()}
            rows.append({"kind": "amplification", "r": run.r, "seed": run.seed} | short)
    question = "Do two LoRA runs find the same directions, and how large is W in these directions?"
    command, settings = "python -m lora_np study subspaces", asdict(setting) | {"runs": len(runs)}
    seconds = sum(row["seconds"] for row in measured.values())
    return Table("subspaces", question, command, settings, rows, seconds=seconds)


def _compared(one: list, other: list, whole: bool) -> list[Row]:
    """Compare two layers, each given as [A before training, A, B].

    Return rows with the columns `of`, `d`, `i`, `j` and `phi`. If `whole` is true, the rows also have `map`.
    """
    (start1, A1, B1), (start2, A2, B2) = ([np.array(M) for M in three] for three in (one, other))
    pairs = {"A at the start": (start1, start2), "A": (A1, A2), "B": (B1.T, B2.T)}
    i, j = powers_of_two(len(A1)), powers_of_two(len(A2))
    found = []
    for of, (M1, M2) in pairs.items():
        V1, V2 = directions(M1), directions(M2)
        phi = np.round(similarity(V1, V2), 3)
        some = phi[np.ix_(np.array(i) - 1, np.array(j) - 1)].tolist()
        found.append({"of": of, "d": len(V1), "i": i, "j": j, "phi": some} | ({"map": phi.tolist()} if whole else {}))
    return found
