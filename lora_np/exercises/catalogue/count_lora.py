"""The number of parameters that LoRA trains: r·(in + out) for each adapted matrix."""

from __future__ import annotations

from ..exercise import Case, Exercise, Mistake

A, B, BOTH = "size_A = r * in_", "size_B = out * r", "size_A + size_B"


def cases() -> list[Case]:
    def case(label: str, *shapes: tuple[int, int], r: int) -> Case:
        return Case(label, {"shapes": list(shapes), "r": r})

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
            "B is counted as if it had the size of A",
            "For a square matrix this mistake makes no difference. For a (2, 8) matrix and r = 1, write down "
            "the shapes of A and B.",
            {B: "size_B = in_ * r"},
        ),
        Mistake(
            "A is counted as if it had the size of B",
            "For a square matrix this mistake makes no difference. For an (8, 2) matrix and r = 1, write down "
            "the shapes of A and B.",
            {A: "size_A = r * out"},
        ),
        Mistake(
            "B is not counted",
            "Your count contains only the numbers of A. Which array has the shape (out, r), and is it trained?",
            {BOTH: "size_A"},
        ),
        Mistake(
            "A is not counted",
            "Your count contains only the numbers of B. Which array has the shape (r, in), and is it trained?",
            {BOTH: "size_B"},
        ),
        Mistake(
            "the numbers of ΔW are counted",
            "Your count does not change with r. Which arrays are trained and stored: the product ΔW, or its "
            "two factors?",
            {BOTH: "out * in_"},
        ),
        Mistake(
            "the frozen W is counted too",
            "If r doubles, your count should double, but it does not. Which part of your count does not "
            "contain r, and is it trained?",
            {BOTH: "out * in_ + size_A + size_B"},
        ),
        Mistake(
            "an r × r matrix is counted between A and B",
            "Your count has a term r · r. Which array of the equation has the shape (r, r)?",
            {BOTH: "size_A + size_B + r * r"},
        ),
        Mistake(
            "a bias is counted with each matrix",
            "With r = 0 there is no adapter, but your count is not zero. What is still counted?",
            {BOTH: "size_A + size_B + out"},
            {BOTH: "size_A + size_B + out + r"},
        ),
        Mistake(
            "the sizes of A and B are multiplied",
            "If r doubles, the numbers in A double and the numbers in B double. By what factor does your count grow?",
            {BOTH: "size_A * size_B"},
        ),
        Mistake(
            "the sides of the matrix are multiplied instead of added",
            "For a (2, 8) matrix and r = 1, write down the shapes of A and B, and count the numbers in each array. "
            "Is their sum your count?",
            {BOTH: "r * out * in_"},
        ),
        Mistake(
            "the rank multiplies only one side of the matrix",
            "Print the sizes of A and B for r = 1 and for r = 2. Both sizes should double. Which of the two sizes "
            "stays the same?",
            {A: "size_A = in_"},
            {B: "size_B = out"},
        ),
        Mistake(
            "the rank is added to the sides of the matrix",
            "How many numbers are in an array with 2 rows and 8 columns? Count A, of shape (r, in), in the same way.",
            {BOTH: "r + out + in_"},
        ),
        Mistake(
            "the rank is left out",
            "Call your function with r = 1 and with r = 2. Should the two counts be equal?",
            {A: "size_A = in_", B: "size_B = out"},
        ),
        Mistake(
            "only the first matrix is counted",
            "Call your function with the same shape three times in the list. How many of the three shapes does your "
            "function use?",
            {"in shapes:": "in shapes[:1]:"},
        ),
        Mistake(
            "only the last matrix is counted",
            "Call your function with a large and then a small matrix, and print the total after each matrix. What happens to "
            "the count of the first matrix?",
            {"total += ": "total = "},
        ),
        Mistake(
            "matrices of the same shape are counted once",
            "k_proj and v_proj have the same shape in every layer. Do they share an adapter?",
            {"in shapes:": "in set(shapes):"},
        ),
    ),
)
