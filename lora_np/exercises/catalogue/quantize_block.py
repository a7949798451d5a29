"""One block in four bits: its scale, the nearest of sixteen values for each weight, two of them in a byte."""

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
    title="Four bits a weight",
    minutes=20,
    needs="notebook 07",
    cases=cases,
    mistakes=(
        Mistake(
            "the scale is the largest weight, not the largest magnitude",
            "Try a block whose furthest weight is negative. Where does it land after the division?",
            {SCALE: "w.max()"},
        ),
        Mistake(
            "the scale is the mean of the magnitudes",
            "After the division every weight should lie between −1 and 1, and one of them on the border. Print yours.",
            {SCALE: "np.abs(w).mean()"},
        ),
        Mistake(
            "the scale is the root mean square of the weights",
            "How large can a weight be in units of its block's root mean square, and what is the largest of the values?",
            {SCALE: "np.sqrt(np.mean(w**2))"},
        ),
        Mistake(
            "the weights are not scaled",
            "Multiply a block by 10: the bytes should stay as they are and only the scale should grow. Do yours stay?",
            {SCALED: "scaled = w"},
        ),
        Mistake(
            "a block of zeros is divided by zero",
            "A layer may have rows that never learned anything. What is 0 / 0 in NumPy, and which value is nearest to that?",
            {DIVISOR: "s"},
        ),
        Mistake(
            "the sign is lost",
            "Your function sees w and −w alike. Only the scale needs magnitudes.",
            {"np.abs(scaled[:, None] - values)": "np.abs(np.abs(scaled)[:, None] - values)"},
        ),
        Mistake(
            "the value below is taken, not the nearest",
            "Decode a few weights again and look at the sign of the errors: rounding down makes all of them one-sided.",
            {NEAREST: 'np.searchsorted(values, scaled, side="right") - 1'},
        ),
        Mistake(
            "the value above is taken, not the nearest",
            "Decode a few weights again: are the decoded ones ever smaller than the weights?",
            {NEAREST: "np.searchsorted(values, scaled)"},
        ),
        Mistake(
            "the furthest value is taken",
            "Decode a weight of almost zero. Can it be that the best of sixteen values is ±1?",
            {NEAREST: "distance.argmax(axis=1)"},
        ),
        Mistake(
            "the sixteen values are taken as evenly spaced",
            "Your numbers do not depend on `values` at all. Where are these close together?",
            {NEAREST: "np.rint((scaled + 1) * 7.5).astype(int)"},
        ),
        Mistake(
            "the second of two numbers is in the upper four bits",
            "Write the byte of two weights in hexadecimal, one digit for each number, and read it from the left.",
            {PACKED: "first + 16 * second"},
        ),
        Mistake(
            "the first half of the block is paired with the second half",
            "Which two weights should the first byte hold? Change the second weight and see which of your bytes changes.",
            {PAIRS: "q[: len(q) // 2], q[len(q) // 2 :]"},
        ),
        Mistake(
            "the upper number is shifted too little",
            "How many numbers can the lower half of a byte tell apart? The upper one must step over all of them.",
            {PACKED: "15 * first + second"},
            {PACKED: "8 * first + second"},
            {PACKED: "4 * first + second"},
        ),
        Mistake(
            "the numbers are not packed",
            "Count what you return: n weights of four bits each should fill n/2 bytes.",
            {PACKED: "q"},
        ),
        Mistake(
            "the reciprocal of the scale is returned",
            "Whoever decodes multiplies by what you return. Do the decoded weights have the size of the weights?",
            {"return packed, s": "return packed, 1 / s"},
        ),
    ),
)
