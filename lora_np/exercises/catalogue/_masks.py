"""Describe the dropout of a student's function in exercise 6. All possible masks are tried to find the function's mask.

Right answers may draw the mask in any order and by any method, so random numbers are not compared. A token has few
features, so all masks can be tried at every place in the layer. One of the masks gives the function's y. This mask
shows where dropout is applied and how many numbers are dropped. The mask also shows which numbers are dropped together,
and by which factor the kept numbers are multiplied. The mask of dx is found in the same way.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._observing import pair

TOLERANCE = 1e-4  # a mask may be float32; the results of two masks differ by more than this
CALLS = 300  # calls of a function, enough to distinguish the shares of dropped numbers
REPEATED = 60  # of these calls repeated with the same generator
FORWARD = {  # place in the layer → position on the way from x to y …
    "the bypass's input": "bypass start",
    "the layer's input": "start",
    "the frozen path's input": "frozen start",
    "the hidden features": "middle",
    "the bypass's output": "bypass end",
    "the layer's output": "end",
}
BACKWARD = {  # … and on the way from dy to dx
    "the bypass's input": "bypass end",
    "the layer's input": "end",
    "the frozen path's input": "frozen end",
    "the hidden features": "middle",
    "the bypass's output": "bypass start",
    "the layer's output": "start",
}


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
    """Describe the dropout of y and of dx in words; if no mask explains an array, return the array itself."""
    given = [array.copy() for array in (x, W, A, B, dy)]

    def again(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        *layer, dy = [array.copy() for array in given]
        return pair(function(*layer, scaling, p, rng, dy), "y and dx")

    twin = copy.deepcopy(rng)
    calls = [pair(function(x, W, A, B, scaling, p, rng, dy), "y and dx")] + [again(rng) for _ in range(CALLS - 1)]
    others = [again(twin) for _ in range(REPEATED)]  # the first calls a second time
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
        "equal results from the same rng": all(map(equal, calls[:REPEATED], others)),
    }


def equal(mine: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Return whether the pairs `mine` and `other` contain equal arrays."""
    return all(map(np.array_equal, mine, other))


class Dropout(NamedTuple):
    """The dropout that explains the results of all calls of a function.

    Parameters
    ----------
    place : str
        The place in the layer where the mask is applied.
    times : str
        The factor by which the kept numbers are multiplied, for example "1/(1 − p)".
    scaling : str
        How often the bypass is multiplied by the scaling: "once", "twice" or "missing".
    frozen : str
        Whether the result contains the frozen path: "there" or "missing".
    kept : ndarray of bool, shape (calls, tokens, features)
        True for each kept number.
    """

    place: str
    times: str
    scaling: str
    frozen: str
    kept: np.ndarray

    def words(self, p: float) -> dict[str, str]:
        """Return a description of the dropout that does not depend on the random numbers."""
        how = {"the kept are multiplied by": self.times, "scaling": self.scaling, "the frozen path": self.frozen}
        if self.kept.all() or not self.kept.any():
            return how | {"dropped": "nothing" if self.kept.all() else "everything"}
        by_token, by_feature = (bool((self.kept == self.kept.take([0], axis)).all()) for axis in (2, 1))
        together = {(0, 0): "number", (1, 0): "token", (0, 1): "feature", (1, 1): "call"}[by_token, by_feature]
        decisions = self.kept[:, :: len(self.kept[0]) if by_feature else 1, :: self.kept.shape[2] if by_token else 1]
        return how | {"dropped": f"{share(decisions, p)}, of {self.place}", "one decision for each": together}


def share(kept: np.ndarray, p: float) -> str:
    """Return in words which share of the numbers is dropped, and whether the numbers are dropped independently."""
    each = np.sum(~kept, axis=(1, 2))  # per call
    if (kept == kept[:1]).all():
        return "the same in every call"  # too few decisions to estimate the share
    if len(np.unique(each)) == 1:
        return "the same number in every call"
    dropped = np.mean(~kept)
    for name, q in {"p": p, "half": 0.5, "1 − p": 1 - p}.items():
        if abs(dropped - q) < 4 * np.sqrt(q * (1 - q) / kept.size):
            spread = np.var(each) / (kept[0].size * q * (1 - q))  # 1 ± √(2/calls) if they are independent
            at_a_place = abs(np.mean(~kept, axis=0) - q).max() * np.sqrt(len(kept) / (q * (1 - q)))
            independent = abs(spread - 1) < 6 * np.sqrt(2 / len(kept)) and at_a_place < 6
            return name if independent else f"{name}, but not independently"
    return "neither p nor half nor 1 − p"


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
    """Return the dropout that produces all `values` from the input v, or None if no mask produces them. The axes of
    `values` are call, token and feature.

    All masks are tried at every place with every plausible factor. The search is possible because there are few
    features.
    """
    widths = {"middle": down.shape[1]} | {f"{path}start": len(W) for path in ("", "frozen ", "bypass ")}
    scalings = {"once": scaling, "missing": 1.0, "twice": scaling**2}
    factors = {"1/(1 − p)": 1 / (1 - p), "1": 1.0, "1/p": 1 / p, "1 − p": 1 - p, "p": p, "2": 2.0, "1/0.9": 1 / 0.9}
    frozen_paths = {"there": W, "missing": 0 * W}
    for (frozen, matrix), (place, here) in itertools.product(frozen_paths.items(), places.items()):
        masks = np.array(list(itertools.product([1.0, 0.0], repeat=widths[here] if here in widths else W.shape[1])))
        for (often, s), (times, factor) in itertools.product(scalings.items(), factors.items()):
            tried = through(v, matrix, down, s * up, here, factor * masks[:, None])  # (mask, token, feature)
            for some in (values[:4], values):  # a few calls exclude most candidates
                fits = (abs(tried - some[:, None]) < TOLERANCE).all(axis=3)  # (call, mask, token)
                if not fits.any(axis=1).all():
                    break
            else:
                return Dropout(place, times, often, frozen, masks[fits.argmax(axis=1)] > 0)
    return None


def through(v: np.ndarray, W: np.ndarray, down: np.ndarray, up: np.ndarray, here: str, mask: np.ndarray) -> np.ndarray:
    """Return v W + (v down) up, with the mask applied at the place `here`."""

    def at(place: str, value: np.ndarray) -> np.ndarray:
        return value * mask if place == here else value

    v = at("start", v)
    frozen = at("frozen end", at("frozen start", v) @ W)
    bypass = at("bypass end", at("middle", at("bypass start", v) @ down) @ up)
    return at("end", frozen + bypass)
