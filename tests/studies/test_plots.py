"""The pictures: they draw from small tables, nothing is cut off or overlaps, and the palette is for every reader."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import hyperparameter_tables as tables
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from texts_of_figures import texts

from lora_np import plots
from lora_np.report import pictures
from lora_np.studies.catalogue import STUDIES
from lora_np.studies.counting import memory
from lora_np.studies.harness import colours, style, words
from lora_np.studies.harness.table import Table
from lora_np.studies.low_rank import spectra_pictures as plots_spectra

# --------------------------------------------------------------------------------------------------- small tables


def table(rows, **settings) -> Table:
    return Table(
        "a test", "does it draw?", "python -m pytest tests/studies/test_plots.py", settings=settings, rows=rows
    )


def one_matrix(ranks=(1, 4, 8, 16, 64), side=4096) -> Table:
    counts = {r: 2 * side * r for r in ranks}
    full = side * side
    return table([{"r": r, "full": full, "lora": n, "factor": full / n, "share": n / full} for r, n in counts.items()])


def whole_models() -> Table:
    published = [  # FACTS.md §1 and §2
        ("Llama-2-7B", 6_738_415_616, "q,v", 8, 4_194_304),
        ("Llama-2-7B", 6_738_415_616, "all-linear", 16, 39_976_960),
        ("Llama-3-8B", 8_030_261_248, "q,v", 8, 3_407_872),
        ("Llama-3-8B", 8_030_261_248, "all-linear", 16, 41_943_040),
        ("GPT-2", 124_439_808, "q,v", 8, 294_912),
        ("GPT-3 175B", 174_591_332_352, "q,v", 4, 18_874_368),
        ("GPT-3 175B", 174_591_332_352, "q,v", 64, 301_989_888),
    ]
    names = ("model", "total", "targets", "r", "trainable")
    return table([dict(zip(names, row, strict=True)) | {"share": row[4] / row[1]} for row in published])


def decomposition(d=24, k=40, r=3) -> Table:
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(rng.normal(size=(d, r)) @ rng.normal(size=(r, k)) + 0.2 * rng.normal(size=(d, k)))
    b, a = u[:, :r] * np.sqrt(s[:r]), np.sqrt(s[:r])[:, None] * vt[:r]
    matrix = (u[:, : len(s)] * s) @ vt[: len(s)]
    return table(
        [{"name": "layers.0.mlp.up_proj", "r": r, "matrix": matrix.tolist(), "B": b.tolist(), "A": a.tolist()}]
    )


def spectra(random=True) -> Table:
    rng, rows = np.random.default_rng(1), []
    for layer, module in itertools.product(range(2), ("q_proj", "up_proj")):
        values = np.exp(-np.sqrt(np.arange(32)) * rng.uniform(0.5, 0.9))
        chance = np.linalg.svd(rng.normal(size=(32, 32)), compute_uv=False)
        chance *= np.linalg.norm(values) / np.linalg.norm(chance)
        row = {"layer": layer, "module": module, "singular_values": values.tolist()}
        rows.append(row | ({"random_singular_values": chance.tolist()} if random else {}))
    return table(rows)


def intrinsic(d90=(80_000, 3000), lora=True) -> Table:
    """What random subspaces gain: rising with log d, from two starts."""
    rng, rows, D = np.random.default_rng(4), [], 1_017_216
    for base, half in zip(("tiny", "random"), d90, strict=True):
        for d in (1024, 4096, 16384, 65536, 262144, D):
            share = 1.0 if d == D else min(0.99, 0.9 + 0.14 * np.log(d / (half or 1e6)) / np.log(4))
            for seed in range(3):
                row = {"phase": "seeds", "base": base, "d": d, "projection": "sparse", "seed": seed}
                rows.append(row | {"share": share + 0.01 * rng.normal()})
    counts = {str(r): 12160 * r for r in ((1, 2, 4, 8, 16, 64) if lora else ())}
    found = dict(zip(("tiny", "random"), d90, strict=True))
    return table(rows, D=D, d90=found, share=0.9, runs=60, steps=200, lora=counts)


def with_lora() -> Table:
    """LoRA as the study "convergence" has it: phase "seeds" at the best rates."""
    rows = [row | {"phase": "seeds"} for row in convergence().rows if row["phase"] == "final"]
    return table(rows, base_loss=1.5)


def ranks_by_layer(models=(("tiny", 5, 128), ("smollm2-135m", 30, 576)), seeds=3) -> Table:
    rng, rows = np.random.default_rng(5), []
    for (model, layers, d), module in itertools.product(models, plots_spectra.MODULES):
        for layer, seed, method in itertools.product(range(layers), range(seeds), ("full", "lora")):
            shape = [d, 3 * d] if module == "down_proj" else [3 * d if module in ("gate_proj", "up_proj") else d, d]
            rank = 5 if method == "lora" else int(d * rng.uniform(0.15, 0.35))
            row = {"model": model, "method": method, "r": 8 if method == "lora" else None, "seed": seed}
            rows.append(
                row | {"layer": layer, "module": module, "shape": shape, "rank90": rank, "random_rank90": int(0.6 * d)}
            )
    return table(rows, runs=8)


def compared_subspaces() -> Table:
    """φ that starts at `first` and ends at chance, and what W has in the directions of ΔW."""
    rng, rows, d = np.random.default_rng(6), [], 128
    for (of, first), r, module in itertools.product(
        (("A at the start", 0.01), ("A", 0.3), ("B", 0.8)), ([8, 64], [64, 64]), ("q_proj", "v_proj")
    ):
        chance = np.maximum(np.arange(1, r[0] + 1)[:, None], np.arange(1, r[1] + 1)) / d
        phi = np.minimum(1, chance + first / np.sqrt(np.maximum(*np.indices(chance.shape)) + 1))
        row = {"kind": "similarity", "of": of, "r": r, "seeds": [0, 1], "layer": 2, "module": module, "d": d}
        grid = [2**k for k in range(r[0].bit_length())], [2**k for k in range(r[1].bit_length())]
        at = phi[np.ix_(*(np.array(n) - 1 for n in grid))].tolist()
        rows.append(row | {"i": grid[0], "j": grid[1], "phi": at, "map": phi.tolist()})
    for r, module, layer in itertools.product((4, 64), plots_spectra.MODULES, range(5)):
        inside = rng.uniform(0.5, 1) * r / 16
        row = {"kind": "amplification", "r": r, "seed": 0, "layer": layer, "module": module, "norm_W": 20.0}
        rows.append(row | {"in_delta": inside, "in_W": 3 * r**0.5, "in_random": r * 20 / 128, "factor": 2 / inside})
    return table(rows)


def truncated(gains=(0.0, 0.4, 0.7, 0.9, 0.97, 1.0)) -> Table:
    rows = [{"r": 2**i // 2, "heldout_loss": 1.5 - 0.3 * gain} for i, gain in enumerate(gains)]
    return table(rows, base_loss=1.5, full_loss=1.2, rank_max=16)


def photo(ranks=(1, 2, 4, 8, None)) -> Table:
    image = np.add.outer(np.sin(np.arange(30) / 4), np.cos(np.arange(24) / 3)) + np.eye(30, 24)
    rows = [
        {"r": r, "image": image.tolist(), "share_of_numbers": (r or 13) * 0.075, "error": 0.3 / r if r else 0}
        for r in ranks
    ]
    return table(rows)


def convergence(ranks=(1, 2, 4, 8, 16, 64), targets=("attention", "all-linear"), seeds=3, equal=False) -> Table:
    rng, steps, rows = np.random.default_rng(2), list(range(0, 201, 20)), []

    def run(method, r, target, seed, final):
        final += 0 if equal else 0.004 * rng.normal()
        losses = [final + (1.5 - final) * float(np.exp(-step / 40)) for step in steps]
        seconds = [step * (0.11 if method == "full" else 0.08) for step in steps]
        row = {"method": method, "r": r, "target_modules": target, "lr": 1e-3, "seed": seed, "phase": "final"}
        recovered = (1.5 - losses[-1]) / (1.5 - 1.2)
        return row | {
            "steps": steps,
            "heldout": losses,
            "seconds": seconds,
            "final": losses[-1],
            "recovered": recovered,
        }

    def worse(r, target):
        return 0 if equal else 0.08 / r**0.7 + (0.03 if target == "attention" else 0)

    for seed in range(seeds):
        rows.append(run("full", 0, "full", seed, 1.2))
        rows += [run("lora", r, target, seed, 1.2 + worse(r, target)) for target in targets for r in ranks]
    for method, r, target in {(row["method"], row["r"], row["target_modules"]): None for row in rows}:
        for exponent in range(-3, 4):
            lr = (1e-3 if method == "full" else 1e-2) * 2.0**exponent
            final = 1.2 + worse(r or 64, target) + 0.01 * exponent**2 if exponent < 3 else float("nan")
            row = {"method": method, "r": r, "target_modules": target, "lr": lr, "seed": 0, "phase": "sweep"}
            rows.append(row | {"final": final, "validation": final + 0.02})
    return table(rows, base_loss=1.5, base_validation=1.52, steps=len(steps))


def finetuned(seeds=3) -> Table:
    said = "Warm air is light, friend, and the cold pushes it up like a gull on the wind; $5 says so. " * 3
    answers = [{"question": f"Why does the {n}. balloon rise over the harbour?", "answer": said} for n in range(4)]
    rows = []
    for seed, (method, final) in itertools.product(range(seeds), (("full", 2.3), ("lora", 2.4))):
        row = {"method": method, "r": 8 if method == "lora" else None, "seed": seed, "steps": [0, 20, 40, 60]}
        row |= {"heldout": [4.1, final + 0.4, final + 0.1, final + 0.01 * seed], "final": final + 0.01 * seed}
        rows.append(row | {"prose": 3.1 + (3 - final) / 4, "habit": 0.9, "answers": answers, "phase": "seeds"})
    return table(rows, before={"prose": 3.1, "habit": 0.0, "answers": answers})


def remembered(ranks=(1, 2, 4, 8, 16), held=1.35, seeds=3) -> Table:
    """What a rank holds: the more steps the more, until no more fit."""
    rows = []

    def run(phase, r, seed, strings, share=1.0):
        trained = 1216 * r if r else 26_784
        bits = min(96.0 * strings, share * (held + 0.02 * seed) * trained)
        row = {"phase": phase, "method": "lora" if r else "full", "r": r, "seed": seed, "strings": strings}
        rows.append(row | {"trained": trained, "offered": 96.0 * strings, "memorised": bits})

    for r in (*ranks, None):
        run("half", r, 0, 32 * (r or 20), share=0.85)
        for seed in range(seeds):
            run("seeds", r, seed, 32 * (r or 20))
    for strings, seed in itertools.product((16, 48, 96, 192), range(seeds)):
        run("offered", 4, seed, strings)
    made = table(rows, runs=len(rows), knee=4, run={"max_steps": 2000})
    made.seconds = 1300
    return made


def overfitted() -> Table:
    """Where every run at the kept rate ends above the frozen base."""
    made = tables.dropouts()
    made.settings["base_loss"] = 1.5
    return made


STEPS, EPS = np.logspace(-20, 0, 41), 2.2e-16
STEP_ERRORS = {
    "forward difference": np.minimum(1, STEPS + EPS / STEPS),
    "central difference": np.minimum(1, STEPS**2 + EPS / STEPS),
    "complex step": STEPS**2 + EPS,
}
VERDICTS = {name: {"derived": [1e-16], "mistake": 0.1} for name in ("LoRA", "softmax")}
BY_LAYER = {f"{letter}_proj": {"A": [1e-15, 3e-15], "B": [0.0, 2e-16]} for letter in "qkvo"}
RANKS = [2**n for n in range(11)]


def gradients(out: int, in_: int, r: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dW and its two shadows, dA and dB."""
    rng = np.random.default_rng(0)
    dW = rng.normal(size=(out, in_))
    return dW, rng.normal(size=(r, out)) @ dW, dW @ rng.normal(size=(in_, r))


