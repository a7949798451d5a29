"""What the lesson says, and what came out here: the table of docs/results.md, every number of it read from a table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..studies.capacity.claims import NEEDED as OF_CAPACITY
from ..studies.capacity.claims import on_capacity
from ..studies.counting.claims import on_paper
from ..studies.four_bits import claims as claims_on_quantization
from ..studies.harness.paired import verdict
from ..studies.harness.table import Table
from ..studies.hyperparameters import claims as claims_on_hyperparameters
from ..studies.low_rank import claims as claims_on_low_rank
from ..studies.methods import claims as claims_on_methods
from ..studies.methods.lesson import mean
from ..studies.serving.claims import NEEDED as OF_ADAPTERS
from ..studies.serving.claims import merged, on_adapters

BEGIN, END = "<!-- claims: written by `python -m lora_np reproduce --full` -->", "<!-- end of claims -->"
NEEDED = (
    *("one_matrix", "whole_models", "singular_values", "truncated_loss"),
    *("convergence", "convergence_short", "shortfall", "step_cost", "finetuning", "speed"),
    *claims_on_quantization.NEEDED,
    *OF_ADAPTERS,
    *claims_on_low_rank.NEEDED,
    *(name for name in claims_on_hyperparameters.NEEDED if name != "convergence"),
    *OF_CAPACITY,
    *claims_on_methods.NEEDED,
)


def claims(tables: Mapping[str, Table]) -> list[tuple[str, str, str, str]]:
    """(claim, its source, what came out here, what checked it)."""
    eight = tables["one_matrix"].where(r=8)[0]
    llama = tables["whole_models"].where(model="llama-2-7b", targets="all-linear")[0]
    spectra, cut, measured = tables["singular_values"], tables["truncated_loss"], tables["convergence"]
    learned, chance = (energy(spectra, key) for key in ("singular_values", "random_singular_values"))
    share = {
        (r, t): mean_recovered(measured, r, t) for r in measured.settings["ranks"] for t in measured.settings["targets"]
    }
    means = {r: share[r, "all-linear"] for r in measured.settings["ranks"]}
    early = tables["convergence_short"]
    early_means = {r: mean_recovered(early, r, "all-linear") for r in early.settings["ranks"]}
    parts = {row["method"]: tables["shortfall"].where(method=row["method"]) for row in tables["shortfall"].rows}
    mean_of = {name: mean(rows, "recovered") for name, rows in parts.items()}
    short = next(row["r"] for row in tables["shortfall"].rows if row["method"] == "lora")
    full, lora = tables["step_cost"].rows[0], tables["step_cost"].where(r=8, target_modules="all-linear")[0]
    study = "`lora_np/studies/convergence/study.py`, notebook 05"
    return [
        (
            "LoRA trains a small share of the numbers",
            "Hu et al. 2021",
            f"{eight['lora']:,} of {eight['full']:,} for one 4096 × 4096 matrix at r = 8 ({eight['factor']:g}× fewer); "
            f"{llama['trainable']:,} ({llama['share']:.2%}) for Llama-2-7B, r = {llama['r']}, all linear layers",
            "`tests/costs/test_counting.py`, and PEFT itself in `tests/oracles/test_ops_oracles.py`",
        ),
        (
            "At the start the adapted model is the base",
            "Hu et al. 2021, §4.1",
            "bit for bit, in float32 and float64",
            "`test_at_init_the_adapted_model_equals_the_base_bit_for_bit`",
        ),
        merged(tables["merge_latency"]),
        (
            "The hand-derived gradients are right",
            "this project",
            "every op and the whole model to 1e-12 against the complex step; PEFT's to 1e-10; mutants of them are caught",
            "`tests/proofs/test_ops.py`, `test_transformer.py`, `test_oracles.py`, `test_mutants.py`",
        ),
        (
            "The change that fine-tuning makes has a low rank",
            "Aghajanyan et al. 2020; Hu et al. 2021, §7",
            f"the top 8 directions hold {learned:.0%} of the energy of ΔW (a random matrix: {chance:.0%}); every ΔW cut to "
            f"rank 16 keeps {gain_kept(cut, 16):.0%} of the gain, to rank 4 {gain_kept(cut, 4):.0%}",
            "`lora_np/studies/low_rank/rank_reduction.py`, notebook 04",
        ),
        (
            "LoRA reaches what full fine-tuning reaches",
            "Hu et al. 2021, §5; Schulman et al. 2025",
            f"of full fine-tuning's held-out gain after {measured.settings['steps']} steps, with all linear layers: "
            + ", ".join(f"r = {r} {mean:.1%}" for r, mean in means.items())
            + f"; at least 95 % {reached(means)}. After {early.settings['steps']} steps "
            + ", ".join(f"r = {r} {early_means[r]:.1%}" for r in (1, 8, 16))
            + f"; at least 95 % {reached(early_means)}",
            study,
        ),
        (
            "What it falls short by is the rank, and what stays frozen",
            "Hu et al. 2021, §7; Biderman et al. 2024",
            f"r = {short} recovers {mean_of['lora']:.1%}; training the embedding and norms beside it {mean_of['lora+rest']:.1%} "
            f"(its loss {verdict(parts['lora+rest'], parts['lora'])}); full fine-tuning of the linear layers alone, without a low "
            f"rank, {mean_of['linear']:.1%} (its loss {verdict(parts['linear'], parts['lora'])})",
            "`shortfall` in `lora_np/studies/convergence/study.py`, each at its own best rate",
        ),
        (
            "A rank of 1 or 2 already suffices",
            "Hu et al. 2021, table 6",
            f"r = 1 recovers {means[1]:.0%} here, r = 2 {means[2]:.0%}",
            study,
        ),
        (
            "Adapting the attention is enough",
            "Hu et al. 2021, §5; against it Schulman et al. 2025",
            "attention alone against all linear layers: "
            + ", ".join(f"r = {r} {share[r, 'attention']:.0%} against {means[r]:.0%}" for r in (1, 8, 64)),
            study,
        ),
        (
            "A step of LoRA is cheaper",
            "Hu et al. 2021, §4.2 (25 % less time on GPT-3)",
            f"on tiny, r = {lora['r']}, all linear layers: {lora['seconds'] / full['seconds']:.2f}× the time, "
            f"{lora['peak_bytes'] / full['peak_bytes']:.2f}× the memory; d = 128 is only {128 / lora['r']:g} r",
            "`python -m lora_np bench`",
        ),
        (
            "GPT-3 with r = 2 on q, k, v, o has 37.7 M parameters",
            "Hu et al. 2021, §D.4",
            "no: r = 2 has 18.9 M, and r = 4 has 37.7 M",
            "`tests/costs/test_counting.py`",
        ),
        *on_paper(),
        *on_a_real_model(tables["finetuning"], tables["speed"]),
        *claims_on_quantization.on_quantization(tables),
        *on_adapters(tables),
        *claims_on_low_rank.on_low_rank(tables),
        *claims_on_hyperparameters.on_hyperparameters(tables),
        *on_capacity(tables),
        *claims_on_methods.on_methods(tables),
    ]


def on_a_real_model(tuning: Table, speed: Table) -> list[tuple[str, str, str, str]]:
    """The claims that SmolLM2-135M was asked about."""
    was, full, lora = (finetuned(tuning)[key] for key in ("before", "full", "lora"))
    side = {row["side"]: row for row in speed.where(case="smollm2-135m")}
    ours, peft, compiled = side["ours"], side["PEFT"], side.get("PEFT compiled")
    settings, study = speed.settings, "`lora_np/studies/finetuning/study.py`, notebook 10"
    return [
        (
            "LoRA learns less and forgets less",
            "Biderman et al. 2024",
            f"SmolLM2-135M learning a voice, nats a token, LoRA r = {lora['r']} beside full fine-tuning: on held-out answers it "
            f"learns {lora_less_full(tuning, 'final', 'less', 'more')} ({was['final']:.3f} → {lora['final']:.3f}, full "
            f"{full['final']:.3f}); on other prose it forgets {lora_less_full(tuning, 'prose', 'more', 'less')} "
            f"({was['prose']:.3f} → {lora['prose']:.3f}, full {full['prose']:.3f}). The rate decides more: "
            f"{at_a_lower_rate(tuning)}",
            study,
        ),
        (
            "… and its learning rate is ten times as large",
            "Schulman et al. 2025",
            f"{lora['lr'] / full['lr']:.3g} times full fine-tuning's {full['lr']:g}, with r = {lora['r']} and α = 2r; one seed, on "
            f"grids with steps of up to {grid_step(tuning):.2g}, so no finer than that",
            study,
        ),
        (
            "… and its step is cheaper",
            "Hu et al. 2021, §4.2",
            f"{lora['step_seconds'] / full['step_seconds']:.2f}× the time of a full step, and "
            f"{lora['peak_bytes'] / full['peak_bytes']:.2f}× its memory, the base's weights not counted",
            study,
        ),
        (
            "A LoRA step by hand in NumPy, beside PyTorch with PEFT",
            "this project",
            f"a LoRA step of 2 × 256 tokens on SmolLM2-135M takes {ours['seconds']:.2f} s here, in PEFT "
            f"{peft['ratio']:.2f}× as long" + (f", compiled {compiled['ratio']:.2f}×" if compiled else "") + "; "
            f"{ours['floor_share']:.0%} of it are the frozen products; peak memory "
            f"{ours['peak_bytes'] / peft['peak_bytes']:.2f}× PEFT's, libraries and weights included",
            f"`python -m lora_np bench`; {settings['threads']} threads of {settings['processor']}",
        ),
    ]


def finetuned(table: Table) -> dict[str, dict[str, float]]:
    """ "before", "full" and "lora" → what was measured on SmolLM2, the mean over seeds."""
    found = {"before": table.settings["before"]}
    for method in ("full", "lora"):
        rows = table.where(phase="seeds", method=method)
        means = {key: statistics.mean(row[key] for row in rows) for key in ("final", "prose", "habit")}
        cost = {key: table.settings[key][method] for key in ("peak_bytes", "step_seconds")}
        found[method] = means | {"r": rows[0]["r"], "lr": rows[0]["lr"]} | cost
    return found


def lora_less_full(table: Table, key: str, more: str, less: str) -> str:
    """LoRA beside full fine-tuning, seed by seed."""
    lora, full = (table.where(phase="seeds", method=method) for method in ("lora", "full"))
    return verdict(lora, full, key, more, less)


def at_a_lower_rate(table: Table) -> str:
    """Both losses of full fine-tuning at the rate below its best, of the first seed, beside those at the best."""
    best = table.where(phase="seeds", method="full")[0]
    below = max(
        (row for row in table.where(phase="sweep", method="full") if row["lr"] < best["lr"]), key=lambda row: row["lr"]
    )
    return (
        f"full ends at {below['final']:.3f} and {below['prose']:.3f} with {below['lr']:g}, at {best['final']:.3f} and "
        f"{best['prose']:.3f} with {best['lr']:g} (seed {best['seed']})"
    )


def grid_step(table: Table) -> float:
    """The largest ratio of two neighbouring learning rates in the sweeps."""
    swept = [sorted({row["lr"] for row in table.where(phase="sweep", method=m)}) for m in ("full", "lora")]
    return max(high / low for rates in swept for low, high in itertools.pairwise(rates))


def reached(means: Mapping[int, float], wanted: float = 0.95) -> str:
    """Where along the ranks the mean gain reaches `wanted`, in words."""
    enough = first_rank_reaching(means, wanted)
    return (
        "nowhere"
        if enough is None
        else "only at the highest rank tried"
        if enough == max(means)
        else f"from r = {enough} on"
    )


def first_rank_reaching(means: Mapping[int, float], wanted: float) -> int | None:
    """The lowest rank from which on every rank's mean is at least `wanted`."""
    missing = [r for r, mean in means.items() if mean < wanted]
    return min((r for r in means if r > max(missing, default=0)), default=None)


