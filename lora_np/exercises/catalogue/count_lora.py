"""The number of parameters that LoRA trains: r·(in + out) for each adapted matrix."""

from __future__ import annotations

import random

from ..exercise import Case, Exercise, Mistake

A, B, BOTH = "size_A = r * in_", "size_B = out * r", "size_A + size_B"


def cases(seed: int | None = None) -> list[Case]:
    def case(label: str, *shapes: tuple[int, int], r: int) -> Case:
        return Case(label, {"shapes": list(shapes), "r": r})

    if seed is not None:
        rng = random.Random(seed)
        shapes = [(rng.randint(1, 5000), rng.randint(1, 5000)) for _ in range(6)]
        return [case(f"{n} random matrices", *shapes[:n], r=rng.randint(1, 64)) for n in (1, 3, 6)]
    return [
        case("one matrix, two features out, three in", (2, 3), r=2),
        case("two matrices, neither of them square", (4, 6), (2, 5), r=3),
        case("q, k, v and o of a layer with grouped-query attention", (8, 8), (2, 8), (2, 8), (8, 8), r=2),
        case("gate, up and down of an MLP", (12, 4), (12, 4), (4, 12), r=5),
        case("one matrix of a 7B model", (4096, 4096), r=8),
    ]


EXERCISE = Exercise(
    function="count_lora",
    title="How many numbers LoRA trains",
    minutes=5,
    needs="notebook 02",
    cases=cases,
    mistakes=(
        Mistake(
            "the size of A is counted for B",
            "The mistake makes no difference for a square matrix. Test it: write down the shapes of A and B "
            "for a matrix of shape (2, 8) and r = 1.",
            {B: "size_B = in_ * r"},
        ),
        Mistake(
            "the size of B is counted for A",
            "The mistake makes no difference for a square matrix. Test it: write down the shapes of A and B "
            "for a matrix of shape (8, 2) and r = 1.",
            {A: "size_A = r * out"},
        ),
        Mistake(
            "the numbers of B are not counted",
            "Your count contains only the numbers of A. Which array has the shape (out, r), and is this array trained?",
            {BOTH: "size_A"},
        ),
        Mistake(
            "the numbers of A are not counted",
            "Your count contains only the numbers of B. Which array has the shape (r, in), and is this array trained?",
            {BOTH: "size_B"},
        ),
        Mistake(
            "the numbers of the product ΔW are counted instead of the numbers of A and B",
            "Your count does not change with r. Are the numbers of the product ΔW trained, or the numbers of "
            "its factors A and B?",
            {BOTH: "out * in_"},
        ),
        Mistake(
            "the numbers of the frozen weight matrix W are counted too",
            "If r doubles, the correct count doubles, but your count does not. Which part of your count does "
            "not contain r, and is this part trained?",
            {BOTH: "out * in_ + size_A + size_B"},
        ),
        Mistake(
            "the numbers of an r × r matrix are counted too",
            "Your count has a term r · r. Does any array of the equation have the shape (r, r)?",
            {BOTH: "size_A + size_B + r * r"},
        ),
        Mistake(
            "the numbers of a bias are counted with each weight matrix",
            "With r = 0 there is no adapter, but your count is not zero. Which numbers does your function still count?",
            {BOTH: "size_A + size_B + out"},
            {BOTH: "size_A + size_B + out + r"},
        ),
        Mistake(
            "the sizes of A and B are multiplied instead of added",
            "If r doubles, the size of A doubles and the size of B doubles. By what factor does your count grow?",
            {BOTH: "size_A * size_B"},
        ),
        Mistake(
            "the two sides of the weight matrix are multiplied instead of added",
            "Test it: count the numbers of A and of B for a matrix of shape (2, 8) and r = 1. Is your result "
            "the sum of these two counts?",
            {BOTH: "r * out * in_"},
        ),
        Mistake(
            "the rank r multiplies only one side of the weight matrix",
            "Test it: print the sizes of A and B for r = 1 and for r = 2. Both sizes should double. Which of "
            "the two sizes does not change?",
            {A: "size_A = in_"},
            {B: "size_B = out"},
        ),
        Mistake(
            "the rank r is added to the sides of the weight matrix, but it must multiply each side",
            "How many numbers does an array with 2 rows and 8 columns have? Count the numbers of A, of shape "
            "(r, in), in the same way.",
            {BOTH: "r + out + in_"},
        ),
        Mistake(
            "the rank r is left out of the count",
            "Test it: call your function with r = 1 and with r = 2. Should the two counts be equal?",
            {A: "size_A = in_", B: "size_B = out"},
        ),
        Mistake(
            "only the first weight matrix of the list is counted",
            "Test it: call your function with the same shape three times in the list. How many of the three "
            "shapes does your function count?",
            {"in shapes:": "in shapes[:1]:"},
        ),
        Mistake(
            "only the last weight matrix of the list is counted",
            "Test it: print your total after each matrix of the list. Does the final total still contain the "
            "count of the first matrix?",
            {"total += ": "total = "},
        ),
        Mistake(
            "weight matrices of equal shape are counted only once",
            "In every layer k_proj and v_proj have equal shapes. Do k_proj and v_proj share an adapter?",
            {"in shapes:": "in set(shapes):"},
        ),
    ),
)
