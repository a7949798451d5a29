"""A mixed batch: y[i] = x[i] Wᵀ + s·(x[i] Aᵀ) Bᵀ, with A, B and s of the adapter of row i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

BASE = "__base__"


def cases(seed: int = 12) -> list[Case]:
    rng = np.random.default_rng(seed)

    def case(label: str, *names: str, t: int, in_: int, out: int, ranks: Sequence[int]) -> Case:
        """Return a case with adapters "a", "b", … with the given ranks and with the scalings 2, 3, …"""

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
            "all batch rows use the adapter of the first row",
            "Test it: give two batch rows the same x and two different adapters. The two outputs should "
            "differ. Do your outputs differ?",
            {WANTED: "names[0] == name"},
        ),
        Mistake(
            "every batch row uses all adapters",
            "Test it: change the B of an adapter that no batch row uses. The output should not change. Does "
            "your output change?",
            {WANTED: "True"},
        ),
        Mistake(
            "a batch row that should use the base alone gets an adapter",
            'Test it: call your function with names = ["__base__"]. The output should be x Wᵀ. Which adapter '
            "does your function add?",
            {WANTED: f'{WANTED} or wanted == "__base__"'},
            {WANTED: f'{WANTED} or (wanted == "__base__" and name == {FIRST})'},
            {WANTED: f'{WANTED} or (wanted == "__base__" and name == list(adapters)[-1])'},
        ),
        Mistake(
            "the output of a batch row that should use the base alone stays zero",
            'Test it: call your function with names = ["__base__"]. The output should be x Wᵀ. Does any line of your '
            "code compute the output of this row?",
            {FROZEN: f"{FROZEN}\n    y[[name not in adapters for name in names]] = 0"},
        ),
        Mistake(
            "batch rows with an adapter lack the frozen path x Wᵀ",
            "Test it: set the B of every adapter to zero. The output should be x Wᵀ. Is your output zero?",
            {ADDED: "y[rows] = s * bypass"},
        ),
        Mistake(
            "batch rows with an adapter get the frozen path x Wᵀ twice",
            "Test it: set the B of every adapter to zero, and divide your output by x Wᵀ. Every quotient "
            "should be 1. Which batch rows have another quotient?",
            {ADDED: "y[rows] += x[rows] @ W.T + s * bypass"},
        ),
        Mistake(
            "the adapter of a batch row is selected by the index of the row instead of the name in `names`",
            "Test it: swap two different names in `names`. The outputs of these two batch rows should change. "
            "Do your outputs change?",
            {WANTED: "list(adapters)[i % len(adapters)] == name"},
        ),
        Mistake(
            "only one of several batch rows with the same adapter gets the bypass",
            "Test it: give all batch rows the same adapter. The output of every row should differ from x Wᵀ. "
            "How many rows of your output differ from x Wᵀ?",
            {ROWS: f"{ROWS}[:1]"},
            {ROWS: f"{ROWS}[-1:]"},
        ),
        Mistake(
            "the output rows are sorted by adapter instead of by batch row",
            'Row i of y must be the output of row i of x. Test it: call your function with names = ["a", "b", '
            '"a"]. Which row of x gives the second row of your y?',
            {"return y": ORDER.format('[*adapters, "__base__"]')},
            {"return y": ORDER.format('["__base__", *adapters]')},
            {"return y": ORDER.format("dict.fromkeys(names)")},
            {"return y": ORDER.format("sorted(set(names))")},
        ),
        Mistake(
            "the scaling s is missing in the bypass",
            "Test it: double the scaling s of every adapter. The output should change. Does your output change?",
            {SCALED: "bypass"},
        ),
        Mistake(
            "the scaling s of one adapter is used for all adapters",
            "Test it: double the scaling s of one adapter. Only the batch rows with this adapter should "
            "change. Which of your output rows change?",
            {SCALED: f"adapters[{FIRST}][2] * bypass"},
            {SCALED: "list(adapters.values())[-1][2] * bypass"},
            {SCALED: "adapters.get(names[0], (0, 0, 1.0))[2] * bypass"},
        ),
        Mistake(
            "the weight matrix W is not transposed",
            "For a square W your code runs without an error. Write down the shapes of x and W. Which axis of "
            "W has the length `in`?",
            {FROZEN: "y = x @ W"},
        ),
        Mistake(
            "the factor A of the adapters is not transposed",
            "For a square A (r = in) your code runs without an error. Write down the shapes of x and A. Which "
            "axis of A has the length `in`?",
            {"x[rows] @ A.T": "x[rows] @ A"},
        ),
        Mistake(
            "the factor B of the adapters is not transposed",
            "For a square B (r = out) your code runs without an error. Write down the shapes of x Aᵀ and B. "
            "Which axis of B has the length r?",
            {"hidden @ B.T": "hidden @ B"},
            {"hidden @ B.T": "hidden @ (B if rows else B.T)"},  # adapters that no row uses are skipped
        ),
        Mistake(
            "none of the matrices W, A and B is transposed",
            "For square matrices your code runs without an error. In the equation, W, A and B are "
            "transposed. Does your code transpose all three matrices?",
            {FROZEN: "y = x @ W", "x[rows] @ A.T": "x[rows] @ A", "hidden @ B.T": "hidden @ B"},
        ),
        Mistake(
            "only one token of a batch row gets the bypass",
            "Test it: make a batch row of three equal tokens. The three outputs of this row should be equal. "
            "Are your three outputs equal?",
            {ADDED: "y[rows, -1] += s * bypass[:, -1]"},
            {ADDED: "y[rows, 0] += s * bypass[:, 0]"},
        ),
        Mistake(
            "the bypass is added to a batch row several times, once for each row with the same adapter",
            "Test it: put a row into the batch twice, with the same adapter. The output of this row should be "
            "the same as in a batch of one row. Does your output change?",
            {SCALED: "len(rows) * s * bypass"},
        ),
    ),
)
