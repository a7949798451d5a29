"""Numbers as text: percentages, large counts, and the number of runs and minutes behind a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .table import Table

RUN = (
    "method",
    "quant_type",
    "r",
    "target_modules",
    "lr",
    "seed",
)  # rows that differ in one of these are different runs


def percent(share: float) -> str:
    """Return a share as a percentage with two digits: 0.0078125 → '0.78 %', 0.954 → '95 %', 1 → '100 %'."""
    value = 100 * share
    digits = 0 if value == 0 else min(3, max(0, 1 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f} %".replace("-", "−")


def short_count(number: float) -> str:
    """Return a count with three digits: 6,738,415,616 → '6.74 B', 294,912 → '295 k'."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            value = number / size
            return f"{value:.{2 - int(math.log10(value))}f}{unit}"
    return f"{number:g}"


def semicolons(*parts: str) -> str:
    """Join the parts of a subtitle with semicolons, leaving out empty parts."""
    return "; ".join(part for part in parts if part)


def listed(parts: Sequence[str]) -> str:
    """Join the parts of a list with commas and "and": ["16", "4", "1"] → "16, 4 and 1"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def runs_and_time(table: Table, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """Return how much computing a table needed, such as "total: 90 runs, 37 minutes", or "" if the table has no seconds.

    The number of runs is `settings["runs"]`. If this setting is missing, it is the number of different runs among
    `rows` (by default all rows).
    """
    if not table.seconds:
        return ""
    different = {tuple(str(row.get(key)) for key in RUN) for row in (table.rows if rows is None else rows)}
    count = table.settings.get("runs", len(different))
    time = f"{table.seconds / 60:,.0f} minutes" if table.seconds >= 90 else f"{table.seconds:.0f} s"
    return f"total: {count} run{'s' if count > 1 else ''}, {time}"
