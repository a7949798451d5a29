"""What do four bits cost? The study measures the error of the weights and the error of the gradients."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ... import LoraConfig, PeftModel, data, get_peft_model, load_model
from ...backend import to_host
from ...quantization import QUANT_TYPES, code_book, dequantize_4bit, quantize_4bit, quantize_model
from ...training import AdamW, Batch, WarmupCosine, train
from ..harness.table import Table

COMMAND = "python -m lora_np reproduce"
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NORMAL = "N(0, 1)"
DISTANCES = 32  # number of bins of |w|/absmax between 0 and 1


def error(
    models: Sequence[str] = ("tiny", "smollm2-135m"),
    quant_types: Sequence[str] = QUANT_TYPES,
    block_sizes: Sequence[int] = BLOCK_SIZES,
    normals: int = 2**20,
    seed: int = 0,
) -> Table:
    """Measure the error ŵ − w of each code, divided by the root mean square of the weights.

    The columns are `weights`, `quant_type`, `block_size`, `mean` and `rms`. `weights` is "N(0, 1)" (`normals` random
    numbers) or a model (all matrices of its blocks). `mean` is the mean of |ŵ − w|, which NF4 is designed to keep
    small; `rms` is ‖ŵ − w‖/‖w‖. Both `mean` and `rms` are computed over all weights; each matrix is first divided by
    the root mean square of its weights. The setting `double_quant` has, for each kind of weights, the mean error of NF4
    in blocks of 64 with double quantisation.
    """
    started, rows = time.perf_counter(), []
    names = (NORMAL, *models)
    for name, quant_type, block_size in itertools.product(names, quant_types, block_sizes):
        mean, square = _mean_errors(name, normals, seed, quant_type, block_size)
        row = {"weights": name, "quant_type": quant_type, "block_size": block_size}
        rows.append(row | {"mean": mean, "rms": square**0.5})
    double = {name: _mean_errors(name, normals, seed, "nf4", 64, double_quant=True)[0] for name in names}
    settings = {"normals": normals, "seed": seed, "double_quant": double}
    question = "How far is a weight from its four bits?"
    return Table("quantization_error", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def _mean_errors(
    name: str, normals: int, seed: int, quant_type: str, block_size: int, double_quant: bool = False
) -> tuple[float, float]:
    """Return (mean |e|, mean e²) over all weights of `name`."""
    how = quant_type, block_size, double_quant
    sizes, *errors = zip(*(_errors(W, *how) for W in matrices(name, normals, seed)), strict=True)
    mean, square = (float(np.average(each, weights=sizes)) for each in errors)
    return mean, square


def _errors(W: np.ndarray, quant_type: str, block_size: int, double_quant: bool) -> tuple[int, float, float]:
    """Return (size, mean |e|, mean e²) of one matrix, with e = (ŵ − w)/rms(w)."""
    e = dequantize_4bit(quantize_4bit(W, block_size, quant_type, double_quant))
    e -= W
    scale = float(np.sqrt(np.square(W).mean(dtype=float)))
    return W.size, float(np.abs(e).mean(dtype=float)) / scale, float(np.square(e).mean(dtype=float)) / scale**2


def error_by_magnitude(
    weights: Sequence[str] = (NORMAL, "tiny"), block_size: int = 64, normals: int = 2**20, seed: int = 0
) -> Table:
    """Measure how much of the mean error of each code comes from the weights in each range of |w|/absmax.

    The columns are `weights`, `quant_type`, `edges`, `share` and `contribution`. Two neighbouring `edges` enclose a
    bin. `share` is the share of the weights in the bin, and `contribution` is the part of the mean error that these
    weights cause. The setting `codes` has the sixteen values of each type.
    """
    started, rows, edges = time.perf_counter(), [], np.linspace(0, 1, DISTANCES + 1)
    for name, quant_type in itertools.product(weights, QUANT_TYPES):
        share, contribution, total = np.zeros(DISTANCES), np.zeros(DISTANCES), 0
        for W in matrices(name, normals, seed):
            w = W.reshape(-1)[: W.size // block_size * block_size].reshape(-1, block_size)
            e = np.abs(dequantize_4bit(quantize_4bit(w, block_size, quant_type)) - w)
            e /= np.sqrt(np.square(w).mean(dtype=float))
            distance = np.abs(w) / np.abs(w).max(axis=1, keepdims=True)
            share += np.histogram(distance, edges)[0]
            contribution += np.histogram(distance, edges, weights=e)[0]
            total += w.size
        row = {"weights": name, "quant_type": quant_type, "edges": edges.tolist()}
        rows.append(row | {"share": (share / total).tolist(), "contribution": (contribution / total).tolist()})
    codes = {quant_type: code_book(quant_type) for quant_type in QUANT_TYPES}
    settings = {"block_size": block_size, "normals": normals, "seed": seed, "codes": codes}
    question = "Which weights does each code get wrong?"
    return Table("quantization_distances", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def matrices(name: str, normals: int = 2**20, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the float32 arrays to quantise: random numbers of N(0, 1), or each matrix in the blocks of a model."""
    if name == NORMAL:
        yield np.random.default_rng(seed).standard_normal(normals, dtype=np.float32)
        return
    for key, W in load_model(name, device="numpy").state_dict().items():
        if key.endswith("_proj.weight"):
            yield W


