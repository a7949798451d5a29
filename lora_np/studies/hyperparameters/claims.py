"""The claims about LoRA's hyperparameters: learning rate and rank, α and its scaling, target modules, dropout, batch size."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from math import log2
from typing import Any

from ..harness.findings import Claim, Finding, agrees, is_lower, paragraph
from ..harness.paired import differs, of_both, paired_differences, verdict
from ..harness.table import Table, groups, mean
from ..harness.words import listed, percent

NEEDED = (
    *("learning_rates_by_rank", "alpha", "scaling", "target_modules", "equal_parameters", "dropout", "batch_size"),
    "convergence",
)
STUDY = "`lora_np/studies/hyperparameters/study.py`, notebook 06"
OWN = "Runs with each α use the best learning rate for this α."
GRID = 2.0  # neighbouring learning rates of a sweep differ by this factor
ENOUGH = 0.95  # the share of full fine-tuning's gain that a recipe should recover
LOSS = "nats per byte"
WORDS = {"MLP": "the MLP", "attention": "the attention", "all-linear": "all linear layers"}


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the studies of hyperparameters check."""
    by_rank, alphas, scaled = (tables[name] for name in ("learning_rates_by_rank", "alpha", "scaling"))
    return [
        recipe(by_rank),
        ten_times(by_rank, alphas),
        independent_of_rank(by_rank, tables["convergence"]),
        alpha_and_rate(alphas),
        two_r(by_rank, scaled),
        rank_stabilised(scaled),
        where(tables["equal_parameters"], tables["target_modules"]),
        dropping(tables["dropout"]),
        large_batches(tables["batch_size"]),
    ]


def recipe(by_rank: Table) -> Claim:
    """Check the share of full fine-tuning's gain that the recipe recovers, and compare this share with other ranks."""
    s = by_rank.settings
    full, lora = seeds(by_rank, method="full"), seeds(by_rank, r=s["r"], rule="α/r")
    found = {r: recovered(by_rank, r) for r in s["ranks"]}
    best = max(found, key=lambda r: found[r].value)
    shown = {r: found[r] for r in sorted({1, s["r"], best} & found.keys())}
    by_seed = share_by_seed(by_rank, s["r"])
    narrow = " Other seeds could change the verdict." if by_seed[0] < ENOUGH <= by_seed[1] else ""
    share, least, most = (f"{100 * x:.1f} %" for x in (found[s["r"]].value, *by_seed))
    return Claim(
        f"A recipe to start from: r = {s['r']}, α = {s['lora_alpha']:g}, all linear layers, no dropout",
        "a common recipe; all layers: Dettmers et al. 2023, §4",
        agrees(found[s["r"]].value >= ENOUGH),
        f"{found[s['r']].number} of full fine-tuning's gain",
        STUDY,
        tuple(found.values()),
        f"The model tiny learns Python code with the recipe and a learning rate of {lora[0]['lr']:g}. The recipe lowers the "
        f"held-out loss from {s['base_loss']:.3f} to {mean(lora):.3f} {LOSS}. Full fine-tuning lowers the held-out loss to "
        f"{mean(full):.3f} {LOSS}. {paragraph(*(finding.sentence for finding in shown.values()))} "
        f'The verdict is "yes" if the recipe recovers at least {percent(ENOUGH)} of full fine-tuning\'s gain. In the mean over '
        f"the seeds, the recipe recovers {share} of full fine-tuning's gain. A single seed recovers between "
        f"{least} and {most}.{narrow}",
    )


def share_by_seed(by_rank: Table, r: int) -> tuple[float, float]:
    """Return two shares of full fine-tuning's gain that LoRA recovers at rank r: of the worst and of the best seed.

    LoRA uses the recipe's α.
    """
    base, pairs = by_rank.settings["base_loss"], of_both(seeds(by_rank, r=r, rule="α/r"), seeds(by_rank, method="full"))
    shares = [(base - lora) / (base - full) for lora, full in zip(*pairs, strict=True)]
    return min(shares), max(shares)


def recovered(by_rank: Table, r: int) -> Finding:
    """Return the share of full fine-tuning's gain that LoRA recovers at one rank, with the recipe's α."""
    s = by_rank.settings
    gain = s["base_loss"] - mean(seeds(by_rank, method="full"))
    share = (s["base_loss"] - mean(seeds(by_rank, r=r, rule="α/r"))) / gain
    sentence = f"On the model tiny, LoRA with r = {r} recovers {percent(share)} of full fine-tuning's gain after "
    sentence += f"{s['steps']} steps."
    return Finding(f"hyperparameters.recovered.r{r}", share, sentence, "of full fine-tuning's gain", form=".0%")


