"""A study's result: rows with their settings, versions and seconds, as JSON that a plot or a notebook reads back."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...files import write_atomically

Claim = tuple[str, str, str, str]  # a claim, its source, what came out here, what checked it: a row of README's table
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b-block": "one block of Llama-2-7B"}


def model_name(model: str) -> str:
    """A model's name as readers write it."""
    return MODELS.get(model, model)


def versions() -> dict[str, str]:
    """What a number may depend on: Python, NumPy, the platform and the processor count."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }


@dataclass
class Table:
    """Rows (flat dictionaries; a curve is a list in one cell) and everything needed to make them again.

    `command` is the line that a reader types to get the same table. `seconds` is what it took; of a study of many runs the
    sum over them, so that it is the same however many were made side by side.
    """

    study: str
    question: str
    command: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    seconds: float = 0.0

    def where(self, **conditions: Any) -> list[dict[str, Any]]:
        """The rows whose cells equal all `conditions`: `table.where(method="lora", r=8)`."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in conditions.items())]

    def to_json(self) -> str:
        """JSON with a line for each entry and each row, so that a change of one row is a change of one line."""
        entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in vars(self).items() if key != "rows"]
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        return "{\n " + ",\n ".join([*entries, f'"rows": [\n  {rows}\n ]']) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON under a temporary name and rename it, so that no reader ever sees half a table."""
        write_atomically(path, lambda temporary: temporary.write_text(self.to_json(), encoding="utf-8", newline="\n"))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table back. Raises FileNotFoundError with the path, ValueError where the file is no table."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a study's table ({error}); make it again with its command.") from None


def groups(rows: Iterable[dict[str, Any]], *columns: str) -> dict[Any, list[dict[str, Any]]]:
    """The value of a column (of several: a tuple of their values) → its rows, in the order of the values."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        values = tuple(row[column] for column in columns)
        found.setdefault(values if len(columns) > 1 else values[0], []).append(row)
    return dict(sorted(found.items(), key=lambda item: item[0]))


def arrays(rows: Iterable[dict[str, Any]], by: str, column: str = "final") -> dict[Any, np.ndarray]:
    """The value of the column `by` → the numbers of `column` in its rows; None, of a run that diverged, counts as infinite."""
    numbers = {value: [row[column] for row in found] for value, found in groups(rows, by).items()}
    return {value: np.array([math.inf if x is None else x for x in found]) for value, found in numbers.items()}


def mean(rows: Iterable[Mapping[str, Any]], column: str = "final") -> float:
    """The mean of a column; `final` is the loss at the end of a run."""
    return statistics.mean(row[column] for row in rows)


def median(rows: Iterable[Mapping[str, Any]], column: str) -> float:
    """The median of a column."""
    return statistics.median(row[column] for row in rows)


def rounded(x: float, digits: int = 4) -> float:
    """A number to so many significant digits, as a table keeps it."""
    return float(f"{x:.{digits}g}")


def show(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str]) -> None:
    """Print rows in aligned columns, a line a row: `show(table.rows, {"r": "", "final": ".3f"})`.

    `columns` are names of cells, with the format of each ("" as `print` writes it) where they are a mapping. The first column
    and words start at the left, numbers end at the right. A cell that a row does not have, or that is None, stays empty.
    """
    formats = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
    cells = [[row.get(name) for name in formats] for row in rows]
    lines = [list(formats)]
    lines += [
        ["" if x is None else format(x, form) for x, form in zip(row, formats.values(), strict=True)] for row in cells
    ]
    for i, column in enumerate(zip(*lines, strict=True)):
        wide, word = max(map(len, column)), i == 0 or any(isinstance(row[i], str) for row in cells)
        for line in lines:
            line[i] = line[i].ljust(wide) if word else line[i].rjust(wide)
    print("\n".join("  ".join(line).rstrip() for line in lines))
