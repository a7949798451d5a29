"""The bytes of a training step: weights, gradients, optimizer state, activations and temporaries.

    memory(peft_model, batch=2, seq=256)                            a live model: the bytes of its arrays
    memory("llama-65b", 1, 512, "qlora", r=16, target_modules="all-linear", checkpointing=True)        on paper

A trained number costs its weight, its gradient and two numbers of AdamW's state, 16 bytes in float32; a frozen one costs
its weight. LoRA makes nearly all frozen, and QLoRA stores the frozen ones in about four bits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .activations import Work
from .adaptation import Adaptation
from .anatomy import anatomy
from .architecture import Architecture, architecture_of
from .parameters import adapter_names
from .precision import BYTES, Precision, nf4_bytes, precision_of
from .temporaries import moments, update_moment


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step at its largest moment; `temporaries` are what that moment holds besides the rest."""

    weights: int  # the base's, as they are stored
    adapter: int  # A and B, or what else was added
    gradients: int
    optimizer: int  # its state
    master: int  # the copy of the trained weights that updates are added to; 0 where there is none
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


def memory(
    model: Any,
    batch: int,
    seq: int,
    method: str | None = None,
    r: int | None = None,
    target_modules: str | Collection[str] | None = None,
    precision: str | Precision | None = None,
    double_quant: bool | None = None,
    slots: int = 2,
    checkpointing: bool = False,
    virtual_tokens: int | None = None,
    bottleneck_size: int | None = None,
) -> Memory:
    """The memory of one training step on `batch` sequences of `seq` tokens, from the second step on: the state is there.

    method, r, target_modules, virtual_tokens, bottleneck_size: as `anatomy` takes them; "qlora" stores the matrices of the
        blocks in NF4.
    precision: the name of a recipe in PRECISIONS or a Precision of your own, on paper only; None means "16-bit".
    double_quant: whether NF4's absmax are quantised too, with "qlora" only; None means True.
    slots: how many numbers of state the optimizer has for each trained one: AdamW 2, SGD with momentum 1, without 0.
    checkpointing: the forward keeps of each block its input alone, and the backward runs each block again.

    Of a live model weights, gradients and optimizer state are the bytes of its arrays, an inactive adapter's too, for one
    worker. On paper the activations are those that this library would keep, in the recipe's format: a fused attention keeps
    no scores, and a framework may keep more. Raises ValueError as `anatomy` does, and for settings without a use.
    """
    if batch < 1 or seq < 1 or slots < 0:
        raise ValueError(f"batch {batch}, seq {seq}, slots {slots}: a step has at least one sequence of one token")
    if isinstance(model, str):
        model = architecture_of(model)
    settings = method, r, target_modules, virtual_tokens, bottleneck_size
    if not isinstance(model, Architecture):
        if (*settings, precision, double_quant, checkpointing) != (*[None] * 7, False):
            raise ValueError("a live model is taken as it stands: call get_peft_model first, and give no settings.")
        return live_memory(model, batch, seq, slots)
    work, adaptation = Work(anatomy(model, *settings), batch, seq), Adaptation(*settings)
    quantized = adaptation.method == "qlora"
    if double_quant is not None and not quantized:
        raise ValueError(f"method {adaptation.method!r} has no double_quant: only qlora quantises, and has absmax.")
    formats = precision_of("16-bit" if precision is None else precision)
    weight, (added, trained) = BYTES[formats.weights], adaptation.parameters(model)
    static = {
        "weights": paper_weights(model, weight, quantized, double_quant is not False),
        "adapter": added * weight,
        "gradients": trained * BYTES[formats.gradients],
        "optimizer": trained * slots * BYTES[formats.optimizer],
        "master": trained * BYTES[formats.master] if formats.master else 0,
    }
    return step_memory(work, static, BYTES[formats.activations], BYTES[formats.gradients], checkpointing)


def live_memory(model: Any, batch: int, seq: int, slots: int = 2) -> Memory:
    """The same of a live model, from its arrays. A layer with an `nbytes` of its own, a quantised one, says what it takes."""
    work = Work(anatomy(model), batch, seq)
    parameters = dict(model.named_parameters())
    adapter = sum(parameters[name].value.nbytes for name in adapter_names(model))
    trained = [p for p in parameters.values() if p.trainable]
    gradients = sum(p.value.size * p.compute_dtype.itemsize for p in trained)
    static = {
        "weights": module_bytes(model) - adapter,
        "adapter": adapter,
        "gradients": gradients,
        "optimizer": slots * gradients,
        "master": sum(p.value.size * p.compute_dtype.itemsize for p in trained if p.value.dtype != p.compute_dtype),
    }
    itemsize = next(iter(parameters.values())).value.itemsize
    return step_memory(work, static, itemsize, itemsize)


def step_memory(
    work: Work, static: dict[str, int], activation: int, gradient: int, checkpointing: bool = False
) -> Memory:
    """The largest moment of the step, of those in forward and backward and that of the update, and what it holds.

    static: the parts that do not depend on the batch; activation, gradient: bytes of one number.
    """
    kept = work.kept(checkpointing) * activation + 8 * work.tokens  # and the targets' columns, as int64
    again = max(map(work.kept_by_block, work.body.blocks)) * activation if checkpointing else 0
    largest = max(held * activation + there * gradient for held, there in moments(work)) + kept + again
    largest = max(largest, static["gradients"] + update_moment(work) * gradient)
    return Memory(**static, activations=kept, temporaries=largest - static["gradients"] - kept)


def module_bytes(module: Any, seen: set[int] | None = None) -> int:
    """All parameters at and below `module`, a shared one once; a module with an `nbytes` of its own is taken at its word."""
    seen = set() if seen is None else seen
    if hasattr(module, "nbytes"):
        return module.nbytes
    total = 0
    for _, child in module.children():
        if not hasattr(child, "value"):
            total += module_bytes(child, seen)
        elif id(child) not in seen:
            seen.add(id(child))
            total += child.value.nbytes
    return total


def paper_weights(model: Architecture, weight: int, quantized: bool, double_quant: bool = True) -> int:
    """A model's weights at `weight` bytes a number; quantized: the matrices in its blocks in NF4, a matrix at a time."""
    if not quantized:
        return model.parameters * weight
    matrices = model.layers * sum(linear.out * linear.in_ for linear in model.linears)
    nf4 = model.layers * sum(nf4_bytes(linear.out * linear.in_, double_quant) for linear in model.linears)
    return (model.parameters - matrices) * weight + nf4
