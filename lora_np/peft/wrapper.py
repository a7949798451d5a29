"""What takes a Linear's place: the one base class of LoraLinear, VeraLinear and BottleneckLinear."""

from __future__ import annotations

from typing import Any

from ..nn import Module


class Wrapper(Module):
    """A module in the place of `base_layer`, with Linear's contract, and sizes that are the base layer's.

    `base_layer` is any module with that contract, another wrapper among them. `configs[name]` are the settings of each adapter
    that is here. A subclass keeps their parameters, and has forward and backward.
    """

    def __init__(self, base_layer: Any) -> None:
        self.base_layer = base_layer
        self.configs: dict[str, Any] = {}

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features
