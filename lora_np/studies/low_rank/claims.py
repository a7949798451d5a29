"""The claims about low rank: how many numbers a task needs, which directions two runs share, and what the weight has in them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from ..harness.table import Claim, Table, groups, mean, median
from .intrinsic_toy import toy

NEEDED = ("singular_values", "truncated_loss", "intrinsic_dimension", "spectra", "subspaces")
FEW = 1000  # some 200, or a few times as many
TIMES = 10  # LoRA's rank, at least: what the claim says of full fine-tuning's
MODELS = {"tiny": "tiny", "smollm2-135m": "SmolLM2-135M"}
# Of GPT-3's W_q, layer 48 (Hu et al. 2021, table 7), by rank: ‖ΔW‖/‖UᵀWVᵀ‖, and ‖UᵀWVᵀ‖ in ΔW's directions over random ones
PAPER_AMPLIFICATION = {4: 6.91 / 0.32, 64: 3.57 / 1.90}
PAPER_INSIDE = {4: 0.32 / 0.02, 64: 1.90 / 0.33}


def on_low_rank(tables: Mapping[str, Table]) -> list[Claim]:
    """(claim, its source, what came out here, what checked it)."""
    return [
        *on_dimension(tables["intrinsic_dimension"]),
        *on_rank(tables["spectra"]),
        *on_directions(tables["subspaces"]),
    ]


def on_dimension(table: Table) -> list[Claim]:
    """How many numbers must train."""
    known, s = toy(), table.settings
    fine, scratch = (s["d90"].get(base) for base in ("tiny", "random"))
    study = "`lora_np/studies/low_rank/intrinsic.py`, notebook 04"
    whole = {base: table.where(phase="seeds", base=base, d=s["D"]) for base in ("tiny", "random")}
    path = {base: f"{mean(rows, 'start'):.2f} → {mean(rows):.2f}" for base, rows in whole.items()}
    few = "yes" if fine and fine <= FEW else "no"
    both = f"d90 = {said(fine, s['D'])} against {said(scratch, s['D'])} from scratch, each of its own gain after {s['steps']} steps"
    if scratch and (not fine or scratch * s["resolution"] < fine):
        both = f"no, by the share of each one's own gain it is the other way round: {both}. But most of the gain from scratch is "
        both += f"cheap (loss {path['random']} nats a byte; byte frequencies alone reach {s['unigram']:.2f}, fine-tuning goes "
        both += f"{path['tiny']})"
    elif fine and (not scratch or fine * s["resolution"] < scratch):
        both = f"yes: {both}"
    else:
        both = f"they cannot be told apart: {both}"
    if dips := falls(table, "random"):
        both += f"; from scratch d = {', '.join(f'{d:,}' for d in dips)} gained less than a smaller one: its d90 is a rough one"
    return [
        (
            "A task's intrinsic dimension can be measured by training in random subspaces",
            "Li et al. 2018, §2",
            f"on the toy with a known answer, {known.settings['blocks']} sums of {known.settings['D']:,} weights, exactly "
            f"{known.settings['intrinsic_dimension']}: loss 0 to 1e-10 there, not with one less",
            "`test_the_toys_intrinsic_dimension_is_10_exactly`, notebook 04",
        ),
        (
            "Fine-tuning needs few dimensions: d90 is some 200 for RoBERTa on MRPC, and falls as models grow",
            "Aghajanyan et al. 2020, §4",
            f"{few}: on a model of {s['D']:,} numbers that learns another language d90 = {said(fine, s['D'])} within a factor of "
            f"{s['resolution']:.2g}{as_lora(s, fine)}",
            study,
        ),
        ("… fewer than learning the same from nothing", "Aghajanyan et al. 2020, §3", both, study),
    ]


def on_rank(table: Table) -> list[Claim]:
    """Which rank a learned ΔW has."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in table.rows):
        full, lora = (table.where(model=model, method=method) for method in ("full", "lora"))
        rank, random, effective = (median(full, key) for key in ("rank90", "random_rank90", "effective_rank"))
        r = lora[0]["r"]
        word = "yes" if rank >= TIMES * r else "no" if random >= TIMES * r else "it cannot be"
        parts.append(
            f"{MODELS.get(model, model)}: {word}, {rank:g} directions ({rank / r:.1f}× r = {r}; a random matrix has {random:g}), "
            f"effective rank {effective:.0f}, of LoRA's ΔW {median(lora, 'rank90'):g}"
        )
    return [
        (
            "Full fine-tuning's ΔW has a rank 10 to 100 times LoRA's usual one",
            "Biderman et al. 2024, §5 (the rank that holds 90 % of the variance)",
            "; ".join(parts) + "; medians over all linear layers",
            "`lora_np/studies/low_rank/spectra.py`, notebook 04",
        )
    ]