ANOTHER_BATCH = "another batch"


def gradients(
    base: str = "tiny",
    r: int = 8,
    steps: int = 60,
    lr: float = 4e-3,
    batch_size: int = 8,
    seq_len: int = 128,
    seed: int = 0,
) -> Table:
    """Compare the gradients dA and dB through a quantised base with dA and dB through the float32 base.

    The columns are `base`, `layer`, `factor`, `cosine` and `error`. The two compared gradients use the same batch and
    the same adapter, which was trained over the float32 base for some steps. `base` is a quant_type, or "another batch"
    for the float32 base with other text. The rows of "another batch" show how much the choice of the batch changes the
    gradient. `error` is ‖g − g₀‖/‖g₀‖.
    """
    started, rows = time.perf_counter(), []
    config = LoraConfig(r=r, lora_alpha=8 * r, target_modules="all-linear")
    batches = data.Batches(data.corpus("code", "train"), batch_size, seq_len, seed)
    model = get_peft_model(load_model(base), config, seed=seed)
    schedule = WarmupCosine(2 * steps, warmup=steps // 10)  # the steps below end in the middle of this schedule
    train(model, batches, AdamW(lr=lr, weight_decay=0.0), steps, schedule=schedule, max_grad_norm=1.0, progress=False)
    adapter = {name: p.value for name, p in model.named_parameters() if "lora_" in name}
    one, other = data.heldout_batches(data.corpus("code", "heldout"), batch_size, seq_len, windows=2 * batch_size)
    exact = _gradients(model, one)
    compared = {ANOTHER_BATCH: _gradients(model, other)}
    for quant_type in QUANT_TYPES:
        quantized = get_peft_model(quantize_model(load_model(base), quant_type), config)
        for name, p in quantized.named_parameters():
            p.value = adapter.get(name, p.value)
        compared[quant_type] = _gradients(quantized, one)
    for what, found in compared.items():
        for name, g in found.items():
            layer, factor = name.removeprefix("base_model.model.").split(".lora_")
            g0, norm = exact[name], np.linalg.norm(exact[name])
            row: dict[str, Any] = {"base": what, "layer": layer, "factor": factor[0]}
            row |= {"cosine": float((g * g0).sum() / (np.linalg.norm(g) * norm))}
            rows.append(row | {"error": float(np.linalg.norm(g - g0) / norm)})
    settings = {"model": base, "r": r, "steps": steps, "lr": lr}
    settings |= {"batch_size": batch_size, "seq_len": seq_len, "seed": seed}
    question = "How much does a quantised base change the gradients of A and B?"
    return Table("quantization_gradients", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def _gradients(model: PeftModel, batch: Batch) -> dict[str, np.ndarray]:
    model.zero_grad()
    _, cache = model.loss(*batch)
    model.backward(cache)
    return {name: to_host(p.grad).astype(float) for name, p in model.named_parameters() if p.grad is not None}
