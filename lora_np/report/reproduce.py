"""The main job: train on real text, draw every picture from its table, run the notebooks, and say what was found."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import gradcheck_model
from ..pretrained import fetched
from ..studies.catalogue import STUDIES, make
from ..studies.convergence import study as convergence_study
from ..studies.convergence.study import Setting
from ..studies.counting import parameters
from ..studies.counting.memory import memory_bill
from ..studies.four_bits import quantization
from ..studies.four_bits.merge_routes import merge_routes
from ..studies.four_bits.qlora import QuantizedFineTuning, QuantizedRun, means, over_four_bits
from ..studies.harness.table import Table, groups, mean
from ..studies.harness.tiny_task import Run
from ..studies.low_rank import rank_reduction
from ..studies.low_rank.claims import energy, gain_kept
from ..studies.methods import method_costs
from ..studies.serving import merging
from ..studies.timing import claims as timing_claims
from ..studies.timing import latency
from ..studies.timing.step_cost import step_cost
from .notebooks import execute_all
from .pictures import Tables, draw
from .results import write_into

RESULTS = Path("docs/results.md")  # has the table of claims
QUICK = ("convergence", "qlora_tiny")  # of the catalogue, in their quick setting: what minutes have time for


def reproduce(full: bool, figures: Path, notebooks: Path, workers: int = 2) -> None:
    """Make tables, pictures and executed notebooks, with progress on stderr and the findings on stdout.

    The quick setting (minutes) writes its own under `figures`/quick, beside the committed ones, and draws the committed
    pictures again from their tables. `full` (hours; it resumes) makes the committed tables and pictures themselves.
    """
    started, committed = time.perf_counter(), figures / "data"
    if full and not RESULTS.is_file():
        raise FileNotFoundError(f"there is no file {RESULTS}: run reproduce --full in a clone of the repository")
    timed = committed_seconds(figures) if full else {}
    folder = figures if full else figures / "quick"
    setting = convergence_study.FULL if full else convergence_study.QUICK
    say(1, "counting parameters and bytes")
    tables = {"one_matrix": parameters.one_matrix(), "whole_models": parameters.whole_models()}
    tables["memory_bill"] = memory_bill()
    say(2, f"studies of many runs on real text: {setting.steps} steps a run in the first")
    sweeps = swept(full, committed, workers)
    tables |= sweeps
    say(3, "rank reduction: the ΔW that full fine-tuning learns")
    tables |= rank_tables(setting, tables["convergence"])
    say(4, "four bits: errors, gradients, routes of merging")
    tables |= quantization_tables(tables, full, committed)
    say(5, "merging: what is left in the weights, and two adapters made one")
    tables["merge_drift"] = merging.drift()
    tables["combinations"] = merging.combinations(merging.FULL if full else merging.QUICK)
    say(6, "what a step costs, side by side")
    tables["step_cost"] = step_cost(list(setting.methods()), repeats=7 if full else 3)
    for name, table in tables.items():
        if name not in sweeps:  # which have a command of their own
            table.command = "python -m lora_np reproduce" + (" --full" if full else "")
        table.save(folder / "data" / f"{name}.json")
    tables |= timed
    say(7, f"pictures in {figures}")
    draw(tables, folder)
    if full:
        write_into(RESULTS, tables)
    else:
        draw({path.stem: Table.load(path) for path in sorted(committed.glob("*.json"))}, figures)
    print(findings(tables), flush=True)
    say(8, "notebooks")
    execute_all(notebooks, notebooks if full else folder / "notebooks", at_once=1 if full else workers)
    print(f"\n{time.perf_counter() - started:.0f} s in all. Pictures: {figures}, this run's own: {folder}")


def committed_seconds(figures: Path) -> Tables:
    """The tables of seconds, each made by a command of its own on a quiet machine. Raises FileNotFoundError naming it."""
    made_by = {
        f"python -m lora_np bench --json {figures}/data": ("speed", "quantized_speed"),
        latency.COMMAND: ("serving", "serving_step", "merge_latency"),
        method_costs.COMMAND: ("method_costs", "method_costs_smollm2"),
    }
    for command, names in made_by.items():
        for path in (figures / "data" / f"{name}.json" for name in names):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: make it first, with {command}")
    kinds = ("*speed*", "serving*", "merge_latency*", "method_costs*")
    found = [path for kind in kinds for path in (figures / "data").glob(f"{kind}.json")]
    return {path.stem: Table.load(path) for path in sorted(found)}


def swept(full: bool, committed: Path, workers: int) -> Tables:
    """The tables of the studies of many runs: all of the catalogue, or the `QUICK` ones in their quick setting.

    Without the model that it needs, a study's committed table stays.
    """
    tables: Tables = {}
    for name in STUDIES if full else QUICK:
        if full and (model := STUDIES[name].model) and not here(model, 2, name):
            tables[name] = Table.load(committed / f"{name}.json")
        else:
            tables[name] = make(name, tables, workers, folder="runs" if full else None, quick=not full)
    return tables


def rank_tables(setting: Setting, measured: Table) -> Tables:
    """The tables of the rank study, from one more full fine-tuning at the learning rate that the sweep found best."""
    lr = min(measured.where(phase="seeds", method="full"), key=lambda row: row["final"])["lr"]
    steps: dict[str, Any] = {"max_steps": setting.steps, "eval_every": setting.steps}
    run = Run("full", lr, batch_size=setting.batch_size, base=setting.base, **steps)
    deltas = rank_reduction.learned_deltas(run)
    makers = (rank_reduction.decomposition, rank_reduction.singular_values, rank_reduction.truncated_loss)
    return {make.__name__: make(deltas, run) for make in makers}


def quantization_tables(tables: Tables, full: bool, committed: Path) -> Tables:
    """The tables of four bits that are no sweep; SmolLM2's too where `full` and fetched, else its committed one stays."""
    models = ["tiny"]
    lora = tables["convergence"].where(phase="seeds", method="lora", r=8, target_modules="all-linear")
    run = over_four_bits(QuantizedRun, lora[0])
    steps = run.max_steps if full else run.max_steps // 2
    routes = {"merge_routes_tiny": merge_routes(replace(run, max_steps=steps, eval_every=steps))}
    if full and here("smollm2-135m", 4, "four bits of SmolLM2-135M"):
        models.append("smollm2-135m")
        row = min(tables["finetuning"].where(phase="seeds", method="lora"), key=lambda row: row["seed"])
        routes["merge_routes_smollm2"] = merge_routes(over_four_bits(QuantizedFineTuning, row))
    elif full:
        routes["merge_routes_smollm2"] = Table.load(committed / "merge_routes_smollm2.json")
    return routes | {
        "quantization_error": quantization.error(models),
        "quantization_distances": quantization.where_it_arises(),
        "quantization_gradients": quantization.gradients(steps=60 if full else 20),
    }