def ten_times(by_rank: Table, alphas: Table | None = None) -> Claim:
    """Compare LoRA's best learning rate, at each rank and at each α in `alphas`, with full fine-tuning's best rate."""
    s, full = by_rank.settings, best_rate(by_rank, None)
    a = f"{s['lora_alpha']:g}"
    ratios = {r: ratio(f"r{r}", rate / full, f"r = {r} and α = {a}") for r, rate in best_rates(by_rank, "α/r").items()}
    of_alpha = {
        value: ratio(f"alpha{value:g}", rows[0]["lr"] / full, f"r = {s['r']} and α = {value:g}")
        for value, rows in (groups(seeds(alphas), "lora_alpha").items() if alphas else ())
    }
    found = [finding.value for finding in ratios.values()]
    near = [10 / GRID**0.5 <= value <= 10 * GRID**0.5 for value in found]  # within half a step of the grid
    times = " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(found), max(found))))
    note = f"On the model tiny, the best learning rate of full fine-tuning is {full:.2g} for {s['steps']} steps. Neighbouring "
    note += f"learning rates of the search differ by a factor of {GRID:g}."
    for r, lr in strays(by_rank, "α/r"):
        note += f" With r = {r}, LoRA's best learning rate for one seed is {lr / full:g} times the best learning rate of full "
        note += "fine-tuning."
    if of_alpha:
        note += " LoRA's best learning rate, divided by the best learning rate of full fine-tuning, depends on α. With "
        note += f"α = {listed([f'{x:g}' for x in of_alpha])}, this ratio is {listed([f'{x.value:g}' for x in of_alpha.values()])}."
    return Claim(
        "LoRA's best learning rate is about ten times the best learning rate of full fine-tuning",
        "Schulman et al. 2025",
        agrees(*near),
        f"{times} times (r = {min(ratios)} to {max(ratios)}, α = {a})",
        STUDY,
        (*ratios.values(), *of_alpha.values()),
        note,
    )


def ratio(name: str, times: float, setting: str) -> Finding:
    """Return the best learning rate of one setting divided by the best rate of full fine-tuning."""
    sentence = f"On the model tiny, LoRA's best learning rate with {setting} is {times:g} times the best learning rate of full "
    sentence += "fine-tuning."
    return Finding(f"hyperparameters.ratio.{name}", times, sentence, "times full fine-tuning's", form="g")


def independent_of_rank(by_rank: Table, converged: Table) -> Claim:
    """Compare the best learning rates of all ranks, with α fixed and with α in proportion to r."""
    s, c = by_rank.settings, converged.settings
    fixed, doubled = best_rates(by_rank, "α/r"), best_rates(by_rank, "α = 2r")
    longer = {row["r"]: row["lr"] for row in seeds(converged, method="lora", target_modules="all-linear")}
    return Claim(
        "With s = α/r and a fixed α, LoRA's best learning rate is independent of the rank",
        "Schulman et al. 2025",
        agrees(max(fixed.values()) <= GRID * min(fixed.values()) * (1 + 1e-9)),  # within one step of the grid
        ends(fixed),
        STUDY + ", 05",
        note="If α grows with the rank r, LoRA's best learning rate on the model tiny depends on the rank. With "
        f"α = {s['lora_alpha'] / s['r']:g}r and {s['steps']} steps, the best learning rate is {ends(doubled)}. With "
        f"α = {c['alpha_over_r']:g}r and {c['steps']} steps, the best learning rate is {ends(longer)}.",
    )


