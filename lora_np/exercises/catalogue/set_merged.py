"""Merging and unmerging: W + s·B A and back, once each, whatever was learned in between.

A case is a script: `merged` in the first call, and what happens to the layer then, step by step. Observed are the layer's five
entries after each step, and whether W is still the array that others hold. What else a student keeps there is not looked at.
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
    """Each step → the layer after it."""
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
        text = f"{first}  # and then {', '.join(rest)}" if rest else first
        merged = First(first == MERGE, text, tuple(rest))
        return Case(label, {"layer": layer | {"scaling": scaling, "merged": False}, "merged": merged})

    there_and_back = MERGE, UNMERGE
    everything = *there_and_back, FACTORS_LEARN, MERGE, MERGE, W_LEARNS, UNMERGE, UNMERGE
    return [
        case("everything square", MERGE, in_=2, out=2, r=2, scaling=3.0),
        case("a fresh layer", UNMERGE, in_=3, out=4, r=2, scaling=2.0),
        case("asked twice", MERGE, MERGE, in_=3, out=2, r=2, scaling=3.0),
        case("there and back", *there_and_back, UNMERGE, in_=3, out=4, r=2, scaling=2.0),
        case("W learns while it is merged", MERGE, W_LEARNS, UNMERGE, in_=3, out=4, r=2, scaling=0.5),
        case(
            "A and B learn in between", *there_and_back, FACTORS_LEARN, *there_and_back, in_=4, out=3, r=2, scaling=2.0
        ),
        case("all of it, square", *everything, in_=3, out=3, r=3, scaling=2.0),
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
            "the merged weight has no scaling in it",
            'Set layer["scaling"] to 0: now the bypass contributes nothing. What does your merging do to W then?',
            {DELTA: "product"},
        ),
        Mistake(
            "the merged weight has the scaling in it twice",
            "Double the scaling. What is added to W should double, and yours grows by another factor: which?",
            {DELTA: 'layer["scaling"] ** 2 * product'},
        ),
        Mistake(
            "one of merging and unmerging scales, the other does not",
            "Write down what you add to W and, below it, what you take away. Are the two lines the same but for the sign?",
            {SUBTRACT: 'layer["W"] -= product'},
            {ADD: 'layer["W"] += product'},
        ),
        Mistake(
            "the state that the layer has is never looked at",
            "Call it with the same argument two times in a row. What does the second call do, merging and unmerging?",
            {GUARD: "pass"},
        ),
        Mistake(
            "it merges what is merged already",
            "Somebody who does not know that the layer is merged asks for it once more. What does W hold now?",
            {LOOK: 'if not layer["merged"] and not merged:'},
        ),
        Mistake(
            "it takes the bypass out of a weight that it is not in",
            "Ask a fresh layer, whose state is False, to be unmerged, and print W before and after.",
            {LOOK: 'if layer["merged"] and merged:'},
        ),
        Mistake(
            "it changes over to the other state, whatever was asked for",
            "Of your function's two arguments, which one decides what it does? Try the four combinations of state and request.",
            {GUARD: 'merged = not layer["merged"]'},
        ),
        Mistake(
            "the new state is not noted in the layer",
            'Print layer["merged"] after each of your calls. What will the next call believe?',
            {NOTE: "pass"},
            {NOTE: 'layer["merged"] = layer["merged"] or merged'},
        ),
        Mistake(
            "unmerging adds the bypass once more",
            "Follow one entry of W by hand, through merging and then unmerging. Where does it end?",
            {SUBTRACT: 'layer["W"] += delta'},
        ),
        Mistake(
            "merging subtracts and unmerging adds",
            "Before merging, the layer's output is that of W plus that of the bypass. Compute that for one x, and x Wᵀ after.",
            {"    if merged:": "    if not merged:"},
        ),
        Mistake(
            "unmerging leaves the bypass in W",
            "Print W before merging, after merging and after unmerging. Which two of the three are equal, and which should be?",
            {SUBTRACT: "pass"},
        ),
        Mistake(
            "unmerging puts back a copy of W from before",
            "Let W learn something while it is merged, W += 1, and unmerge. Where has that 1 gone?",
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"][...] = layer["saved"]'},
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: KEEP + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: COPY + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
        ),
        Mistake(
            "W is replaced by a new array",
            'Do as an optimizer does: held = layer["W"]. Then call your function, and print held.',
            {ADD: NEW},
            {SUBTRACT: 'layer["W"] = layer["W"] - delta'},
            {LOOK: 'layer["W"] = layer["W"].copy()\n    ' + LOOK},
        ),
        Mistake(
            "the sum never gets into the layer",
            'Print layer["W"] after merging. Which of your lines writes into an array, and which only gives a new array a name?',
            {ADD: 'W = layer["W"] + delta', SUBTRACT: 'W = layer["W"] - delta'},
        ),
        Mistake(
            "the first merging's bypass is used for ever",
            "Merge, unmerge, change A, and merge again. Which A is in W?",
            {f"delta = {DELTA}": f'delta = layer.setdefault("delta", {DELTA})'},
        ),
        Mistake(
            "A is transposed in the merged weight",
            "It runs only where r equals in. Write the shapes of your two factors for r = 2 and in = 3.",
            {'@ layer["A"]': '@ layer["A"].T'},
        ),
        Mistake(
            "B is transposed in the merged weight",
            "It runs only where r equals out. Write the shapes of your two factors for r = 2 and out = 3.",
            {'layer["B"] @': 'layer["B"].T @'},
        ),
        Mistake(
            "A and B are multiplied in the other order",
            "Your product has r rows and r columns. What shape can be added to W?",
            {PRODUCT: 'product = layer["A"] @ layer["B"]'},
        ),
        Mistake(
            "the product of A and B is transposed",
            "It fits only a square W. Which index of W counts the outputs, and which index of your product does?",
            {PRODUCT: 'product = (layer["B"] @ layer["A"]).T'},
        ),
    ),
)
