"""The claims about capacity: how many bits of random strings an adapter holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from ..harness.findings import Claim, Finding, agrees
from ..harness.table import Table, groups, mean
from ..harness.words import listed, percent
from .study import matrices

NEEDED = ("capacity",)
STUDY = "`lora_np/studies/capacity/study.py`, notebook 06b"
BITS = 3.6  # of random strings per parameter: the claim
NEAR = 0.2  # an exponent within 1 ± 0.2 counts as 1: four times the rank then holds 3 to 5.3 times the bits


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the study of capacity checks."""
    table = tables["capacity"]
    by_rank = {r: bits(table, "lora", r) for r in groups(of(table, "lora"), "r")}
    free, full, most = {r: free_bits(table, r) for r in by_rank}, bits(table, "full"), highest(table)
    low, middle, high = lowest_middle_highest(table)
    steps = ((low, middle), (middle, high))
    growth, ranges = [exponent(table, *pair) for pair in steps], [exponents(table, *pair) for pair in steps]
    seen = [
        f"{times_seen(table, *one):,} times by {name_of(*one)}"
        for one in (("lora", low), ("lora", high), ("full", None))
    ]
    less = [
        f"{percent(lost_at_half(table, *one))} fewer for {name_of(*one)}"
        for one in (("lora", middle), ("lora", high), ("full", None))
    ]
    few, many, rises = offers(table)
    between = [f"{a:.2f} and {b:.2f}" for a, b in ranges]
    against = against_full(table, high)
    return [
        Claim(
            f"A model can store {BITS} bits of random strings per trained parameter, with LoRA and with full fine-tuning",
            "Morris et al. 2025; Allen-Zhu and Li 2024: 2 bits of knowledge",
            agrees(*(True if found.value >= BITS else None for found in (most, full))),  # lower bounds refute nothing
            f"at least {most.number} bits (LoRA), {full.number} (full fine-tuning)",
            STUDY,
            (*by_rank.values(), *free.values(), most, full),
            f"At each rank from {low} to {high}, LoRA's runs give a lower bound for the bits of random strings that LoRA can "
            f"hold per trained parameter: {span(by_rank)} bits. LoRA trains r(in + out) parameters for each matrix, but the "
            f"product BA has only r(in + out − r) free parameters. Per free parameter, the lower bounds are {span(free)} bits. "
            f"{most.sentence} {full.sentence} All numbers of bits are lower bounds, so a number below {BITS} does not refute "
            "the claim. The numbers of bits cannot be compared with each other: for some runs, the bound is further below the "
            f"capacity than for other runs. Each string was read {listed(seen)}. Runs with half the steps hold fewer bits "
            f"than runs with all steps: {listed(less)}.",
        ),
        Claim(
            "LoRA with twice the rank holds twice as many bits of random strings",
            "after Allen-Zhu and Li 2024: bits in proportion to parameters",
            agrees(*(near_one(*each) for each in ranges)),
            f"bits grow as r to the power {growth[0].number} to r = {middle}, {growth[1].number} to r = {high}",
            STUDY,
            (*growth, few, many, against),
            f"{growth[0].sentence} {growth[1].sentence} The training runs had not converged. Suppose that longer runs add at most "
            f"as many bits as the second half of the steps added. Then the power from r = {low} to r = {middle} is "
            f"between {between[0]}, "
            f"and the power from r = {middle} to r = {high} is between {between[1]}. {few.sentence} "
            f"{many.sentence}{' With more strings, LoRA memorised more bits, so no limit was found.' * rises} "
            f"{against.sentence}",
        ),
    ]


def span(found: Mapping[int, Finding]) -> str:
    """Return the lowest and the highest value of the findings as text, for example "1.49 to 1.84"."""
    values = [finding.value for finding in found.values()]
    return f"{min(values):.2f} to {max(values):.2f}"


def of(table: Table, method: str, r: int | None = None) -> list[dict[str, Any]]:
    """Return the runs of one method at its best learning rate, for one rank or for all ranks (r = None)."""
    return [row for row in table.where(phase="seeds", method=method) if r is None or row["r"] == r]


def name_of(method: str, r: int | None) -> str:
    """Return the name of a method, for example "LoRA with r = 4"."""
    return "full fine-tuning" if method == "full" else f"LoRA with r = {r}"


def bits(table: Table, method: str, r: int | None = None) -> Finding:
    """Return how many bits one method holds per trained parameter: mean and range over the seeds."""
    rows = of(table, method, r)
    found = [row["memorised"] / row["trained"] for row in rows]
    who = name_of(method, r)
    sentence = f"{who[0].upper()}{who[1:]} holds at least {statistics.mean(found):.2f} bits of random strings per "
    sentence += (
        f"trained parameter. {who[0].upper()}{who[1:]} holds {percent(of_offered(table, method, r))} of the bits in "
    )
    sentence += "its training strings."
    name = f"capacity.bits.{method}" + (f".r{r}" if r else "")
    return Finding(
        name, statistics.mean(found), sentence, "bits per trained parameter", (min(found), max(found)), ".2f"
    )


def of_offered(table: Table, method: str, r: int | None = None) -> float:
    """Return the share of the offered bits that one method holds.

    If this share is near 1, a run with more strings could hold more bits.
    """
    return statistics.mean(row["memorised"] / row["offered"] for row in of(table, method, r))


