"""A model as a training step meets it: which layer reads what, what is trained, and where the backward stops.

A block has two halves of the same structure, and Sublayer describes one of them:

    x → norm → layers that read → attention, or the MLP's activation → the layer that writes → + x
"""

from __future__ import annotations

from dataclasses import dataclass

from ..peft.config import PeftConfig
from ..peft.cost import AdapterCost, PrefixCost


@dataclass(frozen=True)
class Layer:
    """A linear layer in a step: W (out, in), frozen or trained, and an adapter where it has one."""

    name: str
    out: int
    in_: int
    trained: bool  # W itself gets a gradient
    adapter: AdapterCost | None = None
    trainable: bool = False  # anything here is: W, a bias, or of the adapter
    quantized: bool = False  # W is stored in fewer bits, and decoded for each product

    @property
    def keeps_x(self) -> bool:
        """Whether it needs its own x in the backward: for dW, or for dA where no dropout has made another x of it."""
        return self.trained or (self.adapter is not None and self.adapter.keeps_x)

    @property
    def gradients(self) -> int:
        """How many numbers get one: those of W, and of the adapter."""
        return self.out * self.in_ * self.trained + (self.adapter.gradients(self.out, self.in_) if self.adapter else 0)

    @property
    def largest_array(self) -> int:
        """The numbers of its largest trained array."""
        return max(
            self.out * self.in_ * self.trained, self.adapter.largest_array(self.out, self.in_) if self.adapter else 0
        )


@dataclass(frozen=True)
class Sublayer:
    """Half a block: a norm, the layers that read what it makes, and the one that writes back to the residual stream."""

    norm_trained: bool
    input_layers: tuple[Layer, ...]
    output_layer: Layer
    is_attention: bool
    prefix_trained: bool = False  # a prefix that is trained gives this attention keys and values

    @property
    def input_layers_trainable(self) -> bool:
        return any(layer.trainable for layer in self.input_layers)

    @property
    def inner_trainable(self) -> bool:
        """Whether the gradient must come through the layer that writes, to the keys and values or what reads the norm."""
        return self.input_layers_trainable or self.prefix_trained

    @property
    def trainable(self) -> bool:
        return self.norm_trained or self.inner_trainable or self.output_layer.trainable


@dataclass(frozen=True)
class ModelStructure:
    """Everything that determines the FLOPs and the memory of a training step, except the number of tokens."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    embedding_trained: bool
    blocks: tuple[tuple[Sublayer, Sublayer], ...]  # (attention, MLP)
    norm_trained: bool
    head: Layer
    prefix: PrefixCost | None = None

    @property
    def virtual_tokens(self) -> int:
        return self.prefix.v if self.prefix else 0

    def sublayers(self) -> list[tuple[Sublayer, bool]]:
        """(sublayer, whether its reading layers must give dx), from the embedding up.

        A gradient is computed down to the lowest trainable parameter: a layer's dx where something below it trains.
        """
        below, steps = self.embedding_trained, []
        for sublayer in (sublayer for block in self.blocks for sublayer in block):
            steps.append((sublayer, below or sublayer.norm_trained))
            below = below or sublayer.trainable
        return steps

    def layers(self) -> list[Layer]:
        """Every linear layer, from below, the head last."""
        return [
            layer for sublayer, _ in self.sublayers() for layer in (*sublayer.input_layers, sublayer.output_layer)
        ] + [self.head]

    @property
    def trainable_below_the_head(self) -> bool:
        return (
            self.embedding_trained or self.norm_trained or any(sublayer.trainable for sublayer, _ in self.sublayers())
        )


def check_cost_known(config: PeftConfig, adapters: dict[str, AdapterCost], prefix: PrefixCost | None) -> None:
    """Raise ValueError where the configuration's method says of no layer and of no prefix what it costs."""
    if not adapters and prefix is None:
        raise ValueError(
            f"the method of a {type(config).__name__} does not say what its step computes and holds, or has no layer here; "
            "the parameters of a live model are counted by costs.count(model)"
        )
