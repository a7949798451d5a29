"""The parameters of a published model's adapter as a table to read: python -m lora_np params --model llama-2-7b --r 16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from .adaptation import BESIDE, Adaptation
from .architecture import Architecture, architecture_of
from .parameters import count


def report(
    name: str,
    r: int | None = None,
    target_modules: str | Collection[str] | None = None,
    method: str = "lora",
    virtual_tokens: int | None = None,
    bottleneck_size: int | None = None,
) -> str:
    """Each kind of layer and what it trains, the sum, and the adapter file's size, for one of MODELS.

    The settings are those of `Adaptation`, and it raises as that does. The file's size is that of its tensors, in megabytes
    of 10⁶ bytes; its header adds some kilobytes.
    """
    model = architecture_of(name)
    adaptation = Adaptation(method, r, target_modules, virtual_tokens, bottleneck_size)
    result = count(model, r, target_modules, method, virtual_tokens, bottleneck_size)
    if method == "full":
        return f"{name}: {model.parameters:,} parameters, all of them trained\n\n{result}"
    kind, said = _described(adaptation)
    shape = "(tokens, features)" if kind == "prefix" else "W (out, in)"
    lines = [f"{'module':<18}{shape:>18}{'layers':>8}{kind + ', each':>14}{kind + ', all':>16}"]
    for (module, shape, each), times in _rows(model, adaptation).items():
        lines.append(f"{module:<18}{shape:>18}{times:>8}{each:>14,}{times * each:>16,}")
    added, frozen = result.total - result.base, result.total - result.base - result.trainable
    return "\n".join(
        [
            f"{name}: {model.parameters:,} parameters, {said}",
            "",
            *lines,
            *([f"besides them, frozen, {BESIDE[method].frozen}: {frozen:,}"] if frozen else []),
            "",
            str(result),
            f"{result.reduction:,.1f} times fewer than full fine-tuning trains",
            f"adapter file: {4 * added / 1e6:,.1f} MB in float32, {2 * added / 1e6:,.1f} MB in 16 bit",
        ]
    )


def _described(adaptation: Adaptation) -> tuple[str, str]:
    """What the columns call it, and the title."""
    if adaptation.method == "prefix":
        return "prefix", f"a prefix of {adaptation.virtual_tokens} virtual tokens"
    if adaptation.bottleneck_size is not None:
        return "adapter", f"{adaptation.method.capitalize()} adapters of size {adaptation.bottleneck_size}"
    kind = BESIDE[adaptation.method].title
    return kind, f"{kind} of rank {adaptation.r}"


def _rows(model: Architecture, adaptation: Adaptation) -> Counter[tuple[str, str, int]]:
    """(module, shape, numbers that it trains) → in how many layers."""
    if prefix := adaptation.prefix(model):
        shape = f"{prefix.v:,} × {prefix.kv:,}"
        return Counter({(part, shape, prefix.v * prefix.kv): model.layers for part in ("keys", "values")})
    layers = model.linear_layers()
    found = [(layers[name], adapter) for name, adapter in adaptation.adapters(model).items()]
    return Counter((w.name, f"{w.out:,} × {w.in_:,}", adapter.gradients(w.out, w.in_)) for w, adapter in found)