def drifted() -> Table:
    """Errors of four dtypes after many merges, as measured: the same adapter each time, and another one."""
    cycles = np.array([1, 10, 100, 1000])
    rows = [
        {"dtype": dtype, "adapters": which, "cycles": cycles.tolist(), "errors": (eps * cycles**growth).tolist()}
        for dtype, eps in {"bfloat16": 1e-3, "float16": 2e-4, "float32": 2e-8, "float64": 3e-17}.items()
        for which, growth in {"the same adapter": 0.0, "another adapter each time": 0.6}.items()
    ]
    return table(rows, of=8, share=0.3)


def combined() -> Table:
    """Losses of the base, two parents, cat between them, and every type; three draws of one."""
    points = [
        ("base", 0, 0, 1.5, 2.8),
        ("adapter", 1, 0, 1.3, 2.6),
        ("adapter", 0, 1, 2.8, 1.3),
        ("share", 0.5, 0.5, 1.6, 1.5),
    ]
    kinds = ["cat", "svd", "linear", "ties", "dare_ties", "dare_linear", "magnitude_prune"]
    kinds += ["dare_ties", "ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"]
    points += [(kind, 0.5, 0.5, 1.55 + 0.02 * i, 1.5 + 0.04 * i) for i, kind in enumerate(kinds)]
    rows = [
        {"kind": kind, "weights": [a, b], "code": code, "voice": voice, "error": 0.2 * i}
        for i, (kind, a, b, code, voice) in enumerate(points)
    ]
    return table(rows, r=8, density=0.5)


