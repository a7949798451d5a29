"""python -m lora_np bench: measure a training step of this library and of PyTorch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..optional import extra
from ..studies.harness.table import Table

HELP = "measure time and memory of a step or a job, also in PyTorch"
USAGE = "[options]"
DESCRIPTION = """Measure time and memory of a training step, here and in PyTorch.
With --job, measure a whole fine-tuning job instead.

Three competitors run in turn: this library, PyTorch with PEFT (if installed),
and only the products with the frozen matrices, whose time is a lower bound. Run
no other program at the same time.

parts:
  methods           full fine-tuning and LoRA on "tiny", in this process
  tiny, smollm2-135m, llama-2-7b-block
                    a LoRA step on this model or block
  quantized         a LoRA step over float32 and over NF4
  generation        greedy generation
  scaling           how the time grows with batch, length, rank and layers

examples:
  python -m lora_np bench --only tiny --quick
  python -m lora_np bench --job
  python -m lora_np bench --json figures/data --figures figures"""
STEPS = ("tiny", "smollm2-135m", "llama-2-7b-block")
PARTS = ("methods", *STEPS, "quantized", "generation", "scaling")
PICTURES = {
    "speed": "speed_chart",
    "speed_scaling": "scaling_chart",
}  # table → the function of lora_np.plots that draws it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("measurement")
    what = measured.add_mutually_exclusive_group()
    what.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="parts to measure (default: all)")
    what.add_argument(
        "--job",
        action="store_true",
        help="measure a whole job instead, from the start of Python to the saved adapter: SmolLM2-135M is trained on the "
        "data set lighthouse",
    )
    measured.add_argument(
        "--quick",
        action="store_true",
        help="faster, but less exact: 3 rounds instead of 9, or instead of 5 for generation; with --job, one round of 6 "
        "steps instead of 3 rounds of 60 steps",
    )
    measured.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes one or two minutes"
    )
    measured.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="number of threads of each competitor (default: one per core)",
    )
    results = parser.add_argument_group("results")
    tables = "speed.json, quantized_speed.json, generation_speed.json and speed_scaling.json; with --job, for the table job.json"
    results.add_argument("--json", type=Path, metavar="FOLDER", help=f"folder for the tables {tables}")
    results.add_argument("--figures", type=Path, metavar="FOLDER", help="folder for the pictures of the tables")


def run(arguments: argparse.Namespace) -> None:
    from ..studies.timing.speed import CASES, generation_speed, quantized_speed, speed, speed_scaling
    from ..studies.timing.step_cost import step_cost

    if arguments.threads < 1:
        raise ValueError(f"--threads {arguments.threads}; expected at least 1")
    for folder in filter(None, (arguments.json, arguments.figures)):
        folder.mkdir(parents=True, exist_ok=True)  # an error comes now, not after ten minutes
    with extra("studies", "a timing"):
        import threadpoolctl  # noqa: F401, for the same reason
    if arguments.figures:
        from .. import plots  # noqa: F401, for the same reason
    if arguments.job:
        from ..studies.timing.job.study import job

        steps, rounds = (6, 1) if arguments.quick else (60, 3)
        keep(job(steps=steps, rounds=rounds, threads=arguments.threads, say=say), print_job, arguments)
        return
    parts = arguments.only or PARTS
    settings = {"threads": arguments.threads, "rounds": 3 if arguments.quick else 9, "say": say}
    if "methods" in parts:
        print_methods(step_cost())
    if cases := [case for case in CASES if case.name in parts]:
        keep(speed(cases, compiled=not arguments.no_compile, **settings), print_speed, arguments)
    if "quantized" in parts:
        keep(quantized_speed(**settings), print_quantized, arguments)
    if "generation" in parts:
        keep(generation_speed(**settings | {"rounds": 3 if arguments.quick else 5}), print_generation, arguments)
    if "scaling" in parts:
        keep(speed_scaling(**settings), print_scaling, arguments)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def keep(table: Table, show: Callable[[Table], None], arguments: argparse.Namespace) -> None:
    """Print a table; with --json write the table to a file, and with --figures draw a picture of the table.

    An existing file with more rows than the table is not overwritten.
    """
    table.command = " ".join(["python -m lora_np", *sys.argv[1:]])
    print()
    show(table)
    sys.stdout.flush()
    if arguments.json:
        path = arguments.json / f"{table.study}.json"
        if path.exists() and len(Table.load(path).rows) > len(table.rows):
            path = path.with_stem(f"{table.study}_partial")
            say(f"{table.study}.json has more rows than this run and was not changed; this run's table is {path}")
        table.save(path)
    if arguments.figures and table.study in PICTURES and table.rows:
        from .. import plots

        plots.save(getattr(plots, PICTURES[table.study])(table), arguments.figures, table.study)


# ------------------------------------------------------------------------------------------------------------- printing


def print_methods(table: Table) -> None:
    """Print the time and the peak memory of full fine-tuning and of LoRA."""
    print(f"One training step on tiny, {table.settings['batch_size']} × {table.settings['seq_len']} tokens, AdamW")
    print(f"{'':24}{'trainable':>12}{'seconds':>10}{'peak MB':>10}{'time':>8}{'memory':>8}")
    full = table.rows[0]
    for row in table.rows:
        name = "full fine-tuning" if row["method"] == "full" else f"LoRA r={row['r']} {row['target_modules']}"
        ratios = f"{row['seconds'] / full['seconds']:8.2f}{row['peak_bytes'] / full['peak_bytes']:8.2f}"
        print(f"{name:24}{row['trainable']:12,}{row['seconds']:10.4f}{row['peak_bytes'] / 1e6:10.1f}{ratios}")


def print_environment(table: Table) -> None:
    """Print the processor, the BLAS library and kernel of each competitor, and the versions of the packages."""
    settings, versions = table.settings, table.versions
    print(f"--threads {settings['threads']} on {settings['processor']}; median of {settings['rounds']} rounds, in turn")
    for name, used in settings["blas"].items():
        print(f"  {name:18}{used['blas']}, kernel {used['kernel']}, threads {used['threads'] or 'unknown'}")
    libraries = ("numpy", "torch", "peft", "transformers")
    print("  " + ", ".join(f"{name} {versions[name]}" for name in libraries if name in versions))
    for warning in settings["warnings"]:
        print(f"  warning: {warning}")


def print_speed(table: Table) -> None:
    """Print the time and memory of a training step, for each case and competitor."""
    print("One LoRA step (forward, backward, AdamW), all linear layers, float32")
    print_environment(table)
    for name, case in table.settings["cases"].items():
        size = f"{name}, {case['batch_size']} × {case['seq_len']} tokens, r = {case['r']}, α = {case['lora_alpha']}"
        print(
            f"\n{size:46}{'seconds':>9}{'tokens/s':>10}{'× ours':>8}{'quartiles':>14}{'floor':>7}{'peak MB':>9}{'before':>8}"
        )
        rows = table.where(case=name)
        for row in rows:
            flops = f" ({row['flops'] / 1e9:,.0f} GFLOP)" if "flops" in row else ""
            memory = f"{megabytes(row['peak_bytes']):>9}{megabytes(row['loaded_bytes']):>8}"
            share = f"{row['floor_share']:>7.0%}"
            print(
                f"  {row['competitor'] + flops:44}{row['seconds']:9.4f}{row['tokens_per_second']:10,.0f}{ratio(row)}{share}{memory}"
            )
        losses = {row["competitor"]: row["losses"] for row in rows if "losses" in row}
        first = ", ".join(f"{name} {first:.6f} then {then:.6f}" for name, (first, then) in losses.items())
        print(f"  losses of the first two steps: {first}")
        for row in (row for row in rows if row["competitor"] == "PEFT compiled"):
            print(f"  {row['competitor']}: the first step, with compilation, took {row['first_step_seconds']:.0f} s")
    print(
        "\n  floor: time of the products with the frozen matrices alone, in NumPy's BLAS, as a share of the row's time"
    )
    print_shares(table)
    when = "during the steps" if table.settings["peak_is_of_the_steps"] else "since the process began"
    print(
        f"  peak MB: largest resident memory {when}; before: resident memory after loading. Both include the libraries"
    )


def print_shares(table: Table) -> None:
    """Print the processor, its BLAS, and the time of the floor divided by the time of a step."""
    shares = {name: table.where(case=name, competitor="ours") for name in table.settings["cases"]}
    reached = ", ".join(f"{name} {rows[0]['floor_share']:.0%}" for name, rows in shares.items() if rows)
    if reached:
        blas = table.settings["blas"]["ours"]
        print(
            f"  {table.settings['processor']}, {blas['blas']}, kernel {blas['kernel']}: ours reaches {reached} of the floor."
        )
        print("  Compare this share with other machines. Seconds depend on the processor and its BLAS.")


def print_job(table: Table) -> None:
    """Print the seconds of each phase, the memory and the held-out loss of a job, for each competitor."""
    settings = table.settings
    print(
        f"A job from the start of Python to the saved adapter: {settings['model']}, data {settings['data']}, float32, LoRA "
        f"r = {settings['r']} on all linear layers, {settings['steps']} steps of {settings['batch_size']} records"
    )
    print_environment(table)
    phases = ("import", "load", "train", "save")
    columns = "".join(f"{name:>9}" for name in ("seconds", *phases))
    print(f"\n{'':26}{columns}{'× ours':>8}{'quartiles':>14}{'peak MB':>9}{'held-out':>10}")
    for row in table.rows:
        name = row["competitor"] + (f", {row['rows']} records at once" if row["competitor"] == "PEFT" else "")
        seconds = "".join(f"{row[key]:9.2f}" for key in ("seconds", *(f"{phase}_seconds" for phase in phases)))
        print(f"  {name:24}{seconds}{ratio(row)}{megabytes(row['peak_bytes']):>9}{row['heldout']:10.4f}")
    print(
        f"  held-out: nats per token on held-out answers, with the saved adapter; before: {settings['heldout_before']:.4f}"
    )
    print("  All competitors train on the same batches of records of similar length, from the same new adapter.")
    for row in table.rows[1:]:
        gap = max(abs(a - b) for a, b in zip(table.rows[0]["losses"], row["losses"], strict=True))
        print(f"  The losses of a step differ by at most {gap:.1g} between ours and {row['competitor']}.")
        if row["ratio"] is not None:
            print(f"  The whole job takes {1 / row['ratio']:.2f} times the time of {row['competitor']}.")


def print_quantized(table: Table) -> None:
    """Print the time and the memory of a LoRA step with a 4-bit base model and with a float32 base model."""
    print(
        "One LoRA step (forward, backward, AdamW), all linear layers, over float32 and over NF4 with double quantisation"
    )
    print_environment(table)
    print(f"{'':40}{'seconds':>9}{'× ours':>8}{'quartiles':>14}{'peak MB':>9}")
    for row in table.rows:
        name = f"{row['case']}, {row['competitor']}"
        print(f"  {name:38}{row['seconds']:9.4f}{ratio(row)}{megabytes(row['peak_bytes']):>9}")


def print_generation(table: Table) -> None:
    """Print the time and the memory of greedy generation, for each competitor."""
    settings = table.settings
    print(
        f"Generation, greedy: {settings['prompt_tokens']} prompt tokens and {settings['new_tokens']} new tokens per row"
    )
    print_environment(table)
    token = f"{'ms/token':>10}{'× ours':>8}{'floor':>7}"
    print(f"{'':40}{'seconds':>9}{'tokens/s':>10}{'× ours':>8}{'quartiles':>14}{token}{'peak MB':>9}")
    for row in table.rows:
        name = f"{row['case']}, batch {row['batch_size']}, {row['competitor'].removesuffix(', generating')}"
        figures = f"{row['seconds']:9.4f}{row['tokens_per_second']:10,.1f}{ratio(row)}"
        if "token_seconds" in row:
            of_ours = f"{row['token_ratio']:8.2f}" if row.get("token_ratio") is not None else f"{'–':>8}"
            figures += f"{1e3 * row['token_seconds']:10.2f}{of_ours}{row['floor_share']:7.0%}"
        else:  # the process that wrote one token failed
            figures += f"{'–':>10}{'–':>8}{'–':>7}"
        print(f"  {name:38}{figures}{megabytes(row['peak_bytes']):>9}")
    print("  ms/token: time of one new token of every row, without the prompts")
    print("  floor: time of the products of the new tokens alone, as a share of the row's time per token")


def print_scaling(table: Table) -> None:
    """Print the time of a training step for growing sizes, and the straight line fitted to the times."""
    print(f"How the time of a step grows: {table.settings['shape']}'s shape, random weights")
    print_environment(table)
    for sweep, line in table.settings["lines"].items():
        rows = table.where(sweep=sweep)
        one = rows[0]
        fixed = {"rows": one["batch_size"], "tokens per row": one["seq_len"], "r": one["r"], "layers": one["layers"]}
        fixed.pop({"tokens": "tokens per row", "batch": "rows"}.get(sweep, sweep))
        fixed |= {"vocabulary": one["vocab_size"]}
        print(f"\n{sweep}, at " + ", ".join(f"{key} {value:,}" for key, value in fixed.items()))
        print("  " + "".join(f"{row['x']:>9,}" for row in rows))
        print("  " + "".join(f"{row['seconds']:9.3f}" for row in rows) + "   seconds")
        print("  " + "".join(f"{row['ratio']:9.2f}" for row in rows) + "   × the first")
        print(
            f"  fitted line: {line['slope']:.3g} s per unit + {line['intercept']:.3g} s; R² = {line['r_squared']:.4f}"
        )


def ratio(row: dict) -> str:
    """Return the texts for the columns "× ours" and "quartiles"; both are dashes if the row contains no ratio."""
    if row.get("ratio") is None:
        return f"{'–':>8}{'–':>14}"
    low, high = row["ratio_range"]
    return f"{row['ratio']:8.2f}{f'{low:.2f} – {high:.2f}':>14}"


def megabytes(size: int | None) -> str:
    """Return a number of bytes in MB, or a dash if `size` is None because the system does not report memory."""
    return "–" if size is None else f"{size / 1e6:,.0f}"
