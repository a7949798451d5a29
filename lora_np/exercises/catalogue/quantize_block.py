"""Quantise one block to four bits: compute a scale, round each weight to one of sixteen values, pack two weights per byte."""

from __future__ import annotations

import numpy as np

from ...quantization import code_book
from ..exercise import Case, Exercise, Mistake

SCALE, DIVISOR, SCALED = "np.abs(w).max()", "s if s > 0 else 1.0", "scaled = w / divisor"
NEAREST, PAIRS, PACKED = "distance.argmin(axis=1)", "q[::2], q[1::2]", "16 * first + second"


def cases(seed: int | None = None) -> list[Case]:
    rng, values = np.random.default_rng(11 if seed is None else seed), np.array(code_book("nf4"))

    def case(label: str, *w: float) -> Case:
        return Case(label, {"w": np.array(w, float), "values": values.copy()})

    if seed is not None:
        return [case(f"{n} random weights", *rng.standard_normal(n)) for n in (2, 8, 64)]
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
            "the scale of the block is the largest weight instead of the largest magnitude",
            "Test it: print your weights after the division for w = [−2, 1]. Are both numbers between −1 and 1?",
            {SCALE: "w.max()"},
        ),
        Mistake(
            "the scale of the block is the mean magnitude instead of the largest magnitude",
            "After the division the largest magnitude must be 1. Test it: print your weights after the "
            "division. Is the largest magnitude 1?",
            {SCALE: "np.abs(w).mean()"},
        ),
        Mistake(
            "the scale of the block is the root mean square instead of the largest magnitude",
            "After the division the largest magnitude must be 1. Test it: print your weights after the "
            "division for w = [3, 1]. Is the largest magnitude 1?",
            {SCALE: "np.sqrt(np.mean(w**2))"},
        ),
        Mistake(
            "the weights are not divided by the scale of the block",
            "Test it: multiply w by 10. The bytes should not change, only the scale. Do your bytes change?",
            {SCALED: "scaled = w"},
        ),
        Mistake(
            "the weights of a block of zeros are divided by zero",
            "Test it: call your function with four zeros, and decode your bytes with `values`. Are all four "
            "decoded weights zero?",
            {DIVISOR: "s"},
        ),
        Mistake(
            "the signs of the weights are lost",
            "Test it: call your function with w and with −w. The bytes should differ. Which line of your code "
            "computes magnitudes?",
            {"np.abs(scaled[:, None] - values)": "np.abs(np.abs(scaled)[:, None] - values)"},
        ),
        Mistake(
            "each weight gets the next lower of the sixteen values instead of the nearest value",
            "Test it: decode some weights and print decoded − w. Some errors should be positive and some "
            "negative. Are all of your errors negative?",
            {NEAREST: 'np.searchsorted(values, scaled, side="right") - 1'},
        ),
        Mistake(
            "each weight gets the next higher of the sixteen values instead of the nearest value",
            "Test it: decode some weights and print decoded − w. Some errors should be positive and some "
            "negative. Are all of your errors positive?",
            {NEAREST: "np.searchsorted(values, scaled)"},
        ),
        Mistake(
            "each weight gets the furthest of the sixteen values instead of the nearest value",
            "Test it: decode a weight close to zero. The decoded weight should also be close to zero. Is your "
            "decoded weight close to zero?",
            {NEAREST: "distance.argmax(axis=1)"},
        ),
        Mistake(
            "the sixteen values are treated as evenly spaced",
            "The sixteen values are not evenly spaced. Test it: print np.diff(values). Does your code assume that "
            "these differences are equal?",
            {NEAREST: "np.rint((scaled + 1) * 7.5).astype(int)"},
        ),
        Mistake(
            "the upper four bits of a byte contain the second number of the pair instead of the first",
            "Test it: print the byte of two weights in hexadecimal. The first digit should be the number of "
            "the first weight. Is the first digit of your byte this number?",
            {PACKED: "first + 16 * second"},
        ),
        Mistake(
            "weights of the first half of the block are paired with weights of the second half instead of their neighbours",
            "The first byte should contain the first two weights. Test it: change the second weight only. "
            "Which of your bytes changes?",
            {PAIRS: "q[: len(q) // 2], q[len(q) // 2 :]"},
        ),
        Mistake(
            "the upper number of a byte is multiplied by less than 16",
            "Each number is between 0 and 15. Test it: pack the numbers 1 and 15 into a byte, and unpack this "
            "byte. Do you get 1 and 15?",
            {PACKED: "15 * first + second"},
            {PACKED: "8 * first + second"},
            {PACKED: "4 * first + second"},
        ),
        Mistake(
            "the four-bit numbers are not packed in pairs into bytes",
            "n weights of four bits need n/2 bytes. Test it: print the length of the array that your function returns.",
            {PACKED: "q"},
        ),
        Mistake(
            "the function returns 1 divided by the scale instead of the scale",
            "The decoder multiplies each value by the scale that your function returns. Test it: decode your "
            "bytes. Are the decoded weights as large as w?",
            {"return packed, s": "return packed, 1 / s"},
        ),
    ),
)
