"""The main job: train on real text, draw every picture from its table, run the notebooks, and say what was found."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import gradcheck_model, plots
from .fetch import fetched
from .notebooks import execute_all
from .studies import convergence as convergence_study
from .studies import merging, parameters, quantization, rank_reduction
from .studies.claims import energy, gain_kept, write_into
from .studies.convergence import Run, Setting, convergence, shortfall
from .studies.finetuning import finetuning
from .studies.memory import memory_bill
from .studies.merge_routes import merge_routes
from .studies.qlora import QuantizedFineTuning, QuantizedRun, means, on_smollm2, on_tiny, over_four_bits
from .studies.step_cost import step_cost, timed_alike
from .studies.table import Table

Tables = dict[str, Table]


def reproduce(full: bool, figures: Path, notebooks: Path, workers: int = 2) -> None:
    """Make tables, pictures and executed notebooks, with progress on stderr and the findings on stdout.

    The quick setting (minutes) writes its own under `figures`/quick, beside the committed ones, and draws the committed
    pictures again from their tables. `full` (hours; it resumes) makes the committed tables and pictures themselves.
    """
    started = time.perf_counter()
    timed = committed_seconds(figures) if full else {}
    folder = figures if full else figures / "quick"
    setting = convergence_study.FULL if full else convergence_study.QUICK
    say(1, "counting parameters and bytes")
    tables = {"one_matrix": parameters.one_matrix(), "whole_models": parameters.whole_models()}
    tables["memory_bill"] = memory_bill()
    say(2, f"convergence: full fine-tuning and LoRA on real text, {setting.steps} steps a run")
    runs = "runs/convergence" if full else None  # where finished runs are kept, so that the study can resume
    if full:
        tables["convergence_short"] = convergence(convergence_study.SHORT, workers, runs)
    tables["convergence"] = convergence(setting, workers, runs)
    if full:
        tables["shortfall"] = shortfall(tables["convergence"], workers=workers, folder=runs)
        tables |= real_model(figures)
    say(3, "rank reduction: the ΔW that full fine-tuning learns")
    tables |= rank_tables(setting, tables["convergence"])
    say(4, "four bits: errors, gradients, QLoRA beside LoRA, merging")
    tables |= quantization_tables(tables["convergence"], full, workers, runs)
    say(5, "merging: what is left in the weights, and two adapters made one")
    tables["merge_drift"] = merging.drift()
    tables["combinations"] = merging.combinations(merging.FULL if full else merging.QUICK)
    say(6, "what a step costs, side by side")
    tables["step_cost"] = step_cost(list(setting.methods()), repeats=7 if full else 3)
    for name, table in tables.items():
        table.command = "python -m lora_np reproduce" + (" --full" if full else "")
        table.save(folder / "data" / f"{name}.json")
    tables |= timed
    say(7, f"pictures in {figures}")
    draw(tables, folder)
    if not full:
        draw({path.stem: Table.load(path) for path in sorted((figures / "data").glob("*.json"))}, figures)
    if full:
        write_into(Path("README.md"), tables)
    print(findings(tables), flush=True)
    say(8, "notebooks")
    execute_all(notebooks, notebooks if full else folder / "notebooks")
    print(f"\n{time.perf_counter() - started:.0f} s in all. Pictures: {figures}, this run's own: {folder}")


def committed_seconds(figures: Path) -> Tables:
    """The tables of seconds, each made by a command of its own on a quiet machine. Raises FileNotFoundError naming it."""
    bench = f"python -m lora_np bench --json {figures}/data"
    made_by = {"speed": bench, "quantized_speed": bench, "serving": merging.TIMED}
    for name, command in made_by.items():
        if not (figures / "data" / f"{name}.json").is_file():
            raise FileNotFoundError(f"{figures}/data/{name}.json: make it first, with {command}")
    found = [
        path
        for kind in ("*speed*", "serving*", "merge_latency*", "method_costs*")
        for path in (figures / "data").glob(f"{kind}.json")
    ]
    return {path.stem: Table.load(path) for path in sorted(found)}


def real_model(figures: Path) -> Tables:
    """SmolLM2-135M fine-tuned, also over four bits, here where it was fetched; else the committed tables."""
    try:
        fetched("smollm2-135m")
    except FileNotFoundError as error:
        say(2, f"SmolLM2-135M is left out, its committed table stays: {error}")
        committed = ("finetuning", "qlora_smollm2", "merge_routes_smollm2")
        return {name: Table.load(figures / "data" / f"{name}.json") for name in committed}
    measured = finetuning(folder="runs/finetuning")
    row = min(measured.where(phase="seeds", method="lora"), key=lambda row: row["seed"])
    return {
        "finetuning": measured,
        "qlora_smollm2": on_smollm2(measured, "runs/finetuning"),
        "merge_routes_smollm2": merge_routes(over_four_bits(QuantizedFineTuning, row)),
    }


def rank_tables(setting: Setting, measured: Table) -> Tables:
    """The tables of the rank study, from one more full fine-tuning at the learning rate that the sweep found best."""
    lr = min(measured.where(phase="seeds", method="full"), key=lambda row: row["final"])["lr"]
    run = Run(
        "full", lr, max_steps=setting.steps, batch_size=setting.batch_size, eval_every=setting.steps, base=setting.base
    )
    deltas = rank_reduction.learned_deltas(run)
    return {
        "decomposition": rank_reduction.decomposition(deltas, run),
        "singular_values": rank_reduction.singular_values(deltas, run),
        "truncated_loss": rank_reduction.truncated_loss(deltas, run),
    }


def quantization_tables(measured: Table, full: bool, workers: int, runs: str | None) -> Tables:
    """The tables of four bits on "tiny", whose LoRA runs are `measured`; SmolLM2's weights too where `full` and fetched."""
    models = ["tiny"]
    if full:
        try:
            fetched("smollm2-135m")
            models.append("smollm2-135m")
        except FileNotFoundError as error:
            say(4, f"the errors of SmolLM2-135M's weights are left out: {error}")
    lora = measured.where(phase="seeds", method="lora", r=8, target_modules="all-linear")
    run = over_four_bits(QuantizedRun, lora[0])
    if full:
        qlora = on_tiny(measured, workers=workers, folder=runs)
    else:
        qlora = on_tiny(measured, quant_types=["nf4"], seeds=[run.seed])
        run = replace(run, max_steps=run.max_steps // 2)
    return {
        "quantization_error": quantization.error(models),
        "quantization_distances": quantization.where_it_arises(),
        "quantization_gradients": quantization.gradients(steps=60 if full else 20),
        "qlora_tiny": qlora,
        "merge_routes_tiny": merge_routes(replace(run, eval_every=run.max_steps)),
    }


PICTURES: dict[str, list[tuple[str, Callable]]] = {  # table → (name of the picture, function)
    "one_matrix": [("one_matrix", plots.one_matrix_chart)],
    "whole_models": [("whole_models", plots.whole_models_chart)],
    "memory_bill": [("memory_bill", plots.memory_bill)],
    "decomposition": [("decomposition_2d", plots.decomposition_2d), ("scene_3d", plots.scene_3d)],
    "singular_values": [("singular_values", plots.singular_values)],
    "truncated_loss": [("truncated_loss", plots.truncated_loss)],
    "convergence": [
        ("convergence_steps", plots.loss_curves),
        ("learning_rates", plots.learning_rates),
    ],
    "comparison": [
        ("quality_against_parameters", plots.quality_against_parameters),
        ("methods_learned_and_forgotten", plots.methods_learned_and_forgotten),
    ],
    "finetuning": [("before_after", plots.before_after), ("learned_and_forgotten", plots.learned_and_forgotten)],
    "quantization_error": [("quantization_error", plots.quantization_error)],
    "quantization_distances": [("nf4_codes", plots.nf4_codes), ("error_by_distance", plots.error_by_distance)],
    "quantization_gradients": [("gradient_cosines", plots.gradient_cosines)],
    "merge_drift": [("merge_drift", plots.merge_drift)],
    "combinations": [("combinations", plots.combinations_chart)],
    "serving": [("serving", plots.serving_chart)],
    "speed": [("speed", plots.speed_chart)],
    "speed_scaling": [("speed_scaling", plots.scaling_chart)],
}


def draw(tables: Tables, folder: Path) -> None:
    """Every picture of these tables, as .png and .svg, and the two that need none."""
    import matplotlib.pyplot as plt

    drawings = [
        (name, lambda f=f, table=table: f(table)) for key, table in tables.items() for name, f in PICTURES.get(key, [])
    ]
    if measured := tables.get("convergence"):
        drawings.append(("recovered_gain", lambda: plots.recovered_gain(measured, tables.get("convergence_short"))))
    for name, f in (("qlora", plots.qlora_losses), ("merge_routes", plots.merge_routes_chart)):
        found = [tables[key] for key in (f"{name}_tiny", f"{name}_smollm2") if key in tables]
        if found:
            drawings.append((name, lambda f=f, found=found: f(*found)))
    if {"convergence", "step_cost"} <= tables.keys():
        alike = timed_alike(tables["convergence"], tables["step_cost"])
        drawings.append(("convergence_seconds", lambda: plots.loss_curves(alike, x="seconds")))
    drawings += [("bypass", plots.bypass_diagram), ("method_diagrams", plots.method_diagrams)]
    drawings += [("photograph", lambda: plots.photograph(photograph()))]
    for name, function in drawings:
        figure = function()
        plots.save(figure, folder, name)
        plt.close(figure)


def photograph() -> Table:
    """Low rank on the photograph that comes with matplotlib, in grey values, every second pixel."""
    from matplotlib.cbook import get_sample_data
    from matplotlib.image import imread

    with get_sample_data("grace_hopper.jpg") as file:
        colour = imread(file, format="jpg")[::2, ::2]
    return rank_reduction.photograph(colour.astype(float) @ np.array([0.299, 0.587, 0.114]))  # ITU-R BT.601 luma


def findings(tables: Tables) -> str:
    """The short table at the end: what this run measured."""
    eight, measured = tables["one_matrix"].where(r=8)[0], tables["convergence"]
    learned, chance = (energy(tables["singular_values"], key) for key in ("singular_values", "random_singular_values"))
    full = measured.where(phase="seeds", method="full")
    step, lora_step = tables["step_cost"].rows[0], tables["step_cost"].where(r=8, target_modules="all-linear")[0]
    lines = [
        (
            "LoRA r = 8 on one 4096 × 4096 matrix",
            f"{eight['lora']:,} of {eight['full']:,} numbers, {eight['factor']:g}× fewer",
        ),
        ("the top 8 directions of a learned ΔW", f"{learned:.0%} of its energy (of a random matrix: {chance:.0%})"),
        ("every ΔW cut to rank 8", f"{gain_kept(tables['truncated_loss'], 8):.0%} of the held-out gain stays"),
        ("held-out loss of the base", f"{measured.settings['base_loss']:.3f} nats a byte"),
        (f"full fine-tuning, lr {full[0]['lr']:g}", f"{statistics.mean(row['final'] for row in full):.3f} nats a byte"),
    ]
    shares = measured.where(phase="seeds", method="lora")
    for target, r in dict.fromkeys((row["target_modules"], row["r"]) for row in shares):
        rows = [row for row in shares if (row["target_modules"], row["r"]) == (target, r)]
        loss, share = (statistics.mean(row[key] for row in rows) for key in ("final", "recovered"))
        lines.append(
            (f"LoRA r = {r}, {target}, lr {rows[0]['lr']:g}", f"{loss:.3f} nats a byte, {share:.0%} of full's gain")
        )
    found, error = means(tables["qlora_tiny"]), tables["quantization_error"].where(weights="tiny", block_size=64)
    errors = ", ".join(f"{row['quant_type']} {row['mean']:.4f}" for row in error)
    lines += [
        ("the same over a base in NF4, r = 8", f"{found['nf4']:.3f} nats a byte, beside LoRA's {found[None]:.3f}"),
        ("error of four bits, mean, in blocks of 64", f"{errors} of a weight's rms"),
    ]
    time_ratio, memory_ratio = (lora_step[key] / step[key] for key in ("seconds", "peak_bytes"))
    cost = f"{time_ratio:.2f}× the time, {memory_ratio:.2f}× the memory of a full one"
    exact = f"{worst_gradient_error():.0e} against the complex step, in float64"
    lines += [(f"a step of LoRA r = {lora_step['r']}, all linear", cost), ("worst gradient of LoRA on tiny", exact)]
    width = max(len(left) for left, _ in lines)
    return "\nWhat this run found\n" + "\n".join(f"  {left:<{width}}  {right}" for left, right in lines)


def worst_gradient_error() -> float:
    """The proof, on the embedded base itself: every A and B of an adapter with B ≠ 0, in float64."""
    from . import LoraConfig, data, get_peft_model, load_model

    config = LoraConfig(r=2, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
    tokens, targets = data.Batches(data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
    model = get_peft_model(load_model("tiny"), config)
    return max(gradcheck_model(model, tokens, targets, directions=1).errors.values())


def say(number: int, what: str) -> None:
    print(f"[{number}/8] {what}", file=sys.stderr, flush=True)
