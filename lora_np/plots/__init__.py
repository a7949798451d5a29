"""One picture a function: each takes a `Table`, returns a matplotlib `Figure`, and knows nothing of training.

`save(figure, folder, name)` writes the .png and the .svg. In a notebook a line ends with `;`, or its
picture shows twice.
"""

from lora_np.plots.bypass import bypass_diagram
from lora_np.plots.capacity import capacity_chart, memory_knee
from lora_np.plots.comparison import methods_learned_and_forgotten, quality_against_parameters
from lora_np.plots.convergence import learning_rates, loss_curves, recovered_gain
from lora_np.plots.finetuning import before_after, learned_and_forgotten
from lora_np.plots.gradients import block_diagram, gradient_shadows, relative_errors, step_flops, step_sizes
from lora_np.plots.hyperparameters import (
    batch_size_chart,
    dropout_chart,
    equal_parameters_chart,
    target_modules_chart,
)
from lora_np.plots.intrinsic import intrinsic_dimension
from lora_np.plots.memory import memory_bill
from lora_np.plots.merging import combinations_chart, merge_drift
from lora_np.plots.methods import method_diagram, method_diagrams
from lora_np.plots.parameters import one_matrix_chart, whole_models_chart
from lora_np.plots.quantization import (
    error_by_distance,
    gradient_cosines,
    merge_routes_chart,
    nf4_codes,
    qlora_losses,
    quantization_error,
)
from lora_np.plots.rank_reduction import decomposition_2d, photograph, scene_3d, singular_values, truncated_loss
from lora_np.plots.rates_and_scale import alpha_chart, rank_scaling_chart, rates_by_rank
from lora_np.plots.serving import serving_chart
from lora_np.plots.spectra import rank_by_layer
from lora_np.plots.speed import scaling_chart, speed_chart
from lora_np.plots.style import save
from lora_np.plots.subspaces import amplification_chart, similarity_maps

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
