"""The result of a study: rows with their settings, versions and seconds, stored as JSON."""

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

from ...files import write_text
from .digests import DIGEST, digest, read_with_digest

RENAMED = {  # column or setting of an older version → its name today
    "side": "competitor",
    "strings_a_rank": "strings_per_rank",
    "bits_a_symbol": "bits_per_symbol",
    "base_bits_a_symbol": "base_bits_per_symbol",
}
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b-block": "one block of Llama-2-7B"}


def model_name(model: str) -> str:
    """Return a model's name as it is usually written: "smollm2-135m" → "SmolLM2-135M"."""
    return MODELS.get(model, model)


def model_in_text(model: str) -> str:
    """Return a model's name for a sentence: "tiny" → "the model tiny", "smollm2-135m" → "SmolLM2-135M"."""
    return "the model tiny" if model == "tiny" else model_name(model)


def versions() -> dict[str, str]:
    """Return the versions of Python and NumPy, the platform and the number of cores, because results may depend on
    them."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }


@dataclass
class Table:
    """The rows of a study, with the information that is needed to compute the rows again.

    Parameters
    ----------
    study : str
        The study's name.
    question : str
        The question that the study answers.
    command : str
        The command that makes the table again.
    settings : dict
        The settings of the study.
    rows : list of dict
        One dictionary per row. A curve, such as the loss at each evaluation, is a list in one cell.
    versions : dict
        Versions and platform, by default those of this machine.
    seconds : float
        Seconds of computation. For a study of many runs this is the sum over the runs, even if they ran in parallel.

    Examples
    --------
    >>> table = Table("toy", "How does it grow?", "none", rows=[{"r": 1, "final": 1.5}, {"r": 8, "final": 1.25}])
    >>> table.where(r=8)
    [{'r': 8, 'final': 1.25}]
    """

    study: str
    question: str
    command: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    seconds: float = 0.0

    def where(self, **conditions: Any) -> list[dict[str, Any]]:
        """Return the rows whose cells equal all `conditions`: `table.where(method="lora", r=8)`.

        Parameters
        ----------
        **conditions : object
            Column names with the values that a row must have.

        Returns
        -------
        list of dict
            The rows, in the order of the table.
        """
        return [row for row in self.rows if all(row.get(key) == value for key, value in conditions.items())]

    def to_json(self) -> str:
        """Return the table as JSON with one line per entry and per row, so that a diff shows the rows that changed.

        Returns
        -------
        str
            The JSON text, with a digest of the other entries.
        """
        head = {DIGEST: digest(vars(self)), **vars(self)}
        entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items() if key != "rows"]
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        return "{\n " + ",\n ".join([*entries, f'"rows": [\n  {rows}\n ]']) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as JSON to a temporary file and rename that file to `path`.

        Parameters
        ----------
        path : str or path
            The file to write.

        Returns
        -------
        Path
            The path of the file.
        """
        write_text(path, self.to_json())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table from a JSON file and check its digest.

        Old names of columns and settings are replaced by the new names.

        Parameters
        ----------
        path : str or path
            A file that `save` wrote.

        Returns
        -------
        Table
            The table.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file does not contain a table, or if its digest is missing or differs from the content. The message
            names the file.
        """
        content = read_with_digest(Path(path))
        try:
            table = cls(**content)
            if not isinstance(table.settings, dict) or not all(isinstance(row, dict) for row in table.rows):
                raise TypeError("settings and each row must be objects")
        except TypeError as error:
            raise ValueError(
                f"{path} does not contain the table of a study ({error}); make it again with its command"
            ) from None
        table.settings = {RENAMED.get(key, key): value for key, value in table.settings.items()}
        table.rows = [{RENAMED.get(key, key): value for key, value in row.items()} for row in table.rows]
        return table


def groups(rows: Iterable[dict[str, Any]], *columns: str) -> dict[Any, list[dict[str, Any]]]:
    """Group rows by the values of one column, or by tuples of the values of several columns, in the order of the values."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        values = tuple(row[column] for column in columns)
        found.setdefault(values if len(columns) > 1 else values[0], []).append(row)
    return dict(sorted(found.items(), key=lambda item: item[0]))


def arrays(rows: Iterable[dict[str, Any]], by: str, column: str = "final") -> dict[Any, np.ndarray]:
    """Group rows by the column `by` and return the numbers of `column` in each group; None (a diverged run) becomes infinity."""
    numbers = {value: [row[column] for row in found] for value, found in groups(rows, by).items()}
    return {value: np.array([math.inf if x is None else x for x in found]) for value, found in numbers.items()}


def mean(rows: Iterable[Mapping[str, Any]], column: str = "final") -> float:
    """Return the mean of a column, by default of `final`, the loss at the end of a run."""
    return statistics.mean(row[column] for row in rows)


def median(rows: Iterable[Mapping[str, Any]], column: str) -> float:
    """Return the median of a column."""
    return statistics.median(row[column] for row in rows)


def rounded(x: float, digits: int = 4) -> float:
    """Round a number to significant digits, as tables store it."""
    return float(f"{x:.{digits}g}")


def show(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str]) -> None:
    """Print rows as a table with aligned columns, one line per row.

    Parameters
    ----------
    rows : iterable of mapping
        The rows. A cell that is missing or None is printed as spaces.
    columns : mapping or sequence of str
        The names of the columns to print, or a mapping from these names to formats. The format "" writes a value as
        `print` does. Text is aligned at the left, numbers at the right.

    Examples
    --------
    >>> show([{"r": 1, "final": 1.5}, {"r": 64, "final": 1.25}], {"r": "", "final": ".3f"})
    r   final
    1   1.500
    64  1.250
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