def on_directions(table: Table) -> list[Claim]:
    """Which directions two runs share, and what W has in those of ΔW."""
    low, high = table.settings["low"], table.settings["high"]
    study = "`lora_np/studies/low_rank/subspaces.py`, notebook 04"
    d = table.where(kind="similarity")[0]["d"]
    at_the_start = phi(table, "A at the start", [high, high], low, low)

    def shared(of: str, r: int) -> str:
        one, all_low = (phi(table, of, [r, high], i, i) for i in (1, low))
        return f"of {of} φ(1, 1) = {one:.2f} and φ({low}, {low}) = {all_low:.2f}"

    def against_chance(of: str) -> str:
        more = phi(table, of, [high, high], low, low) > 1.5 * at_the_start
        return f"{'yes' if more else 'no'}, {shared(of, high)}"

    ranks = sorted({row["r"] for row in table.where(kind="amplification")} & PAPER_AMPLIFICATION.keys())
    amplified = []
    for r in ranks:
        factor, inside = median_factor(table, r, "q_proj"), median_inside(table, r, "q_proj")
        amplified.append(
            f"r = {r} {'yes' if as_in_the_paper(r, factor, inside) else 'no'}, {factor:.2g}× (GPT-3 "
            f"{PAPER_AMPLIFICATION[r]:.2g}×); W has in ΔW's directions {inside:.2g}× what it has in random ones (GPT-3 "
            f"{PAPER_INSIDE[r]:.2g}×)"
        )
    here = "" if phi(table, "A", [low, high], 1, 1) > 0.5 else "not here: "
    return [
        (
            f"Runs of r = {low} and r = {high} share their top direction (φ > 0.5), and little else",
            "Hu et al. 2021, §7.2 and figure 3",
            f"{here}{shared('A', low)}; {shared('B', low)}; by chance {1 / d:.3f} and {low / d:.2f} (q_proj, medians over layers, "
            "two seeds a pair)",
            study,
        ),
        (
            f"Two seeds at r = {high} share more directions than chance, random matrices none",
            "Hu et al. 2021, §7.2 and figure 4",
            f"{against_chance('A')}; {against_chance('B')}; before training φ({low}, {low}) = {at_the_start:.2f}, as max(i, j)/d "
            "says",
            f"{study}; `test_phi_of_random_subspaces_has_the_mean_max_i_j_over_d`",
        ),
        (
            "ΔW amplifies directions that W has but does not emphasise, some 20 times at r = 4 and 2 times at r = 64",
            "Hu et al. 2021, table 7",
            "; ".join(amplified)
            + ". q_proj, as in the paper, the median over layers and seeds; over all matrices "
            + " and ".join(f"{median_factor(table, r):.2g}×" for r in ranks),
            study,
        ),
    ]


def falls(table: Table, base: str, least: float = 0.02) -> list[int]:
    """The d whose share is `least` or more below that of a smaller d. The search for d90 takes for granted that there is none."""
    by_d = groups(table.where(phase="seeds", base=base, projection="sparse"), "d")
    shares = [mean(rows, "share") for rows in by_d.values()]
    return [d for i, d in enumerate(by_d) if i and shares[i] <= max(shares[:i]) - least]


def said(d: int | None, D: int) -> str:
    """A dimension and its share of all."""
    return "not reached" if d is None else f"{d:,} ({d / D:.1%})"


def as_lora(settings: Mapping, d: int | None) -> str:
    """The rank of LoRA that trains about as many numbers."""
    if d is None:
        return ""
    r, count = min(settings["lora"].items(), key=lambda item: abs(item[1] - d))
    return f", about what LoRA trains at r = {r} ({count:,})"


def phi(table: Table, of: str, r: list[int], i: int, j: int) -> float:
    """φ(i, j) of q_proj, the median over layers and pairs of seeds."""
    rows = table.where(kind="similarity", of=of, r=r, module="q_proj")
    return statistics.median(row["phi"][row["i"].index(i)][row["j"].index(j)] for row in rows)


def median_factor(table: Table, r: int, module: str | None = None) -> float:
    """The amplification at one rank, the median over layers and seeds, of one kind of matrix or of all."""
    return median(amplification(table, r, module), "factor")


def median_inside(table: Table, r: int, module: str | None = None) -> float:
    """What W has in ΔW's directions over what it has in random ones, the same median."""
    return statistics.median(row["in_delta"] / row["in_random"] for row in amplification(table, r, module))


def as_in_the_paper(r: int, factor: float, inside: float) -> bool:
    """An amplification within a factor of two of the paper's, of directions in which W has at least twice what chance gives."""
    return 0.5 <= factor / PAPER_AMPLIFICATION[r] <= 2 and inside >= 2


def amplification(table: Table, r: int, module: str | None) -> list[dict]:
    """The rows of one rank."""
    return table.where(kind="amplification", r=r, **({"module": module} if module else {}))


def on_the_change(spectra: Table, cut: Table) -> Claim:
    """What rank the ΔW of full fine-tuning has."""
    learned, chance = (energy(spectra, key) for key in ("singular_values", "random_singular_values"))
    return (
        "The change that fine-tuning makes has a low rank",
        "Aghajanyan et al. 2020; Hu et al. 2021, §7",
        f"the top 8 directions hold {learned:.0%} of the energy of ΔW (a random matrix: {chance:.0%}); every ΔW cut to rank 16 "
        f"keeps {gain_kept(cut, 16):.0%} of the gain, to rank 4 {gain_kept(cut, 4):.0%}",
        "`lora_np/studies/low_rank/rank_reduction.py`, notebook 04",
    )


def energy(table: Table, key: str, r: int = 8) -> float:
    """The median over matrices of Σ_{i≤r} σ_i² / Σ σ_i²."""
    spectra = [np.square(row[key]) for row in table.rows]
    return statistics.median(float(s[:r].sum() / s.sum()) for s in spectra)


def gain_kept(table: Table, r: int) -> float:
    """The share of full fine-tuning's gain that is left when every ΔW is cut to rank r."""
    base, full = table.settings["base_loss"], table.settings["full_loss"]
    return (base - table.where(r=r)[0]["heldout_loss"]) / (base - full)
