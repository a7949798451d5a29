"""What the lesson says, and what came out here: the table of docs/results.md, every number of it read from a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..studies.capacity import claims as capacity
from ..studies.convergence import claims as convergence
from ..studies.counting import claims as counting
from ..studies.finetuning import claims as finetuning
from ..studies.four_bits import claims as four_bits
from ..studies.harness.table import Claim, Table
from ..studies.hyperparameters import claims as hyperparameters
from ..studies.low_rank import claims as low_rank
from ..studies.methods import claims as methods
from ..studies.serving import claims as serving
from ..studies.timing import claims as timing

BEGIN, END = "<!-- claims: written by `python -m lora_np reproduce --full` -->", "<!-- end of claims -->"
QUESTIONS = (
    counting,
    low_rank,
    convergence,
    hyperparameters,
    capacity,
    four_bits,
    serving,
    methods,
    finetuning,
    timing,
)
NEEDED = tuple(dict.fromkeys(name for question in QUESTIONS for name in question.NEEDED))


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Every claim, the lesson's first; the two that no study answers are the proofs'."""
    return [
        counting.on_a_small_share(tables["one_matrix"], tables["whole_models"]),
        (
            "At the start the adapted model is the base",
            "Hu et al. 2021, §4.1",
            "bit for bit, in float32 and float64",
            "`test_at_init_the_adapted_model_equals_the_base_bit_for_bit`",
        ),
        serving.merged(tables["merge_latency"]),
        (
            "The hand-derived gradients are right",
            "this project",
            "every op and the whole model to 1e-12 against the complex step; PEFT's to 1e-10; mutants of them are caught",
            "`tests/proofs/test_ops.py`, `tests/proofs/test_transformer.py`, `tests/oracles/test_ops_oracles.py`, "
            "`tests/proofs/test_mutants.py`",
        ),
        low_rank.on_the_change(tables["singular_values"], tables["truncated_loss"]),
        *convergence.on_convergence(tables),
        timing.beside_full(tables["step_cost"]),
        *counting.on_paper(),
        *finetuning.on_a_real_model(tables),
        timing.beside_peft(tables["speed"]),
        *four_bits.on_quantization(tables),
        *serving.on_adapters(tables),
        *low_rank.on_low_rank(tables),
        *hyperparameters.on_hyperparameters(tables),
        *capacity.on_capacity(tables),
        *methods.on_methods(tables),
    ]


def markdown(tables: Mapping[str, Table]) -> str:
    """The table of docs/results.md, between its two marks."""
    rows = "\n".join("| " + " | ".join(row) + " |" for row in claims(tables))
    return f"{BEGIN}\n| claim | source | what came out here | checked by |\n|---|---|---|---|\n{rows}\n{END}"


def write_into(page: Path, tables: Mapping[str, Table]) -> None:
    """Replace the text between the marks. Raises ValueError if a mark is missing."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} has no place for the claims: expected {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + markdown(tables) + after, encoding="utf-8", newline="\n")
