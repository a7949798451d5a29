"""What merging costs: the error in the weights after a thousand merges, and the losses of two adapters combined into one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from ... import Linear, Transformer, conversations, data, load_model, load_tokenizer
from ...peft import COMBINATION_TYPES, AdaptedLinear, LoraConfig, PeftModel, get_peft_model
from ...peft.lora.layer import LoraAdapter
from ...training import AdamW, Batch, WarmupCosine, evaluate, train
from ..harness.table import Table

COMMAND = "python -m lora_np reproduce --full"
SAME, OTHERS = "the same adapter", "another adapter each time"


def drift(
    dtypes: Sequence[str] = ("bfloat16", "float16", "float32", "float64"),
    cycles: Sequence[int] = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000),
    layer: str = "model.layers.2.self_attn.v_proj",
    adapters: int = 8,
    r: int = 8,
    share: float = 0.3,
    seed: int = 0,
) -> Table:
    """Measure the error of one weight matrix of the model "tiny" after many merges and unmerges.

    The columns are `dtype`, `adapters`, `cycles` and `errors`. An error is ‖W − W₀‖/‖W₀‖. Each cycle merges and
    unmerges one adapter: always the same adapter, or an adapter drawn from `adapters`. The adapters are random, with
    ‖ΔW‖ = share·‖W₀‖.
    """
    import ml_dtypes

    started, rows = time.perf_counter(), []
    weight = dict(load_model("tiny", device="numpy").named_parameters())[f"{layer}.weight"].value
    for dtype in dtypes:
        for which in (SAME, OTHERS):
            rng = np.random.default_rng(seed)
            base = weight.astype(getattr(ml_dtypes, dtype, dtype))  # NumPy has no bfloat16
            wrapped = AdaptedLinear(Linear(base.copy()))
            for i in range(adapters):
                A, B = rng.standard_normal((r, weight.shape[1])), rng.standard_normal((weight.shape[0], r))
                B *= share * np.linalg.norm(weight) / np.linalg.norm(B @ A)
                wrapped.adapters[str(i)] = LoraAdapter.build(LoraConfig(r=r, lora_alpha=r), wrapped.base_layer, (A, B))
            errors = []
            for n in range(1, max(cycles) + 1):
                wrapped.merge("0" if which == SAME else str(rng.integers(adapters)))
                wrapped.unmerge()
                if n in cycles:
                    left = wrapped.base_layer.weight.value.astype(float) - base.astype(float)
                    errors.append(float(np.linalg.norm(left) / np.linalg.norm(base.astype(float))))
            rows.append({"dtype": dtype, "adapters": which, "cycles": list(cycles), "errors": errors})
    settings = {"layer": layer, "of": adapters, "r": r, "share": share, "seed": seed}
    question = "How large is the error of a weight after many merges and unmerges?"
    return Table("merge_drift", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class Setting:
    """How the two adapters of "tiny" (Python code and the lighthouse keeper's answers) are trained and combined."""

    r: int = 8
    lora_alpha: float = 64
    lr: float = 4e-3
    steps: int = 120
    batch_size: int = 8
    seq_len: int = 128
    density: float = 0.5
    scales: Sequence[float] = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # of both weights
    shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)  # the voice's weight in `cat`; the code's weight is 1 − share
    seeds: Sequence[int] = (0, 1, 2)
    windows: int = 16  # held-out windows per domain to choose the scale; twice as many others evaluate


FULL = Setting()
QUICK = Setting(steps=40, seq_len=64, scales=(0.25, 0.5, 1.0), seeds=(0,))
DOMAINS = ("code", "voice")


@cache
def corpus(domain: str, split: Literal["train", "heldout"]) -> np.ndarray:
    """Return the bytes of a domain: the standard library's code, or the conversations of "lighthouse"."""
    if domain == "code":
        return data.corpus("code", split)
    records = conversations.read("lighthouse", load_tokenizer("tiny"), split=split)
    return np.concatenate([record.tokens for record in records])


