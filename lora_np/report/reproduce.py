"""Make all tables and pictures, execute the notebooks, and print a summary of the results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
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
from .results import write_pages

RESULTS = Path("docs/results.md")  # contains the table of claims
QUICK = ("convergence", "qlora_tiny")  # studies that `reproduce` runs without --full, in their quick setting
PARTS = (
    "parameter counts and memory",
    "convergence: LoRA and full fine-tuning on real text",
    "rank of the ΔW that full fine-tuning learns",
    "the other studies",
    "4-bit weights: errors, gradients, ways of merging",
    "merging: rounding of the weights, combinations of two adapters",
    "time and memory of a training step",
    "all committed pictures, drawn again",
    "notebooks",
)


def reproduce(full: bool, figures: Path, notebooks: Path | None = None, workers: int = 2) -> None:
    """Make tables and pictures, and execute the notebooks of the folder `notebooks`, if it is given.

    Each part saves its tables and draws its pictures before the next part begins. Progress is printed on stderr, and
    the summary on stdout. Without `full`, the function takes minutes. New tables and pictures are written to
    `figures`/quick, and the committed pictures are drawn again from the committed tables. With `full`, the function
    takes hours. The committed tables, pictures and pages are made again. A stopped full run can be resumed.
    """
    started, committed = time.perf_counter(), figures / "data"
    if full and not RESULTS.is_file():
        raise FileNotFoundError(f"there is no file {RESULTS}; run reproduce --full in a clone of the repository")
    folder = figures if full else figures / "quick"
    setting = convergence_study.FULL if full else convergence_study.QUICK
    tables = committed_seconds(figures) if full else {}
    titles = iter(enumerate(PARTS if notebooks else PARTS[:-1], 1))

    def begin() -> None:
        number, title = next(titles)
        print(f"[{number}/{len(PARTS) - (notebooks is None)}] {title}", file=sys.stderr, flush=True)

    def add(new: Tables, has_command: bool = False) -> None:
        """Save new tables, and draw every picture that shows one of them."""
        tables.update(new)
        for name, table in new.items():
            if not has_command:
                table.command = "python -m lora_np reproduce" + (" --full" if full else "")
            table.save(folder / "data" / f"{name}.json")
        names = draw(tables, folder, changed=new.keys())
        print(f"  {folder}: {', '.join(f'{name}.png' for name in names)}", file=sys.stderr, flush=True)

    begin()
    add(
        {"one_matrix": parameters.one_matrix(), "whole_models": parameters.whole_models(), "memory_bill": memory_bill()}
    )
    begin()
    add(swept(QUICK[:1], tables, full, committed, workers), has_command=True)
    begin()
    add(rank_tables(setting, tables["convergence"]))
    begin()
    add(swept(tuple(STUDIES)[1:] if full else QUICK[1:], tables, full, committed, workers), has_command=True)
    begin()
    add(quantization_tables(tables, full, committed))
    begin()
    combined = merging.combinations(merging.FULL if full else merging.QUICK)
    add({"merge_drift": merging.drift(), "combinations": combined})
    begin()
    add({"step_cost": step_cost(list(setting.methods()), repeats=7 if full else 3)})
    begin()
    draw(tables if full else {path.stem: Table.load(path) for path in sorted(committed.glob("*.json"))}, figures)
    if full:
        write_pages(RESULTS.parents[1], tables)
    print(findings(tables), flush=True)
    if notebooks:
        begin()
        execute_all(notebooks, notebooks if full else folder / "notebooks", at_once=1 if full else workers)
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. All pictures: {figures}; this run's tables and pictures: {folder}"
    )


def committed_seconds(figures: Path) -> Tables:
    """Load the committed tables of timings. Other commands make these tables, on a machine without other work.

    Raises FileNotFoundError if a table is missing; the message names the command that makes the table.
    """
    made_by = {
        f"python -m lora_np bench --json {figures}/data": ("speed", "quantized_speed"),
        latency.COMMAND: ("serving", "serving_step", "merge_latency"),
        method_costs.COMMAND: ("method_costs", "method_costs_smollm2"),
    }
    for command, names in made_by.items():
        for path in (figures / "data" / f"{name}.json" for name in names):
            if not path.is_file():
                raise FileNotFoundError(f"the table {path} is missing; make it first with `{command}`")
    kinds = ("*speed*", "serving*", "merge_latency*", "method_costs*")
    found = [path for kind in kinds for path in (figures / "data").glob(f"{kind}.json")]
    return {path.stem: Table.load(path) for path in sorted(found)}


def swept(names: Iterable[str], known: Tables, full: bool, committed: Path, workers: int) -> Tables:
    """Return the tables of the studies `names`, with quick settings unless `full` is true.

    `known` contains tables that these studies may need. If the model of a study is not downloaded, the committed table of the
    study is used.
    """
    made: Tables = {}
    for name in names:
        if full and (model := STUDIES[name].model) and not here(model, name):
            made[name] = Table.load(committed / f"{name}.json")
        else:
            made[name] = make(name, known | made, workers, folder="runs" if full else None, quick=not full)
    return made


def rank_tables(setting: Setting, measured: Table) -> Tables:
    """Return the tables of the rank study, which use full fine-tuning at the best learning rate of the sweep."""
    lr = min(measured.where(phase="seeds", method="full"), key=lambda row: row["final"])["lr"]
    steps: dict[str, Any] = {"max_steps": setting.steps, "eval_every": setting.steps}
    run = Run("full", lr, batch_size=setting.batch_size, base=setting.base, **steps)
    deltas = rank_reduction.learned_deltas(run)
    makers = (rank_reduction.decomposition, rank_reduction.singular_values, rank_reduction.truncated_loss)
    return {make.__name__: make(deltas, run) for make in makers}


def quantization_tables(tables: Tables, full: bool, committed: Path) -> Tables:
    """Return the tables about 4-bit weights that do not belong to a sweep.

    The table of SmolLM2 is made if `full` is true and the model is downloaded; otherwise the committed table is used.
    """
    models = ["tiny"]
    lora = tables["convergence"].where(phase="seeds", method="lora", r=8, target_modules="all-linear")
    run = over_four_bits(QuantizedRun, lora[0])
    steps = run.max_steps if full else run.max_steps // 2
    routes = {"merge_routes_tiny": merge_routes(replace(run, max_steps=steps, eval_every=steps))}
    if full and here("smollm2-135m", "four bits of SmolLM2-135M"):
        models.append("smollm2-135m")
        row = min(tables["finetuning"].where(phase="seeds", method="lora"), key=lambda row: row["seed"])
        routes["merge_routes_smollm2"] = merge_routes(over_four_bits(QuantizedFineTuning, row))
    elif full:
        routes["merge_routes_smollm2"] = Table.load(committed / "merge_routes_smollm2.json")
    return routes | {
        "quantization_error": quantization.error(models),
        "quantization_distances": quantization.error_by_magnitude(),
        "quantization_gradients": quantization.gradients(steps=60 if full else 20),
    }


def here(model: str, what: str) -> bool:
    """Return True if `model` is downloaded; otherwise print that the part `what` is left out."""
    try:
        fetched(model)
    except FileNotFoundError as error:
        print(f"  {what} is left out, the committed table is used: {error}", file=sys.stderr, flush=True)
        return False
    return True


def findings(tables: Tables) -> str:
    """Return the summary that is printed at the end."""
    eight, measured = tables["one_matrix"].where(r=8)[0], tables["convergence"]
    learned, chance = (energy(tables["singular_values"], key) for key in ("singular_values", "random_singular_values"))
    full = measured.where(phase="seeds", method="full")
    matrix = f"{eight['lora']:,} of {eight['full']:,} parameters, {eight['factor']:g}× fewer"
    lines = {
        "LoRA r = 8 on one 4096 × 4096 matrix": matrix,
        "top 8 singular directions of a learned ΔW": f"{learned:.0%} of its squared norm (random matrix: {chance:.0%})",
        "every ΔW truncated to rank 8": f"keeps {gain_kept(tables['truncated_loss'], 8):.0%} of the held-out gain",
        "held-out loss of the base model": f"{measured.settings['base_loss']:.3f} nats per byte",
        f"full fine-tuning, lr {full[0]['lr']:g}": f"{mean(full):.3f} nats per byte",
    }
    shares = groups(measured.where(phase="seeds", method="lora"), "target_modules", "r")
    for (target, r), rows in shares.items():
        share = f"{mean(rows):.3f} nats per byte, {mean(rows, 'recovered'):.0%} of full fine-tuning's gain"
        lines[f"LoRA r = {r}, {target}, lr {rows[0]['lr']:g}"] = share
    found, error = means(tables["qlora_tiny"]), tables["quantization_error"].where(weights="tiny", block_size=64)
    errors = ", ".join(f"{row['quant_type']} {row['mean']:.4f}" for row in error)
    seconds, memory = timing_claims.ratios(tables["step_cost"])
    lines |= {
        "QLoRA: LoRA over a base in NF4, r = 8": f"{found['nf4']:.3f} nats per byte, LoRA {found[None]:.3f}",
        "mean error of 4-bit weights, blocks of 64": f"{errors}, relative to the rms of the weights",
        "a LoRA step, r = 8, all linear layers": f"{seconds:.2f}× the time, {memory:.2f}× the memory of a full step",
        "largest error of LoRA's gradients on tiny": f"{worst_gradient_error():.0e} (float64, against the complex step)",
    }
    width = max(map(len, lines))
    return "\nResults of this run\n" + "\n".join(f"  {left:<{width}}  {right}" for left, right in lines.items())


def worst_gradient_error() -> float:
    """Return the largest gradient error over all matrices A and B (B ≠ 0) of an adapter on the model "tiny", in float64."""
    from .. import LoraConfig, data, get_peft_model, load_model

    config = LoraConfig(r=2, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
    tokens, targets = data.Batches(data.corpus("code", "train"), batch_size=1, seq_len=16)[0]
    model = get_peft_model(load_model("tiny"), config)
    return max(gradcheck_model(model, tokens, targets, directions=1).errors.values())
