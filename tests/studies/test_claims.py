"""The verdicts of claims follow from the tables: other numbers give other verdicts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from lora_np import plots
from lora_np.report import results
from lora_np.studies.convergence import claims as convergence
from lora_np.studies.counting import claims as counting
from lora_np.studies.finetuning import claims as finetuning
from lora_np.studies.harness.table import Table
from lora_np.studies.timing import claims as timing

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture
def tables() -> dict[str, Table]:
    modules = (convergence, counting, finetuning, timing)
    names = [name for module in modules for name in module.NEEDED]
    return {name: Table.load(FIGURES / "data" / f"{name}.json") for name in names}


def verdicts(module, tables) -> list[str]:
    return [claim.verdict for claim in module.claims(tables)]


def test_what_counting_decides(tables):
    """GPT-3 with r = 2 has half of the stated parameters; full fine-tuning of GPT-3 takes more than the stated 1.2 TB."""
    assert verdicts(counting, tables) == ["yes", "no", "yes", "yes", "yes", "yes", "partly"]


def test_lora_learns_less_and_forgets_less_if_every_seed_says_so(tables):
    assert verdicts(finetuning, tables) == ["no", "yes", "yes"]
    for row in tables["finetuning"].where(phase="seeds", method="lora"):
        row["final"], row["prose"] = row["final"] + 1, row["prose"] - 1
    assert verdicts(finetuning, tables)[0] == "yes"
    for row in tables["finetuning"].where(method="lora"):
        row["lr"] /= 4
    assert verdicts(finetuning, tables)[1] == "no", "2.5 is not 10, on a grid with steps of 3"


def test_numpy_is_as_fast_as_peft_if_both_forms_of_peft_take_longer(tables):
    assert verdicts(timing, tables) == ["yes", "partly"]
    for row in tables["speed"].where(case="smollm2-135m"):
        row["ratio"] = 1.5
    assert verdicts(timing, tables)[1] == "yes"


def test_lora_reaches_full_fine_tuning_if_every_rank_does(tables):
    assert verdicts(convergence, tables) == ["partly", "yes", "no", "no"]
    for row in tables["convergence"].rows:
        row["recovered"] = 1.0
    assert verdicts(convergence, tables) == ["yes", "yes", "yes", "yes"]


def test_findings_have_a_sentence_with_their_number():
    found = results.Findings(FIGURES)
    for name in ("memory.llama-65b.qlora", "timing.smollm2-135m.peft", "finetuning.cost.step_seconds"):
        assert found[name].number in found.say(name) and found.say(name).endswith(".")


def test_titles_of_the_convergence_pictures_are_findings(tables):
    def titles(table: Table) -> list[str]:
        drawn = [draw(table).texts[0].get_text() for draw in (plots.loss_curves, plots.learning_rates)]
        plt.close("all")
        return drawn

    curves, rates = titles(tables["convergence"])
    assert curves == "LoRA ends at a higher loss than full fine-tuning; a higher rank narrows the gap"
    assert rates == "LoRA's best learning rate is lower at r = 64 than at r = 1"
    other = deepcopy(tables["convergence"])
    for row in other.rows:
        row["validation"], row["heldout"] = row["lr"], [2.0] * len(row["heldout"])
    for row in other.where(r=64):
        row["lr"], row["validation"] = 1.0, 0.0
    assert titles(other) == [
        "The held-out loss of LoRA and full fine-tuning",
        "The final loss of each method at several learning rates",
    ]
