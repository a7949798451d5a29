"""The mapping from tables to pictures, and the function that draws all pictures into figures/."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from .. import plots
from ..studies.harness.table import Table
from ..studies.low_rank import rank_reduction
from ..studies.methods.comparison import lora_by_rank
from ..studies.timing.step_cost import timed_alike

Tables = dict[str, Table]
ON_PAGES = (
    "recovered_gain",
    "bypass",
    "merge_routes",
    "serving",
)  # README and docs/ show these, also to readers of dark pages

PICTURES: dict[str, list[tuple[str, Callable]]] = {  # table → (name of the picture, function)
    "one_matrix": [("one_matrix", plots.one_matrix_chart)],
    "whole_models": [("whole_models", plots.whole_models_chart)],
    "memory_bill": [("memory_bill", plots.memory_bill)],
    "decomposition": [("decomposition_2d", plots.decomposition_2d), ("scene_3d", plots.scene_3d)],
    "singular_values": [("singular_values", plots.singular_values)],
    "truncated_loss": [("truncated_loss", plots.truncated_loss)],
    "convergence": [("convergence_steps", plots.loss_curves), ("learning_rates", plots.learning_rates)],
    "finetuning": [("before_after", plots.before_after), ("learned_and_forgotten", plots.learned_and_forgotten)],
    "quantization_error": [("quantization_error", plots.quantization_error)],
    "quantization_distances": [("nf4_codes", plots.nf4_codes), ("error_by_distance", plots.error_by_distance)],
    "quantization_gradients": [("gradient_cosines", plots.gradient_cosines)],
    "merge_drift": [("merge_drift", plots.merge_drift)],
    "combinations": [("combinations", plots.combinations_chart)],
    "serving": [("serving", plots.serving_chart)],
    "speed": [("speed", plots.speed_chart)],
    "speed_scaling": [("speed_scaling", plots.scaling_chart)],
    "comparison": [("methods_learned_and_forgotten", plots.methods_learned_and_forgotten)],
    "comparison_smollm2": [("quality_on_smollm2", plots.quality_against_parameters)],
    "spectra": [("rank_by_layer", plots.rank_by_layer)],
    "subspaces": [("similarity_maps", plots.similarity_maps), ("amplification", plots.amplification_chart)],
    "alpha": [("alpha", plots.alpha_chart)],
    "scaling": [("scaling", plots.rank_scaling_chart)],
    "target_modules": [("target_modules", plots.target_modules_chart)],
    "equal_parameters": [("equal_parameters", plots.equal_parameters_chart)],
    "dropout": [("dropout", plots.dropout_chart)],
    "batch_size": [("batch_size", plots.batch_size_chart)],
    "capacity": [("capacity", plots.capacity_chart), ("memory_knee", plots.memory_knee)],
}
# Pictures of several tables: name → (tables that it needs, tables that it also shows if they are given, function).
TOGETHER: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable]] = {
    "recovered_gain": (("convergence",), ("convergence_short",), plots.recovered_gain),
    "convergence_seconds": (
        ("convergence", "step_cost"),
        (),
        lambda measured, cost: plots.loss_curves(timed_alike(measured, cost), x="seconds"),
    ),
    "quality_against_parameters": (
        ("comparison",),
        ("convergence",),
        lambda compared, *ranks: plots.quality_against_parameters(
            compared, *(lora_by_rank(compared, t) for t in ranks)
        ),
    ),
    "learning_rates_by_rank": (("learning_rates_by_rank", "convergence"), (), plots.rates_by_rank),
    "intrinsic_dimension": (("intrinsic_dimension", "convergence"), (), plots.intrinsic_dimension),
    "qlora": (("qlora_tiny",), ("qlora_smollm2",), plots.qlora_losses),
    "merge_routes": (("merge_routes_tiny",), ("merge_routes_smollm2",), plots.merge_routes_chart),
}
ALONE: dict[str, Callable] = {  # pictures that need no study's table
    "bypass": plots.bypass_diagram,
    "method_diagrams": plots.method_diagrams,
    "photograph": lambda: plots.photograph(photograph()),
}


def draw(tables: Tables, folder: Path, changed: Collection[str] | None = None) -> list[str]:
    """Draw every picture of these tables as a .png in `folder`, and return the names of the pictures.

    If `changed` is given, only the pictures that show one of these tables are drawn. The pictures of README
    and docs/ are also drawn in dark colours, in the subfolder `dark`.
    """
    import matplotlib.pyplot as plt

    drawings: list[tuple[tuple[str, ...], str, Callable]]
    drawings = [((key,), name, f) for key, table in tables.items() for name, f in PICTURES.get(key, [])]
    for name, (needed, also, f) in TOGETHER.items():
        if tables.keys() >= set(needed):
            drawings.append(((*needed, *(key for key in also if key in tables)), name, f))
    if changed is None:
        drawings += [((), name, f) for name, f in ALONE.items()]
    else:
        drawings = [drawing for drawing in drawings if set(drawing[0]) & set(changed)]
    for shown, name, f in drawings:
        figure = f(*(tables[key] for key in shown))
        plots.save(figure, folder, name)
        if name in ON_PAGES:
            plots.save(figure, folder / "dark", name, dark=True)
        plt.close(figure)
    return [name for _, name, _ in drawings]


def photograph() -> Table:
    """Return a table of low-rank approximations of a photograph: matplotlib's sample picture in grey, at half size."""
    from matplotlib.cbook import get_sample_data
    from matplotlib.image import imread

    colour = imread(get_sample_data("grace_hopper.jpg", asfileobj=False))[::2, ::2]
    return rank_reduction.photograph(colour.astype(float) @ np.array([0.299, 0.587, 0.114]))  # ITU-R BT.601 luma
