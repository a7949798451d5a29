"""Quantise one block to four bits: a scale, and for each weight the nearest of sixteen values, two weights per byte."""

from __future__ import annotations

import numpy as np

from ...quantization import code_book
from ..exercise import Case, Exercise, Mistake

SCALE, DIVISOR, SCALED = "np.abs(w).max()", "s if s > 0 else 1.0", "scaled = w / divisor"
NEAREST, PAIRS, PACKED = "distance.argmin(axis=1)", "q[::2], q[1::2]", "16 * first + second"


def cases() -> list[Case]:
    rng, values = np.random.default_rng(11), np.array(code_book("nf4"))

    def case(label: str, *w: float) -> Case:
        return Case(label, {"w": np.array(w, float), "values": values.copy()})

    return [
        case("two weights", 2.0, -0.9),
        case("the largest is negative", -4.0, 1.1, 0.3, 2.4),
        case("six small weights", 0.02, -0.05, 0.011, 0.0, 0.033, -0.018),
        case("a block of zeros", 0.0, 0.0, 0.0, 0.0),
        case("a block of 64", *rng.standard_normal(64)),
    ]


EXERCISE = Exercise(
    function="quantize_block",
    title="Four bits per weight",
    minutes=20,
    needs="notebook 07",
    cases=cases,
    mistakes=(
        Mistake(
            "the scale is the largest weight, not the largest magnitude",
            "Try w = [−2, 1]. After the division every weight must be between −1 and 1. Print your divided weights.",
            {SCALE: "w.max()"},
        ),
        Mistake(
            "the scale is the mean of the magnitudes",
            "After the division every weight must be between −1 and 1, and the largest magnitude must be 1. Print "
            "your divided weights.",
            {SCALE: "np.abs(w).mean()"},
        ),
        Mistake(
            "the scale is the root mean square of the weights",
            "After the division every weight must be between −1 and 1, and the largest magnitude must be 1. Print "
            "your divided weights for w = [3, 1].",
            {SCALE: "np.sqrt(np.mean(w**2))"},
        ),
        Mistake(
            "the weights are not scaled",
            "Multiply w by 10. The bytes should stay the same, and only the scale should grow. Do your bytes "
            "stay the same?",
            {SCALED: "scaled = w"},
        ),
        Mistake(
            "a block of zeros is divided by zero",
            "For four zeros, each weight should get the number of the value 0. Decode your bytes with values. "
            "Which weights do you get?",
            {DIVISOR: "s"},
        ),
        Mistake(
            "the sign is lost",
            "Your function gives the same bytes for w and −w. Only the scale uses magnitudes.",
            {"np.abs(scaled[:, None] - values)": "np.abs(np.abs(scaled)[:, None] - values)"},
        ),
        Mistake(
            "the next lower value is taken instead of the nearest",
            "Decode some weights and print decoded − w. The errors should have both signs. Do your errors?",
            {NEAREST: 'np.searchsorted(values, scaled, side="right") - 1'},
        ),
        Mistake(
            "the next higher value is taken instead of the nearest",
            "Decode some weights and print decoded − w. Some decoded weights should be smaller than w. Are some of "
            "your decoded weights smaller?",
            {NEAREST: "np.searchsorted(values, scaled)"},
        ),
        Mistake(
            "the furthest value is taken instead of the nearest",
            "Decode a weight close to zero. The decoded weight should also be close to zero. Is your decoded weight "
            "close to zero?",
            {NEAREST: "distance.argmax(axis=1)"},
        ),
        Mistake(
            "the sixteen values are treated as if they were evenly spaced",
            "Your result does not depend on `values`. Print np.diff(values): the values are not evenly spaced.",
            {NEAREST: "np.rint((scaled + 1) * 7.5).astype(int)"},
        ),
        Mistake(
            "the second of two numbers is in the upper four bits",
            "Write the byte of two weights in hexadecimal. The first digit should be the number of the first "
            "weight. Is this the first digit of your byte?",
            {PACKED: "first + 16 * second"},
        ),
        Mistake(
            "the first half of the block is paired with the second half",
            "The first byte should hold the first two weights. Change the second weight: which of your bytes changes?",
            {PAIRS: "q[: len(q) // 2], q[len(q) // 2 :]"},
        ),
        Mistake(
            "the upper number is shifted too little",
            "Each of the two numbers can be from 0 to 15. Pack 1 and 15, then unpack the byte. Do you get 1 "
            "and 15 back?",
            {PACKED: "15 * first + second"},
            {PACKED: "8 * first + second"},
            {PACKED: "4 * first + second"},
        ),
        Mistake(
            "the numbers are not packed",
            "Print the length of the array that you return. n weights of four bits should fill n/2 bytes.",
            {PACKED: "q"},
        ),
        Mistake(
            "the reciprocal of the scale is returned",
            "Decoding multiplies a value by the scale that you return. Are your decoded weights as large as w?",
            {"return packed, s": "return packed, 1 / s"},
        ),
    ),
)
