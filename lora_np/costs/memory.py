"""The bytes of a training step: weights, gradients, optimizer state, activations and temporaries.

    memory(peft_model, batch=2, seq=256)                                          a model in memory
    memory("llama-65b", LoraConfig(r=16), batch=1, seq=512, quantize="nf4")       a planned model, without arrays

A trained parameter takes 16 bytes in float32: 4 bytes each for its weight, its gradient and the two numbers of AdamW's
state. A frozen parameter takes memory only for its weight. LoRA freezes nearly all parameters, and QLoRA stores the
frozen weights in about four bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..peft.config import PeftConfig
from .activations import TrainingStep
from .live import LiveModel
from .precision import BYTES, Precision, precision_of
from .resolve import LIVE_MODEL_ERROR, Model, resolve_model, with_usage_in_errors
from .temporaries import peak_candidates, update_peak


@dataclass(frozen=True)
class Memory:
    """The peak memory of one training step, in bytes.

    Parameters
    ----------
    weights : int
        The base model's weights, as they are stored.
    adapter : int
        The adapters' parameters.
    gradients : int
        The gradients of all trained parameters.
    optimizer : int
        The optimizer's state.
    master : int
        The high-precision copy of the trained weights, which the optimizer updates. Without such a copy, it is 0.
    activations : int
        The arrays that the forward pass saves for the backward pass, logits included.
    temporaries : int
        All other arrays at the peak of the step.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> step = costs.memory("llama-2-7b", LoraConfig(r=16), batch=1, seq=512, quantize="nf4", checkpointing=True)
    >>> step.fits(8), f"{step.total / 1e9:.1f} GB"
    (True, '4.3 GB')
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    master: int
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        """The sum of all parts, in bytes."""
        return sum(vars(self).values())

    def fits(self, gigabytes: float) -> bool:
        """Return True if the step fits into the given memory.

        Parameters
        ----------
        gigabytes : float
            Memory in GB of 10⁹ bytes.

        Returns
        -------
        bool
            True if `total` is at most `gigabytes`·10⁹ bytes.
        """
        return self.total <= gigabytes * 1e9

    def __str__(self) -> str:
        """Return a table of all parts in GB (10⁹ bytes) and in GiB (2³⁰ bytes)."""
        lines = [f"{'':<16}{'GB (10⁹)':>12}{'GiB (2³⁰)':>12}"]
        for name, size in {**vars(self), "sum": self.total}.items():
            lines.append(f"{name:<16}{size / 1e9:>12,.3f}{size / 2**30:>12,.3f}")
        return "\n".join(lines)


@with_usage_in_errors
def memory(
    model: Model,
    config: PeftConfig | None = None,
    *,
    batch: int,
    seq: int,
    quantize: str | None = None,
    double_quant: bool | None = None,
    precision: str | Precision | None = None,
    slots: int = 2,
    checkpointing: bool = False,
) -> Memory:
    """Compute the peak memory of one training step, with the optimizer state allocated.

    For a model in memory, the bytes of the weights, gradients and optimizer state follow from the model's arrays in one
    worker. Inactive adapters are included. The activations are for one call of `loss` on the whole batch; `train`
    divides a batch of more than 1,024 tokens into several calls, and needs less memory. With 32 tokens or fewer, the
    products copy their results, so a step can need up to twice the computed temporary memory. For a planned model (a
    name or an Architecture), the activations are the arrays that this library would save, in the format of `precision`.
    Other frameworks can save more arrays. With fused attention, other frameworks save no attention scores.

    Parameters
    ----------
    model : str, Architecture, Transformer or PeftModel
        A name in `MODELS`, an architecture, or a model in memory.
    config : PeftConfig or None
        For a planned model: the configuration of its adapter, as in `get_peft_model`. None means full fine-tuning.
    batch, seq : int
        Number of sequences, and number of tokens per sequence.
    quantize : {"nf4", "fp4", "int4"} or None
        For a planned model: the four-bit type of the blocks' matrices. All three types need the same number of bytes.
    double_quant : bool or None
        Whether the absmax values (one per block of weights) are quantised too; None means True.
    precision : str, Precision or None
        For a planned model: a key of `PRECISIONS`, or a Precision. None means "16-bit".
    slots : int
        How many numbers the optimizer stores per trained parameter: 2 for AdamW, 1 for SGD with momentum, 0 for plain
        SGD.
    checkpointing : bool
        True for gradient checkpointing: each block saves only its input, and the backward pass repeats the block's forward
        pass.

    Returns
    -------
    Memory
        The bytes by part; `print` shows them as a table.

    Raises
    ------
    ValueError
        If the model is unknown, if a target module matches no layer, if the method does not define its cost, or if an
        argument does not apply to this model.
    TypeError
        If `model` has a wrong type, or if `config` is not a configuration.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> full = costs.memory("llama-2-7b", batch=1, seq=512, checkpointing=True)
    >>> lora = costs.memory("llama-2-7b", LoraConfig(r=16), batch=1, seq=512, checkpointing=True)
    >>> f"{full.total / 1e9:.0f} GB, {lora.total / 1e9:.0f} GB"
    '81 GB, 14 GB'
    """
    if batch < 1 or seq < 1 or slots < 0:
        raise ValueError(
            f"batch {batch}, seq {seq}, slots {slots}; expected batch and seq of at least 1, and slots of at least 0"
        )
    subject = resolve_model(model, config, quantize)
    if isinstance(subject, LiveModel):
        if precision is not None or double_quant is not None:
            raise ValueError(LIVE_MODEL_ERROR)
        static, activation, gradient = subject.fixed_bytes(slots), subject.itemsize, subject.itemsize
    else:
        if double_quant is not None and quantize is None:
            raise ValueError(f"double_quant={double_quant} needs a quantised base; give quantize='nf4' too")
        formats = precision_of("16-bit" if precision is None else precision)
        static = subject.fixed_bytes(formats, double_quant is not False, slots)
        activation, gradient = BYTES[formats.activations], BYTES[formats.gradients]
    return step_memory(TrainingStep(subject.structure(), batch, seq), static, activation, gradient, checkpointing)


def step_memory(
    step: TrainingStep, static: dict[str, int], activation: int, gradient: int, checkpointing: bool = False
) -> Memory:
    """Return the memory at the peak of the step.

    The peak is in the forward pass, in the backward pass or in the optimizer update.

    `static` contains the bytes of the parts that do not depend on the batch. `activation` and `gradient` are the bytes
    per element of activations and of gradients.
    """
    saved = step.saved(checkpointing) * activation + 8 * step.tokens  # the targets are int64
    saved += 8 * step.seq * step.structure.learned_positions  # the positions too
    peak = max(floats * activation + gradients * gradient for floats, gradients in peak_candidates(step, checkpointing))
    peak = max(peak + saved, static["gradients"] + update_peak(step) * gradient)
    return Memory(**static, activations=saved, temporaries=peak - static["gradients"] - saved)
