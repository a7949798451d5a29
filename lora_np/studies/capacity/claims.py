"""The claims about what fits into an adapter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from ..harness.table import Table, groups, mean
from .study import matrices

NEEDED = ("capacity",)


def on_capacity(tables: Mapping[str, Table]) -> list[tuple[str, str, str, str]]:
    """(claim, its source, what came out here, what checked it)."""
    table = tables["capacity"]
    ranks, full = share_by_rank(table), share(table, "full")
    low, middle, high = lowest_middle_highest(table)
    most = highest(table)
    free = {r: free_share(table, r) for r in ranks}
    study = "`lora_np/studies/capacity/study.py`, notebook 06"
    return [
        (
            "A model stores 2 bits of knowledge a parameter (3.6 of random strings)",
            "Allen-Zhu and Li 2024 (Morris et al. 2025)",
            f"here at least {min(ranks.values()):.2f} to {max(ranks.values()):.2f} bits of random strings a trained number with "
            f"LoRA, by rank ({min(free.values()):.2f} to {max(free.values()):.2f} a number that is free: BA has r(in + out − r)), "
            f"{most:.2f} at r = {table.settings['knee']} where it was offered the most; {full:.2f} with full fine-tuning, which "
            f"held {of_offered(table, 'full'):.0%} of all that it was offered. Lower bounds of unequal tightness, no comparison: "
            f"in as many steps a string was seen {times_seen(table, 'lora', low):,} times at r = {low}, "
            f"{times_seen(table, 'lora', high):,} at r = {high}, {times_seen(table, 'full'):,} in full fine-tuning, and half the "
            f"steps gave {less(table, 'lora', middle):.0%} less at r = {middle}, {less(table, 'lora', high):.0%} at r = {high}, "
            f"{less(table, 'full'):.0%} in full",
            study,
        ),
        (
            "LoRA loses to full fine-tuning only where the data exceed what its rank holds",
            "Schulman 2025",
            f"what it holds grows as r to the power of {exponent(table, low, middle):.2f} from r = {low} to {middle}, and of "
            f"{exponent(table, middle, high):.2f} to r = {high}, where the training was further from its end; a LoRA of rank "
            f"{table.settings['knee']} has {knee(table)}, with no sharp bend between; at r = {high} it holds "
            f"{against_full(table, high):.0%} of full fine-tuning's bits with {numbers(table, high):.0%} of its numbers",
            study,
        ),
    ]


def share(table: Table, method: str, r: int | None = None, phase: str = "seeds") -> float:
    """Bits a trained number, the mean over seeds."""
    return statistics.mean(row["memorised"] / row["trained"] for row in table.where(phase=phase, method=method, r=r))


def share_by_rank(table: Table) -> dict[int, float]:
    """The same of LoRA, for each rank."""
    return {r: share(table, "lora", r) for r in groups(table.where(phase="seeds", method="lora"), "r")}


def free_share(table: Table, r: int) -> float:
    """Bits a free number: the BA of rank r have r(in + out − r) dimensions, for (BR)(R⁻¹A) = BA with every R of r × r."""
    numbers = trained(table, r)
    return share(table, "lora", r) * numbers / (numbers - matrices() * r**2)


def trained(table: Table, r: int) -> int:
    """How many numbers rank r trains, Σ r(in + out)."""
    return table.where(phase="seeds", method="lora", r=r)[0]["trained"]


def lowest_middle_highest(table: Table) -> tuple[int, int, int]:
    """Three of the ranks."""
    ranks = list(share_by_rank(table))
    return ranks[0], ranks[len(ranks) // 2], ranks[-1]


def exponent(table: Table, low: int, high: int) -> float:
    """b of memorised = a·rᵇ, from two ranks: 1 where twice the rank holds twice as much."""
    ranks = share_by_rank(table)
    return math.log(ranks[high] * high / (ranks[low] * low), high / low)


def highest(table: Table) -> float:
    """The most bits a trained number that LoRA held, whatever was offered: the mean over the seeds of one setting."""
    runs = groups([*table.where(phase="seeds", method="lora"), *table.where(phase="offered")], "r", "offered").values()
    return max(statistics.mean(row["memorised"] / row["trained"] for row in same) for same in runs)


def of_offered(table: Table, method: str, r: int | None = None) -> float:
    """The share of what was offered that was held. Near 1 it is the offer that ends the measurement."""
    return statistics.mean(row["memorised"] / row["offered"] for row in table.where(phase="seeds", method=method, r=r))


def times_seen(table: Table, method: str, r: int | None = None) -> int:
    """How often a run saw each string: its steps over the batches that one pass through its strings takes (`Epochs`)."""
    row = table.where(phase="seeds", method=method, r=r)[0]
    return row["max_steps"] // math.ceil(row["strings"] / row["batch_size"])


def less(table: Table, method: str, r: int | None = None) -> float:
    """How much less the same run held after half the steps: 0 where the training was at its end."""
    half = table.where(phase="half", method=method, r=r)[0]
    end = table.where(phase="seeds", method=method, r=r, seed=half["seed"])[0]
    return 1 - half["memorised"] / end["memorised"]


def knee(table: Table) -> str:
    """Where one rank stops learning everything, in words."""
    r = table.settings["knee"]
    rows = [*table.where(phase="offered"), *table.where(phase="seeds", method="lora", r=r)]
    held = {offer: mean(runs, "memorised") / offer for offer, runs in groups(rows, "offered").items()}
    first, *_, last = held
    return f"{held[first]:.0%} of {first:,.0f} bits by heart and {held[last]:.0%} of {last:,.0f}"


def against_full(table: Table, r: int) -> float:
    """Bits that rank r holds, of full fine-tuning's."""
    lora, full = table.where(phase="seeds", method="lora", r=r), table.where(phase="seeds", method="full")
    return mean(lora, "memorised") / mean(full, "memorised")


def numbers(table: Table, r: int) -> float:
    """Numbers that rank r trains, of full fine-tuning's."""
    return trained(table, r) / table.where(phase="seeds", method="full")[0]["trained"]
