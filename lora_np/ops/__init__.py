"""The mathematics: each layer is a forward function and its hand-derived backward function.

    y, cache  = f_forward(inputs…)
    gradients = f_backward(dy, cache)        # one per differentiable input, in the order of the inputs

A gradient is written `dx` for ∂L/∂x and has the shape of x. The cache contains the arrays that the backward function
needs from the forward function. The cache is stored by the caller, not by the layer, so two batches can use one layer
at the same time. Shapes in the comments:

    b batch   t time   s keys (time, plus any past)   h query heads   g key/value heads   d head size
    r rank    v vocabulary   n tokens (b·t)   … any number of leading axes

The functions run in float32 (for training), float64 (for gradient checks) and complex128 (for the complex step, see
gradient_check.py), on NumPy and on CuPy. Reading order: linear, lora, grouped_lora, dora, vera, dropout, embedding,
norm, layer_norm, rotary, attention, activation, softcap, loss; for generation: few_rows, one_query.
"""

from .activation import (
    geglu_backward,
    geglu_forward,
    gelu_backward,
    gelu_forward,
    sigmoid,
    silu_backward,
    silu_forward,
    swiglu_backward,
    swiglu_forward,
)
from .attention import attention_backward, attention_forward, softmax_backward, softmax_forward
from .dora import dora_backward, dora_forward, row_norm_backward, row_norm_forward
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_backward, embedding_forward
from .grouped_lora import grouped_lora_backward, grouped_lora_forward
from .layer_norm import layer_norm_backward, layer_norm_forward
from .linear import linear_backward, linear_forward
from .lora import lora_backward, lora_forward, lora_linear_backward, lora_linear_forward
from .loss import IGNORE_INDEX, cross_entropy_backward, cross_entropy_forward
from .norm import rms_norm_backward, rms_norm_forward
from .one_query import attention_step
from .rotary import rotary_backward, rotary_forward, rotary_tables
from .softcap import softcap_backward, softcap_forward
from .vera import vera_backward, vera_forward

__all__ = [
    "IGNORE_INDEX",
    "attention_backward",
    "attention_forward",
    "attention_step",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dora_backward",
    "dora_forward",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "geglu_backward",
    "geglu_forward",
    "gelu_backward",
    "gelu_forward",
    "grouped_lora_backward",
    "grouped_lora_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "lora_backward",
    "lora_forward",
    "lora_linear_backward",
    "lora_linear_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "rotary_tables",
    "row_norm_backward",
    "row_norm_forward",
    "sigmoid",
    "silu_backward",
    "silu_forward",
    "softcap_backward",
    "softcap_forward",
    "softmax_backward",
    "softmax_forward",
    "swiglu_backward",
    "swiglu_forward",
    "vera_backward",
    "vera_forward",
]
