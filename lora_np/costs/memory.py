"""The bytes of a training step: weights, gradients, optimizer state, activations and temporaries.

    memory(peft_model, batch=2, seq=256)                                          a live model: the bytes of its arrays
    memory("llama-65b", LoraConfig(r=16), batch=1, seq=512, quantize="nf4")       on paper

A trained number costs its weight, its gradient and two numbers of AdamW's state, 16 bytes in float32; a frozen one costs
its weight. LoRA makes nearly all frozen, and QLoRA stores the frozen ones in about four bits.
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
    """Bytes of one training step at its largest moment; `temporaries` are what that moment holds besides the rest."""

    weights: int  # the base's, as they are stored
    adapter: int  # A and B, or what else was added
    gradients: int
    optimizer: int  # its state
    master: int  # the copy of the trained weights that updates are added to, or 0 if the recipe keeps no copy
    activations: int  # what the forward keeps for the backward, logits among it
    temporaries: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def fits(self, gigabytes: float) -> bool:
        """Whether all of it fits in so many GB of 10⁹ bytes."""
        return self.total <= gigabytes * 1e9

    def __str__(self) -> str:
        """A table in GB of 10⁹ bytes, as cards are sold, and in GiB of 2³⁰, as systems count."""
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
    """The memory of one training step on `batch` sequences of `seq` tokens, from the second step on: the state is there.

    model: a name in MODELS, an Architecture, or a live Transformer or PeftModel, which is taken as it is.
    config: on paper how the model is adapted, as `get_peft_model` takes it; None means full fine-tuning.
    quantize: on paper the four-bit type of the blocks' matrices, "nf4", "fp4" or "int4", which take the same bytes.
    double_quant: whether their absmax are quantised too; None means True.
    precision: on paper the name of a recipe in PRECISIONS, or a Precision of your own; None means "16-bit".
    slots: how many numbers of state the optimizer has for each trained one: AdamW 2, SGD with momentum 1, without 0.
    checkpointing: on paper the forward keeps of each block its input alone, and the backward runs each block again.

    Of a live model weights, gradients and optimizer state are the bytes of its arrays, an inactive adapter's too, for one
    worker. On paper the activations are those that this library would keep, in the recipe's format. Fused
    attention keeps no scores. Other frameworks may keep more.

    Raises ValueError for an unknown model, for a target module that matches no layer, for a method that does not say its
    cost, and for a setting without a use; TypeError for what is not a model or not a configuration.
    """
    if batch < 1 or seq < 1 or slots < 0:
        raise ValueError(f"batch {batch}, seq {seq}, slots {slots}: a step has at least one sequence of one token")
    subject = resolve_model(model, config, quantize)
    if isinstance(subject, LiveModel):
        if precision is not None or double_quant is not None or checkpointing:
            raise ValueError(LIVE_MODEL_ERROR)
        static, activation, gradient = subject.fixed_bytes(slots), subject.itemsize, subject.itemsize
    else:
        if double_quant is not None and quantize is None:
            raise ValueError(f"double_quant={double_quant} is a setting of a quantised base: give quantize='nf4' too")
        formats = precision_of("16-bit" if precision is None else precision)
        static = subject.fixed_bytes(formats, double_quant is not False, slots)
        activation, gradient = BYTES[formats.activations], BYTES[formats.gradients]
    return step_memory(TrainingStep(subject.structure(), batch, seq), static, activation, gradient, checkpointing)


def step_memory(
    step: TrainingStep, static: dict[str, int], activation: int, gradient: int, checkpointing: bool = False
) -> Memory:
    """The largest moment of the step, of those in forward and backward and that of the update, and what it holds.

    static: the parts that do not depend on the batch; activation, gradient: bytes of one number.
    """
    kept = step.saved(checkpointing) * activation + 8 * step.tokens  # and the targets' columns, as int64
    again = max(map(step.saved_by_block, step.structure.blocks)) * activation if checkpointing else 0
    largest = max(held * activation + there * gradient for held, there in peak_candidates(step)) + kept + again
    largest = max(largest, static["gradients"] + update_peak(step) * gradient)
    return Memory(**static, activations=kept, temporaries=largest - static["gradients"] - kept)