def free_bits(table: Table, r: int) -> Finding:
    """Return how many bits LoRA holds per free parameter.

    Each pair B, A has r² parameters that are not free, because BA = (BR)(R⁻¹A) for every invertible matrix R of shape
    (r, r).
    """
    numbers = trained(table, "lora", r)
    found = bits(table, "lora", r).value * numbers / (numbers - matrices() * r**2)
    sentence = f"LoRA with r = {r} holds at least {found:.2f} bits of random strings per free parameter."
    return Finding(f"capacity.free_bits.r{r}", found, sentence, "bits per free parameter", form=".2f")


def trained(table: Table, method: str, r: int | None = None) -> int:
    """Return the number of parameters that a method trains; for LoRA this number is Σ r(in + out) over all matrices."""
    return of(table, method, r)[0]["trained"]


def lowest_middle_highest(table: Table) -> tuple[int, int, int]:
    """Return the lowest, the middle and the highest rank of the table."""
    ranks = list(groups(of(table, "lora"), "r"))
    return ranks[0], ranks[len(ranks) // 2], ranks[-1]


def exponent(table: Table, low: int, high: int) -> Finding:
    """Return the exponent b of bits = a·rᵇ, computed from two ranks.

    The exponent is 1 if an adapter of twice the rank holds twice the bits.
    """
    held = [bits(table, "lora", r).value * r for r in (low, high)]
    b = math.log(held[1] / held[0], high / low)
    sentence = f"From r = {low} to r = {high}, the number of bits that LoRA holds grows as r to the power {b:.2f}."
    return Finding(f"capacity.exponent.r{low}-r{high}", b, sentence, form=".2f")


def exponents(table: Table, low: int, high: int) -> tuple[float, float]:
    """Return the lowest and the highest exponent that two ranks could have if their runs were longer.

    The function assumes that the additional steps of a longer run add at most as many bits as the second half of the
    measured steps. More bits at the higher rank increase the exponent; more bits at the lower rank decrease the
    exponent.
    """
    b = exponent(table, low, high).value
    down, up = (math.log(1 + lost_at_half(table, "lora", r), high / low) for r in (low, high))
    return b - down, b + up


def near_one(lowest: float, most: float) -> bool | None:
    """Return whether a range of exponents is inside 1 ± NEAR; None if only a part of the range is inside."""
    if max(abs(lowest - 1), abs(most - 1)) <= NEAR:
        return True
    return False if most < 1 - NEAR or lowest > 1 + NEAR else None


def highest(table: Table) -> Finding:
    """Return the largest number of bits per trained parameter that LoRA held in any setting, as a mean over the seeds."""
    runs = groups([*of(table, "lora"), *table.where(phase="offered")], "r", "offered").items()
    means = {setting: statistics.mean(row["memorised"] / row["trained"] for row in same) for setting, same in runs}
    r, offered = max(means, key=lambda setting: means[setting])
    sentence = f"The largest value for LoRA is {means[r, offered]:.2f} bits per trained parameter, measured with r = "
    sentence += f"{r} and strings "
    sentence += f"of {offered:,.0f} bits in total."
    return Finding("capacity.highest", means[r, offered], sentence, "bits per trained parameter", form=".2f")


def times_seen(table: Table, method: str, r: int | None = None) -> int:
    """Return how often a run saw each string: its steps divided by the batches in one pass over the strings."""
    row = of(table, method, r)[0]
    return row["max_steps"] // math.ceil(row["strings"] / row["batch_size"])


def lost_at_half(table: Table, method: str, r: int | None = None) -> float:
    """Return the share of a full run's bits that a run with half the steps does not hold.

    The result is 0 if the second half of the steps adds no bits.
    """
    half = table.where(phase="half", method=method, r=r)[0]
    end = table.where(phase="seeds", method=method, r=r, seed=half["seed"])[0]
    return 1 - half["memorised"] / end["memorised"]


def offers(table: Table) -> tuple[Finding, Finding, bool]:
    """Return two shares of the offered bits that one rank holds: with the fewest strings, and with the most strings.

    The third returned value says whether the runs with the most strings hold the most bits.
    """
    r = table.settings["knee"]
    runs = groups([*table.where(phase="offered"), *of(table, "lora", r)], "offered")
    held = {offer: mean(rows, "memorised") for offer, rows in runs.items()}

    def share(name: str, offer: float) -> Finding:
        sentence = f"LoRA with r = {r} holds {percent(held[offer] / offer)} of {offer:,.0f} bits of random strings."
        return Finding(f"capacity.held.{name}", held[offer] / offer, sentence, "of the bits offered", form=".0%")

    return share("few", min(held)), share("many", max(held)), held[max(held)] == max(held.values())


def against_full(table: Table, r: int) -> Finding:
    """Return the bits that LoRA holds at one rank, divided by the bits that full fine-tuning holds."""
    bits_share = mean(of(table, "lora", r), "memorised") / mean(of(table, "full"), "memorised")
    sentence = f"LoRA with r = {r} holds {percent(bits_share)} of the bits that full fine-tuning holds. LoRA with "
    sentence += (
        f"r = {r} trains {percent(trained(table, 'lora', r) / trained(table, 'full'))} of the parameters that full "
    )
    sentence += "fine-tuning trains."
    return Finding(f"capacity.against_full.r{r}", bits_share, sentence, "of full fine-tuning's bits", form=".0%")