def bills(models=memory.LLAMA_2, **settings) -> Table:
    """On paper, so the study itself takes no time."""
    return memory.memory_bill(models, **settings)


def serving(peft=True) -> Table:
    rows = []
    for n, kind in itertools.product((1, 8, 1000), ("identical", "distinct", "zipf 1.5")):
        row = {"workload": kind, "adapters": n, "seconds": 0.005, "merged_seconds": 0.004 if n == 1 else 0.03}
        row |= {"bytes": 4e6 + 4e5 * n, "merged_bytes": 4e6 * n, "adapter_bytes": 4e5}
        rows.append(
            row | ({"peft_seconds": 0.016 if n == 1 else 0.07, "peft_ratio": 3.2 if n == 1 else 14.0} if peft else {})
        )
    settings = {
        "model": "tiny",
        "rows": 32,
        "r": 8,
        "prompt": 64,
        "rounds": 7,
        "threads": 1,
        "processor": "a processor",
    }
    made = table(rows)
    made.settings = settings
    return made


def quantized_errors(kinds=("N(0, 1)", "tiny", "smollm2-135m")) -> Table:
    """As measured: FP4 crosses int4 between blocks of 128 and of 512."""
    start = {"nf4": (0.067, 0.005), "fp4": (0.088, 0.008), "int4": (0.081, 0.01)}
    rows = [
        {"weights": kind, "quant_type": t, "block_size": 32 * 2**i, "mean": (mean + slope * i) * (1 + 0.06 * k)}
        for k, kind in enumerate(kinds)
        for t, (mean, slope) in start.items()
        for i in range(8)
    ]
    return table(rows)


def distances() -> Table:
    edges = np.linspace(0, 1, 33)
    share = np.exp(-(edges[:-1] ** 2) * 4)
    share /= share.sum()
    rows = [
        {"weights": kind, "quant_type": t, "edges": edges.tolist(), "share": share.tolist()}
        | {"contribution": (0.1 * share * (1 + np.sin(9 * i * edges[:-1]))).tolist()}
        for kind in ("N(0, 1)", "tiny")
        for i, t in enumerate(("nf4", "fp4", "int4"))
    ]
    codes = {
        "nf4": np.tanh(np.linspace(-1, 1, 16)) / np.tanh(1),
        "fp4": [0, 0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1],
    }
    return table(rows, block_size=64, codes=codes | {"int4": np.arange(-8, 8) / 7})


