"""The claims about LoRA's knobs: learning rate and rank, α and its scaling, target modules, dropout, batch size."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from math import log2
from typing import Any

from ..harness.paired import differs, paired_differences, verdict
from ..harness.table import Table, groups, mean

NEEDED = (
    *("learning_rates_by_rank", "alpha", "scaling", "target_modules", "equal_parameters", "dropout", "batch_size"),
    "convergence",
)
Claim = tuple[str, str, str, str]
STUDY = "`lora_np/studies/hyperparameters/study.py`, notebook 06"
GRID = 2.0  # neighbouring learning rates of a sweep differ by this factor


def on_hyperparameters(tables: Mapping[str, Table]) -> list[Claim]:
    """(claim, its source, what came out here, what checked it), for README's table."""
    by_rank = tables["learning_rates_by_rank"]
    return [
        recipe(by_rank),
        ten_times(by_rank, tables["alpha"]),
        independent_of_rank(by_rank, tables["convergence"]),
        alpha_and_rate(tables["alpha"]),
        two_r(by_rank, tables["scaling"]),
        rank_stabilised(tables["scaling"]),
        where(tables["equal_parameters"], tables["target_modules"]),
        dropping(tables["dropout"]),
        large_batches(tables["batch_size"]),
    ]


def recipe(by_rank: Table) -> Claim:
    """What r = 16, α = 32, all linear layers and no dropout give."""
    base, r, a = (by_rank.settings[key] for key in ("base_loss", "r", "lora_alpha"))
    full, lora = seeds(by_rank, method="full"), seeds(by_rank, r=r, rule="α/r")
    shares = {k: recovered(by_rank, k) for k in by_rank.settings["ranks"]}
    best = max(shares, key=lambda k: shares[k])
    return (
        f"A recipe to start from: r = {r}, α = {a:g}, all linear layers, no dropout",
        "a common recipe; all layers: Dettmers et al. 2023, §4",
        f"{shares[r]:.0%} of full fine-tuning's gain after {by_rank.settings['steps']} steps ({base:.3f} → {mean(lora):.3f}, full "
        f"{mean(full):.3f} nats a byte) at lr {lora[0]['lr']:g}; r = {best} recovers {shares[best]:.0%}, r = 1 {shares[1]:.0%}",
        STUDY,
    )


def ten_times(by_rank: Table, alpha: Table | None = None) -> Claim:
    """The best rate of each rank with α fixed, over full fine-tuning's; and of each α, with its table."""
    full, alphas = best_rate(by_rank, None), seeds(alpha) if alpha else []
    ratios = {r: rate / full for r, rate in best_rates(by_rank, "α/r").items()}
    of_alpha = {a: rows[0]["lr"] / full for a, rows in groups(alphas, "lora_alpha").items()}
    low, high = min(ratios.values()), max(ratios.values())
    near = [10 / GRID**0.5 <= ratio <= 10 * GRID**0.5 for ratio in ratios.values()]  # within half a step of the grid
    verdicts = {"yes": all(near), "at some ranks": any(near), "no, less": high < 10, "no, more": low > 10, "no": True}
    word = next(word for word, holds in verdicts.items() if holds)
    strayed = "".join(f", one seed of r = {r} {lr / full:g}" for r, lr in strays(by_rank, "α/r"))
    by_alpha = f". The ratio is α's: {amounts(of_alpha.values())} times at α = {amounts(of_alpha)}" if of_alpha else ""
    return (
        "LoRA's best learning rate is about ten times full fine-tuning's",
        "Schulman et al. 2025",
        f"{word}: {span(low, high)} times full fine-tuning's {full:.2g}, r = {min(ratios)} to {max(ratios)}, α = "
        f"{by_rank.settings['lora_alpha']:g}, {by_rank.settings['steps']} steps{strayed}{by_alpha}; the grid's step is {GRID:g}",
        STUDY,
    )


def independent_of_rank(by_rank: Table, converged: Table) -> Claim:
    """How far the best rate moves with the rank, with α fixed and with α in proportion to r."""
    fixed, doubled = best_rates(by_rank, "α/r"), best_rates(by_rank, "α = 2r")
    same = max(fixed.values()) <= GRID * min(fixed.values()) * (1 + 1e-9)
    more = {row["r"]: row["lr"] for row in seeds(converged, method="lora", target_modules="all-linear")}
    settings = by_rank.settings
    return (
        "… and it is independent of the rank, with α/r and α fixed",
        "Schulman et al. 2025",
        f"{'yes, within one step of the grid' if same else 'no'}: {moved(fixed)}; with α = "
        f"{settings['lora_alpha'] / settings['r']:g}r {moved(doubled)}; with α = {converged.settings['alpha_over_r']:g}r and "
        f"{converged.settings['steps']} steps {moved(more)}",
        STUDY + ", 05",
    )


