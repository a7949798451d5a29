"""The verdicts of claims follow from the tables: other numbers give other verdicts."""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lora_np import plots
from lora_np.report import results
from lora_np.studies.convergence import claims as convergence
from lora_np.studies.counting import claims as counting
from lora_np.studies.finetuning import claims as finetuning
from lora_np.studies.harness.findings import Finding, agrees, is_lower
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
    assert verdicts(timing, tables) == ["partly", "partly"]
    for row in tables["speed"].where(case="smollm2-135m"):
        row["ratio"] = 1.5
    assert verdicts(timing, tables)[1] == "yes"


@pytest.mark.parametrize("factor, verdict", [(0.5, "yes"), (0.99, "partly"), (2.0, "partly")])
def test_a_step_is_cheaper_only_if_the_difference_is_larger_than_noise(tables, factor, verdict):
    full = tables["step_cost"].rows[0]
    for row in tables["step_cost"].where(r=8, target_modules="all-linear"):
        row["seconds"] = factor * full["seconds"]
    (claim, _) = timing.claims(tables)
    assert claim.verdict == verdict and claim.check == f"`{tables['step_cost'].command}`"
    tables["finetuning"].settings["step_seconds"]["lora"] = (
        factor * tables["finetuning"].settings["step_seconds"]["full"]
    )
    assert verdicts(finetuning, tables)[2] == verdict


def test_the_effect_of_the_rate_is_compared_with_that_of_the_method(tables):
    def rate() -> Finding:
        findings = [finding for claim in finetuning.claims(tables) for finding in claim.findings]
        return next(finding for finding in findings if finding.name == "finetuning.rate")

    table = tables["finetuning"]
    assert rate().sentence.endswith(
        "For the loss on held-out answers and the loss on other prose, the learning rate has a larger effect than the choice "
        "between LoRA and full fine-tuning."
    )
    table.where(phase="seeds", method="lora")[0]["prose"] += 1
    assert "For the loss on other prose, the learning rate has no larger effect than" in rate().sentence
    best = table.where(phase="seeds", method="full")[0]["lr"]
    table.rows = [row for row in table.rows if not (row["phase"] == "sweep" and row["lr"] < best)]
    assert "With the learning rate 0.0009, the final loss" in rate().sentence, (
        "if the best rate is the lowest, the next higher rate"
    )


def test_a_verdict_needs_checks_and_is_open_if_no_check_decides():
    with pytest.raises(ValueError, match="at least one check"):
        agrees()
    said = {checks: agrees(*checks) for checks in itertools.product((True, False, None), repeat=2)}
    assert said[True, True] == "yes" and said[True, False] == said[False, True] == "partly"
    assert said[False, False] == said[False, None] == said[None, False] == "no"
    assert said[None, None] == said[True, None] == said[None, True] == "open"
    assert agrees(True, False, None) == "partly" and agrees(np.bool_(False)) == "no", "a bool of NumPy counts"
    assert is_lower([-1, -2]) is True and is_lower([1, 2]) is False and is_lower([-1, 1]) is is_lower([0]) is None


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