def turned(layers=35) -> Table:
    rng, rows = np.random.default_rng(0), []
    for base, cosine in {"another batch": 0.1, "nf4": 0.96, "fp4": 0.93, "int4": 0.95}.items():
        for layer, factor in itertools.product(range(layers), "AB"):
            found = np.clip(cosine + (1 - cosine) / 3 * rng.normal(), -1, 1)
            rows.append({"base": base, "layer": str(layer), "factor": factor, "cosine": float(found)})
    return table(rows, model="tiny")


def qlora(base="tiny", seeds=3, gap=0.005) -> Table:
    steps, rows = list(range(0, 201, 20)), []
    for quant_type, seed in itertools.product((None, "nf4"), range(seeds)):
        final = 1.31 + (gap if quant_type else 0) + 0.003 * seed
        losses = [final + 0.24 * float(np.exp(-step / 40)) for step in steps]
        rows.append({"quant_type": quant_type, "seed": seed, "steps": steps, "heldout": losses, "final": losses[-1]})
    return table(rows, base=base, base_loss=1.55, quantized_loss={"nf4": 1.56})


def routes(model="tiny") -> Table:
    found = {"as trained": (1.31, 0.0), "dequantised": (1.31, 2e-7), "bfloat16": (1.3102, 1e-3)}
    found |= {"original": (1.30, 0.04), "requantised": (1.32, 0.03)}
    return table([{"route": r, "heldout": h, "logits": z, "kept": 1 - z} for r, (h, z) in found.items()], model=model)


COMPARED = {  # method → the parameters it trains, the share it recovers, the prose it forgets
    **{"full": (1_017_216, 1.0, 0.2), "lora": (97_280, 0.9, 0.1), "qlora": (97_280, 0.89, 0.1)},
    **{"rslora": (97_280, 0.905, 0.1), "dora": (103_680, 0.908, 0.11), "pissa": (97_280, 0.92, 0.13)},
    **{"lora-fa": (51_200, 0.8, 0.06), "lora+": (97_280, 0.93, 0.14), "vera": (15_360, 0.6, 0.05)},
    **{"prefix": (12_800, 0.3, 0.02), "prefix-mlp": (47_040, 0.35, 0.02)},
    **{"houlsby": (29_550, 0.7, 0.08), "pfeiffer": (14_775, 0.6, 0.05)},
}


def compared(methods=tuple(COMPARED), seeds=3) -> Table:
    along, rows = np.linspace(0, 1, 9), []
    for method, seed in itertools.product(methods, range(seeds)):
        trainable, share, forgotten = COMPARED[method]
        share += 0.01 * seed
        row = {"method": method, "seed": seed, "trainable": trainable, "recovered": share, "phase": "seeds"}
        row |= {"steps": list(range(0, 201, 25)), "heldout": (1.55 - 0.26 * share * along).tolist()}
        rows.append(row | {"prose": (1.31 + forgotten * along**2 + 0.003 * seed * along).tolist()})
    return table(rows, base_loss=1.55, base_prose=1.31, labels={"lora": "LoRA", "full": "full fine-tuning"}, runs=80)


def by_rank(ranks=(1, 2, 4, 8, 16, 64)) -> Table:
    sizes = {r: {"r": r, "trainable": 12_160 * r, "recovered": 1 - 0.28 * r**-0.5} for r in ranks}
    return table([row | {"seed": seed} for row in sizes.values() for seed in range(3)], r=8)


