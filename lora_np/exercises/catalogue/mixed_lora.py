"""A mixed batch: y[i] = x[i] Wᵀ + s·(x[i] Aᵀ) Bᵀ, with A, B and s of the adapter of row i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

BASE = "__base__"


def cases() -> list[Case]:
    rng = np.random.default_rng(12)

    def case(label: str, *names: str, t: int, in_: int, out: int, ranks: Sequence[int]) -> Case:
        """Return a case with adapters "a", "b", … with these ranks and with the scalings 2, 3, …"""

        def halves(*shape: int) -> np.ndarray:
            return rng.integers(-4, 5, shape) / 2

        adapters = {"abcd"[i]: (halves(r, in_), halves(out, r), 2.0 + i) for i, r in enumerate(ranks)}
        arguments: dict[str, Any] = {"x": halves(len(names), t, in_), "W": halves(out, in_)}
        return Case(label, arguments | {"adapters": adapters, "names": list(names)})

    return [
        case("two rows, two adapters", "a", "b", t=1, in_=2, out=2, ranks=(2, 2)),
        case("two adapters in the other order", "b", "a", t=1, in_=2, out=3, ranks=(1, 1)),
        case("a row of the base", BASE, "b", t=1, in_=3, out=2, ranks=(1, 2)),
        case("two rows share an adapter", "b", "a", "b", t=2, in_=3, out=2, ranks=(2, 1)),
        case(
            "seven rows, and one adapter that no row uses",
            *("c", BASE, "a", "c", "d", BASE, "a"),
            t=3,
            in_=4,
            out=3,
            ranks=(2, 1, 3, 1),
        ),
    ]


FROZEN, WANTED, SCALED, ADDED = "y = x @ W.T", "wanted == name", "s * bypass", "y[rows] += s * bypass"
ROWS = f"[i for i, wanted in enumerate(names) if {WANTED}]"
FIRST = "next(iter(adapters))"
ORDER = "order = [i for name in {} for i, wanted in enumerate(names) if wanted == name]\n    return y[order]"

EXERCISE = Exercise(
    function="mixed_lora",
    title="A mixed batch",
    minutes=15,
    needs="notebook 08",
    cases=cases,
    mistakes=(
        Mistake(
            "all rows go through the adapter of the first row",
            "Give two rows the same x and two different adapters. The two outputs should differ. Do your outputs?",
            {WANTED: "names[0] == name"},
        ),
        Mistake(
            "every row gets every adapter",
            "Change the B of an adapter that no row uses. The output should stay the same. Does it?",
            {WANTED: "True"},
        ),
        Mistake(
            "a row of the base gets an adapter",
            'With names = ["__base__"] the output should be x Wᵀ. Print the difference. Which adapter is in this '
            "difference?",
            {WANTED: f'{WANTED} or wanted == "__base__"'},
            {WANTED: f'{WANTED} or (wanted == "__base__" and name == {FIRST})'},
            {WANTED: f'{WANTED} or (wanted == "__base__" and name == list(adapters)[-1])'},
        ),
        Mistake(
            "the output of a row of the base stays zero",
            'With names = ["__base__"] the output should be x Wᵀ. Which of your lines writes this row?',
            {FROZEN: f"{FROZEN}\n    y[[name not in adapters for name in names]] = 0"},
        ),
        Mistake(
            "rows with an adapter lose the frozen path",
            "Set every B to zero. The output should be x Wᵀ. What is your output?",
            {ADDED: "y[rows] = s * bypass"},
        ),
        Mistake(
            "rows with an adapter get the frozen path twice",
            "Set every B to zero and divide your output by x Wᵀ. Every row should give 1. Which of your rows do not?",
            {ADDED: "y[rows] += x[rows] @ W.T + s * bypass"},
        ),
        Mistake(
            "adapters are selected by the row's number instead of its name",
            "Exchange two entries of names. The outputs of these two rows should change. Do your outputs?",
            {WANTED: "list(adapters)[i % len(adapters)] == name"},
        ),
        Mistake(
            "only one of the rows with the same adapter gets the bypass",
            "Let all rows use the same adapter. All of these rows should differ from x Wᵀ. How many of your rows do?",
            {ROWS: f"{ROWS}[:1]"},
            {ROWS: f"{ROWS}[-1:]"},
        ),
        Mistake(
            "the output rows are in the order of the adapters",
            'Call your function with names = ["a", "b", "a"]. Row i of y must belong to row i of x. In which order '
            "are your rows?",
            {"return y": ORDER.format('[*adapters, "__base__"]')},
            {"return y": ORDER.format('["__base__", *adapters]')},
            {"return y": ORDER.format("dict.fromkeys(names)")},
            {"return y": ORDER.format("sorted(set(names))")},
        ),
        Mistake(
            "the scaling is missing",
            "Double the scaling s of every adapter. The output should change. Does your output?",
            {SCALED: "bypass"},
        ),
        Mistake(
            "the scaling of one adapter is used for all",
            "Double the scaling s of one adapter. Only the rows with this adapter should change. Which of your rows "
            "change?",
            {SCALED: f"adapters[{FIRST}][2] * bypass"},
            {SCALED: "list(adapters.values())[-1][2] * bypass"},
            {SCALED: "adapters.get(names[0], (0, 0, 1.0))[2] * bypass"},
        ),
        Mistake(
            "W is not transposed",
            "If W is square, your code runs without an error. Write the shapes of x and W side by side. Which axis of W "
            "has the length in?",
            {FROZEN: "y = x @ W"},
        ),
        Mistake(
            "A is not transposed",
            "If r equals in, your code runs without an error. Write the shapes of x and A side by side. Which axis of A "
            "has the length in?",
            {"x[rows] @ A.T": "x[rows] @ A"},
        ),
        Mistake(
            "B is not transposed",
            "If r equals out, your code runs without an error. Write the shapes of x Aᵀ and B side by side. Which axis of "
            "B has the length r?",
            {"hidden @ B.T": "hidden @ B"},
            {"hidden @ B.T": "hidden @ (B if rows else B.T)"},  # adapters that no row uses are skipped
        ),
        Mistake(
            "none of the three matrices is transposed",
            "If all matrices are square, your code runs without an error. Write the shapes of x, W, A and B under the "
            "equation. Which symbol of the equation is missing in your code?",
            {FROZEN: "y = x @ W", "x[rows] @ A.T": "x[rows] @ A", "hidden @ B.T": "hidden @ B"},
        ),
        Mistake(
            "only one token of a row gets the bypass",
            "Make a row of three equal tokens. Its three outputs should be equal. Are they?",
            {ADDED: "y[rows, -1] += s * bypass[:, -1]"},
            {ADDED: "y[rows, 0] += s * bypass[:, 0]"},
        ),
        Mistake(
            "the bypass is added once for each row with the same adapter",
            "Put the same row with the same adapter into the batch twice. The output of this row should be the same "
            "as in a batch of one row. Is it?",
            {SCALED: "len(rows) * s * bypass"},
        ),
    ),
)
