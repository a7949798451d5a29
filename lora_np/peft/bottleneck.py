"""Bottleneck adapters: a small network with a skip of its own after a sublayer (Houlsby et al. 2019, arXiv 1902.00751).

    z = y + W_up σ(W_down y + b_down) + b_up          y (…, d) what the sublayer wrote, W_down (m, d), W_up (d, m)

before the block's own skip connection. As y is what o_proj or down_proj gives, the adapter is one more wrapper of a Linear. It
is no ΔW, because of σ: it cannot be merged, and each call pays for it. The block's norms, which the paper trains too, stay frozen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import ops
from ..backend import Array, move, to_host
from ..costs import Bottleneck
from ..nn import EVALUATION, Context, Linear, Parameter
from ..nn.targets import has_suffix
from ..transformer import Transformer
from .checks import check_number, check_whole
from .files import KIND, PREFIX, plain, refuse_others, some
from .lora.layer import LoraLinear
from .method import Method
from .placement import AdapterLinear, adaptable_layers, unwrap, wrap, wrapped_by
from .wrapper import Wrapper

if TYPE_CHECKING:
    from .model import PeftModel

ACTIVATIONS = {
    "gelu": (ops.gelu_forward, ops.gelu_backward),
    "silu": (ops.silu_forward, ops.silu_backward),
}
PLACES = {"houlsby": ("self_attn.o_proj", "mlp.down_proj"), "pfeiffer": ("mlp.down_proj",)}
SIDES = ("down", "up")


@dataclass(frozen=True)
class BottleneckConfig:
    """How narrow, where, and from where to start.

    bottleneck_size: m. None takes d / reduction_factor, rounded down, and at least 1.
    reduction_factor: d/m, where no bottleneck_size is given.
    non_linearity: σ, "gelu" (GPT-2's, by tanh) or "silu".
    placement: "houlsby", after the attention and after the MLP of each block; "pfeiffer", after the MLP alone (Pfeiffer et
        al. 2021, arXiv 2005.00247).
    init_weights: True, W_down uniform in ±1/√d and the rest 0, so that the model starts as the base to the bit, and W_up has a
        gradient of ordinary size; "houlsby", both matrices normal with std 0.01, cut off at two of them, and the biases 0, as
        in the paper (section 3.6): only near the base; False, all of it uniform in ±1/√in (for tests).
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range, TypeError for a size that is not whole or a factor that is no number.
    """

    bottleneck_size: int | None = None
    reduction_factor: float = 16
    non_linearity: Literal["gelu", "silu"] = "gelu"
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    init_weights: bool | Literal["houlsby"] = True
    base_model_name_or_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        m = self.bottleneck_size
        if m is not None:
            check_whole("bottleneck_size", m)
            if m < 1:
                raise ValueError(f"bottleneck_size = {m}; expected at least 1")
        check_number("reduction_factor", self.reduction_factor)
        if not 0 < self.reduction_factor < math.inf:
            raise ValueError(f"reduction_factor = {self.reduction_factor}; expected a positive number")
        for name, choices in (("non_linearity", ACTIVATIONS), ("placement", PLACES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}; expected {' or '.join(map(repr, choices))}")
        if not (isinstance(self.init_weights, bool) or self.init_weights == "houlsby"):
            raise ValueError(f"init_weights = {self.init_weights!r}; expected True, False or 'houlsby'")

    def width(self, d: int) -> int:
        """m for a residual stream of width d."""
        return int(self.bottleneck_size or max(1, d // self.reduction_factor))


class BottleneckLinear(Wrapper):
    """z = y + W_up σ(W_down y + b_down) + b_up with y = base(x), for the adapter that the call names; y when it names none.

    `base_layer` is any module with Linear's contract, a LoraLinear among them. `bottleneck_down[name]` (m, d) and
    `bottleneck_up[name]` (d, m) are an adapter's, with their biases, `configs[name]` its settings.
    """

    def __init__(self, base_layer: Linear | LoraLinear) -> None:
        super().__init__(base_layer)
        self.bottleneck_down: dict[str, AdapterLinear] = {}
        self.bottleneck_up: dict[str, AdapterLinear] = {}

    def put_adapter(self, name: str, config: BottleneckConfig, factors: Any, like: Array, dtype: Any = None) -> None:
        """Take the host arrays (W_down, b_down), (W_up, b_up) as an adapter, where `like` is, in its dtype or in `dtype`."""
        for kept, pair in zip((self.bottleneck_down, self.bottleneck_up), factors, strict=True):
            kept[name] = AdapterLinear(*(move(x.astype(dtype or like.dtype), like) for x in pair))
        self.configs[name] = config

    def on_paper(self, name: str) -> Bottleneck:
        """As the ledger has it."""
        down = self.bottleneck_down[name].weight
        return Bottleneck(down.trainable, down.value.itemsize == 2, down.value.shape[0])

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Any]:
        """x (…, in) → z (…, d)."""
        y, base_cache = self.base_layer.forward(x, context)
        name = context.adapter
        if name not in self.configs:
            return y, (base_cache, None, None)
        activate, _ = ACTIVATIONS[self.configs[name].non_linearity]
        h, down_cache = self.bottleneck_down[name].forward(y)  # (…, d) → (…, m)
        a, activation_cache = activate(h)
        z, up_cache = self.bottleneck_up[name].forward(a)  # (…, m) → (…, d)
        z += y
        return z, (base_cache, name, (down_cache, activation_cache, up_cache))

    def backward(self, dz: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dz (…, d) → dx (…, in), or None where nothing below needs it.

        In the forward pass z = y + up(σ(down(y))): dz goes whole into both terms, so dy is dz plus what comes back through
        the bottleneck.
        """
        base_cache, name, inner = cache
        if name is None:
            return self.base_layer.backward(dz, base_cache, need_dx)
        down_cache, activation_cache, up_cache = inner
        below = need_dx or self.base_layer.trainable
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        da = up.backward(dz, up_cache, need_dx=below or down.trainable)
        if da is None:
            return None
        _, slope = ACTIVATIONS[self.configs[name].non_linearity]
        dy = down.backward(slope(da, activation_cache), down_cache, need_dx=below)
        if not below:
            return None
        dy += dz
        return self.base_layer.backward(dy, base_cache, need_dx)


class BottleneckMethod(Method):
    """A BottleneckLinear around the layers that write to the residual stream, while it has an adapter."""

    peft_type = "BOTTLENECK"  # ours: PEFT has no such method, and no file of it
    decisive = ("bottleneck_size", "non_linearity", "placement")

    def add(self, peft_model: PeftModel, name: str, config: BottleneckConfig, seed: int) -> None:
        """Draw the numbers on the host, so that a seed means the same on every device."""
        model, rng = peft_model.model, np.random.default_rng(seed)
        d = model.config.hidden_size
        m = config.width(d)
        for _, layer in wrap(model, places(model, config), BottleneckLinear):
            factors = []
            for side, (out, in_) in zip(SIDES, ((m, d), (d, m)), strict=True):
                bound = 1 / math.sqrt(in_)
                if config.init_weights == "houlsby":
                    W, b = 0.01 * truncated_normal(rng, (out, in_)), np.zeros(out)
                elif config.init_weights and side == "up":
                    W, b = np.zeros((out, in_)), np.zeros(out)
                else:
                    W, b = rng.uniform(-bound, bound, (out, in_)), np.zeros(out)
                if config.init_weights is False:
                    b = rng.uniform(-bound, bound, out)
                factors.append((W, b))
            layer.put_adapter(name, config, factors, model.model.norm.weight.value, peft_model.adapter_dtype)

    def restore(
        self, peft_model: PeftModel, name: str, config: BottleneckConfig, arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Every array must have its place, and every place its array, of the right shape."""
        model = peft_model.model
        d = model.config.hidden_size
        m, expected = config.width(d), {}
        for layer in places(model, config):
            shapes = (m, d), (m,), (d, m), (d,)
            expected |= dict(zip(keys(layer), shapes, strict=True))
        for found, what in (
            (arrays.keys() - expected.keys(), "no place for"),
            (expected.keys() - arrays.keys(), "missing:"),
        ):
            if found:
                raise ValueError(f"{what} {some(sorted(found))}, with placement {config.placement!r} in this model")
        for key, shape in expected.items():
            if arrays[key].shape != shape or arrays[key].dtype.kind != "f":
                raise ValueError(f"{key} is {arrays[key].dtype} {arrays[key].shape}; expected floats {shape}")
        for layer_name, layer in wrap(model, places(model, config), BottleneckLinear):
            down_W, down_b, up_W, up_b = (arrays[key] for key in keys(layer_name))
            factors = (down_W, down_b), (up_W, up_b)
            layer.put_adapter(name, config, factors, model.model.norm.weight.value, peft_model.adapter_dtype)

    def delete(self, peft_model: PeftModel, name: str) -> None:
        """Forget its numbers, and unwrap the layers that have no other."""
        layers = {layer: wrapper for layer, (_, wrapper) in wrapped_by(peft_model.model, BottleneckLinear).items()}
        for wrapper in layers.values():
            for kept in (wrapper.bottleneck_down, wrapper.bottleneck_up, wrapper.configs):
                kept.pop(name, None)
        empty = [layer for layer, wrapper in layers.items() if not wrapper.configs]
        unwrap(peft_model.model, empty, BottleneckLinear)

    def parameters(self, peft_model: PeftModel, name: str) -> Iterator[Parameter]:
        """W and b, down and up, of each place."""
        yield from self._by_key(peft_model, name).values()

    def arrays(self, peft_model: PeftModel, name: str) -> dict[str, np.ndarray]:
        """base_model.model.<layer>.bottleneck_down.weight (m, d), .bias (m,), and .bottleneck_up.weight (d, m), .bias (d,)."""
        return {key: to_host(p.value) for key, p in self._by_key(peft_model, name).items()}

    def _by_key(self, peft_model: PeftModel, name: str) -> dict[str, Parameter]:
        found = {}
        for layer, (_, wrapper) in wrapped_by(peft_model.model, BottleneckLinear).items():
            if name in wrapper.configs:
                down, up = wrapper.bottleneck_down[name], wrapper.bottleneck_up[name]
                found |= dict(zip(keys(layer), (down.weight, down.bias, up.weight, up.bias), strict=True))
        return found

    def settings(self, config: BottleneckConfig, model: Transformer) -> dict[str, Any]:
        """With the size that it has in this model."""
        base = config.base_model_name_or_path
        return {
            **KIND,
            **{key: plain(value) for key, value in asdict(config).items()},
            **{"peft_type": self.peft_type, "base_model_name_or_path": base and os.fspath(base)},
            "bottleneck_size": config.width(model.config.hidden_size),
        }

    def config(self, settings: Mapping[str, Any]) -> BottleneckConfig:
        """The way back."""
        known = {field.name for field in fields(BottleneckConfig)}
        refuse_others(settings, known)
        return BottleneckConfig(**{key: settings[key] for key in known if settings.get(key) is not None})


def places(model: Transformer, config: BottleneckConfig) -> list[str]:
    """The layers whose output goes through a bottleneck, in the model's order."""
    return [name for name in adaptable_layers(model) if any(has_suffix(name, p) for p in PLACES[config.placement])]


def keys(layer: str) -> list[str]:
    """The names of a place's four tensors in a file."""
    return [f"{PREFIX}{layer}.bottleneck_{side}.{part}" for side in SIDES for part in ("weight", "bias")]


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers between −2 and 2: what falls outside is drawn again."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return x