def combinations(setting: Setting = FULL) -> Table:
    """Combine two adapters with each type of combination, and measure the held-out loss on both domains in nats per byte.

    The columns are `kind`, `weights`, `code`, `voice`, `error` (the reported error of ΔW) and `seed`. `kind` is "base",
    "adapter" (one of the two adapters), "share" (`cat` with the weights 1 − share and share) or a combination type.
    Each seed trains two new adapters; the combination types that drop weights at random (dare) use the same seed. With
    each combination type, both weights equal one number, the best scale of the type. The scale is chosen with the first
    seed, on other held-out text.
    """
    started = time.perf_counter()
    choosing, judging = held_out(setting)
    rows: list[dict[str, Any]] = [
        {"kind": "base", "weights": [0, 0], "error": None} | _losses(load_model("tiny"), judging)
    ]
    best: dict[str, float] = {}  # the scale of each type
    for seed in setting.seeds:
        model, found = specialists(setting, seed), []
        for name, weights in zip(DOMAINS, ([1, 0], [0, 1]), strict=True):
            model.set_adapter(name, inference_mode=True)
            found.append({"kind": "adapter", "weights": weights, "error": 0.0} | _losses(model, judging))
        for share in setting.shares:
            found.append(_joined(model, "cat", [1 - share, share], setting, judging) | {"kind": "share"})
        for kind in COMBINATION_TYPES:
            if kind not in best:
                tried = {scale: _joined(model, kind, [scale, scale], setting, choosing) for scale in setting.scales}
                best[kind] = min(tried, key=lambda scale: sum(tried[scale][name] for name in DOMAINS))
            found.append(_joined(model, kind, [best[kind], best[kind]], setting, judging, seed))
        rows += [row | {"seed": seed} for row in found]
    question, settings = (
        "How much do two adapters keep when they are combined into one?",
        asdict(setting) | {"domains": DOMAINS},
    )
    return Table("combinations", question, COMMAND, settings, rows, seconds=time.perf_counter() - started)


def specialists(setting: Setting, seed: int) -> PeftModel:
    """Return the model "tiny" with one adapter per domain; both adapters are trained with the same settings."""
    config = LoraConfig(r=setting.r, lora_alpha=setting.lora_alpha, target_modules="all-linear")
    model = get_peft_model(load_model("tiny"), config, DOMAINS[0], seed=seed)
    model.add_adapter(DOMAINS[1], config, seed=seed + 1)
    for name in DOMAINS:
        model.set_adapter(name)
        batches = data.Batches(corpus(name, "train"), setting.batch_size, setting.seq_len, seed)
        schedule = WarmupCosine(setting.steps, warmup=setting.steps // 10)
        train(model, batches, AdamW(lr=setting.lr), setting.steps, schedule=schedule, max_grad_norm=1.0, label=name)
    return model


def held_out(setting: Setting) -> tuple[dict[str, list[Batch]], dict[str, list[Batch]]]:
    """Return two sets of batches per domain: every third window to choose the scale, the other windows to evaluate."""
    choosing: dict[str, list[Batch]] = {}
    judging: dict[str, list[Batch]] = {}
    for name in DOMAINS:
        windows = data.heldout_batches(corpus(name, "heldout"), 1, setting.seq_len, 3 * setting.windows)
        for kept, part in ((choosing, windows[::3]), (judging, [w for i, w in enumerate(windows) if i % 3])):
            tokens, targets = (np.concatenate(x) for x in zip(*part, strict=True))
            kept[name] = [(tokens, targets)]
    return choosing, judging


def _losses(model: Transformer | PeftModel, batches: dict[str, list[Batch]]) -> dict[str, float]:
    return {name: evaluate(model, batches[name]) for name in DOMAINS}


def _joined(
    model: PeftModel, kind: str, weights: list[float], setting: Setting, batches: dict[str, list[Batch]], seed: int = 0
) -> dict[str, Any]:
    """Make one combination, evaluate it, delete it, and return its row."""
    density = None if kind in ("cat", "svd", "linear") else setting.density
    report = model.add_weighted_adapter(DOMAINS, weights, "joined", kind, density=density, seed=seed)
    before = model.active_adapter
    assert before is not None
    model.set_adapter("joined", inference_mode=True)
    losses = _losses(model, batches)
    model.set_adapter(before, inference_mode=True)
    model.delete_adapter("joined")
    return {"kind": kind, "weights": weights, "error": report.error} | losses
