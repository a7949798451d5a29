"""dA, dB and dx of L = mean over the tokens of ½‖y − target‖², with y = x Wᵀ + s·(x Aᵀ) Bᵀ; dA and dB are added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

DY, HIDDEN, DHIDDEN = "dy = error / n", "hidden = x @ A.T", "dhidden = dy @ B"
DA, DB = "scaling * (dhidden.T @ x)", "scaling * (dy.T @ hidden)"
FROZEN, BYPASS = "frozen = dy @ W", "bypass = scaling * (dhidden @ A)"
ADD_A, ADD_B, RETURN = 'grads["A"] += dA', 'grads["B"] += dB', "return frozen + bypass"


def observe(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What it returns, and the two gradients that it was given. What else it keeps there is its own affair, but for W's."""
    *others, grads = arguments
    grads = {name: gradient.copy() for name, gradient in grads.items()}
    seen = {"dx": function(*others, grads), 'grads["A"]': grads.get("A"), 'grads["B"]': grads.get("B")}
    return seen | ({"a gradient for W": True} if "W" in grads else {})


def cases() -> list[Case]:
    rng = np.random.default_rng(3)

    def halves(*shape: int) -> np.ndarray:
        """Numbers that can be followed by hand, none of them zero: from −2 to 2 in steps of a half."""
        return rng.choice([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], shape)

    def case(label: str, n: int, in_: int, out: int, r: int, scaling: float) -> Case:
        shapes = {"x": (n, in_), "W": (out, in_), "A": (r, in_), "B": (out, r)}
        arguments: dict[str, Any] = {"error": halves(n, out) * n}  # the mean over n tokens leaves halves
        arguments |= {name: halves(*shape) for name, shape in shapes.items()} | {"scaling": scaling}
        return Case(label, arguments | {"grads": {"A": halves(r, in_), "B": halves(out, r)}})

    return [
        case("a single token", 1, 3, 4, 2, 1.5),
        case("everything square, r = 3", 4, 3, 3, 3, 1.5),
        case("as many features in as out", 5, 3, 3, 2, 2.5),
        case("no two sizes alike", 5, 4, 3, 2, 0.5),
    ]


