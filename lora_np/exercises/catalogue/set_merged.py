"""Merging and unmerging: W + s·B A and back, also if W, A or B were trained in between.

A case is a sequence of steps: calls with `merged` True or False, and changes of W, A and B. After each step the five
entries of the layer are compared. At the end W must still be the original array object. Other entries that a
student adds to the layer are not compared.
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
    """Return the entries of the layer after each step, and whether W is still the original array object."""
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


def cases(seed: int = 7) -> list[Case]:
    rng = np.random.default_rng(seed)

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
            "the factor scaling is missing in the merged weight matrix W",
            'Test it: set layer["scaling"] to 0. Then the bypass is zero, and merging should not change W. '
            "Does your function change W?",
            {DELTA: "product"},
        ),
        Mistake(
            "the bypass is multiplied by the scaling twice in the merged weight matrix W",
            "If the scaling doubles, the change of W should double. By what factor does your change of W grow?",
            {DELTA: 'layer["scaling"] ** 2 * product'},
        ),
        Mistake(
            "the scaling is used either in merging or in unmerging, but not in both",
            "Write down the term that merging adds to W and the term that unmerging subtracts from W. Are the "
            "two terms equal in your code?",
            {SUBTRACT: 'layer["W"] -= product'},
            {ADD: 'layer["W"] += product'},
        ),
        Mistake(
            'the function does not read the layer\'s state layer["merged"]',
            "Test it: call your function twice with merged=True. The second call must not change W. Does any line of "
            'your code read layer["merged"]?',
            {GUARD: "pass"},
        ),
        Mistake(
            "merging a layer that is already merged changes W",
            "Test it: call your function twice with merged=True, and print W after each call. Does your "
            "second call change W?",
            {LOOK: 'if not layer["merged"] and not merged:'},
        ),
        Mistake(
            "unmerging a layer that is not merged changes W",
            "Test it: call your function with merged=False on a new layer, which is not merged. Does your "
            "function change W?",
            {LOOK: 'if layer["merged"] and merged:'},
        ),
        Mistake(
            "the function reverses the layer's state without reading the argument `merged`",
            'Test it: call your function twice with merged=True. After each call layer["merged"] must equal '
            'the argument. Is layer["merged"] True after both calls?',
            {GUARD: 'merged = not layer["merged"]'},
        ),
        Mistake(
            'the function does not store the new state in layer["merged"]',
            'Test it: print layer["merged"] after each call. Does layer["merged"] equal the argument `merged`?',
            {NOTE: "pass"},
            {NOTE: 'layer["merged"] = layer["merged"] or merged'},
        ),
        Mistake(
            "unmerging adds the bypass to W instead of subtracting the bypass",
            "Test it: merge and then unmerge. W should be the same as at the start. Is your W the same?",
            {SUBTRACT: 'layer["W"] += delta'},
        ),
        Mistake(
            "merging subtracts the bypass from W and unmerging adds it, but it must be the other way round",
            "Test it: set W to zero and merge. Then W should equal the scaled product BA. Does your W have "
            "the same sign as this product?",
            {"    if merged:": "    if not merged:"},
        ),
        Mistake(
            "unmerging does not subtract the bypass from W",
            "Test it: print W at the start, after merging and after unmerging. Is W after unmerging the same "
            "as W at the start?",
            {SUBTRACT: "pass"},
        ),
        Mistake(
            "unmerging restores an old copy of W instead of subtracting the bypass",
            "Test it: merge, run W += 1 and unmerge. W should then be larger by 1 than at the start. Is your "
            "W larger by 1?",
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"][...] = layer["saved"]'},
            {ADD: COPY + ADD, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: KEEP + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
            {ADD: COPY + NEW, SUBTRACT: 'layer["W"] = layer["saved"]'},
        ),
        Mistake(
            'the function replaces layer["W"] by a new array instead of changing the existing array',
            'Test it: run held = layer["W"], merge, and print held. The optimizer uses the array `held`, so '
            "`held` must change. Does `held` change?",
            {ADD: NEW},
            {SUBTRACT: 'layer["W"] = layer["W"] - delta'},
            {LOOK: 'layer["W"] = layer["W"].copy()\n    ' + LOOK},
        ),
        Mistake(
            'the merged weight matrix is not stored in layer["W"]',
            'Test it: print layer["W"] after merging. Does any line of your code change the array layer["W"]?',
            {ADD: 'W = layer["W"] + delta', SUBTRACT: 'W = layer["W"] - delta'},
        ),
        Mistake(
            "the product BA of the first merge is used for all later merges",
            "Test it: merge, unmerge, change A, and merge again. W should contain the product with the new A. "
            "Which A does your W contain?",
            {f"delta = {DELTA}": f'delta = layer.setdefault("delta", {DELTA})'},
        ),
        Mistake(
            "the factor A is transposed in the merged weight matrix",
            "Your code runs only if A is square. Write down the shapes of your two factors for r = 2, in = 3 "
            "and out = 4.",
            {'@ layer["A"]': '@ layer["A"].T'},
        ),
        Mistake(
            "the factor B is transposed in the merged weight matrix",
            "Your code runs only if B is square. Write down the shapes of your two factors for r = 2, in = 3 "
            "and out = 4.",
            {'layer["B"] @': 'layer["B"].T @'},
        ),
        Mistake(
            "A and B are multiplied in the wrong order, AB instead of BA",
            "Your product has the shape (r, r). Which shape must the product have, so that the product can be "
            "added to W?",
            {PRODUCT: 'product = layer["A"] @ layer["B"]'},
        ),
        Mistake(
            "the product BA is transposed before it is added to W",
            "Your code runs only if W is square. Write down the shapes of W and of your product for in = 3 "
            "and out = 2. Are the two shapes equal?",
            {PRODUCT: 'product = (layer["B"] @ layer["A"]).T'},
        ),
    ),
)