PICTURES = {
    "quality_against_parameters": lambda: plots.quality_against_parameters(compared()),
    "quality_against_parameters, by rank": lambda: plots.quality_against_parameters(compared(), by_rank()),
    "quality_against_parameters, two": lambda: plots.quality_against_parameters(compared(("full", "lora"), 1)),
    "methods_learned_and_forgotten": lambda: plots.methods_learned_and_forgotten(compared()),
    "methods_learned_and_forgotten, two": lambda: plots.methods_learned_and_forgotten(compared(("full", "lora"), 1)),
    "method_diagrams": lambda: plots.method_diagrams(),
    "method_diagrams, three": lambda: plots.method_diagrams(("prefix", "houlsby", "pfeiffer")),
    **{
        f"method_diagram, {name}": lambda name=name: plots.method_diagram(name)
        for name in ("full", "dora", "prefix", "houlsby")
    },
    "nf4_codes": lambda: plots.nf4_codes(distances()),
    "error_by_distance": lambda: plots.error_by_distance(distances()),
    "quantization_error": lambda: plots.quantization_error(quantized_errors()),
    "quantization_error, one panel": lambda: plots.quantization_error(quantized_errors(("tiny",))),
    "gradient_cosines": lambda: plots.gradient_cosines(turned()),
    "qlora_losses": lambda: plots.qlora_losses(qlora(), qlora("smollm2-135m", 1, 0.05)),
    "qlora_losses, one panel": lambda: plots.qlora_losses(qlora(seeds=1)),
    "qlora_losses, equal": lambda: plots.qlora_losses(qlora(gap=0.0)),
    "merge_routes_chart": lambda: plots.merge_routes_chart(routes()),
    "merge_routes_chart, two models": lambda: plots.merge_routes_chart(routes(), routes("smollm2-135m")),
    "gradient_shadows, wide": lambda: plots.gradient_shadows(*gradients(128, 384)),
    "gradient_shadows, tall": lambda: plots.gradient_shadows(*gradients(384, 128)),
    "gradient_shadows, small": lambda: plots.gradient_shadows(*gradients(6, 9, 2)),
    "block_diagram": lambda: plots.block_diagram(),
    "step_sizes": lambda: plots.step_sizes(STEPS, STEP_ERRORS, "of a function"),
    "relative_errors": lambda: plots.relative_errors(VERDICTS, 1e-12, "Title", "and what it is"),
    "relative_errors, two series": lambda: plots.relative_errors(BY_LAYER, 1e-12, "Title", "and what it is"),
    "step_flops": lambda: plots.step_flops(RANKS, {d: [2 / 3 + 2 * r / d for r in RANKS] for d in (4096, 128)}, 2 / 3),
    "memory_bill": lambda: plots.memory_bill(bills()),
    "memory_bill, two models": lambda: plots.memory_bill(bills(["mistral-7b", "llama-65b"], precision="16-bit")),
    "merge_drift": lambda: plots.merge_drift(drifted()),
    "combinations_chart": lambda: plots.combinations_chart(combined()),
    "capacity_chart": lambda: plots.capacity_chart(remembered()),
    "capacity_chart, two ranks": lambda: plots.capacity_chart(remembered((1, 4), 0.4, 2)),
    "memory_knee": lambda: plots.memory_knee(remembered()),
    "memory_knee, never all": lambda: plots.memory_knee(remembered(held=0.2)),
    "before_after": lambda: plots.before_after(finetuned()),
    "learned_and_forgotten": lambda: plots.learned_and_forgotten(finetuned()),
    "learned_and_forgotten, one seed": lambda: plots.learned_and_forgotten(finetuned(1)),
    "bypass_diagram": lambda: plots.bypass_diagram(),
    "one_matrix_chart": lambda: plots.one_matrix_chart(one_matrix()),
    "one_matrix_chart, many ranks": lambda: plots.one_matrix_chart(one_matrix((1, 2, 4, 8, 16, 32, 64, 128))),
    "whole_models_chart": lambda: plots.whole_models_chart(whole_models()),
    "decomposition_2d, wide": lambda: plots.decomposition_2d(decomposition(24, 40, 3)),
    "decomposition_2d, tall": lambda: plots.decomposition_2d(decomposition(70, 26, 2)),
    "scene_3d, sizes": lambda: plots.scene_3d(table([{"d": 4096, "k": 4096, "r": 8}])),
    "scene_3d, wide": lambda: plots.scene_3d(decomposition(24, 66, 3)),
    "scene_3d, tall": lambda: plots.scene_3d(decomposition(70, 26, 2)),
    "serving_chart": lambda: plots.serving_chart(serving()),
    "serving_chart, without PEFT": lambda: plots.serving_chart(serving(peft=False)),
    "intrinsic_dimension": lambda: plots.intrinsic_dimension(intrinsic(), with_lora()),
    "intrinsic_dimension, close": lambda: plots.intrinsic_dimension(intrinsic((80_000, 60_000), lora=False)),
    "intrinsic_dimension, not reached": lambda: plots.intrinsic_dimension(intrinsic((None, None))),
    "rank_by_layer": lambda: plots.rank_by_layer(ranks_by_layer()),
    "rank_by_layer, one model": lambda: plots.rank_by_layer(ranks_by_layer((("tiny", 5, 128),), seeds=1)),
    "similarity_maps": lambda: plots.similarity_maps(compared_subspaces()),
    "amplification_chart": lambda: plots.amplification_chart(compared_subspaces()),
    "singular_values": lambda: plots.singular_values(spectra()),
    "singular_values, no random": lambda: plots.singular_values(spectra(random=False)),
    "truncated_loss": lambda: plots.truncated_loss(truncated()),
    "truncated_loss, never enough": lambda: plots.truncated_loss(truncated((0.0, 0.1, 0.2, 0.3))),
    "photograph": lambda: plots.photograph(photo()),
    "photograph, eight": lambda: plots.photograph(photo((1, 2, 3, 4, 5, 6, 7, None))),
    "loss_curves over steps": lambda: plots.loss_curves(convergence()),
    "loss_curves over seconds": lambda: plots.loss_curves(convergence(), x="seconds"),
    "loss_curves, all equal": lambda: plots.loss_curves(convergence(equal=True)),
    "loss_curves, one panel, one seed": lambda: plots.loss_curves(convergence((8,), ("all-linear",), seeds=1)),
    "recovered_gain": lambda: plots.recovered_gain(convergence()),
    "recovered_gain, all equal": lambda: plots.recovered_gain(convergence(equal=True)),
    "recovered_gain, two lengths": lambda: plots.recovered_gain(convergence(), convergence(equal=True)),
    "rates_by_rank": lambda: plots.rates_by_rank(tables.by_rank()),
    "rates_by_rank, three rules": lambda: plots.rates_by_rank(tables.by_rank(10, 1.0), tables.converged()),
    "alpha_chart": lambda: plots.alpha_chart(tables.alphas()),
    "alpha_chart, another slope": lambda: plots.alpha_chart(tables.alphas(1.0)),
    "rank_scaling_chart": lambda: plots.rank_scaling_chart(tables.scaled()),
    "target_modules_chart": lambda: plots.target_modules_chart(tables.targets()),
    "equal_parameters_chart": lambda: plots.equal_parameters_chart(tables.equal()),
    "equal_parameters_chart, attention ahead": lambda: plots.equal_parameters_chart(tables.equal(-0.01)),
    "dropout_chart": lambda: plots.dropout_chart(tables.dropouts()),
    "dropout_chart, above the base": lambda: plots.dropout_chart(overfitted()),
    "dropout_chart, no help": lambda: plots.dropout_chart(tables.dropouts(0.0)),
    "batch_size_chart": lambda: plots.batch_size_chart(tables.batches()),
    "batch_size_chart, alike": lambda: plots.batch_size_chart(tables.batches(-0.02)),
    "learning_rates": lambda: plots.learning_rates(convergence()),
    "learning_rates, one panel": lambda: plots.learning_rates(convergence((4, 8), ("attention",))),
}