def alpha_and_rate(table: Table) -> Claim:
    """Compare the losses of several α at one learning rate and at the best rate of each α.

    Fit a straight line to log₂ of the best rate against log₂ α.
    """
    s = table.settings
    fixed, own = (groups(table.where(phase=phase), "lora_alpha") for phase in ("fixed", "seeds"))
    rates = {a: rows[0]["lr"] for a, rows in own.items()}
    low, high = min(rates), max(rates)
    power = statistics.linear_regression(*([log2(x) for x in xs] for xs in (rates, rates.values()))).slope
    span = f"On the model tiny, the losses of LoRA with α = {low:g} to {high:g} (r = {s['r']}) differ by up to"
    at_one, at_own = (
        Finding(f"hyperparameters.alpha.spread.{name}", width(by_a), f"{at} {span} {width(by_a):.3f} {LOSS}.", LOSS)
        for name, by_a, at in (
            ("fixed", fixed, "In this comparison, all runs use the same learning rate."),
            ("own", own, OWN),
        )
    )
    sentence = f"On the model tiny, LoRA's best learning rate falls from {rates[low]:g} with α = {low:g} to {rates[high]:g} with "
    sentence += f"α = {high:g}. In a fit to {len(rates)} values of α, LoRA's best rate is proportional to α to the "
    sentence += f"power {power:.2f}."
    slope = Finding("hyperparameters.alpha.power", power, sentence.replace("-", "−"), form=".2f")
    usual = s["lora_alpha"]
    against = [
        compared(f"alpha{a:g}", f"α = {a:g}", rows, f"α = {usual:g}", own[usual], OWN)
        for a, rows in own.items()
        if a != usual
    ]
    return Claim(
        "With Adam, α acts as another learning rate, so tune one of the two",
        "Hu et al. 2021, §4.1 (tuning α is roughly tuning the rate)",
        agrees(*(lower(finding) is None for finding in against)),
        f"losses differ by {at_one.number} {LOSS}, at best rates by {at_own.number}",
        STUDY,
        (at_one, at_own, slope, *against),
    )


def two_r(by_rank: Table, scaled: Table) -> Claim:
    """Compare α = 2r with a fixed α: each α at its best learning rate; at a larger rank, both at one learning rate."""
    s = by_rank.settings
    ranks = sorted(set(s["doubled_ranks"]) & set(s["ranks"]) - {s["r"]})
    top = max(row["r"] for row in scaled.rows)
    sets = {f"r{r}": (r, OWN, seeds(by_rank, r=r)) for r in ranks}
    common = f"For both values of α, the learning rate is the best learning rate at r = {s['r']}."
    sets["fixed"] = (top, common, scaled.where(r=top))
    found = {}
    for name, (r, rate, rows) in sets.items():
        two, one = ([row for row in rows if row["rule"] == rule] for rule in ("α = 2r", "α/r"))
        usual, ours = f"α = {s['lora_alpha']:g}", f"α = 2r = {2 * r}"
        found[name] = compared(f"two_r.{name}", ours, two, usual, one, rate, f"With r = {r}, ")
    return Claim(
        "Take α = 2r",
        "a rule of thumb (r = 16 with α = 32, and kept for other ranks)",
        agrees(*map(lower, found.values())),
        f"{found[f'r{ranks[-1]}'].number} {LOSS} at r = {ranks[-1]}; at one rate, r = {top}: {found['fixed'].number}",
        STUDY,
        tuple(found.values()),
    )


def rank_stabilised(scaled: Table) -> Claim:
    """Compare α/r with α/√r at the largest rank: the norm of the first gradient and the final loss."""
    s, low, top = scaled.settings, scaled.settings["r"], max(row["r"] for row in scaled.rows)
    plain, stable = ({r: scaled.where(rule=rule, r=r) for r in (low, top)} for rule in ("α/r", "α/√r"))
    norms = []
    for name, rule, rows in (("plain", "α/r", plain), ("rslora", "α/√r", stable)):
        times = mean(rows[top], "grad_norm") / mean(rows[low], "grad_norm")
        sentence = f"On the model tiny with s = {rule}, the norm of the first gradient with r = {top} is {times:.2f} times the "
        sentence += f"norm with r = {low}."
        norms.append(Finding(f"hyperparameters.gradient_norm.{name}", times, sentence, form=".2f"))
    root, rate = (
        (low / top) ** 0.5,
        f"Runs with s = α/r and with s = α/√r use the same learning rate, {s['fixed_lr']:g}.",
    )
    loss = compared("rslora", "s = α/√r", stable[top], "s = α/r", plain[top], rate, f"With r = {top}, ")
    return Claim(
        "With s = α/r the gradients vanish as the rank grows; with s = α/√r (rsLoRA) they do not vanish, and the "
        "loss is lower",
        "Kalajdzievski 2023",
        agrees(abs(log2(norms[0].value / root)) < 0.5, abs(log2(norms[1].value)) < 0.5, lower(loss)),
        f"norm {norms[0].number}×, rsLoRA {norms[1].number}×; loss {loss.number} {LOSS}",
        STUDY,
        (*norms, loss),
        f"{norms[0].sentence} The theory of rsLoRA predicts the factor √({low}/{top}) = {root:.2f}. {norms[1].sentence} But "
        f"Adam's steps hardly depend on the size of the gradients. {loss.sentence} With r = {low}, LoRA ends at a loss of "
        f"{mean(plain[low]):.3f} {LOSS}.",
    )


