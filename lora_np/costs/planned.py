"""A planned model: the shapes of an architecture, and the costs of the adapters of a configuration.

No array is allocated.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from ..nn.targets import OUTPUT_HEAD
from ..peft.config import PeftConfig
from ..peft.cost import AdapterCost, PrefixCost
from ..peft.registry import method_of
from ..quantization.four_bits import check_settings
from ..transformer import Transformer
from .architecture import Architecture, LinearShape
from .live import LiveModel
from .precision import BYTES, NF4_BLOCK, Precision, nf4_bytes
from .structure import Layer, ModelStructure, Sublayer, check_cost_known


@dataclass(frozen=True)
class PlannedModel:
    """An architecture with a configuration. Without a configuration, all parameters are trained.

    `quantize` is the four-bit type of the blocks' matrices, or None.

    Raises ValueError if a target module matches no layer, or if the method does not define its cost. Raises ValueError
    also if `quantize` is unknown or is given without a configuration.
    """

    architecture: Architecture
    config: PeftConfig | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.quantize is not None:
            check_settings(NF4_BLOCK, self.quantize)
            if self.config is None:
                raise ValueError(
                    f"quantize={self.quantize!r} freezes the weights, but full fine-tuning trains them; give the configuration "
                    "of an adapter"
                )
        if self.config is not None:
            check_cost_known(self.config, self.adapters, self.prefix)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (out, in) of each linear layer, by name."""
        return {name: (linear.out, linear.in_) for name, linear in self.architecture.linear_layers().items()}

    @cached_property
    def adapters(self) -> dict[str, AdapterCost]:
        """The cost of the adapter in each adapted layer, by name."""
        return {} if self.config is None else method_of(self.config).costs(self.config, self.shapes)

    @cached_property
    def prefix(self) -> PrefixCost | None:
        """The cost of the prefix, or None for methods without a prefix."""
        model, kv = self.architecture, self.architecture.kv_heads * self.architecture.head_dim
        return None if self.config is None else method_of(self.config).prefix_cost(self.config, model.layers, kv)

    def parameters(self) -> tuple[int, int, int]:
        """Return the number of base, adapter and trained parameters."""
        base = self.architecture.parameters
        if self.config is None:
            return base, 0, base
        same_cost = defaultdict(list)  # parameters that layers of equal cost share are counted once
        for name, cost in self.adapters.items():
            same_cost[cost].append(self.shapes[name])
        frozen = sum(cost.frozen(shapes) for cost, shapes in same_cost.items())
        trained = sum(cost.gradients(*shape) for cost, shapes in same_cost.items() for shape in shapes)
        trained += self.prefix.gradients if self.prefix else 0
        return base, frozen + trained, trained

    def numbers_in_file(self) -> int:
        """Return the number of elements in the adapter's file.

        A prefix is saved without its MLP; a PiSSA adapter of rank r is saved as a LoRA adapter of rank 2r.
        """
        if self.config is None:
            raise ValueError("full fine-tuning has no adapter file; give the configuration of an adapter")
        if self.prefix:
            return self.prefix.v * self.prefix.width
        config = method_of(self.config).file_config(self.config)
        return PlannedModel(self.architecture, config).parameters()[1]

    def structure(self) -> ModelStructure:
        """Return the structure that determines the FLOPs and the memory of a training step."""
        model, full = self.architecture, self.config is None
        prefix_trained = self.prefix is not None and self.prefix.trained

        def layer(name: str, shape: LinearShape) -> Layer:
            adapter = self.adapters.get(name)
            quantized = self.quantize is not None and name != OUTPUT_HEAD
            return Layer(name, shape.out, shape.in_, full, adapter, full or adapter is not None, quantized)

        def sublayer(i: int, shapes: tuple[LinearShape, ...], is_attention: bool) -> Sublayer:
            *reads, writes = (layer(f"{model.block.format(i)}.{shape.name}", shape) for shape in shapes)
            return Sublayer(full, tuple(reads), writes, is_attention, prefix_trained=is_attention and prefix_trained)

        planned = ModelStructure(
            model.name,
            model.hidden,
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.vocabulary,
            embedding_trained=full,
            blocks=tuple(
                (sublayer(i, model.attention, True), sublayer(i, model.mlp, False)) for i in range(model.layers)
            ),
            norm_trained=full,
            head=layer(OUTPUT_HEAD, model.head),
            prefix=self.prefix,
            rotary_floats=2 * model.head_dim,
            head_in_blocks=not full and OUTPUT_HEAD not in self.adapters,
        )
        if model.config is None:
            return planned
        return planned.with_arrays_of(LiveModel(Transformer.empty(model.config)).structure())

    def fixed_bytes(self, formats: Precision, double_quant: bool, slots: int) -> dict[str, int]:
        """Return the fields of `Memory` that do not depend on the batch, in bytes."""
        _, added, trained = self.parameters()
        return {
            "weights": self.weights(BYTES[formats.weights], double_quant),
            "adapter": added * BYTES[formats.weights],
            "gradients": trained * BYTES[formats.gradients],
            "optimizer": trained * slots * BYTES[formats.optimizer],
            "master": trained * BYTES[formats.master] if formats.master else 0,
        }

    def weights(self, each: int, double_quant: bool = True) -> int:
        """Return the bytes of the base model's weights.

        `each` is the number of bytes per element of an array that is not quantised.
        """
        model = self.architecture
        if self.quantize is None:
            return model.parameters * each
        matrices = [linear.out * linear.in_ for linear in model.linears]
        in_four_bits = sum(nf4_bytes(size, double_quant) for size in matrices)
        return (model.parameters - model.layers * sum(matrices)) * each + model.layers * in_four_bits
