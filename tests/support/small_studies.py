"""Studies in seconds: their runs one after the other, in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def serially(
    measure: Callable[[Any], dict[str, Any]],
    runs: Iterable[Any],
    workers: Any,
    folder: Any,
    label: str,
    given: str = "",
) -> list[dict[str, Any]]:
    """In place of `run_all`."""
    return [measure(run) for run in runs]
