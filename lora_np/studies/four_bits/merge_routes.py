"""What remains of an adapter that was trained over four bits when it is merged? The study compares three routes.

Each line has the name of a route, its code and its result:

    dequantised    dequantize_model(peft_model).merge_and_unload()                    ΔW added to the weights used in training
    original       PeftModel.from_pretrained(original, adapter).merge_and_unload()    ΔW added to the weights before quantisation
    requantised    quantize_model(…) of the first                                     as small as before, with ΔW rounded too
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ... import Module, PeftModel, Transformer, evaluate
from ...backend import to_host
from ...peft.placement import adapted_layers
from ...quantization import Quantized4bit, dequantize_4bit, dequantize_model, quantize_model
from ..harness import tiny_task, voice_task
from ..harness.table import Table
from .qlora import QuantizedFineTuning, QuantizedRun

ROUTES = ("dequantised", "bfloat16", "original", "requantised")


def merge_routes(run: QuantizedRun | QuantizedFineTuning, command: str = "python -m lora_np reproduce") -> Table:
    """Train the adapter of `run`, merge it by each route, and measure what changes.

    The columns are `route`, `heldout`, `logits` and `kept`. `route` is a name in ROUTES; the route "bfloat16" is the
    route "dequantised" with every number rounded to 16 bits. `route` can also be "as trained" (the adapter over the
    base in four bits), "original base" or "quantised base" (both without an adapter). `heldout` is the loss in nats per
    token. `logits` is ‖z − z₀‖/‖z₀‖ on a held-out batch, where z₀ are the logits as trained. `kept` is the share of ΔW
    that remains in the merged weights: ⟨W′ − W, ΔW⟩/‖ΔW‖² over all layers. W are the weights before the merge, and W′
    are the weights after the merge. The row "as trained" also has `size`, which is ‖ΔW‖/‖Ŵ‖ over all layers; Ŵ are the
    dequantised weights.
    """
    started = time.perf_counter()
    if isinstance(run, QuantizedRun):
        name, judging, (model, _) = run.base, tiny_task.heldout_batches(), tiny_task.fine_tune(run)
    else:
        name, judging, (model, _) = run.model, voice_task.heldout(run)[1], voice_task.fine_tune(run)
    assert isinstance(model, PeftModel)
    tokens = judging[0][0]
    delta = {key: to_host(layer.delta_weight("default")) for key, layer in adapted_layers(model.model).items()}
    z0, trained, weights = _logits(model, tokens), evaluate(model, judging), _weights(run.base_model())
    changed, whole = (sum(float(np.vdot(x[key], x[key])) for key in delta) for x in (delta, weights))
    del weights
    rows: list[dict[str, Any]] = [
        {"route": "original base", "heldout": evaluate(run.original_model(), judging)},
        {"route": "quantised base", "heldout": evaluate(run.base_model(), judging)},
        {"route": "as trained", "heldout": trained, "logits": 0.0, "kept": 1.0, "size": (changed / whole) ** 0.5},
    ]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        for route in ROUTES:
            merged = merge(route, run, folder)
            before = run.original_model() if route == "original" else run.base_model()
            z = _logits(merged, tokens)
            row = {"route": route, "heldout": evaluate(merged, judging)}
            row |= {"logits": float(np.linalg.norm(z - z0) / np.linalg.norm(z0))}
            rows.append(row | {"kept": kept_share(_weights(merged), _weights(before), delta)})
    question = "What remains of an adapter that was trained over four bits when it is merged?"
    study, settings = f"merge_routes_{name.split('-')[0]}", {"model": name} | asdict(run)
    return Table(study, question, command, settings, rows, seconds=time.perf_counter() - started)


def merge(route: str, run: QuantizedRun | QuantizedFineTuning, folder: str) -> Transformer:
    """Return a plain Transformer into which the adapter of `folder` is merged by one of ROUTES."""
    if route == "original":
        return PeftModel.from_pretrained(run.original_model(), folder).merge_and_unload()
    merged = dequantize_model(PeftModel.from_pretrained(run.base_model(), folder)).merge_and_unload()
    if route == "bfloat16":
        import ml_dtypes

        return merged.astype(ml_dtypes.bfloat16).astype(np.float32)
    return quantize_model(merged, run.quant_type) if route == "requantised" else merged


def kept_share(
    after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], delta: Mapping[str, np.ndarray]
) -> float:
    """Return ⟨after − before, ΔW⟩/‖ΔW‖² over all layers: 1 if all of ΔW remains, 0 if it was rounded away."""
    pairs = [(np.vdot(after[name] - before[name], d), np.vdot(d, d)) for name, d in delta.items()]
    there, whole = np.sum(np.array(pairs, float), axis=0)
    return float(there / whole)


def _weights(model: Module) -> dict[str, np.ndarray]:
    """Return the dequantised weight of each layer, by the layer's name."""
    arrays = {}
    for name, p in model.named_parameters():
        value = dequantize_4bit(p.value) if isinstance(p.value, Quantized4bit) else p.value
        arrays[name.removesuffix(".weight")] = to_host(value)
    return arrays


def _logits(model: Transformer | PeftModel, tokens: np.ndarray) -> np.ndarray:
    return to_host(model.forward(tokens)[0]).astype(float)