@pytest.fixture(scope="module", params=PICTURES)
def picture(request) -> tuple[str, Figure]:
    """(its name, the figure, drawn): once for all that is asked of it, and a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = PICTURES[request.param]()
    plt.close(figure)
    FigureCanvasAgg(figure).draw()  # closing takes the canvas away
    return request.param, figure


# ------------------------------------------------------------------------------------------- nothing cut, nothing over


@pytest.mark.slow
def test_no_text_is_cut_off(picture):
    name, figure = picture
    width, height = figure.get_size_inches() * figure.dpi
    for text, ((x0, y0), (x1, y1)) in texts(figure):
        inside = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
        assert inside, f"{name}: {text!r} at x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} leaves {width} × {height}"


@pytest.mark.slow
def test_no_label_overlaps_another(picture):
    name, figure = picture
    for (one, a), (other, b) in itertools.combinations(texts(figure), 2):
        shared = np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])  # pixels across and up
        assert not (shared > 1.5).all(), f"{name}: {one!r} and {other!r} overlap by {shared.round(1)} pixels"


@pytest.mark.slow
def test_every_axis_that_shows_numbers_says_what_they_are(picture):
    name, figure = picture
    for ax in figure.axes:
        if not ax.axison or ax.name == "3d":
            continue
        if any(label.get_text() for label in ax.get_xticklabels()):
            assert ax.get_xlabel(), f"{name}: an x axis with numbers and no label"
        has_numbers = any(label.get_text().replace(".", "").isdigit() for label in ax.get_yticklabels())
        shares_its_label = any(
            other is not ax and other.get_ylabel() and np.allclose(other.get_ylim(), ax.get_ylim())
            for other in figure.axes
        )
        named = ax.get_ylabel() or ax.get_title(loc="left") or shares_its_label
        assert named or not has_numbers, f"{name}: a y axis with numbers and no label"


@pytest.mark.slow
def test_every_picture_of_a_study_says_how_many_runs_it_shows_and_what_they_took(monkeypatch):
    """The committed ones. Seconds of one core, or of the machine where a study is alone on it."""
    data = Path(__file__).parents[2] / "figures" / "data"
    tables = {name: Table.load(data / f"{name}.json") for name in (*STUDIES, "step_cost") if name != "shortfall"}
    second_lines = {}
    monkeypatch.setattr(
        plots, "save", lambda figure, folder, name, dark=False: second_lines.update({name: figure.texts[1].get_text()})
    )
    drawn = pictures.draw(tables, Path("nowhere"), changed=STUDIES)
    assert len(drawn) > 20
    silent = {"before_after"}  # what a model says, and no curve
    said = {name: re.search(r"\d+ runs?, [\d,]+ (minutes|s)\b", line) for name, line in second_lines.items()}
    assert {name for name, found in said.items() if not found} == silent


@pytest.mark.slow
def test_letters_are_large_enough_on_half_a_page(monkeypatch):
    """A picture 600 pixels wide, half of a laptop's window, has no letters smaller than 7.5 pixels."""
    data = Path(__file__).parents[2] / "figures" / "data"
    tables = {path.stem: Table.load(path) for path in sorted(data.glob("*.json"))}
    sizes, right = {}, {}

    def measure(figure, folder, name, dark=False):
        pixels = 600 / figure.get_size_inches()[0] / 72
        sizes[name] = min(text.get_fontsize() * pixels for text in figure.findobj(Text) if text.get_text().strip())
        right[name] = max(text.get_window_extent().x1 / figure.bbox.x1 for text in figure.texts)

    monkeypatch.setattr(plots, "save", measure)
    pictures.draw(tables, Path("nowhere"))
    assert len(sizes) > 40
    small = {name: round(size, 1) for name, size in sizes.items() if size < 7.5}
    assert not small, f"letters too small at half a page, in pixels: {small}"
    cut = {name: round(end, 3) for name, end in right.items() if end > 1}
    assert not cut, f"titles or subtitles that the committed table makes longer than the picture is wide: {cut}"


def test_the_titles_of_the_methods_are_their_findings():
    """lora+ is ahead; pissa is a point behind it with every seed, or, where its best seed is another one, with some."""
    alone, all_ = title(PICTURES["quality_against_parameters, two"]()), title(PICTURES["quality_against_parameters"]())
    assert alone == "LoRA recovers 90 % of full fine-tuning's gain"
    assert all_ == "12 methods recover between 31 % and 94 % of full fine-tuning's gain"
    mixed = compared()
    seeds = mixed.where(method="pissa")
    seeds[0]["recovered"], seeds[-1]["recovered"] = seeds[-1]["recovered"], seeds[0]["recovered"]
    said = title(plots.quality_against_parameters(mixed))
    assert said == "pissa and lora+ recover 93 to 94 % of full fine-tuning's gain"
    behind = title(PICTURES["methods_learned_and_forgotten, two"]())
    assert behind == "After equal learning, LoRA has forgotten 0.100 nats per byte, full fine-tuning 0.162"
    ahead = compared(("full", "lora"))
    for row in ahead.where(method="lora"):
        row["heldout"] = [loss - 0.1 for loss in row["heldout"]]
    said = title(plots.methods_learned_and_forgotten(ahead))
    assert said == "LoRA learns 0.337 and forgets 0.103; full fine-tuning learns 0.263 and forgets 0.203"


