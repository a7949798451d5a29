"""How many numbers LoRA trains: r·(in + out) for each targeted matrix."""

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
    needs="notebook 02 up to “Where the count comes from”",
    cases=cases,
    mistakes=(
        Mistake(
            "B is counted as if it had the size of A",
            "Your count is right as long as every matrix is square. "
            "Draw the two factors of a (2, 8) matrix, with their sides written on.",
            {B: "size_B = in_ * r"},
        ),
        Mistake(
            "A is counted as if it had the size of B",
            "Swap in and out of a matrix that is not square: "
            "does your count change by as much as it should? Which side does x enter by?",
            {A: "size_A = r * out"},
        ),
        Mistake(
            "B is not counted",
            "Your count would be enough to take the input down to r features. How does the adapter get up again?",
            {BOTH: "size_A"},
        ),
        Mistake(
            "A is not counted",
            "B starts at zero and A does not, and still only one of them is in your count. "
            "Which of the two does the optimizer move?",
            {BOTH: "size_B"},
        ),
        Mistake(
            "the numbers of ΔW are counted",
            "Your count does not change with r. What is stored and trained: the product, or what it is a product of?",
            {BOTH: "out * in_"},
        ),
        Mistake(
            "the frozen W is counted too",
            "Double r, and your count should double, but does not. Which part of it does not know the rank, and is it trained?",
            {BOTH: "out * in_ + size_A + size_B"},
        ),
        Mistake(
            "an r × r matrix is counted between A and B",
            "Your count has a term that grows with the square of r. Which array would have two sides of length r?",
            {BOTH: "size_A + size_B + r * r"},
        ),
        Mistake(
            "a bias is counted with each matrix",
            "Set r = 0, in thought: there is no adapter, and your count is not zero. What is it that is still counted?",
            {BOTH: "size_A + size_B + out"},
            {BOTH: "size_A + size_B + out + r"},
        ),
        Mistake(
            "the sizes of A and B are multiplied",
            "Double r: the number of numbers in A doubles, that in B too. By what factor does your count grow?",
            {BOTH: "size_A * size_B"},
        ),
        Mistake(
            "the rank is left out",
            "Your count is that of one row and one column a matrix. For which rank would that be so?",
            {A: "size_A = in_", B: "size_B = out"},
        ),
        Mistake(
            "only the first matrix is counted",
            "Give it the same matrix three times. How many of the shapes in the list does your function look at?",
            {"in shapes:": "in shapes[:1]:"},
        ),
        Mistake(
            "only the last matrix is counted",
            "Give it a large and then a small matrix, and print the total after each. What happens to what was there before?",
            {"total += ": "total = "},
        ),
        Mistake(
            "matrices of the same shape are counted once",
            "k and v have the same shape in every layer. Do they share an adapter?",
            {"in shapes:": "in set(shapes):"},
        ),
    ),
)