EXERCISE = Exercise(
    function="lora_backward",
    title="dA and dB",
    minutes=25,
    needs="notebook 03",
    cases=cases,
    observe=observe,
    mistakes=(
        Mistake(
            "the scaling is missing in all gradients",
            "Double the scaling: the bypass acts twice as strongly, and so does a step in A or B. What do your gradients do?",
            {DA: "dhidden.T @ x", DB: "dy.T @ hidden", BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the scaling is missing in dA",
            "Compare dA with a difference quotient, for scaling = 1 and for scaling = 2. The first agrees.",
            {DA: "dhidden.T @ x"},
        ),
        Mistake(
            "the scaling is missing in dB",
            "What does B multiply in the forward pass? Compute it, scaling and all, and compare it with what is in your dB.",
            {DB: "dy.T @ hidden"},
        ),
        Mistake(
            "the scaling is missing in dx",
            "Your A and B learn rightly in this layer; the layers below are told a wrong dx. "
            "Which factor lies on the way from x to y by the bypass?",
            {BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the scaling enters all gradients twice",
            "y is linear in the scaling, with everything else held fixed. Can its gradients be quadratic in it, if error is given?",
            {
                DA: "scaling**2 * dhidden.T @ x",
                DB: "scaling**2 * dy.T @ hidden",
                BYPASS: "bypass = scaling**2 * dhidden @ A",
            },
        ),
        Mistake(
            "the scaling enters dA twice",
            "Follow the way from A to y and count the scalings that you pass. Then count those that are in your dA.",
            {DA: "scaling**2 * (dhidden.T @ x)"},
        ),
        Mistake(
            "the scaling enters dA and dx twice",
            "dA and dx are both made of the gradient of the hidden features. What is in it already when you multiply?",
            {DHIDDEN: "dhidden = scaling * (dy @ B)"},
        ),
        Mistake(
            "the scaling is in dy already",
            "dy is the loss's slope along y, before any path parts. Does the loss know of s, once error is given?",
            {DY: "dy = scaling * error / n"},
        ),
        Mistake(
            "the scaling enters dB twice",
            "If h already carries the scaling, what is left for the product with dy to do?",
            {DB: "scaling**2 * (dy.T @ hidden)"},
        ),
        Mistake(
            "the scaling enters dx twice",
            "The bypass gives x a gradient through A, B and one number. "
            "See how often you have used that number before you come to x.",
            {BYPASS: "bypass = scaling**2 * (dhidden @ A)"},
        ),
        Mistake(
            "A stands where B belongs, and B where A belongs",
            "Only layers with as many features in as out forgive this. "
            "Which of the two does dA depend on? Would dA be zero at the start, when B is?",
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dhidden @ B.T)"},
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dy @ B @ A)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ A @ B)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ B @ A)"},
        ),
        Mistake(
            "dA is added into B's gradient, and dB into A's",
            "A gradient has the shape of what it belongs to. Write down the shape of each of your two, and where it is put.",
            {ADD_A: 'grads["A"] += dB', ADD_B: 'grads["B"] += dA'},
        ),
        Mistake(
            "dA is transposed",
            "If r equals in, nobody complains. What shape must dA have so that A − lr·dA makes sense?",
            {DA: "scaling * (x.T @ dhidden)"},
        ),
        Mistake(
            "dB is transposed",
            "If r equals out, nobody complains. Write dB for the entry of B in row i and column ρ. Where do i and ρ end up?",
            {DB: "scaling * (hidden.T @ dy)"},
        ),
        Mistake(
            "W is transposed in dx",
            "It goes unnoticed when W is square. "
            "The forward pass went from in to out with W turned round; which way are you going now?",
            {FROZEN: "frozen = dy @ W.T"},
        ),
        Mistake(
            "B is transposed on the way back",
            "It goes unnoticed when r equals out. Write the shapes of dy and of B side by side, "
            "and ask which index has to be summed away.",
            {DHIDDEN: "dhidden = dy @ B.T"},
        ),
        Mistake(
            "A is not transposed in x Aᵀ",
            "It goes unnoticed when r equals in. Recompute the r hidden features of one token with a loop, and compare.",
            {HIDDEN: "hidden = x @ A"},
        ),
        Mistake(
            "A is transposed in dx",
            "The last step of the way back should lead from r features to in. "
            "Do the sides of your product say so when r and in differ?",
            {BYPASS: "bypass = scaling * (dhidden @ A.T)"},
        ),
        Mistake(
            "the gradients are overwritten",
            "Let two layers share one A and B, and call your function for each of them. What is left in grads of the first?",
            {ADD_A: 'grads["A"] = dA', ADD_B: 'grads["B"] = dB'},
            {ADD_A: 'grads["A"] = dA'},
            {ADD_B: 'grads["B"] = dB'},
        ),
        Mistake(
            "dA and dB never reach grads",
            "Print grads before and after a call. Which of your lines is meant to write into it?",
            {ADD_A: "pass", ADD_B: "pass", RETURN: "return frozen + bypass, dA, dB"},
            {ADD_A: "pass", ADD_B: "pass"},
        ),
        Mistake(
            "there is a gradient for W too",
            "An optimizer moves whatever has a gradient, "
            "and this one costs as much memory as the weight. What does “frozen” promise?",
            {RETURN: 'grads["W"] = dy.T @ x\n    return frozen + bypass'},
            {RETURN: "return frozen + bypass, dy.T @ x"},
            {RETURN: "return dy.T @ x, frozen + bypass"},
        ),
        Mistake(
            "dx is not returned",
            "Your layer learns. How do the layers below it get to know what they should change?",
            {RETURN: "return None"},
        ),
        Mistake(
            "dx is without the frozen path",
            "Set B to zero: there is no bypass, and still x acts on y. What does your dx say then?",
            {RETURN: "return bypass"},
        ),
        Mistake(
            "dx is without the bypass",
            "Set W to zero: y still depends on x. What does your dx say then?",
            {RETURN: "return frozen"},
        ),
        Mistake(
            "the frozen path of dx is scaled too",
            "Set B to zero and change the scaling: y stays what it is, "
            "and your dx does not. Where does the scaling belong in the forward pass?",
            {FROZEN: "frozen = scaling * (dy @ W)"},
        ),
        Mistake(
            "the mean over the tokens is forgotten",
            "Give it every token twice. The mean of the losses stays the same; do your gradients of A and B?",
            {DY: "dy = error"},
        ),
        Mistake(
            "the mean over the tokens is forgotten in dx",
            "Your dA and dB know that L is a mean, and dx does not. Change one number of x by a little, and compute L by hand.",
            {FROZEN: "frozen = error @ W", BYPASS: "bypass = scaling * (error @ B @ A)"},
        ),
        Mistake(
            "the mean over the tokens is taken twice",
            "With a single token all is well, and with ten your gradients are ten times too small. How often do you divide?",
            {DY: "dy = error / n**2"},
            {DA: "scaling * (dhidden.T @ x) / n", DB: "scaling * (dy.T @ hidden) / n"},
        ),
        Mistake(
            "the mean is taken over all numbers of the error",
            "Make a layer with more features out: your gradients get smaller. "
            "How many terms does the mean of this loss have, and how many each norm?",
            {DY: "dy = error / error.size"},
        ),
        Mistake(
            "the mean is taken over the features out",
            "Your gradients grow with the number of tokens and shrink with that of the features. "
            "Over which of the two is L a mean?",
            {DY: "dy = error / error.shape[1]"},
        ),
        Mistake(
            "everything is twice too large",
            "Differentiate ½(y − target)² for single numbers, on paper. What does the half do?",
            {DY: "dy = 2 * error / n"},
        ),
        Mistake(
            "everything is half as large as it should be",
            "Differentiate ½(y − target)² for single numbers, on paper. Is the half still there in the derivative?",
            {DY: "dy = error / 2 / n"},
        ),
        Mistake(
            "all signs are reversed",
            "Take a small step along your dA and compute the loss: it falls. Which way should a gradient point?",
            {DY: "dy = -error / n"},
        ),
        Mistake(
            "dA and dB are subtracted",
            "Your function already goes downhill, and then the optimizer does it once more, the other way. Whose task is the step?",
            {ADD_A: 'grads["A"] -= dA', ADD_B: 'grads["B"] -= dB'},
        ),
    ),
)