def test_the_title_of_a_fine_tuning_says_what_was_learned_and_what_forgotten():
    assert (
        title(plots.learned_and_forgotten(finetuned()))
        == "LoRA learns less than full fine-tuning, and forgets less with all 3 seeds"
    )
    mixed = finetuned()
    for row in mixed.where(method="lora"):
        row["final"], row["prose"] = 2.31, 3.2 + 0.1 * row["seed"]
    said = title(plots.learned_and_forgotten(mixed))
    assert said == "LoRA learns as much as full fine-tuning, and forgets more with 2 of 3 seeds"


def test_markers_of_equal_counts_stand_side_by_side():
    figure = plots.quality_against_parameters(compared())
    plt.close(figure)
    across = sorted(
        figure.axes[0].transData.transform((c.lines[0].get_xdata()[0], 1))[0] for c in figure.axes[0].containers
    )
    assert len(across) == len(COMPARED) and np.diff(across).min() * 72 / figure.dpi > 9.9
    assert figure.axes[0].get_xlabel().endswith("(overlapping points are moved apart; the ticks are the true numbers)")


def test_spread_keeps_order_and_distance_and_moves_as_little_as_it_can():
    wanted = np.array([5.0, 0.0, 0.1, 0.2, 5.1])
    placed = style.spread(wanted, gap=1.0)
    assert np.diff(np.sort(placed)).min() >= 1 - 1e-12
    assert (np.argsort(placed) == np.argsort(wanted)).all()
    np.testing.assert_allclose(placed, [4.55, -0.9, 0.1, 1.1, 5.55])
    np.testing.assert_allclose(style.spread(np.array([0.0, 3.0, 9.0]), gap=1.0), [0, 3, 9])  # room enough: nobody moves


# --------------------------------------------------------------------------------------------------------- the palette

# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1.0; they act on linear RGB.
SIGHT = {
    "usual sight": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str) -> np.ndarray:
    """CIELAB of a colour as someone with this sight sees it: distance 1 is just visible, 20 plainly different."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / (0.9505, 1, 1.089)
    x, y, z = (np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, sight: str) -> float:
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight)))


MEANINGS = {
    "frozen": colours.FROZEN,
    "lora": colours.LORA,
    "full": colours.FULL,
    "paper": colours.PAPER,
    "ink": colours.INK,
}


@pytest.mark.parametrize("sight", SIGHT)
def test_every_meaning_keeps_its_own_colour_for_the_colour_blind(sight):
    for (one, a), (other, b) in itertools.combinations(MEANINGS.items(), 2):
        assert distance(a, b, sight) >= 20, f"{one} and {other} look alike under {sight}: {distance(a, b, sight):.0f}"
    for other_method, (meaning, colour) in itertools.product(colours.OTHERS, MEANINGS.items()):
        assert distance(other_method, colour, sight) >= 12, f"{other_method} looks like {meaning} under {sight}"
    for a, b in itertools.combinations(colours.OTHERS, 2):
        assert distance(a, b, sight) >= 15, f"{a} and {b} look alike under {sight}"


def test_lora_and_full_fine_tuning_differ_in_grey_print():
    assert colours.contrast(colours.LORA, colours.FULL) >= 1.5
    assert colours.contrast(colours.LORA, colours.FROZEN) >= 1.5


def test_every_line_can_be_seen_and_every_letter_read():
    shades = colours.rank_shades([1, 2, 4, 8, 16, 64])
    for colour in (colours.LORA, colours.FULL, *colours.OTHERS[:2], colours.INK, colours.FAINT_INK):
        assert colours.contrast(colour) >= 3 - 0.01, f"{colour} is too pale for a line (WCAG 2.1 asks 3:1)"
    for colour in (*shades.values(), colours.LORA, colours.FULL, colours.FROZEN, *colours.OTHERS):
        readable = colours.for_text(colour)
        assert colours.contrast(readable) >= 4.5, f"{colour} as text: {readable} is too pale (WCAG 2.1 asks 4.5:1)"
    assert colours.contrast(colours.FAINT_INK) >= 4.5 and colours.contrast(colours.INK, colours.FULL) >= 4.5


def test_a_higher_rank_is_always_darker_and_visibly_so():
    shades = list(colours.rank_shades([64, 1, 2, 4, 8, 16]).values())
    assert list(colours.rank_shades([64, 1, 16])) == [1, 16, 64]
    for lower, higher in itertools.pairwise(shades):
        assert colours.contrast(higher) > colours.contrast(lower)
        for sight in SIGHT:
            assert distance(lower, higher, sight) >= 5, f"{lower} and {higher} cannot be told apart under {sight}"
    assert colours.rank_shades([8]) == {8: colours.LORA}


# ----------------------------------------------------------------------------------------------------- saving, saying


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name, draw in {k: PICTURES[k] for k in ("bypass_diagram", "loss_curves over steps", "scene_3d, wide")}.items():
        first = style.save(draw(), tmp_path / "one", "picture")
        again = style.save(draw(), tmp_path / "two" / "deeper", "picture")
        assert first.name == again.name == "picture.png"
        assert first.read_bytes() == again.read_bytes(), f"{name} differs from run to run"
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["picture.png"]
    plt.close("all")


def test_a_picture_looks_the_same_under_a_readers_own_settings(tmp_path):
    plain = style.save(plots.truncated_loss(truncated()), tmp_path / "plain", "p").read_bytes()
    with plt.style.context("dark_background"):
        themed = style.save(plots.truncated_loss(truncated()), tmp_path / "dark", "p").read_bytes()
    plt.close("all")
    assert plain == themed


def test_a_table_that_lacks_something_is_named_with_what_it_lacks():
    with pytest.raises(ValueError, match=r"loss_curves needs .*'heldout'.*'base_loss'.*'a test'.*python -m pytest"):
        plots.loss_curves(table([{"method": "full", "r": 0, "target_modules": "full", "seed": 0}]))
    with pytest.raises(ValueError, match="one_matrix_chart needs"):
        plots.one_matrix_chart(table([]))
    with pytest.raises(ValueError, match="'soft prompt' has no drawing; use one of full, lora"):
        plots.method_diagram("soft prompt")
    with pytest.raises(ValueError, match="'step' or 'seconds'"):
        plots.loss_curves(convergence((8,), ("attention",), seeds=1), x="steps")


def title(figure: Figure) -> str:
    plt.close(figure)
    return figure.texts[0].get_text()


def test_a_notebook_that_trims_its_pictures_shows_the_whole_scene():
    figure = plots.scene_3d(decomposition())
    plt.close(figure)
    FigureCanvasAgg(figure)
    box = figure.get_tightbbox().get_points()
    assert np.allclose(box, [[0, 0], figure.get_size_inches()])


def test_titles_say_what_the_table_says():
    assert title(plots.recovered_gain(convergence(equal=True))) == (
        "LoRA on all linear layers recovers 95 % of full fine-tuning's gain from r = 1 on"
    )
    assert "at most" in title(plots.recovered_gain(convergence(ranks=(1,))))
    assert title(plots.truncated_loss(truncated())) == (
        "If every ΔW is cut to rank 8 of 16, the model keeps 97 % of full fine-tuning's gain"
    )
    assert title(plots.quantization_error(quantized_errors())) == (
        "NF4 has the smallest error at every block size; FP4 beats int4 only in large blocks"
    )
    assert title(plots.qlora_losses(qlora(gap=0.0))) == "QLoRA's final loss is 0.0 % (tiny) above LoRA's final loss"
    assert "0.011 % to 0.59 %" in title(plots.whole_models_chart(whole_models()))


def test_titles_of_hyperparameter_pictures_say_what_their_tables_say():
    assert (
        title(plots.rates_by_rank(tables.by_rank()))
        == "At α = 32, LoRA's best learning rate is 4× that of full fine-tuning"
    )
    assert "At 0 of 2 sizes" in title(plots.equal_parameters_chart(tables.equal(-0.01)))
    assert "lowers the loss by 0.020 at η = 0.004, by 0.010 at the best η" in title(
        plots.dropout_chart(tables.dropouts())
    )
    above = plots.dropout_chart(overfitted())
    assert "by 0.020" in title(above) and "ends with a higher loss than the base" in above.texts[1].get_text()
    assert title(plots.batch_size_chart(tables.batches())).endswith(
        " is +0.010 with batches of 2, and +0.050 with batches of 32"
    )
    assert title(plots.rank_scaling_chart(tables.scaled())).startswith("At r = 128, α/r has the lowest loss")
    assert "0.000 if each α has its best η" in title(plots.alpha_chart(tables.alphas()))
    assert "most in down_proj and least in q_proj" in title(plots.target_modules_chart(tables.targets()))


def test_bars_are_drawn_to_scale():
    figure = plots.one_matrix_chart(one_matrix())
    plt.close(figure)
    lengths = sorted(bar.get_width() for bar in figure.axes[0].patches)
    assert lengths == [8192, 32768, 65536, 131072, 524288, 16777216]  # FACTS.md §1


def test_the_bars_of_the_memory_bill_add_up_to_what_costs_say():
    bill, figure = bills(), plots.memory_bill(bills())
    plt.close(figure)
    whole, detail = figure.axes
    for ax, methods in ((whole, ("full", "lora", "qlora")), (detail, ("lora", "qlora"))):
        for place, (method, model) in zip(ax.get_yticks(), itertools.product(methods, memory.LLAMA_2), strict=True):
            middles = {bar: bar.get_y() + bar.get_height() / 2 for bars in ax.containers for bar in bars}
            drawn = sum(bar.get_width() for bar, middle in middles.items() if middle == pytest.approx(place))
            wanted = bill.where(method=method, model=model, checkpointing=ax is whole)[0]["total"]
            assert drawn == pytest.approx(wanted / 1e9), (method, model)


def test_numbers_are_said_as_readers_say_them():
    assert [words.percent(x) for x in (1, 0.954, 0.0078125, 0.000488, 0, 1.02)] == [
        "100 %",
        "95 %",
        "0.78 %",
        "0.049 %",
        "0 %",
        "102 %",
    ]
    assert [words.short_count(n) for n in (6_738_415_616, 294_912, 13e9, 124_439_808, 512)] == [
        "6.74 B",
        "295 k",
        "13.0 B",
        "124 M",
        "512",
    ]
