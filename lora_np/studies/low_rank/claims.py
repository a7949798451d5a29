"""The claims about low rank: the rank of a learned change, the intrinsic dimension of a task, and the directions of ΔW."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..harness.findings import Claim, Finding, agrees, paragraph
from ..harness.paired import paired_differences, verdict
from ..harness.table import Table, groups, mean, median, model_in_text, model_name
from ..harness.words import listed, percent
from .intrinsic_toy import ZERO, toy

NEEDED = ("singular_values", "truncated_loss", "intrinsic_dimension", "spectra", "subspaces")
MOST = 0.9  # the share of the energy or of the gain that counts as "most of it"
FEW = 1000  # dimensions: "some 200" of the claim, with room for a factor of five
SAME = 0.02  # of the gain of full training: a smaller difference of two gains does not count
USUAL = 8  # the default rank of PEFT, and LoRA's rank in most comparisons of this project
TIMES, MOST_TIMES = 10, 100  # the claim: the rank of full fine-tuning's ΔW is 10 to 100 times LoRA's
# GPT-3's W_q, layer 48 (Hu et al. 2021, table 7), by rank: ‖ΔW‖/‖UᵀWVᵀ‖, and ‖UᵀWVᵀ‖ in ΔW's directions over random ones
PAPER_AMPLIFICATION = {4: 6.91 / 0.32, 64: 3.57 / 1.90}
PAPER_INSIDE = {4: 0.32 / 0.02, 64: 1.90 / 0.33}
TRAINED = "Full fine-tuning on Python code changes each matrix of the model tiny by ΔW."
STUDY = "`lora_np/studies/low_rank/{}.py`, notebook 04"


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the studies of low rank check."""
    return [
        low_rank(tables["singular_values"], tables["truncated_loss"]),
        *on_dimension(tables["intrinsic_dimension"]),
        rank_of_full(tables["spectra"]),
        *on_directions(tables["subspaces"]),
    ]


