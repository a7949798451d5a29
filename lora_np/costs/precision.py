"""How many bytes a number takes: the formats of a recipe, and NF4 counted to the byte."""

from __future__ import annotations

from dataclasses import dataclass

from ..quantization.four_bits import ABSMAX_BLOCK

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
NF4_BLOCK = 64  # weights that share an absmax


@dataclass(frozen=True)
class Precision:
    """Which format each part of training is kept in; the names are those of `BYTES`.

    weights: the format of the model's weights and of its adapters; activations: that of activations and temporaries;
        optimizer: that of each array of its state (AdamW's m and v); master: that of the copy of the trained weights that
        receives the updates, or None.

    Raises ValueError for a format that is not known.
    """

    weights: str = "float32"
    gradients: str = "float32"
    optimizer: str = "float32"
    master: str | None = None
    activations: str = "float32"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value not in BYTES and not (name == "master" and value is None):
                raise ValueError(f"{name} = {value!r}; expected one of {', '.join(BYTES)}")

    def bytes_per_trained(self, slots: int = 2) -> int:
        """Weight, gradient, `slots` of optimizer state and master copy of one trained parameter."""
        master = BYTES[self.master] if self.master else 0
        return BYTES[self.weights] + BYTES[self.gradients] + slots * BYTES[self.optimizer] + master


PRECISIONS: dict[str, Precision] = {
    # this library's own: 4 + 4 + 2·4 = 16 bytes a trained parameter
    "float32": Precision(),
    # Micikevicius et al. 2018, as Rajbhandari et al. 2020 (ZeRO, section 3.1) count it: 2 + 2 + 2·4 + 4 = 16
    "mixed": Precision("bfloat16", "bfloat16", master="float32", activations="bfloat16"),
    # without a master copy, 2 + 2 + 2·4 = 12: the "more than 780 GB" for 65B of Dettmers et al. 2023
    "16-bit": Precision("bfloat16", "bfloat16", activations="bfloat16"),
}


def nf4_bytes(numbers: int, double_quant: bool = True) -> int:
    """One matrix of so many numbers in NF4, or another four-bit type: two codes a byte, a float32 absmax for each block of 64.

    With `double_quant` an absmax takes one byte, and 256 of them share a float32; the mean that was subtracted from them is
    one more. So 4 + 32/64 = 4.5 bits a weight, and 4 + 8/64 + 32/(64·256) = 4.127. Blocks are rounded up; the tables of 16
    and 256 values are one for all matrices, and not counted. Source: Dettmers et al. 2023, section 3.
    """
    blocks = -(-numbers // NF4_BLOCK)
    absmax = blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4 if double_quant else 4 * blocks
    return (numbers + 1) // 2 + absmax


def precision_of(name: str | Precision) -> Precision:
    """The recipe called `name`, or a Precision of your own. Raises ValueError with the known names."""
    if isinstance(name, Precision):
        return name
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; costs.PRECISIONS has {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
