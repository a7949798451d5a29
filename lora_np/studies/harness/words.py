"""Numbers as a reader says them: shares, counts, and how much was run for a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .table import Table

RUN = ("method", "quant_type", "r", "target_modules", "lr", "seed")  # what tells one training run from another


def percent(share: float) -> str:
    """A share as a reader says it: 0.0078125 → '0.78 %', 0.954 → '95 %', 1 → '100 %'."""
    value = 100 * share
    digits = 0 if value == 0 else min(3, max(0, 1 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f} %".replace("-", "−")


def short_count(number: float) -> str:
    """A count in three digits: 6,738,415,616 → '6.74 B', 294,912 → '295 k'."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            value = number / size
            return f"{value:.{2 - int(math.log10(value))}f}{unit}"
    return f"{number:g}"


def semicolons(*parts: str) -> str:
    """The parts of a picture's second line that are not empty, a semicolon between two."""
    return "; ".join(part for part in parts if part)


def runs_and_time(table: Table, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """What a table took: "90 runs, 37 minutes", which would be those of one core or machine; "" where it does not say.

    The runs are settings["runs"], or else the different ones among its rows (or among `rows`, where others are not its own).
    """
    if not table.seconds:
        return ""
    different = {tuple(str(row.get(key)) for key in RUN) for row in (table.rows if rows is None else rows)}
    count = table.settings.get("runs", len(different))
    time = f"{table.seconds / 60:,.0f} minutes" if table.seconds >= 90 else f"{table.seconds:.0f} s"
    return f"{count} run{'s' if count > 1 else ''}, {time}"
