"""The pictures: each function takes the table of a study and returns a matplotlib `Figure`.

`save(figure, folder, name)` writes the picture as a .png. In a notebook, write `;` after the call that makes a picture.
Otherwise Jupyter shows the picture twice.
"""

from .optional import extra

with extra("course", "a picture"):
    import matplotlib  # noqa: F401, imported here so that a missing matplotlib is reported in one line

from .studies.capacity.pictures import capacity_chart, memory_knee
from .studies.convergence.pictures import learning_rates, loss_curves, recovered_gain
from .studies.counting.bypass_picture import bypass_diagram
from .studies.counting.memory_pictures import memory_bill
from .studies.counting.parameters_pictures import one_matrix_chart, whole_models_chart
from .studies.finetuning.pictures import before_after, learned_and_forgotten
from .studies.four_bits.pictures import (
    error_by_distance,
    gradient_cosines,
    merge_routes_chart,
    nf4_codes,
    qlora_losses,
    quantization_error,
)
from .studies.gradients.pictures import block_diagram, gradient_shadows, relative_errors, step_flops, step_sizes
from .studies.harness.style import save
from .studies.hyperparameters.pictures import (
    batch_size_chart,
    dropout_chart,
    equal_parameters_chart,
    target_modules_chart,
)
from .studies.hyperparameters.rates_and_scale_pictures import (
    alpha_chart,
    rank_scaling_chart,
    rates_by_rank,
)
from .studies.low_rank.intrinsic_pictures import intrinsic_dimension
from .studies.low_rank.rank_reduction_pictures import (
    decomposition_2d,
    photograph,
    singular_values,
    truncated_loss,
)
from .studies.low_rank.scene_picture import scene_3d
from .studies.low_rank.spectra_pictures import rank_by_layer
from .studies.low_rank.subspaces_pictures import amplification_chart, similarity_maps
from .studies.methods.comparison_pictures import (
    methods_learned_and_forgotten,
    quality_against_parameters,
)
from .studies.methods.diagrams import method_diagram, method_diagrams
from .studies.serving.pictures import combinations_chart, merge_drift, serving_chart
from .studies.timing.pictures import scaling_chart, speed_chart

__all__ = [
    "alpha_chart",
    "amplification_chart",
    "batch_size_chart",
    "before_after",
    "block_diagram",
    "bypass_diagram",
    "capacity_chart",
    "combinations_chart",
    "decomposition_2d",
    "dropout_chart",
    "equal_parameters_chart",
    "error_by_distance",
    "gradient_cosines",
    "gradient_shadows",
    "intrinsic_dimension",
    "learned_and_forgotten",
    "learning_rates",
    "loss_curves",
    "memory_bill",
    "memory_knee",
    "merge_drift",
    "merge_routes_chart",
    "method_diagram",
    "method_diagrams",
    "methods_learned_and_forgotten",
    "nf4_codes",
    "one_matrix_chart",
    "photograph",
    "qlora_losses",
    "quality_against_parameters",
    "quantization_error",
    "rank_by_layer",
    "rank_scaling_chart",
    "rates_by_rank",
    "recovered_gain",
    "relative_errors",
    "save",
    "scaling_chart",
    "scene_3d",
    "serving_chart",
    "similarity_maps",
    "singular_values",
    "speed_chart",
    "step_flops",
    "step_sizes",
    "target_modules_chart",
    "truncated_loss",
    "whole_models_chart",
]
