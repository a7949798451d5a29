"""AdamW on the two factors of a bypass: decoupled weight decay, and two averages per parameter with bias correction.

A case calls the function one or more times with the same gradients; t grows by 1 from call to call. Other entries that
a student stores in the state are not compared.
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
    """Call the function for each step, and return the factors and the state; the return value of the function is
    ignored."""
    names, (factors, state) = tuple(factors), deepcopy((factors, state))
    for step in (int(t), *t.rest):
        function(factors, grads, state, step, *settings)
    return {f'factors["{name}"]': factors[name] for name in names} | {
        f'state["{name}"]["{slot}"]': state[name][slot] for name in names for slot in "mv"
    }


def counting(first: int, steps: int) -> First:
    """Return the argument t, which is `first` in the first call and grows by 1 from call to call."""
    rest = tuple(range(first + 1, first + steps))
    return First(first, f"{first}  # then {', '.join(map(str, rest))}" if rest else str(first), rest)


def cases(seed: int = 10) -> list[Case]:
    rng = np.random.default_rng(seed)
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
            "the averages m and v are not corrected for their start at zero",
            "Test it: start with m = v = 0, the gradient 1 and t = 1. The corrected averages m̂ and v̂ should "
            "both be 1. Print your m̂ and v̂.",
            {M_HAT: 'm = slots["m"]', V_HAT: 'v = slots["v"]'},
        ),
        Mistake(
            "the average v is not corrected for its start at zero",
            "Test it: start with v = 0, the gradient 1 and t = 1. The corrected average v̂ should be 1. Print your v̂.",
            {V_HAT: 'v = slots["v"]'},
        ),
        Mistake(
            "the average m is not corrected for its start at zero",
            "Test it: start with m = 0, the gradient 1 and t = 1. The corrected average m̂ should be 1. Print your m̂.",
            {M_HAT: 'm = slots["m"]'},
        ),
        Mistake(
            "the corrected averages m̂ and v̂ are stored in the state instead of m and v",
            "The next step must start from m and v, not from m̂ and v̂. Test it: print the state after a "
            "step. Does the state contain m and v?",
            {M_HAT: f"{M_HAT}\n        slots['m'] = m", V_HAT: f"{V_HAT}\n        slots['v'] = v"},
        ),
        Mistake(
            "the correction of m and v is the same at every step t",
            "The denominators 1 − β^t approach 1 as t grows. Test it: print your denominators for t = 1 and "
            "for t = 1000. Do your denominators change?",
            {"beta1**t": "beta1", "beta2**t": "beta2"},
        ),
        Mistake(
            "the correction of m and v uses β · t instead of β^t",
            "Compute 1 − β^t for β = 0.5 and t = 1, 2, 3 on paper. Does your code give the same three denominators?",
            {"beta1**t": "beta1 * t", "beta2**t": "beta2 * t"},
        ),
        Mistake(
            "the correction of m and v uses t − 1 instead of t",
            "Test it: print the two denominators of your correction for t = 1. Is one of the denominators 0?",
            {"beta1**t": "beta1 ** (t - 1)", "beta2**t": "beta2 ** (t - 1)"},
        ),
        Mistake(
            "the correction of m and v uses t + 1 instead of t",
            "Test it: print the two denominators of your correction for t = 1. Are these denominators 1 − β₁ "
            "and 1 − β₂?",
            {"beta1**t": "beta1 ** (t + 1)", "beta2**t": "beta2 ** (t + 1)"},
        ),
        Mistake(
            "the weight decay is added to the gradient, but it must be applied to the weight directly",
            "Test it: call your function with the gradient 0 and a state of zeros. Then m and v must stay "
            "zero. Print your m and v.",
            {G: "g = grads[name] + weight_decay * p", DECAY: "pass"},
        ),
        Mistake(
            "the weight decay is missing",
            "Test it: call your function with the gradient 0 and a state of zeros. The weights should still "
            "become smaller. Do your weights become smaller?",
            {DECAY: "pass"},
        ),
        Mistake(
            "the weight decay is not multiplied by the learning rate",
            "Test it: call your function with lr = 0. The weights should not change. Do your weights change?",
            {DECAY: "p *= 1 - weight_decay"},
        ),
        Mistake(
            "the weight decay has the wrong sign",
            "Test it: call your function ten times with the gradient 0 and the weight 2. The weight should "
            "come closer to zero. Does your weight come closer to zero?",
            {DECAY: "p *= 1 + lr * weight_decay"},
        ),
        Mistake(
            "the weight decay uses the weight after the gradient step instead of the weight before the step",
            "On the right side of the equation, every θ is the weight before the step. Which θ does your "
            "weight decay use?",
            {DECAY: "pass", STEP: f"{STEP}\n        {DECAY}"},
        ),
        Mistake(
            "the factors A and B share one state",
            'Test it: print state["A"]["m"] and state["B"]["m"] after a step. Each m should be an average of '
            "the gradients of one factor only.",
            {SLOTS: 'slots = factors[name], state["A"]'},
            {SLOTS: 'slots = factors[name], state["B"]'},
        ),
        Mistake(
            "only one of the factors A and B gets a step",
            "Test it: print A and B before and after the call. Both factors should change. How often does the "
            "body of your loop run?",
            {LOOP: "in list(factors)[:1]:"},
        ),
        Mistake(
            "eps is added inside the square root of v̂ instead of outside",
            "Test it: set v̂ to 0 and eps to 0.25. The equation then divides by 0.25. By which number does "
            "your code divide?",
            {ROOT: "np.sqrt(v + eps)"},
        ),
        Mistake(
            "eps is added before v is corrected",
            "Test it: set v to 0, eps to 0.25 and t to 1. The equation then divides by 0.25. By which number "
            "does your code divide?",
            {ROOT: "np.sqrt(v) + eps / np.sqrt(1 - beta2**t)"},
        ),
        Mistake(
            "the step uses the averages m and v from before the update",
            "Test it: start with m = v = 0 and the gradient 1. The first step should already change the "
            "weight. Does your weight change?",
            {
                M: f'old_m, old_v = slots["m"], slots["v"]\n        {M}',
                M_HAT: M_HAT.replace('slots["m"]', "old_m"),
                V_HAT: V_HAT.replace('slots["v"]', "old_v"),
            },
        ),
        Mistake(
            "eps is left out of the divisor",
            "In the first step of LoRA the gradient of A is 0, so v̂ is 0. By which number does your code then divide?",
            {ROOT: "np.sqrt(v)"},
        ),
        Mistake(
            "the step divides by v̂ instead of the square root of v̂",
            "Test it: multiply all gradients by 10. The step should hardly change. By what factor does your "
            "step change?",
            {ROOT: "v + eps"},
        ),
        Mistake(
            "v is an average of the gradient instead of the squared gradient",
            "Test it: let the gradient be 3 in every step. The correct v̂ is then 9. Print your v̂.",
            {V: V.replace("g**2", "g")},
            {V: V.replace("g**2", "np.abs(g)")},
        ),
        Mistake(
            "the new gradient enters an average with the weight 1 instead of 1 − β",
            "Test it: let the gradient be 1 in every step. Each average should approach 1. To which numbers "
            "do your averages grow?",
            {M: M.replace("(1 - beta1) * g", "g"), V: V.replace("(1 - beta2) * g", "g")},
            {M: M.replace("(1 - beta1) * g", "g")},
            {V: V.replace("(1 - beta2) * g", "g")},
        ),
        Mistake(
            "the weights β and 1 − β of an average are swapped",
            "With β = 0.9 the old average has the weight 0.9, and the new gradient has the weight 0.1. Which "
            "two weights does your code use?",
            {
                M: 'slots["m"] = (1 - beta1) * slots["m"] + beta1 * g',
                V: 'slots["v"] = (1 - beta2) * slots["v"] + beta2 * g**2',
            },
        ),
        Mistake(
            "the parameters beta1 and beta2 are swapped",
            "Test it: set beta2 to 0. Then v should equal g², the squared gradient of the last step. Does "
            "your v equal g²?",
            {f"for name {LOOP}": f"beta1, beta2 = beta2, beta1\n    for name {LOOP}"},
        ),
        Mistake(
            "a new average, m or v, leaves out the old average",
            "Test it: take two steps with different gradients. The averages m and v should depend on both "
            "gradients. Do your m and v depend on the first gradient?",
            {M: 'slots["m"] = g', V: 'slots["v"] = g**2'},
            {M: 'slots["m"] = (1 - beta1) * g', V: 'slots["v"] = (1 - beta2) * g**2'},
            {M: 'slots["m"] = g'},
            {V: 'slots["v"] = g**2'},
            {M: 'slots["m"] = (1 - beta1) * g'},
            {V: 'slots["v"] = (1 - beta2) * g**2'},
        ),
        Mistake(
            "the new averages m and v are not stored in the state",
            "Test it: print the state before and after a step. The next step starts from this state. Does the "
            "state change?",
            {SLOTS: "slots = factors[name], dict(state[name])"},
        ),
        Mistake(
            "neither the new weights nor the new averages are stored",
            "Test it: print factors and state after the call. The caller reads the new values from these two "
            "arguments. Does any line of your code change the arrays in these arguments?",
            {SLOTS: "slots = factors[name].copy(), dict(state[name])"},
        ),
        Mistake(
            "the new weights are not stored in `factors`",
            'Test it: print factors["B"] before and after a step. Does any line of your code change this array?',
            {SLOTS: "slots = factors[name].copy(), state[name]"},
        ),
        Mistake(
            "the step goes in the direction of the gradient instead of the opposite direction",
            "Test it: use the loss p², which has the gradient 2p, and start at p = 1. After a step p should "
            "be closer to zero. Is your p closer to zero?",
            {STEP: STEP.replace("-=", "+=")},
        ),
    ),
)
