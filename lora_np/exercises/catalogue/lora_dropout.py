"""Dropout in front of the bypass: y = x Wᵀ + s·((x ∘ m) Aᵀ) Bᵀ and its dx, with one mask m for both.

Right answers may draw their mask in any order and by any method, so no number is compared. The features are so few that all
masks can be tried: the one that explains a token's y, and the place where it does, say where the function drops, how many,
what is decided together, and what the kept numbers are multiplied by. The same for dx.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..exercise import Case, Exercise, Mistake

TOLERANCE = 1e-4  # a mask may be float32; no two masks of a token are as near as this
CALLS = 60  # of a function, so that its shares can be told apart
FORWARD = {  # a place in the layer: where it is on the way from x to y …
    "the bypass's input": "bypass start",
    "the layer's input": "start",
    "the frozen path's input": "frozen start",
    "the hidden features": "middle",
    "the bypass's output": "bypass end",
    "the layer's output": "end",
}
BACKWARD = {  # … and where on the way from dy to dx
    "the bypass's input": "bypass end",
    "the layer's input": "end",
    "the frozen path's input": "frozen end",
    "the hidden features": "middle",
    "the bypass's output": "bypass start",
    "the layer's output": "start",
}

KEPT, TIMES, DROPPED = "rng.random(x.shape) >= p", "1 / (1 - p)", "dropped = x * mask"
UP_AGAIN, BACK, RETURN_DX = "dropped @ A.T @ B.T", "dy @ B @ A", "dx_frozen + dx_dropped * mask"


def cases() -> list[Case]:
    def case(label: str, seed: int, in_: int, out: int, r: int, scaling: float, p: float) -> Case:
        rng = np.random.default_rng(seed)  # chosen so that no two masks of a token have the same y or dx
        shapes = {"x": (6, in_), "W": (out, in_), "A": (r, in_), "B": (out, r), "dy": (6, out)}
        arrays = {
            name: rng.choice([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], shape) for name, shape in shapes.items()
        }
        dy = arrays.pop("dy")
        return Case(label, arrays | {"scaling": scaling, "p": p, "rng": np.random.default_rng(6), "dy": dy})

    return [
        case("everything square, r = 3, p = 1/8", 146, 3, 3, 3, 2.5, 0.125),
        case("no two sizes alike, p = 1/10", 1099, 4, 5, 2, 3.5, 0.1),
    ]


def describe(
    function: Callable[..., Any],
    x: np.ndarray,
    W: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
    scaling: float,
    p: float,
    rng: np.random.Generator,
    dy: np.ndarray,
) -> dict[str, Any]:
    """What `function` does, in words, where a mask explains it; and what it returns, where none does."""
    given = [array.copy() for array in (x, W, A, B, dy)]

    def again(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        *layer, dy = [array.copy() for array in given]
        return pair(function(*layer, scaling, p, rng, dy))

    twin = copy.deepcopy(rng)
    calls = [pair(function(x, W, A, B, scaling, p, rng, dy))] + [again(rng) for _ in range(CALLS - 1)]
    others = [again(twin) for _ in range(CALLS // 2)]  # the first of them, a second time
    x, W, A, B, dy = given
    if any(y.shape != (len(x), len(W)) or dx.shape != x.shape for y, dx in calls):
        return {"shape of y": calls[0][0].shape, "shape of dx": calls[0][1].shape}
    y, dx = (np.stack(values) for values in zip(*calls, strict=True))
    on_y = explained(y, FORWARD, x, W.T, A.T, B.T, scaling, p)
    on_dx = explained(dx, BACKWARD, dy, W, B, A, scaling, p)
    return {
        "y": on_y.words(p) if on_y else y[0],
        "dx": on_dx.words(p) if on_dx else dx[0],
        "dx has the mask of y": bool(on_y and on_dx and np.array_equal(on_y.kept, on_dx.kept)),
        "the same again from the same rng": all(map(equal, calls, others)),
    }


def pair(value: Any) -> tuple[np.ndarray, np.ndarray]:
    """y and dx as float64. Raises TypeError for what is no pair of arrays of real numbers."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"two arrays are expected, y and dx, and this is {type(value).__name__}")
    for array in value:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise TypeError(f"two arrays of numbers are expected, y and dx, and one of them is {type(array).__name__}")
    return value[0].astype(np.float64), value[1].astype(np.float64)


