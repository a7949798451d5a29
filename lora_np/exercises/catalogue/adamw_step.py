"""AdamW on the two factors of a bypass: decoupled weight decay, two averages an entry, both corrected for their start.

A case calls the function for its t and then for those that follow, with the same gradients. Only the entries that the function
is given are looked at: a student may keep more in the state.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake
from ._observing import First

Arrays = dict[str, np.ndarray]


def observe(
    function: Callable[..., Any], factors: Arrays, grads: Arrays, state: dict[str, Arrays], t: First, *settings: float
) -> dict[str, Any]:
    """Take the steps. What counts is what factors and state hold then; what the function returns does not."""
    names, (factors, state) = tuple(factors), deepcopy((factors, state))
    for step in (int(t), *t.rest):
        function(factors, grads, state, step, *settings)
    return {f'factors["{name}"]': factors[name] for name in names} | {
        f'state["{name}"]["{slot}"]': state[name][slot] for name in names for slot in "mv"
    }


def counting(first: int, steps: int) -> First:
    """t in the first of so many calls."""
    rest = tuple(range(first + 1, first + steps))
    return First(first, f"{first}  # and then {', '.join(map(str, rest))}" if rest else str(first), rest)


def cases() -> list[Case]:
    rng = np.random.default_rng(10)
    simple = {"lr": 0.5, "beta1": 0.5, "beta2": 0.75, "eps": 0.25, "weight_decay": 0.25}
    usual = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}

    def case(label: str, in_: int, out: int, r: int, t: int, steps: int, settings: dict[str, float]) -> Case:
        shapes = {"A": (r, in_), "B": (out, r)}
        factors = {name: rng.integers(-4, 5, shape) / 2 for name, shape in shapes.items()}
        grads = {name: rng.integers(1, 5, shape) * rng.choice([-0.5, 0.5], shape) for name, shape in shapes.items()}
        m = {name: rng.integers(-3, 4, shape) / 4 * (t > 1) + 0.0 for name, shape in shapes.items()}
        v = {name: rng.integers(1, 5, shape) / 4 * (t > 1) for name, shape in shapes.items()}
        state = {name: {"m": m[name], "v": v[name]} for name in shapes}
        return Case(label, {"factors": factors, "grads": grads, "state": state, "t": counting(t, steps)} | settings)

    first = Case(
        "LoRA's first step: B is 0, so the gradient of A is 0 too",
        {
            "factors": {"A": np.array([[2.0]]), "B": np.array([[0.0]])},
            "grads": {"A": np.array([[0.0]]), "B": np.array([[-1.0]])},
            "state": {name: {slot: np.array([[0.0]]) for slot in "mv"} for name in "AB"},
            "t": counting(1, 1),
        }
        | simple,
    )
    return [
        first,
        case("the third step, everything square", 2, 2, 2, 3, 1, simple),
        case("three steps from the beginning, everything square", 2, 2, 2, 1, 3, simple),
        case("the usual settings, the second step and the third", 3, 4, 2, 2, 2, usual),
    ]


M, V = 'slots["m"] = beta1 * slots["m"] + (1 - beta1) * g', 'slots["v"] = beta2 * slots["v"] + (1 - beta2) * g**2'
M_HAT, V_HAT = 'm = slots["m"] / (1 - beta1**t)', 'v = slots["v"] / (1 - beta2**t)'
G, SLOTS, LOOP = "g = grads[name]", "slots = factors[name], state[name]", "in factors:"
DECAY, STEP, ROOT = "p *= 1 - lr * weight_decay", "p -= lr * m / (np.sqrt(v) + eps)", "np.sqrt(v) + eps"

EXERCISE = Exercise(
    function="adamw_step",
    title="AdamW on two factors",
    minutes=20,
    needs="notebook 02",
    cases=cases,
    observe=observe,
    mistakes=(
        Mistake(
            "neither average is corrected",
            "Start from a state of zeros with the gradient 1, at t = 1. What do the two averages say the gradient usually is?",
            {M_HAT: 'm = slots["m"]', V_HAT: 'v = slots["v"]'},
        ),
        Mistake(
            "only m is corrected",
            "At t = 1 from a state of zeros, with eps = 0, a step should have the length lr. How long is yours, for beta2 = 0.75?",
            {V_HAT: 'v = slots["v"]'},
        ),
        Mistake(
            "only v is corrected",
            "At t = 1 from a state of zeros, with eps = 0, a step should have the length lr. How long is yours, for beta1 = 0.5?",
            {M_HAT: 'm = slots["m"]'},
        ),
        Mistake(
            "the corrected averages are kept as the state",
            "The correction makes up for the zeros at the start. How often has it acted on the first gradient after three steps?",
            {M_HAT: f"{M_HAT}\n        slots['m'] = m", V_HAT: f"{V_HAT}\n        slots['v'] = v"},
        ),
        Mistake(
            "the correction is the same at every step",
            "After a thousand steps nothing is left of the zeros at the start. How large is your correction then?",
            {"beta1**t": "beta1", "beta2**t": "beta2"},
        ),
        Mistake(
            "beta is multiplied by t in the correction",
            "How much of the starting zero is left in m after two steps, after three? Work it out for beta = 0.5.",
            {"beta1**t": "beta1 * t", "beta2**t": "beta2 * t"},
        ),
        Mistake(
            "the correction counts one step too few",
            "What does your correction come to in the very first step? Print the two denominators.",
            {"beta1**t": "beta1 ** (t - 1)", "beta2**t": "beta2 ** (t - 1)"},
        ),
        Mistake(
            "the correction counts one step too many",
            "At t = 1 the state holds a single gradient. Divide it by your correction: is it the whole gradient?",
            {"beta1**t": "beta1 ** (t + 1)", "beta2**t": "beta2 ** (t + 1)"},
        ),
        Mistake(
            "the decay goes into the gradient",
            "Give a large weight the gradient 0. By how much should the decay shrink it? And what do m and v make of that?",
            {G: "g = grads[name] + weight_decay * p", DECAY: "pass"},
        ),
        Mistake(
            "there is no weight decay",
            "With the gradient 0 and a state of zeros, a weight should still change. Does yours?",
            {DECAY: "pass"},
        ),
        Mistake(
            "the decay does not know the learning rate",
            "Set lr to 0: an optimizer that takes no steps should change no weight. Does yours?",
            {DECAY: "p *= 1 - weight_decay"},
        ),
        Mistake(
            "the decay has the wrong sign",
            "Give a weight of 2 the gradient 0, and take ten steps. Does it come nearer to zero?",
            {DECAY: "p *= 1 + lr * weight_decay"},
        ),
        Mistake(
            "the decay comes after the step",
            "Multiply your update out. It has a term with lr twice, and the equation has none: which θ does it decay?",
            {DECAY: "pass", STEP: f"{STEP}\n        {DECAY}"},
        ),
        Mistake(
            "both factors share one state",
            "Give A and B different shapes and look at the error. Which gradients are averaged in the second factor's m?",
            {SLOTS: 'slots = factors[name], state["A"]'},
            {SLOTS: 'slots = factors[name], state["B"]'},
        ),
        Mistake(
            "only the first factor gets a step",
            "Print A and B before and after. Which of the two is as it was, and how often does the body of your loop run?",
            {LOOP: "in list(factors)[:1]:"},
        ),
        Mistake(
            "epsilon stands inside the root",
            "Let v be 0. The equation divides by eps; by what do you divide, for eps = 0.25?",
            {ROOT: "np.sqrt(v + eps)"},
        ),
        Mistake(
            "epsilon is added before v is corrected",
            "In your step the correction acts on eps too. Which of the quantities in the equation's root and beside it wear a hat?",
            {ROOT: "np.sqrt(v) + eps / np.sqrt(1 - beta2**t)"},
        ),
        Mistake(
            "the step is made with the old averages",
            "From a state of zeros, does the first gradient move anything in your first step?",
            {
                M: f'old_m, old_v = slots["m"], slots["v"]\n        {M}',
                M_HAT: M_HAT.replace('slots["m"]', "old_m"),
                V_HAT: V_HAT.replace('slots["v"]', "old_v"),
            },
        ),
        Mistake(
            "epsilon is left out of the step",
            "The first gradient of A in LoRA is exactly 0. What does your step divide by there?",
            {ROOT: "np.sqrt(v)"},
        ),
        Mistake(
            "the step divides by v without a root",
            "If all gradients were ten times larger, the steps should hardly change. What do yours do?",
            {ROOT: "v + eps"},
        ),
        Mistake(
            "v averages the gradient without squaring it",
            "What does your v say of gradients that are 1 and −1 in turn? Are they small?",
            {V: V.replace("g**2", "g")},
            {V: V.replace("g**2", "np.abs(g)")},
        ),
        Mistake(
            "the new gradient enters an average at full weight",
            "Let the gradient be 1 for ever. To what number does your average grow, for beta = 0.9?",
            {M: M.replace("(1 - beta1) * g", "g"), V: V.replace("(1 - beta2) * g", "g")},
            {M: M.replace("(1 - beta1) * g", "g")},
            {V: V.replace("(1 - beta2) * g", "g")},
        ),
        Mistake(
            "the two weights of an average are swapped",
            "With beta = 0.9, how many steps does your average remember: about ten, or about one?",
            {
                M: 'slots["m"] = (1 - beta1) * slots["m"] + beta1 * g',
                V: 'slots["v"] = (1 - beta2) * slots["v"] + beta2 * g**2',
            },
        ),
        Mistake(
            "beta1 and beta2 are swapped",
            "Which of the two averages remembers longer, with 0.9 and 0.999? Set beta2 to 0 and see which one forgets in yours.",
            {f"for name {LOOP}": f"beta1, beta2 = beta2, beta1\n    for name {LOOP}"},
        ),
        Mistake(
            "the state is overwritten, not averaged",
            "Take two steps with different gradients. Is anything of the first one left in your state?",
            {M: 'slots["m"] = g', V: 'slots["v"] = g**2'},
            {M: 'slots["m"] = (1 - beta1) * g', V: 'slots["v"] = (1 - beta2) * g**2'},
            {M: 'slots["m"] = g'},
            {V: 'slots["v"] = g**2'},
            {M: 'slots["m"] = (1 - beta1) * g'},
            {V: 'slots["v"] = (1 - beta2) * g**2'},
        ),
        Mistake(
            "the new averages are not kept",
            "Print the state before and after a step. What will the next step start from?",
            {SLOTS: "slots = factors[name], dict(state[name])"},
        ),
        Mistake(
            "neither the weights nor the averages are stored",
            "Call it and print factors and state, not what it returns. Where will whoever takes the next step look?",
            {SLOTS: "slots = factors[name].copy(), dict(state[name])"},
        ),
        Mistake(
            "the new weights never get into factors",
            'Print factors["B"] after a step. Which of your lines changes an array, and which gives a name to a new one?',
            {SLOTS: "slots = factors[name].copy(), state[name]"},
        ),
        Mistake(
            "the step goes up the gradient",
            "Take a loss of p², whose gradient is 2p, and p = 1. Where does your step lead?",
            {STEP: STEP.replace("-=", "+=")},
        ),
    ),
)