def where(equal: Table, alone: Table) -> Claim:
    """Compare the MLP, the attention and all layers with about equally many parameters."""
    found, more, numbers = [], [], []
    for r, of_size in groups(seeds(equal), "matched_r").items():
        by_group = groups(of_size, "target_modules")
        mlp, attention = by_group["MLP"], by_group["attention"]
        what = {name: f"LoRA in {WORDS[name]} (r = {rows[0]['r']})" for name, rows in by_group.items()}
        size = f"With {mlp[0]['trainable']:,} trained parameters, "
        found.append(compared(f"modules.r{r}", what["MLP"], mlp, what["attention"], attention, where=size))
        numbers.append(f"{mean(mlp):.3f} against {mean(attention):.3f}")
        if rows := by_group.get("all-linear"):
            size = f"With {rows[0]['trainable']:,} trained parameters, "
            more.append(compared(f"modules.all.r{r}", what["all-linear"], rows, what["MLP"], mlp, where=size))
    by_target = groups(seeds(alone), "target_modules")
    single = {name.removesuffix("_proj"): mean(rows) for name, rows in by_target.items() if name.endswith("_proj")}
    order = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(single.items(), key=lambda item: item[1]))
    said = paragraph(*(finding.sentence for finding in [*found, *more]))
    return Claim(
        "With equally many parameters, LoRA in the MLP alone reaches a lower loss than LoRA in the attention alone",
        "Schulman et al. 2025; Hu et al. 2021 disagree",
        agrees(*map(lower, found)),
        f"{'; '.join(numbers)} {LOSS}",
        STUDY,
        (*found, *more),
        f"{said} In other runs, LoRA with r = {alone.settings['module_r']} adapts only one kind of matrix. The final losses in "
        f"{LOSS} are: {order}.",
    )


def dropping(table: Table) -> Claim:
    """Compare the best dropout probability with no dropout, on little text and on all of the text."""
    s, base = table.settings, table.settings["base_loss"]
    little = [row for row in table.rows if row["train_bytes"] is not None]
    size = f"{s['small_bytes'] // 1024} kB"
    small = f"The model tiny reads {size} of text many times, and"
    sets = {
        "fixed": (f"{small} all runs use the same learning rate.", [row for row in little if row["phase"] == "fixed"]),
        "own": (
            f"{small} runs with each p use the best learning rate for this p.",
            [row for row in little if row["phase"] == "seeds"],
        ),
        "all": (
            "The model tiny reads all of the text, and all runs use the same learning rate.",
            table.where(train_bytes=None, phase="fixed"),
        ),
    }
    found, said = {}, []
    for name, (text, rows) in sets.items():
        by_p = groups(rows, "lora_dropout")
        best = min(
            (p for p in by_p if p), key=lambda p: mean(by_p[p], "validation")
        )  # chosen on validation text, judged on held-out text
        dropped = f"a dropout of p = {best:g}"
        found[name] = compared(f"dropout.{name}", dropped, by_p[best], "p = 0", by_p[0.0], text)
        said.append(found[name].sentence)
        if all(row["final"] > base for row in rows):
            why = "the same learning rate for all runs" if name != "own" else "a best learning rate per p"
            said.append(
                f"With {size if name != 'all' else 'all'} of the text and {why}, the losses of all runs are above the loss "
                f"of the frozen base, {base:.3f} {LOSS}."
            )
    return Claim(
        "Dropout helps if there is little training data",
        "a rule of thumb; Dettmers et al. 2023, B (p = 0.05, for their smaller models)",
        agrees(lower(found["fixed"]), lower(found["own"])),
        f"{found['fixed'].number} {LOSS} at one rate, {found['own'].number} at the best",
        STUDY,
        tuple(found.values()),
        paragraph(*said),
    )