def equal(mine: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two pairs are the same numbers."""
    return all(map(np.array_equal, mine, other))


class Dropout(NamedTuple):
    """What explains all calls: the place, the factor of the kept, the scaling, and what was kept (call, token, feature)."""

    place: str
    times: str
    scaling: str
    kept: np.ndarray

    def words(self, p: float) -> dict[str, str]:
        by_token, by_feature = ((self.kept == self.kept.take([0], axis)).all() for axis in (2, 1))
        dropped = 1 - self.kept.mean()
        if dropped in (0, 1):
            how = {"dropped": "nothing" if dropped == 0 else "everything"}
        else:
            shares = {"p": p, "half": 0.5, "1 − p": 1 - p}
            share = min(shares, key=lambda share: abs(shares[share] - dropped))
            if (self.kept == self.kept[:1]).all():
                share = "the same in every call"  # and too few numbers to say how many they are
            together = {(0, 0): "number", (1, 0): "token", (0, 1): "feature", (1, 1): "call"}
            how = {
                "dropped": f"{share}, of {self.place}",
                "one decision for each": together[bool(by_token), bool(by_feature)],
            }
        return how | {"the kept are multiplied by": self.times, "scaling": self.scaling}


def explained(
    values: np.ndarray,
    places: dict[str, str],
    v: np.ndarray,
    W: np.ndarray,
    down: np.ndarray,
    up: np.ndarray,
    scaling: float,
    p: float,
) -> Dropout | None:
    """The dropout that makes all `values` (call, token, feature) of v, a way through the layer; None where there is none."""
    widths = {"middle": down.shape[1]} | {f"{path}start": len(W) for path in ("", "frozen ", "bypass ")}
    scalings = {"once": scaling, "missing": 1.0, "twice": scaling**2}
    factors = {"1/(1 − p)": 1 / (1 - p), "1": 1.0, "1/p": 1 / p, "1 − p": 1 - p, "p": p, "2": 2.0}
    for place, here in places.items():
        masks = np.array(list(itertools.product([1.0, 0.0], repeat=widths.get(here, W.shape[1]))))
        for (often, s), (times, factor) in itertools.product(scalings.items(), factors.items()):
            tried = through(v, W, down, s * up, here, factor * masks[:, None])  # (mask, token, feature)
            for some in (values[:4], values):  # most are refuted by a few
                fits = (abs(tried - some[:, None]) < TOLERANCE).all(axis=3)  # (call, mask, token)
                if not fits.any(axis=1).all():
                    break
            else:
                return Dropout(place, times, often, masks[fits.argmax(axis=1)] > 0)
    return None


def through(v: np.ndarray, W: np.ndarray, down: np.ndarray, up: np.ndarray, here: str, mask: np.ndarray) -> np.ndarray:
    """v W + (v down) up, with what there is `here` multiplied by the mask."""

    def at(place: str, value: np.ndarray) -> np.ndarray:
        return value * mask if place == here else value

    v = at("start", v)
    frozen = at("frozen end", at("frozen start", v) @ W)
    bypass = at("bypass end", at("middle", at("bypass start", v) @ down) @ up)
    return at("end", frozen + bypass)


EXERCISE = Exercise(
    function="lora_dropout",
    title="Dropout in front of the bypass",
    minutes=20,
    needs="notebook 02, and the exercise on dA and dB",
    cases=cases,
    observe=describe,
    mistakes=(
        Mistake(
            "the frozen path drops too",
            "Set B = 0: the adapted layer is its base, and its output should not be random. Is yours?",
            {"frozen = x @ W.T": "frozen = dropped @ W.T", RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
            {"frozen = x @ W.T": "frozen = dropped @ W.T"},
        ),
        Mistake(
            "the whole dx is masked",
            "A number of x that was dropped still reached y by the other path. What is its gradient, and what does yours say?",
            {RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
        ),
        Mistake(
            "only the frozen path drops",
            "Set W = 0, so that only the bypass is left, and call the function twice. "
            "Which path was to be made noisy, the trained one or the other?",
            {
                "frozen = x @ W.T": "frozen = dropped @ W.T",
                UP_AGAIN: "x @ A.T @ B.T",
                RETURN_DX: "dx_frozen * mask + dx_dropped",
            },
        ),
        Mistake(
            "all tokens have the same mask",
            "Print your mask. How many decisions were made for a batch of a thousand tokens?",
            {KEPT: "rng.random(x.shape[-1]) >= p"},
        ),
        Mistake(
            "a token is dropped whole or not at all",
            "Print your mask for a few tokens. Can it happen that a token keeps one of its features and loses another?",
            {KEPT: "rng.random((len(x), 1)) >= p"},
        ),
        Mistake(
            "there is one decision for the whole input",
            "Call it ten times: in some of the calls the bypass is gone, in the others it is whole. How many numbers did you draw?",
            {KEPT: "rng.random() >= p"},
        ),
        Mistake(
            "the backward pass draws a mask of its own",
            "dx is the derivative of the y that was computed, not of another one. "
            "What would a difference quotient with the mask held fixed give?",
            {RETURN_DX: "dx_frozen + dx_dropped * (rng.random(x.shape) >= p) / (1 - p)"},
        ),
        Mistake(
            "the backward pass has no mask",
            "Take a number of x that was dropped, and change it: the bypass does not notice. What does your dx say of it?",
            {RETURN_DX: "dx_frozen + dx_dropped"},
            {RETURN_DX: "dx_frozen + dx_dropped / (1 - p)"},
        ),
        Mistake(
            "the kept numbers are not rescaled",
            "Take the mean of y over a thousand calls, and compare it with y at p = 0. What is lost, and how much of it?",
            {TIMES: "1.0"},
        ),
        Mistake(
            "the forward pass does not rescale",
            "Your dx is right, for another y than yours. Is the mean of your y over many calls what it is without dropout?",
            {DROPPED: "dropped = x * kept"},
        ),
        Mistake(
            "the backward pass does not rescale",
            "A number that was kept counts for more in the forward pass than without dropout. What follows for its gradient?",
            {RETURN_DX: "dx_frozen + dx_dropped * kept"},
        ),
        Mistake(
            "it keeps with probability p",
            "Try p = 0.01 on a large x, and count the zeros. How many would you expect when one in a hundred is dropped?",
            {KEPT: "rng.random(x.shape) < p"},
            {KEPT: "rng.random(x.shape) < p", TIMES: "1 / p"},
        ),
        Mistake(
            "half of them are dropped, whatever p",
            "Try p = 0.1 and p = 0.9. Does the share of zeros change?",
            {KEPT: "rng.random(x.shape) >= 0.5"},
            {KEPT: "rng.random(x.shape) >= 0.5", TIMES: "2.0"},
        ),
        Mistake(
            "the kept numbers are divided by p",
            "Let p go to zero: hardly anything is dropped, and your bypass grows without bounds. "
            "Which share of the numbers is left to carry the mean?",
            {TIMES: "1 / p"},
        ),
        Mistake(
            "the kept numbers are made smaller",
            "There are fewer terms in the sum, and you make each of them smaller too. "
            "Which way must they go if the mean is to stay?",
            {TIMES: "1 - p"},
            {TIMES: "p"},
        ),
        Mistake(
            "the bypass's output is dropped",
            "Look at a token whose mask has a zero: how many entries of the bypass change, "
            "compared with p = 0? A lost input feature changes all of them.",
            {
                KEPT: "rng.random(dy.shape) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "dropped @ A.T @ B.T * mask",
                BACK: "(dy * mask) @ B @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the hidden features are dropped",
            "With r = 1 your bypass is there for some tokens and gone for the others. Does one lost feature of many in x do that?",
            {
                KEPT: "rng.random((len(x), len(A))) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "(dropped @ A.T * mask) @ B.T",
                BACK: "(dy @ B * mask) @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the layer's output is dropped",
            "Some entries of your y are exactly zero. How can that be, when the frozen path always arrives?",
            {
                KEPT: "rng.random(dy.shape) >= p",
                DROPPED: "dropped = x",
                "y = frozen + bypass": "y = (frozen + bypass) * mask",
                "dx_frozen = dy @ W": "dx_frozen = (dy * mask) @ W",
                BACK: "(dy * mask) @ B @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the mask is put on dy",
            "It only fits when in equals out. Where on the way from x to y was the mask, "
            "at the beginning or at the end, and where is that on the way back?",
            {BACK: "(dy * mask) @ B @ A", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "nothing is dropped",
            "Call it twice with different generators: y is the same. That is right for evaluation; which mode was asked for?",
            {DROPPED: "dropped = x", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "the generator that it is given is not used",
            "Call it twice with default_rng(0), then ten times with one and the same generator. "
            "In which of the two should the masks repeat?",
            {"rng.random": "np.random.random"},
            {"rng.random": "np.random.default_rng(0).random"},
        ),
        Mistake(
            "the bypass lacks its scaling",
            "Set p so small that nothing is dropped, and compare with your answer to lora_forward. Which argument do you not use?",
            {"scaling * (dropped": "1.0 * (dropped", "scaling * (dy": "1.0 * (dy"},
            {"scaling * (dropped": "1.0 * (dropped"},
            {"scaling * (dy": "1.0 * (dy"},
        ),
    ),
)