def low_rank(spectra: Table, cut: Table, r: int = USUAL) -> Claim:
    """Check whether rank r holds most of ΔW: the energy in its top r directions, and the gain after a cut to rank r.

    The findings also have the gain after a cut to half of r and to twice r.
    """
    learned, random = (energy(spectra, key, r) for key in ("singular_values", "random_singular_values"))
    sentence = (
        f"{TRAINED} The top {r} directions of ΔW hold {percent(learned)} of the energy of ΔW (median over matrices). "
    )
    sentence += f"The top {r} directions of a random matrix hold {percent(random)} of the energy of the random matrix."
    held = Finding(f"low_rank.energy.top{r}", learned, sentence, "of ΔW's energy", form=".0%")
    kept = {}
    for k in (r // 2, r, 2 * r):
        said = f"{TRAINED} If every ΔW is cut to rank {k}, {percent(gain_kept(cut, k))} of the gain on held-out code is left."
        kept[k] = Finding(f"low_rank.gain_kept.r{k}", gain_kept(cut, k), said, "of the gain", form=".0%")
    base, full = cut.settings["base_loss"], cut.settings["full_loss"]
    norms = (base - cut.settings["norms_loss"]) / (base - full)
    said = "The norms' weights are vectors and are not cut to a lower rank. If only the fine-tuned norms are "
    said += f"kept, {percent(norms)} of the gain on held-out code is left."
    alone = Finding("low_rank.gain_kept.norms", norms, said, "of the gain", form=".0%")
    return Claim(
        f"The change ΔW of fine-tuning has a low rank: cut to rank {r}, ΔW keeps {percent(MOST)} of its energy and of the gain",
        "Aghajanyan et al. 2020; Hu et al. 2021, §7",
        agrees(held.value >= MOST, kept[r].value >= MOST),
        f"rank {r}: {held.number} of the energy, {kept[r].number} of the gain",
        STUDY.format("rank_reduction"),
        (held, *kept.values(), alone),
    )


def energy(table: Table, key: str, r: int = 8) -> float:
    """Return the share of the energy in the top r directions, Σ_{i≤r} σᵢ² / Σ σᵢ²: the median over matrices."""
    squares = [np.square(row[key]) for row in table.rows]
    return statistics.median(float(s[:r].sum() / s.sum()) for s in squares)


def gain_kept(table: Table, r: int) -> float:
    """Return the share of full fine-tuning's gain that is left if every ΔW is cut to rank r."""
    base, full = table.settings["base_loss"], table.settings["full_loss"]
    return (base - table.where(r=r)[0]["heldout_loss"]) / (base - full)


# ---------------------------------------------------------------------------------------------- intrinsic dimension


def on_dimension(table: Table) -> list[Claim]:
    """Check three claims about the intrinsic dimension of a toy task, fine-tuning, and training from random weights."""
    s, exactly = table.settings, toy()
    known, lowest = exactly.settings, {row["d"]: row["loss"] for row in exactly.rows}
    D, blocks, found = known["D"], known["blocks"], known["intrinsic_dimension"]
    least = f"less than {ZERO:.0e}" if lowest[blocks] < ZERO else f"{lowest[blocks]:.0e}"
    toy_task = (
        f"In a toy task with {D:,} weights, the sums of {blocks} blocks of weights must reach given values. This task"
    )
    exact = Finding("low_rank.intrinsic.toy", found, f"{toy_task} has the intrinsic dimension {found}.", form=",")
    fine, scratch = (
        d90(table, "tiny", "Fine-tuning the model tiny on Python code"),
        d90(table, "random", "Learning Python code from random weights"),
    )
    paths = {base: path(table, base) for base in ("tiny", "random")}
    note = f"{fine.sentence} {scratch.sentence} The gain from random weights differs from the gain of fine-tuning. From random "
    note += f"weights, the loss falls from {paths['random']} nats per byte. In fine-tuning, the loss falls from {paths['tiny']} "
    note += f"nats per byte. A model that knows only the frequency of each byte has a loss of {s['unigram']:.2f} nats per byte."
    dip = falling(table, "random", "From random weights")
    return [
        Claim(
            "A task's intrinsic dimension can be measured by training in random subspaces",
            "Li et al. 2018, §2",
            agrees(found == blocks),
            f"dimension {exact.number} for {blocks} sums of {D:,} weights",
            "`test_the_toys_intrinsic_dimension_is_10_exactly`, notebook 04",
            (exact,),
            f"{exact.sentence} In a random subspace of {blocks - 1} dimensions, the lowest loss is {lowest[blocks - 1]:.0e} times "
            f"the loss at the start. In a random subspace of {blocks} dimensions, the lowest loss is {least} times the loss at "
            f"the start. A ratio of losses below {ZERO:.0e} counts as 0.",
        ),
        Claim(
            f"Fine-tuning needs few dimensions: at most {FEW:,} for 90 % of the gain",
            "Aghajanyan et al. 2020, §4: about 200 for RoBERTa on MRPC",
            agrees(fine.value <= FEW),
            f"d90 = {share_of(fine.value, s['D'])}",
            STUDY.format("intrinsic"),
            (fine, scratch),
            f"{fine.sentence} The model tiny has {s['D']:,} parameters. The search finds the number of dimensions within a factor "
            f"of {s['resolution']:.2g}.{as_lora(s, fine.value)}",
        ),
        Claim(
            "Fine-tuning needs fewer dimensions than learning the same task from random weights",
            "Aghajanyan et al. 2020, §3",
            agrees(clearly_less(fine.value, scratch.value, s["resolution"])),
            f"d90 = {share_of(fine.value, s['D'])} against {share_of(scratch.value, s['D'])}",
            STUDY.format("intrinsic"),
            findings=(dip,),
            note=f"{note} {dip.sentence}",
        ),
        *same_with_dense(table),
    ]


def d90(table: Table, base: str, what: str) -> Finding:
    """Return the intrinsic dimension d90 of one start, or infinity if no d reaches the wanted share of the gain."""
    s = table.settings
    found = math.inf if s["d90"].get(base) is None else s["d90"][base]
    goal = f"{percent(s['share'])} of the gain of full training after {s['steps']} steps"
    if math.isinf(found):
        sentence = f"{what} does not reach {goal} with any number of dimensions that was tried."
    else:
        sentence = (
            f"{what} needs {found:,} dimensions ({percent(found / s['D'])} of the number of parameters) for {goal}."
        )
    return Finding(f"low_rank.d90.{base}", found, sentence, "dimensions", form=",")


def clearly_less(one: float, other: float, resolution: float) -> bool | None:
    """Return whether `one` is less than `other`, or None if the two differ by at most the factor `resolution`."""
    return True if one * resolution < other else False if other * resolution < one else None


def share_of(d: float, D: int) -> str:
    """Return a number of dimensions and its share of all D dimensions as text: "4,096 (0.40 %)"."""
    return "not reached" if math.isinf(d) else f"{d:,} ({percent(d / D)})"


def as_lora(settings: Mapping[str, Any], d: float) -> str:
    """Return a sentence that names the rank at which LoRA trains about d parameters."""
    if math.isinf(d):
        return ""
    r, count = min(settings["lora"].items(), key=lambda item: abs(item[1] - d))
    return f" LoRA with r = {r} trains a similar number of parameters: {count:,}."


def path(table: Table, base: str) -> str:
    """Return the losses before and after full training from one start as text, for example "5.21 to 2.05"."""
    rows = table.where(phase="seeds", base=base, d=table.settings["D"])
    return f"{mean(rows, 'start'):.2f} to {mean(rows):.2f}"


def falls(table: Table, base: str, least: float = SAME) -> list[int]:
    """Return each d whose share of the gain is lower than the share of some smaller d.

    The share must be lower with every seed, and lower by at least `least` on average.
    """
    by_d = groups(table.where(phase="seeds", base=base, projection="sparse"), "d")
    found = []
    for d, rows in by_d.items():
        less = [paired_differences(rows, by_d[k], "share") for k in by_d if k < d]
        if any(max(each) < 0 and statistics.mean(each) <= -least for each in less):
            found.append(d)
    return found


def falling(table: Table, base: str, what: str) -> Finding:
    """Return how many values of d gain less than a smaller d, with the conclusion for d90."""
    dips = falls(table, base)
    where = listed([f"{d:,}" for d in dips])
    seeds = {row["seed"] for row in table.where(phase="seeds", base=base, d=max(dips, default=table.settings["D"]))}
    every = "every seed" if len(seeds) > 1 else "the one seed"
    if dips:
        sentence = f"{what}, training in {where} dimensions gains less than training in fewer dimensions, with "
        sentence += f"{every}. Therefore the "
        sentence += "number of dimensions that training from random weights needs is a rough estimate."
    else:
        sentence = f"{what}, no number of dimensions gains less than a smaller number with {every}."
    return Finding(f"low_rank.falls.{base}", len(dips), sentence, "values of d", form="d")


def same_with_dense(table: Table) -> list[Claim]:
    """Compare the gain in a sparse and in a dense subspace of the same d, seed by seed; [] if the table has no control."""
    d = table.settings.get("control")
    sparse, dense = (table.where(phase="seeds", d=d, projection=kind) for kind in ("sparse", "dense"))
    if not d or not dense:
        return []
    apart = paired_differences(dense, sparse, "share")
    shares = [row["share"] for row in dense]
    seeds = f"mean over {len(dense)} seeds" if len(dense) > 1 else "one seed"
    sentence = f"In d = {d} dimensions, the model tiny reaches {percent(mean(dense, 'share'))} of the gain of full "
    sentence += "training in a dense "
    sentence += f"random subspace and {percent(mean(sparse, 'share'))} in a sparse random subspace ({seeds}). "
    sentence += verdict("the share of the dense subspace", "the share of the sparse subspace", dense, sparse, "share")
    found = Finding("low_rank.dense", mean(dense, "share"), sentence, "of the gain", (min(shares), max(shares)), ".1%")
    return [
        Claim(
            f"A sparse random projection P gains as much as a dense P (within {percent(SAME)} of the gain of full training)",
            "Li et al. 2018, §2: dense, sparse and Fastfood projections",
            agrees(*(abs(difference) <= SAME for difference in apart)),
            f"d = {d}: dense {percent(mean(dense, 'share'))}, sparse {percent(mean(sparse, 'share'))} of the gain",
            STUDY.format("intrinsic"),
            (found,),
            f"{found.sentence} For D parameters, a dense P has D · d numbers, so only this small d was tried.",
        )
    ]


# ------------------------------------------------------------------------------------------------- ranks of full ΔW


def rank_of_full(table: Table) -> Claim:
    """Compare the rank that holds 90 % of the energy of full fine-tuning's ΔW with LoRA's rank, for each model."""
    found, possible = {}, []
    for model in dict.fromkeys(row["model"] for row in table.rows):
        full, lora = (table.where(model=model, method=method) for method in ("full", "lora"))
        rank, random, effective = (median(full, key) for key in ("rank90", "random_rank90", "effective_rank"))
        r, name = lora[0]["r"], model_name(model)
        text = model_in_text(model)
        sentence = f"On {text}, {rank:g} directions hold 90 % of the energy of full fine-tuning's ΔW. This is "
        sentence += f"{rank / r:.1f} times LoRA's r = {r}. On {text}, {median(lora, 'rank90'):g} directions hold 90 % "
        sentence += "of the energy of LoRA's ΔW. "
        sentence += f"In a random matrix with the shape of ΔW, {random:g} directions hold 90 % of the energy. "
        sentence += f"On {text}, the effective rank of full fine-tuning's ΔW is {effective:.0f}."
        found[name] = Finding(f"low_rank.times_r.{model}", rank / r, sentence, "times r", form=".1f")
        if random < TIMES * r:
            possible.append(
                f"On {text}, even a random matrix needs fewer than {TIMES} times r directions for 90 % of its energy."
            )
    said = [finding.sentence for finding in found.values()]
    return Claim(
        f"Full fine-tuning's ΔW has a rank that is {TIMES} to {MOST_TIMES} times the usual rank of LoRA",
        "Biderman et al. 2024, §5 (the rank that holds 90 % of the variance)",
        agrees(*(TIMES <= finding.value <= MOST_TIMES for finding in found.values())),
        "; ".join(f"{name}: {finding.number} times r" for name, finding in found.items()),
        STUDY.format("spectra"),
        tuple(found.values()),
        " ".join([*said, "All numbers of directions are medians over all linear layers.", *possible]),
    )


# ------------------------------------------------------------------------------------------------------- directions


def on_directions(table: Table) -> list[Claim]:
    """Check three claims: which directions two runs share, and how large W is in the directions of ΔW."""
    low, high = table.settings["low"], table.settings["high"]
    d = table.where(kind="similarity")[0]["d"]
    apart, alike = (
        {(of, n): phi(table, of, r, n) for of in ("A", "B") for n in (1, low)} for r in ([low, high], [high, high])
    )
    start = phi(table, "A at the start", [high, high], low)
    ranks = sorted({row["r"] for row in table.where(kind="amplification")} & PAPER_AMPLIFICATION.keys())
    factors = {r: amplified(table, r) for r in ranks}
    inside = {r: inside_delta(table, r) for r in ranks}
    everywhere = {r: amplified(table, r, None) for r in ranks}
    by_chance = f"Between random subspaces, φ(1, 1) is {1 / d:.3f} and φ({low}, {low}) is {low / d:.2f}. Each measured overlap φ "
    by_chance += "is a median over layers and pairs of runs. The two runs of a pair have different seeds."
    said = [finding.sentence for r in ranks for finding in (factors[r], inside[r], everywhere[r])]
    return [
        Claim(
            f"LoRA runs with r = {low} and r = {high} share their top direction (φ > 0.5)",
            "Hu et al. 2021, §7.2 and figure 3",
            agrees(*(apart[of, 1].value > 0.5 for of in ("A", "B"))),
            f"φ(1, 1): A {apart['A', 1].number}, B {apart['B', 1].number}",
            STUDY.format("subspaces"),
            tuple(apart.values()),
            paragraph(*(finding.sentence for finding in apart.values()), by_chance),
        ),
        Claim(
            f"Two LoRA runs with r = {high} share more of their top {low} directions than two random matrices",
            "Hu et al. 2021, §7.2 and figure 4",
            agrees(*(alike[of, low].value > 1.5 * start.value for of in ("A", "B"))),
            f"φ({low}, {low}): A {alike['A', low].number}, B {alike['B', low].number}; before training {start.number}",
            f"{STUDY.format('subspaces')}; `test_phi_of_random_subspaces_has_the_mean_max_i_j_over_d`",
            (*alike.values(), start),
            paragraph(
                *(finding.sentence for finding in (*alike.values(), start)),
                "Between random subspaces in d dimensions, the overlap φ(i, j) is max(i, j)/d.",
            ),
        ),
        Claim(
            "ΔW amplifies directions that W has but does not emphasise, about 20 times at r = 4 and 2 times at r = 64",
            "Hu et al. 2021, table 7",
            agrees(*(as_in_the_paper(r, factors[r].value, inside[r].value) for r in ranks)),
            "; ".join(f"r = {r}: {factors[r].number}× (GPT-3: {PAPER_AMPLIFICATION[r]:.2g}×)" for r in ranks),
            STUDY.format("subspaces"),
            tuple(finding for each in (factors, inside, everywhere) for finding in each.values()),
            " ".join([*said, "All ratios of sizes are medians over layers and seeds."]),
        ),
    ]


def phi(table: Table, of: str, r: Sequence[int], n: int) -> Finding:
    """Return φ(n, n) of q_proj between runs of two ranks: the median over layers and pairs of runs."""
    rows = table.where(kind="similarity", of=of, r=r, module="q_proj")
    found = [row["phi"][row["i"].index(n)][row["j"].index(n)] for row in rows]
    pair = f"with r = {r[0]} and r = {r[1]}" if r[0] != r[1] else f"with r = {r[0]} and different seeds"
    what = f"the top {n} directions" if n > 1 else "the top direction"
    sentence = f"The adapters of q_proj in two LoRA runs on the model tiny, {pair}, are compared. The overlap "
    sentence += (
        f"φ({n}, {n}) of {what} of {of.replace('at the start', 'before training')} is {statistics.median(found):.2f}."
    )
    name = f"low_rank.phi.{of.replace(' at the start', '0')}.r{r[0]}-r{r[1]}.top{n}"
    return Finding(name, statistics.median(found), sentence, spread=(min(found), max(found)), form=".2f")


def amplified(table: Table, r: int, module: str | None = "q_proj") -> Finding:
    """Return the amplification at one rank: ‖ΔW‖ divided by the size of W in the directions of ΔW."""
    factor = median(amplification(table, r, module), "factor")
    paper = f" ({PAPER_AMPLIFICATION[r]:.2g} times on GPT-3)" if module else ""
    sentence = (
        f"With r = {r} on the model tiny, ΔW of {module or 'all matrices'} is {factor:.2g} times as large as W in the "
    )
    sentence += f"directions of ΔW{paper}."
    return Finding(f"low_rank.amplification.{module or 'all'}.r{r}", factor, sentence, "times", form=".2g")


def inside_delta(table: Table, r: int, module: str = "q_proj") -> Finding:
    """Return the size of W in the directions of ΔW divided by the size of W in random directions, at one rank."""
    ratio = statistics.median(row["in_delta"] / row["in_random"] for row in amplification(table, r, module))
    sentence = (
        f"With r = {r} on the model tiny, W of {module} is {ratio:.2g} times as large in the directions of ΔW as in random "
        f"directions ({PAPER_INSIDE[r]:.2g} times on GPT-3)."
    )
    return Finding(f"low_rank.inside.{module}.r{r}", ratio, sentence, "times random directions", form=".2g")


def amplification(table: Table, r: int, module: str | None) -> list[dict[str, Any]]:
    """Return the rows of kind "amplification" at one rank, for one kind of matrix or for all matrices (None)."""
    return table.where(kind="amplification", r=r, **({"module": module} if module else {}))


def as_in_the_paper(r: int, factor: float, inside: float) -> bool:
    """Return whether `factor` is between half and twice the paper's amplification, and `inside` is at least 2."""
    return 0.5 <= factor / PAPER_AMPLIFICATION[r] <= 2 and inside >= 2