def alpha_and_rate(alpha: Table) -> Claim:
    """Whether α is more than another learning rate, and which of their products stays."""
    kept, own = (groups(alpha.where(phase=phase), "lora_alpha") for phase in ("fixed", "seeds"))
    rates = {a: rows[0]["lr"] for a, rows in own.items()}
    low, high = min(rates), max(rates)
    power = statistics.linear_regression(*([log2(x) for x in xs] for xs in (rates, rates.values()))).slope
    recipes = alpha.settings["lora_alpha"]
    against = "; ".join(f"α = {a:g} ends {verdict(rows, own[recipes])}" for a, rows in own.items() if a != recipes)
    return (
        "α is another learning rate: with Adam, tune one of them",
        "Hu et al. 2021, §4.1 (tuning α is roughly tuning the rate)",
        f"at r = {alpha.settings['r']}, α = {low:g} to {high:g}: the losses spread over {width(kept):.3f} nats a byte at one rate, "
        f"{width(own):.3f} at each one's own best, which falls from {rates[low]:g} to {rates[high]:g}, as α to the power "
        f"{power:.2f}, by {len(rates)} α's. At its own best rate, against α = {recipes:g}: {against}".replace("-", "−"),
        STUDY,
    )


def two_r(by_rank: Table, scaling: Table) -> Claim:
    """α = 2r against a fixed α: at own best rates, and at a rate that stays while the rank changes."""
    settings = by_rank.settings
    ranks = sorted(set(settings["doubled_ranks"]) & set(settings["ranks"]) - {settings["r"]})
    pairs = {r: [seeds(by_rank, r=r, rule=rule) for rule in ("α = 2r", "α/r")] for r in ranks}
    said = [f"r = {r} {mean(two):.3f} against {mean(one):.3f} ({verdict(two, one)})" for r, (two, one) in pairs.items()]
    top = max(row["r"] for row in scaling.rows)
    kept = [mean(scaling.where(rule=rule, r=top)) for rule in ("α = 2r", "α/r")]
    return (
        "Take α = 2r",
        "a rule of thumb (r = 16 with α = 32, and kept for other ranks)",
        f"each at its own best rate, against α = {settings['lora_alpha']:g}: {', '.join(said)}. At the rate tuned at "
        f"r = {settings['r']}, r = {top}: {kept[0]:.3f} against {kept[1]:.3f}",
        STUDY,
    )


def rank_stabilised(scaling: Table) -> Claim:
    """The first gradient's norm and the final loss at the largest rank, α/r against α/√r."""
    settings, top = scaling.settings, max(row["r"] for row in scaling.rows)
    low = settings["r"]
    plain, stable = ([scaling.where(rule=rule, r=r) for r in (low, top)] for rule in ("α/r", "α/√r"))
    shrinks, keeps = (mean(rows[1], "grad_norm") / mean(rows[0], "grad_norm") for rows in (plain, stable))
    lower = verdict(stable[1], plain[1])
    return (
        "α/r makes gradients vanish as the rank grows; α/√r (rsLoRA) keeps them, and trains better",
        "Kalajdzievski 2023",
        f"the first gradient's norm at r = {top} is {shrinks:.2f}× that at r = {low} under α/r (√({low}/{top}) = "
        f"{(low / top) ** 0.5:.2f}), {keeps:.2f}× under α/√r. But Adam divides by it: at the rate {settings['fixed_lr']:g} "
        f"r = {top} ends at {mean(stable[1]):.3f} under α/√r, at {mean(plain[1]):.3f} under α/r ({lower}); r = {low} ends at "
        f"{mean(plain[0]):.3f}",
        STUDY,
    )


def where(equal: Table, alone: Table) -> Claim:
    """Attention against the MLP, at equal parameters."""
    said = []
    for of_size in groups(seeds(equal), "matched_r").values():
        by_group = groups(of_size, "target_modules")
        mlp, attention = by_group["MLP"], by_group["attention"]
        size = f"{mlp[0]['trainable']:,} parameters: MLP r = {mlp[0]['r']} {mean(mlp):.3f}, attention r = {attention[0]['r']} "
        size += f"{mean(attention):.3f} (MLP {verdict(mlp, attention)})"
        if rows := by_group.get("all-linear"):
            size += f", all r = {rows[0]['r']}, {rows[0]['trainable']:,} parameters, {mean(rows):.3f} "
            size += f"(against the MLP {verdict(rows, mlp)})"
        said.append(size)
    by_target = groups(seeds(alone), "target_modules")
    single = {name: mean(rows) for name, rows in by_target.items() if name.endswith("_proj")}
    order = ", ".join(f"{name.removesuffix('_proj')} {x:.3f}" for name, x in sorted(single.items(), key=lambda i: i[1]))
    return (
        "At equal parameters the MLP alone beats attention alone",
        "Schulman et al. 2025; against Hu et al. 2021",
        "; ".join(said) + f". One kind of matrix alone, r = {alone.settings['module_r']}: {order}",
        STUDY,
    )


