"""Merging and unmerging: W + s·B A and back, also if W, A or B were trained in between.

A case is a sequence of steps: calls with `merged` True or False, and changes of W, A and B. After each step the five
entries of the layer are compared. At the end W must still be the same array. Other entries that a student adds to the
layer are not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake
from ._observing import First

MERGE, UNMERGE, W_LEARNS, FACTORS_LEARN = "True", "False", "W += 1", "A += 1 and B -= 0.5"


def observe(function: Callable[..., Any], layer: dict[str, Any], merged: First) -> dict[str, Any]:
    """Return the entries of the layer after each step, and whether W is still the same array."""
    layer = deepcopy(layer)
    held, entries = layer["W"], tuple(layer)
    seen: dict[str, Any] = {}
    for number, step in enumerate((MERGE if merged else UNMERGE, *merged.rest), 1):
        if step == W_LEARNS:
            layer["W"] += 1
        elif step == FACTORS_LEARN:
            layer["A"] += 1
            layer["B"] -= 0.5
        else:
            function(layer, step == MERGE)
        seen[f"the layer after step {number}, {step}"] = {entry: deepcopy(layer[entry]) for entry in entries}
    seen["W is the array that the optimizer holds"] = np.shares_memory(held, layer["W"])
    return seen


def cases() -> list[Case]:
    rng = np.random.default_rng(7)

    def case(label: str, *script: str, in_: int, out: int, r: int, scaling: float) -> Case:
        shapes = {"W": (out, in_), "A": (r, in_), "B": (out, r)}
        layer: dict[str, Any] = {name: rng.integers(-4, 5, shape) / 2 for name, shape in shapes.items()}
        first, *rest = script
        text = f"{first}  # then {', '.join(rest)}" if rest else first
        merged = First(first == MERGE, text, tuple(rest))
        return Case(label, {"layer": layer | {"scaling": scaling, "merged": False}, "merged": merged})

    there_and_back = MERGE, UNMERGE
    everything = *there_and_back, FACTORS_LEARN, MERGE, MERGE, W_LEARNS, UNMERGE, UNMERGE
    return [
        case("everything square", MERGE, in_=2, out=2, r=2, scaling=3.0),
        case("a new layer", UNMERGE, in_=3, out=4, r=2, scaling=2.0),
        case("the same call twice", MERGE, MERGE, in_=3, out=2, r=2, scaling=3.0),
        case("merge and unmerge", *there_and_back, UNMERGE, in_=3, out=4, r=2, scaling=2.0),
        case("W learns while it is merged", MERGE, W_LEARNS, UNMERGE, in_=3, out=4, r=2, scaling=0.5),
        case(
            "A and B learn in between", *there_and_back, FACTORS_LEARN, *there_and_back, in_=4, out=3, r=2, scaling=2.0
        ),
        case("all steps, square", *everything, in_=3, out=3, r=3, scaling=2.0),
    ]


LOOK = 'if layer["merged"] == merged:'
GUARD = f"{LOOK}\n        return"
DELTA, PRODUCT = 'layer["scaling"] * product', 'product = layer["B"] @ layer["A"]'
ADD, SUBTRACT, NOTE = 'layer["W"] += delta', 'layer["W"] -= delta', 'layer["merged"] = merged'
NEW = 'layer["W"] = layer["W"] + delta'
COPY, KEEP = 'layer["saved"] = layer["W"].copy()\n        ', 'layer["saved"] = layer["W"]\n        '

EXERCISE = Exercise(
    function="set_merged",
    title="Merge and unmerge",
    minutes=10,
    needs="notebook 02",
    cases=cases,
    observe=observe,
    mistakes=(
        Mistake(
            "the merged weight lacks the scaling",
            'Set layer["scaling"] to 0: then the bypass contributes nothing, and merging should not change W. '
            "Does yours?",
            {DELTA: "product"},
        ),
        Mistake(
            "the merged weight contains the scaling twice",
            "If the scaling doubles, the change of W should double. By what factor does your change of W grow?",
            {DELTA: 'layer["scaling"] ** 2 * product'},
        ),
        Mistake(
            "only one of merging and unmerging uses the scaling",
            "Write down what you add to W in merging and what you subtract in unmerging. These two terms must be "
            "equal.",
            {SUBTRACT: 'layer["W"] -= product'},
            {ADD: 'layer["W"] += product'},
        ),
        Mistake(
            "the layer's state is not read",
            "Call your function twice with merged=True. The second call must not change W. Which line reads "
            'layer["merged"]?',
            {GUARD: "pass"},
        ),
        Mistake(
            "an already merged layer is merged again",
            "Call your function twice with merged=True, and print W after each call. The second call must not "
            "change W.",
            {LOOK: 'if not layer["merged"] and not merged:'},
        ),
        Mistake(
            "an unmerged layer is unmerged again",
            "Call your function with merged=False on a new layer, which is not merged. W must not change. Does your "
            "W change?",
            {LOOK: 'if layer["merged"] and merged:'},
        ),
        Mistake(
            "the state is switched without reading `merged`",
            "Try the four combinations of the layer's state and the argument merged. After each call the "
            "state must equal the argument.",
            {GUARD: 'merged = not layer["merged"]'},
        ),
        Mistake(
            "the new state is not stored in the layer",
            'Print layer["merged"] after each call. It must equal the argument, because the next call reads it.',
            {NOTE: "pass"},
            {NOTE: 'layer["merged"] = layer["merged"] or merged'},
        ),
        Mistake(
            "unmerging adds the bypass a second time",
            "Merge and then unmerge. W should be the same as at the start. Follow one entry of W through your two "
            "branches.",
            {SUBTRACT: 'layer["W"] += delta'},
        ),
        Mistake(
            "merging subtracts and unmerging adds",
            "Set W to zero and merge. What should W be after this merge, and what is your W?",
            {"    if merged:": "    if not merged:"},
        ),
        Mistake(
            "unmerging leaves the bypass in W",
            "Print W at the start, after merging and after unmerging. W after unmerging should equal W at the "
            "start. Does it?",
            {SUBTRACT: "pass"},
        ),
        Mistake(
            "unmerging restores an old copy of W",
            "Merge, run W += 1 and unmerge. The change by 1 must stay in W. Does it?",
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"][...] = layer["saved"]'},
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: KEEP + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: COPY + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
        ),
        Mistake(
            "W is replaced by a new array",
            'Write held = layer["W"], merge, and print held. The optimizer holds this array, so it must '
            "change too. Does it?",
            {ADD: NEW},
            {SUBTRACT: 'layer["W"] = layer["W"] - delta'},
            {LOOK: 'layer["W"] = layer["W"].copy()\n    ' + LOOK},
        ),
        Mistake(
            "the sum is not stored in the layer",
            'Print layer["W"] after merging. Which of your lines changes the array, and which line only '
            "creates a new array?",
            {ADD: 'W = layer["W"] + delta', SUBTRACT: 'W = layer["W"] - delta'},
        ),
        Mistake(
            "the bypass of the first merge is used again",
            "Merge, unmerge, change A, and merge again. W should contain the new A. Which A does your W contain?",
            {f"delta = {DELTA}": f'delta = layer.setdefault("delta", {DELTA})'},
        ),
        Mistake(
            "A is transposed in the merged weight",
            "Your code runs only if r equals in. Write the shapes of your two factors for r = 2 and in = 3.",
            {'@ layer["A"]': '@ layer["A"].T'},
        ),
        Mistake(
            "B is transposed in the merged weight",
            "Your code runs only if r equals out. Write the shapes of your two factors for r = 2 and out = 3.",
            {'layer["B"] @': 'layer["B"].T @'},
        ),
        Mistake(
            "A and B are multiplied in the wrong order",
            "Your product has the shape (r, r). Which shape can be added to W?",
            {PRODUCT: 'product = layer["A"] @ layer["B"]'},
        ),
        Mistake(
            "the product of A and B is transposed",
            "Your code runs only if W is square. Write the shapes of W and of your product for in = 3 and out = 2.",
            {PRODUCT: 'product = (layer["B"] @ layer["A"]).T'},
        ),
    ),
)
