"""The number formats of mixed-precision training with their sizes in bytes, and the exact size of NF4 weights."""

from __future__ import annotations

from dataclasses import dataclass

from ..quantization.four_bits import ABSMAX_BLOCK

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
NF4_BLOCK = 64  # weights that share an absmax


@dataclass(frozen=True)
class Precision:
    """The number format of each part of a training step: "float64", "float32", "bfloat16" or "float16".

    Parameters
    ----------
    weights : str
        Format of the model's weights and of its adapters.
    gradients : str
        Format of the gradients.
    optimizer : str
        Format of the optimizer's state (AdamW's m and v).
    master : str or None
        Format of the copy of the trained weights that the optimizer updates; None if there is no copy.
    activations : str
        Format of activations and temporaries.

    Raises
    ------
    ValueError
        If a format is unknown.

    Examples
    --------
    >>> from lora_np.costs import Precision
    >>> Precision(weights="bfloat16", gradients="bfloat16", master="float32").bytes_per_trained()
    16
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
        """Return the bytes per trained parameter, for the weight, gradient, optimizer state and master copy.

        Parameters
        ----------
        slots : int
            How many numbers the optimizer stores per parameter: 2 for AdamW, 1 for SGD with momentum, 0 for plain SGD.

        Returns
        -------
        int
            Bytes per trained parameter.
        """
        master = BYTES[self.master] if self.master else 0
        return BYTES[self.weights] + BYTES[self.gradients] + slots * BYTES[self.optimizer] + master


PRECISIONS: dict[str, Precision] = {
    # training in this library: 4 + 4 + 2·4 = 16 bytes per trained parameter
    "float32": Precision(),
    # Micikevicius et al. 2018; count of Rajbhandari et al. 2020 (ZeRO, section 3.1): 2 + 2 + 2·4 + 4 = 16
    "mixed": Precision("bfloat16", "bfloat16", master="float32", activations="bfloat16"),
    # without a master copy, 2 + 2 + 2·4 = 12: the "more than 780 GB" for 65B of Dettmers et al. 2023
    "16-bit": Precision("bfloat16", "bfloat16", activations="bfloat16"),
}


def nf4_bytes(numbers: int, double_quant: bool = True) -> int:
    """Return the bytes of one matrix in NF4 or another four-bit type.

    A byte holds two codes, and each block of 64 weights has a float32 absmax: 4 + 32/64 = 4.5 bits per weight. With
    double quantisation, an absmax takes one byte, 256 absmax values share a float32 scale, and each matrix has one
    float32 mean. With double quantisation, a weight takes 4 + 8/64 + 32/(64·256) = 4.127 bits. An incomplete last block
    counts as a whole block. The code tables of 16 and 256 values are not counted, because all matrices share them.

    Parameters
    ----------
    numbers : int
        Number of weights of the matrix.
    double_quant : bool
        Whether the absmax values are quantised too.

    Returns
    -------
    int
        Bytes.

    References
    ----------
    Dettmers et al. 2023, QLoRA (arXiv 2305.14314), section 3.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.nf4_bytes(4096 * 4096, double_quant=False) / 4096**2 * 8
    4.5
    """
    blocks = -(-numbers // NF4_BLOCK)
    absmax = blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4 if double_quant else 4 * blocks
    return (numbers + 1) // 2 + absmax


def precision_of(name: str | Precision) -> Precision:
    """Return the Precision called `name`, or `name` itself if it is a Precision.

    Raises ValueError for an unknown name.
    """
    if isinstance(name, Precision):
        return name
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; costs.PRECISIONS has {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
