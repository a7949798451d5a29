"""What takes a Linear's place: the one base class of LoraLinear, VeraLinear and BottleneckLinear, and how a ΔW is merged."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..costs import Adapter
from ..nn import Linear, Module
from ..quantization import Quantized4bit


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

    @property
    def linear(self) -> Linear:
        """The layer inside all wrappers."""
        inner = self.base_layer
        while isinstance(inner, Wrapper):
            inner = inner.base_layer
        return inner

    def on_paper(self, name: str) -> Adapter | None:
        """What the adapter `name`, which is here, costs in a step; of None the ledger says that it does not know."""
        return None


class WeightWrapper(Wrapper):
    """A wrapper whose adapters are changes of the weight inside, `delta_weight(name)` (out, in), and can be merged into it.

    `merged` names the adapters whose ΔW the weight now holds, where they are here. Where wrappers stand around each other, the
    inner one merges first and unmerges last: DoRA's ΔW depends on W.
    """

    def __init__(self, base_layer: Any) -> None:
        super().__init__(base_layer)
        self.merged: tuple[str, ...] = ()
        self.unchanged: Array | None = None  # W from before the merge, where subtracting would not bring it back

    def delta_weight(self, name: str) -> Array:
        """ΔW (out, in): what the adapter adds to the weight."""
        raise NotImplementedError

    def depends_on_weight(self, name: str) -> bool:
        """Whether ΔW is made of W too, and so cannot be computed again once it is merged."""
        return False

    def check_mergeable(self) -> None:
        """Raise RuntimeError where the base is quantised: its sixteen values a block cannot take ΔW in."""
        if isinstance(self.linear.weight.value, Quantized4bit):
            raise RuntimeError(
                "the base is quantised, and ΔW would be rounded away in its codes: lora_np.dequantize_model(model) first"
            )

    def check_call(self, name: str | None, mixed: bool) -> None:
        """Raise RuntimeError for a call that names another adapter than those that are merged, or several."""
        if self.merged and (mixed or (name is not None and name not in self.merged)):
            named = "a mixed batch" if mixed else repr(name)
            raise RuntimeError(f"adapter {self._merged()} is merged into the weights: unmerge it before using {named}")

    def merge(self, *names: str) -> None:
        """W ← W + Σ ΔW over these adapters, after which the layer costs what the base costs. Twice changes nothing more."""
        if self.merged and set(names) != set(self.merged):
            raise RuntimeError(f"adapter {self._merged()} is merged; unmerge_adapter() before merging {names}")
        if self.merged:
            return
        self.check_mergeable()
        W, here = self.linear.weight.value, [name for name in names if name in self.configs]
        if any(self.depends_on_weight(name) for name in here):
            self.unchanged = W.copy()
        if here:
            W += self._sum(here)
        self.merged = names

    def unmerge(self) -> None:
        """W ← W − Σ ΔW, back to the base up to rounding, or to the bit where W was kept."""
        W, here = self.linear.weight.value, [name for name in self.merged if name in self.configs]
        if self.unchanged is not None:
            W[...] = self.unchanged
        elif here:
            W -= self._sum(here)
        self.merged, self.unchanged = (), None

    def _sum(self, names: list[str]) -> Array:
        """Σ ΔW."""
        total = self.delta_weight(names[0])
        for name in names[1:]:
            total += self.delta_weight(name)
        return total

    def _merged(self) -> str:
        return " and ".join(map(repr, self.merged))