def dropping(dropout: Table) -> Claim:
    """The best probability against none, on little text and on much."""
    settings, base = dropout.settings, dropout.settings["base_loss"]
    little = [row for row in dropout.rows if row["train_bytes"] is not None]
    fixed, own = ([row for row in little if row["phase"] == phase] for phase in ("fixed", "seeds"))
    sets = {
        f"on {settings['small_bytes'] // 1024} kB read again and again, at one rate": fixed,
        "each at its own best rate": own,
        "on all of the text": dropout.where(train_bytes=None, phase="fixed"),
    }
    said = []
    for name, rows in sets.items():
        by_p = groups(rows, "lora_dropout")
        best = min((p for p in by_p if p), key=lambda p: mean(by_p[p], "validation"))  # not on the text that judges
        worse = f", all worse than the frozen base's {base:.3f}" * all(row["final"] > base for row in rows)
        said.append(
            f"{name} p = {best:g} ends at {mean(by_p[best]):.3f}, none at {mean(by_p[0.0]):.3f} "
            f"({verdict(by_p[best], by_p[0.0])}{worse})"
        )
    return (
        "Dropout helps where the data are few",
        "a rule of thumb; Dettmers et al. 2023, B (p = 0.05, for their smaller models)",
        "; ".join(said),
        STUDY,
    )


def large_batches(batch_size: Table) -> Claim:
    """LoRA's loss less full fine-tuning's, seed by seed, by batch size."""
    lora, full = (groups(seeds(batch_size, method=method), "batch_size") for method in ("lora", "full"))
    gaps = {b: paired_differences(rows, full[b]) for b, rows in lora.items()}
    few, many = min(gaps), max(gaps)
    wider = [a - b for a, b in zip(gaps[many], gaps[few], strict=True)]  # with the same seed
    found = "yes" if min(wider) > 0 else f"not seen here, in batches of up to {many} sequences"
    said = ", ".join(
        f"{statistics.mean(gap):+.3f} ({min(gap):+.3f} to {max(gap):+.3f}) in batches of {b}" for b, gap in gaps.items()
    ).replace("-", "−")
    return (
        "LoRA suffers more than full fine-tuning from large batches",
        "Schulman et al. 2025",
        f"{found}: with as many tokens for each, LoRA (r = {batch_size.settings['r']}) minus full fine-tuning with the same seed "
        f"is {said} nats a byte; from {few} to {many} the gap ends {differs(wider, 'wider', 'narrower')}",
        STUDY,
    )


# ---------------------------------------------------------------------------------------------------- reading a table


def seeds(table: Table, **conditions: Any) -> list[dict[str, Any]]:
    """The runs at the best rate."""
    return table.where(phase="seeds", **conditions)


def width(by_value: Mapping[Any, Iterable[Mapping[str, Any]]]) -> float:
    """How far apart the means are."""
    means = [mean(rows) for rows in by_value.values()]
    return max(means) - min(means)


def recovered(by_rank: Table, r: int) -> float:
    """The share of full fine-tuning's gain that rank r recovers, α fixed."""
    base = by_rank.settings["base_loss"]
    return (base - mean(seeds(by_rank, r=r, rule="α/r"))) / (base - mean(seeds(by_rank, method="full")))


def best_rate(by_rank: Table, r: int | None, rule: str = "α/r") -> float:
    """The median of the seeds' own best rates: one of the grid."""
    return statistics.median_low(row["lr"] for row in by_rank.where(r=r, rule=rule, own_best=True))


def strays(by_rank: Table, rule: str) -> list[tuple[int, float]]:
    """(rank, rate) of each seed whose own best rate is not its rank's median."""
    rows = [row for row in by_rank.where(rule=rule, own_best=True) if row["r"]]
    return [(row["r"], row["lr"]) for row in rows if row["lr"] != best_rate(by_rank, row["r"], rule)]


def best_rates(by_rank: Table, rule: str) -> dict[int, float]:
    """Rank → its best rate under a rule."""
    ranks = sorted({row["r"] for row in by_rank.where(rule=rule) if row["r"]})
    return {r: best_rate(by_rank, r, rule) for r in ranks}


def moved(rates: Mapping[int, float]) -> str:
    """From the lowest rank to the highest."""
    return f"{rates[min(rates)]:.2g} at r = {min(rates)}, {rates[max(rates)]:.2g} at r = {max(rates)}"


def span(low: float, high: float) -> str:
    """ "3.2 to 8", or one number where both are it."""
    return " to ".join(dict.fromkeys(f"{x:.2g}" for x in (low, high)))


def amounts(numbers: Iterable[float]) -> str:
    """ "16, 4 and 1"."""
    *most, last = (f"{x:g}" for x in numbers)
    return f"{', '.join(most)} and {last}"
