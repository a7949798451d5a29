"""The table of `python -m lora_np params --model llama-2-7b --r 16`: the parameters of an adapter, by module."""

from __future__ import annotations

from collections import Counter

from ..peft.config import PeftConfig
from .architecture import Architecture
from .parameters import count
from .planned import PlannedModel
from .resolve import resolve_model, with_usage_in_errors


@with_usage_in_errors
def report(model: str | Architecture, config: PeftConfig | None = None, *, quantize: str | None = None) -> str:
    """Return a table of the trained parameters by module, their sum, and the size of the adapter file.

    The table gives the size of the file's tensors in MB (10⁶ bytes). The file's header adds some kilobytes. A PiSSA
    adapter is saved as a LoRA adapter of twice the rank.

    Parameters
    ----------
    model : str or Architecture
        A name in `MODELS`, or an architecture.
    config : PeftConfig or None
        The configuration of the adapter. None means full fine-tuning.
    quantize : {"nf4", "fp4", "int4"} or None
        The four-bit type of the blocks' matrices.

    Returns
    -------
    str
        The table, as text of several lines.

    Raises
    ------
    ValueError
        As in `memory`.
    TypeError
        If `model` is neither a name nor an Architecture, or if `config` is not a configuration.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> print(costs.report("llama-2-7b", LoraConfig(r=8)).splitlines()[-1])
    adapter file: 16.8 MB in float32, 8.4 MB in 16 bit
    """
    paper = resolve_model(model, config, quantize)
    if not isinstance(paper, PlannedModel):
        raise TypeError(
            "expected a model's name or an Architecture; for a model in memory, use print(costs.count(model))"
        )
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
            *([f"also added, frozen, {what}: {frozen:,}"] if frozen else []),
            "",
            str(result),
            f"full fine-tuning trains {result.reduction:,.1f} times as many parameters",
            f"adapter file: {4 * saved / 1e6:,.1f} MB in float32, {2 * saved / 1e6:,.1f} MB in 16 bit",
        ]
    )


def _titles(paper: PlannedModel) -> tuple[str, str]:
    """Return two texts: the adapter's name for the column titles, and the title of the table.

    LoRA on a quantised base is called QLoRA.
    """
    if paper.prefix:
        mlp = f", trained through an MLP of width {paper.prefix.hidden}" if paper.prefix.hidden else ""
        return "prefix", f"a prefix of {paper.prefix.v} virtual tokens{mlp}"
    costs = [(cost, paper.shapes[layer][0]) for layer, cost in paper.adapters.items()]
    kind, title = costs[0][0].name, " and ".join(dict.fromkeys(cost.title(out) for cost, out in costs))
    if paper.quantize and kind == "LoRA":
        return f"Q{kind}", f"Q{title}"
    return kind, f"{title}, over {paper.quantize}" if paper.quantize else title


def _rows(paper: PlannedModel) -> Counter[tuple[str, str, int]]:
    """Return the number of layers for each combination of module name, shape and number of trained parameters."""
    if prefix := paper.prefix:
        v, kv, m = prefix.v, prefix.kv, prefix.hidden
        if not m:
            return Counter({(part, f"{v:,} × {kv:,}", v * kv): prefix.layers for part in ("keys", "values")})
        mlp = {"embedding": (v, kv, 0), "transform.0": (m, kv, m), "transform.2": (prefix.width, m, prefix.width)}
        return Counter((name, f"{out:,} × {in_:,}", out * in_ + bias) for name, (out, in_, bias) in mlp.items())
    layers = paper.architecture.linear_layers()
    found = [(layers[name], cost) for name, cost in paper.adapters.items()]
    return Counter((w.name, f"{w.out:,} × {w.in_:,}", cost.gradients(w.out, w.in_)) for w, cost in found)