def here(model: str, step: int, what: str) -> bool:
    """Whether `model` was fetched; where it was not, what is left out is said."""
    try:
        fetched(model)
    except FileNotFoundError as error:
        say(step, f"{what}: left out, the committed table stays: {error}")
        return False
    return True


def findings(tables: Tables) -> str:
    """The short table at the end: what this run measured."""
    eight, measured = tables["one_matrix"].where(r=8)[0], tables["convergence"]
    learned, chance = (energy(tables["singular_values"], key) for key in ("singular_values", "random_singular_values"))
    full = measured.where(phase="seeds", method="full")
    matrix = f"{eight['lora']:,} of {eight['full']:,} numbers, {eight['factor']:g}× fewer"
    lines = {
        "LoRA r = 8 on one 4096 × 4096 matrix": matrix,
        "the top 8 directions of a learned ΔW": f"{learned:.0%} of its energy (of a random matrix: {chance:.0%})",
        "every ΔW cut to rank 8": f"{gain_kept(tables['truncated_loss'], 8):.0%} of the held-out gain stays",
        "held-out loss of the base": f"{measured.settings['base_loss']:.3f} nats a byte",
        f"full fine-tuning, lr {full[0]['lr']:g}": f"{mean(full):.3f} nats a byte",
    }
    shares = groups(measured.where(phase="seeds", method="lora"), "target_modules", "r")
    for (target, r), rows in shares.items():
        share = f"{mean(rows):.3f} nats a byte, {mean(rows, 'recovered'):.0%} of full's gain"
        lines[f"LoRA r = {r}, {target}, lr {rows[0]['lr']:g}"] = share
    found, error = means(tables["qlora_tiny"]), tables["quantization_error"].where(weights="tiny", block_size=64)
    errors = ", ".join(f"{row['quant_type']} {row['mean']:.4f}" for row in error)
    lines |= {
        "the same over a base in NF4, r = 8": f"{found['nf4']:.3f} nats a byte, beside LoRA's {found[None]:.3f}",
        "error of four bits, mean, in blocks of 64": f"{errors} of a weight's rms",
        "a step of LoRA r = 8, all linear": f"{timing_claims.ratios(tables['step_cost'])} of a full one",
        "worst gradient of LoRA on tiny": f"{worst_gradient_error():.0e} against the complex step, in float64",
    }
    width = max(map(len, lines))
    return "\nWhat this run found\n" + "\n".join(f"  {left:<{width}}  {right}" for left, right in lines.items())


def worst_gradient_error() -> float:
    """The proof, on the embedded base itself: every A and B of an adapter with B ≠ 0, in float64."""
    from .. import LoraConfig, data, get_peft_model, load_model

    config = LoraConfig(r=2, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
    tokens, targets = data.Batches(data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
    model = get_peft_model(load_model("tiny"), config)
    return max(gradcheck_model(model, tokens, targets, directions=1).errors.values())


def say(number: int, what: str) -> None:
    print(f"[{number}/8] {what}", file=sys.stderr, flush=True)
