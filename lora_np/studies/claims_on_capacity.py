"""The claims about what fits into an adapter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from .capacity import matrices
from .table import Table

NEEDED = ("capacity",)


def on_capacity(tables: Mapping[str, Table]) -> list[tuple[str, str, str, str]]:
    """(claim, its source, what came out here, what checked it)."""
    table = tables["capacity"]
    ranks, full = share_by_rank(table), share(table, "full")
    low, high = min(ranks), max(ranks)
    free = {r: free_share(table, r) for r in ranks}
    study = "`lora_np/studies/capacity.py`, notebook 06"
    return [
        (
            "A model stores 2 bits of knowledge a parameter (3.6 of random strings)",
            "Allen-Zhu and Li 2024 (Morris et al. 2025)",
            f"here at least {min(ranks.values()):.2f} to {max(ranks.values()):.2f} bits of random strings a trained number with "
            f"LoRA, by rank ({min(free.values()):.2f} to {max(free.values()):.2f} a number that is free: BA has r(in + out − r)), "
            f"{full:.2f} with full fine-tuning; not at its end, for half the steps gave {gain(table):.0%} less",
            study,
        ),
        (
            "LoRA loses to full fine-tuning only where the data exceed what its rank holds",
            "Schulman 2025",
            f"what it holds grows as r to the power of {exponent(table):.2f} from r = {low} to {high}; a LoRA of rank "
            f"{table.settings['knee']} has {knee(table)}; at r = {high} it holds {against_full(table, high):.0%} of "
            f"full fine-tuning's bits with {numbers(table, high):.0%} of its numbers",
            study,
        ),
    ]


def share(table: Table, method: str, r: int | None = None, phase: str = "seeds") -> float:
    """Bits a trained number, the mean over seeds."""
    return statistics.mean(row["memorised"] / row["trained"] for row in table.where(phase=phase, method=method, r=r))


def share_by_rank(table: Table) -> dict[int, float]:
    """The same of LoRA, for each rank."""
    return {r: share(table, "lora", r) for r in sorted({row["r"] for row in table.where(phase="seeds", method="lora")})}


def free_share(table: Table, r: int) -> float:
    """Bits a free number: the BA of rank r have r(in + out − r) dimensions, for (BR)(R⁻¹A) = BA with every R of r × r."""
    numbers = trained(table, r)
    return share(table, "lora", r) * numbers / (numbers - matrices() * r**2)


def trained(table: Table, r: int) -> int:
    """How many numbers rank r trains, Σ r(in + out)."""
    return table.where(phase="seeds", method="lora", r=r)[0]["trained"]


def exponent(table: Table) -> float:
    """b of memorised = a·rᵇ, from the lowest and the highest rank: 1 where twice the rank holds twice as much."""
    ranks = share_by_rank(table)
    low, high = min(ranks), max(ranks)
    return math.log(ranks[high] * high / (ranks[low] * low), high / low)


def gain(table: Table) -> float:
    """How much less the same runs held after half the steps, all methods together: 0 where the training was at its end."""
    half = table.where(phase="half")
    ends = [table.where(phase="seeds", **{key: row[key] for key in ("method", "r", "seed")})[0] for row in half]
    return 1 - statistics.mean(row["memorised"] / end["memorised"] for row, end in zip(half, ends, strict=True))


def knee(table: Table) -> str:
    """Where one rank stops learning everything, in words."""
    r = table.settings["knee"]
    rows = [*table.where(phase="offered"), *table.where(phase="seeds", method="lora", r=r)]
    offers = sorted({row["offered"] for row in rows})
    held = {
        offer: statistics.mean(row["memorised"] / offer for row in rows if row["offered"] == offer) for offer in offers
    }
    first, last = offers[0], offers[-1]
    return f"{held[first]:.0%} of {first:,.0f} bits by heart and {held[last]:.0%} of {last:,.0f}"


def against_full(table: Table, r: int) -> float:
    """Bits that rank r holds, of full fine-tuning's."""
    lora, full = (
        statistics.mean(row["memorised"] for row in table.where(phase="seeds", **who))
        for who in ({"method": "lora", "r": r}, {"method": "full"})
    )
    return lora / full


def numbers(table: Table, r: int) -> float:
    """Numbers that rank r trains, of full fine-tuning's."""
    return trained(table, r) / table.where(phase="seeds", method="full")[0]["trained"]