def energy(table: Table, key: str, r: int = 8) -> float:
    """The median over matrices of Σ_{i≤r} σ_i² / Σ σ_i²."""
    spectra = [np.square(row[key]) for row in table.rows]
    return statistics.median(float(s[:r].sum() / s.sum()) for s in spectra)


def gain_kept(table: Table, r: int) -> float:
    """The share of full fine-tuning's gain that is left when every ΔW is cut to rank r."""
    base, full = table.settings["base_loss"], table.settings["full_loss"]
    return (base - table.where(r=r)[0]["heldout_loss"]) / (base - full)


def mean_recovered(table: Table, r: int, target_modules: str) -> float:
    """The share of full fine-tuning's gain that LoRA recovers, the mean over seeds."""
    rows = table.where(phase="seeds", method="lora", r=r, target_modules=target_modules)
    return statistics.mean(row["recovered"] for row in rows)


def markdown(tables: Mapping[str, Table]) -> str:
    """The table of docs/results.md, between its two marks."""
    rows = "\n".join("| " + " | ".join(row) + " |" for row in claims(tables))
    return f"{BEGIN}\n| claim | source | what came out here | checked by |\n|---|---|---|---|\n{rows}\n{END}"


def write_into(page: Path, tables: Mapping[str, Table]) -> None:
    """Replace the text between the marks. Raises ValueError if a mark is missing."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} has no place for the claims: expected {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + markdown(tables) + after, encoding="utf-8", newline="\n")
