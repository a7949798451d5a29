"""The parameters of a published model's adapter as a table to read: python -m lora_np params --model llama-2-7b --r 16."""

from __future__ import annotations

from collections import Counter

from ..peft.config import PeftConfig
from .architecture import Architecture
from .parameters import count
from .planned import PlannedModel
from .resolve import resolve_model, with_usage_in_errors


@with_usage_in_errors
def report(model: str | Architecture, config: PeftConfig | None = None, *, quantize: str | None = None) -> str:
    """Each kind of layer and what it trains, the sum, and the adapter file's size, of a model on paper.

    The arguments and errors are those of `memory`. The file's size is that of its tensors, in megabytes of 10⁶ bytes; its
    header adds some kilobytes. PiSSA's file is that of a LoRA of twice the rank.
    """
    paper = resolve_model(model, config, quantize)
    if not isinstance(paper, PlannedModel):
        raise TypeError("a report is of a model on paper; print(costs.count(model)) counts a live one")
    model, result = paper.architecture, count(paper.architecture, config)
    if config is None:
        return f"{model.name}: {model.parameters:,} parameters, all of them trained\n\n{result}"
    kind, title = _titles(paper)
    shape = "(tokens, features)" if paper.prefix else "W (out, in)"
    lines = [f"{'module':<18}{shape:>18}{'layers':>8}{kind + ', each':>14}{kind + ', all':>16}"]
    for (module, shape, each), times in _rows(paper).items():
        lines.append(f"{module:<18}{shape:>18}{times:>8}{each:>14,}{times * each:>16,}")
    frozen = result.total - result.base - result.trainable
    saved = paper.numbers_in_file()
    what = "; ".join(dict.fromkeys(cost.frozen_description for cost in paper.adapters.values()))
    return "\n".join(
        [
            f"{model.name}: {model.parameters:,} parameters, {title}",
            "",
            *lines,
            *([f"besides them, frozen, {what}: {frozen:,}"] if frozen else []),
            "",
            str(result),
            f"{result.reduction:,.1f} times fewer than full fine-tuning trains",
            f"adapter file: {4 * saved / 1e6:,.1f} MB in float32, {2 * saved / 1e6:,.1f} MB in 16 bit",
        ]
    )


def _titles(paper: PlannedModel) -> tuple[str, str]:
    """What the columns call the adapter, and the title: LoRA over a quantised base is QLoRA."""
    if paper.prefix:
        mlp = f", trained through an MLP of width {paper.prefix.hidden}" if paper.prefix.hidden else ""
        return "prefix", f"a prefix of {paper.prefix.v} virtual tokens{mlp}"
    costs = [(cost, paper.shapes[layer][0]) for layer, cost in paper.adapters.items()]
    kind, title = costs[0][0].name, " and ".join(dict.fromkeys(cost.title(out) for cost, out in costs))
    if paper.quantize and kind == "LoRA":
        return f"Q{kind}", f"Q{title}"
    return kind, f"{title}, over {paper.quantize}" if paper.quantize else title


def _rows(paper: PlannedModel) -> Counter[tuple[str, str, int]]:
    """(module, shape, numbers that it trains) → in how many layers."""
    if prefix := paper.prefix:
        v, kv, m = prefix.v, prefix.kv, prefix.hidden
        if not m:
            return Counter({(part, f"{v:,} × {kv:,}", v * kv): prefix.layers for part in ("keys", "values")})
        mlp = {"embedding": (v, kv, 0), "transform.0": (m, kv, m), "transform.2": (prefix.width, m, prefix.width)}
        return Counter((name, f"{out:,} × {in_:,}", out * in_ + bias) for name, (out, in_, bias) in mlp.items())
    layers = paper.architecture.linear_layers()
    found = [(layers[name], cost) for name, cost in paper.adapters.items()]
    return Counter((w.name, f"{w.out:,} × {w.in_:,}", cost.gradients(w.out, w.in_)) for w, cost in found)