def large_batches(table: Table) -> Claim:
    """Compare the losses of LoRA and full fine-tuning, seed by seed, for each batch size."""
    lora, full = (groups(seeds(table, method=method), "batch_size") for method in ("lora", "full"))
    gaps = {
        b: compared(
            f"batch.{b}",
            f"LoRA (r = {table.settings['r']})",
            rows,
            "full fine-tuning",
            full[b],
            where=f"In batches of {b}, ",
        )
        for b, rows in lora.items()
    }
    few, many = min(gaps), max(gaps)
    by_size = [paired_differences(lora[b], full[b]) for b in (few, many)]
    wider = [b - a for a, b in zip(*by_size, strict=True)]
    change = differs(f"the gap in batches of {many}", f"the gap in batches of {few}", wider, "wider", "narrower")
    return Claim(
        "LoRA suffers more than full fine-tuning from large batches",
        "Schulman et al. 2025",
        agrees(is_lower(-gap for gap in wider)),
        f"gap {gaps[few].number} {LOSS} in batches of {few}, {gaps[many].number} of {many}",
        STUDY,
        tuple(gaps.values()),
        "All runs read the same number of tokens. "
        f"{paragraph(*(gap.sentence for gap in gaps.values()))} The gap is LoRA's loss minus "
        f"full fine-tuning's loss. {change}",
    )


# ---------------------------------------------------------------------------------------------------- reading a table


def compared(
    name: str,
    what: str,
    rows: Iterable[Mapping[str, Any]],
    other: str,
    others: Iterable[Mapping[str, Any]],
    setting: str = "",
    where: str = "",
) -> Finding:
    """Return the final loss of `rows` minus the final loss of `others`, seed by seed: mean and range.

    The text of the finding begins with `setting`, which is a whole sentence. `where` begins the comparison, for example
    "With r = 64, ".
    """
    rows, others = list(rows), list(others)
    differences = paired_differences(rows, others)
    begin = f"{where}the" if where else "The"
    sentence = f"{begin} model tiny ends at a loss of {mean(rows):.3f} {LOSS} with {what} and at {mean(others):.3f} with {other}. "
    sentence = f"{setting} {sentence}".lstrip() + verdict(
        f"the loss with {what}", f"the loss with {other}", rows, others
    )
    spread = (min(differences), max(differences))
    return Finding(f"hyperparameters.{name}", statistics.mean(differences), sentence, LOSS, spread, "+.3f")


def lower(finding: Finding) -> bool | None:
    """Return whether a difference of losses is negative with every seed, or None if the seeds do not agree."""
    return is_lower(finding.spread or (finding.value,))


def seeds(table: Table, **conditions: Any) -> list[dict[str, Any]]:
    """Return the runs at the best learning rate of each setting, with every seed."""
    return table.where(phase="seeds", **conditions)


def width(by_value: Mapping[Any, Iterable[Mapping[str, Any]]]) -> float:
    """Return the largest mean loss minus the smallest mean loss."""
    means = [mean(rows) for rows in by_value.values()]
    return max(means) - min(means)


def best_rate(by_rank: Table, r: int | None, rule: str = "α/r") -> float:
    """Return the best learning rate at rank r (None: full fine-tuning): the median over the seeds."""
    return statistics.median_low(row["lr"] for row in by_rank.where(r=r, rule=rule, own_best=True))


def best_rates(by_rank: Table, rule: str) -> dict[int, float]:
    """Return the best learning rate of each rank if `rule` determines the scale s."""
    ranks = sorted({row["r"] for row in by_rank.where(rule=rule) if row["r"]})
    return {r: best_rate(by_rank, r, rule) for r in ranks}


def strays(by_rank: Table, rule: str) -> list[tuple[int, float]]:
    """Return a pair (rank, best learning rate) for each seed whose best rate differs from the median over the seeds."""
    rows = [row for row in by_rank.where(rule=rule, own_best=True) if row["r"]]
    return [(row["r"], row["lr"]) for row in rows if row["lr"] != best_rate(by_rank, row["r"], rule)]


def ends(rates: Mapping[int, float]) -> str:
    """Return the learning rates at the lowest and at the highest rank as text: "0.008 at r = 1 and 0.002 at r = 64"."""
    return " and ".join(f"{rates[r]:.2g} at r = {r}" for r in (min(rates), max(rates)))
