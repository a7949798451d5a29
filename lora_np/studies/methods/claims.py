"""The claims about LoRA's variants, prefix tuning and adapters, from a table in many tutorials and from papers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..harness.findings import Claim, Finding, agrees, is_lower
from ..harness.paired import forgotten_when, paired_differences, verdict
from ..harness.table import Table, mean, model_in_text
from ..harness.words import listed, percent
from .lesson import LESSON, lesson_rows, ratio_of_B
from .settings import R

NEEDED = ("comparison", "comparison_smollm2", "method_costs", "method_costs_smollm2")
STUDY = "`lora_np/studies/methods/comparison.py`, notebook 09"
MODELS = {"tiny": "", "SmolLM2-135M": "_smollm2"}  # name → suffix of its tables
AGAINST_LESSON = {  # "the lesson" is the table in many tutorials (lesson.py)
    "agrees": "which agrees with the tutorials",
    "less": "less than the tutorials say",
    "more": "more than the tutorials say",
    "chosen so": "a share that was chosen to agree with the tutorials",
}
FEWER = 10  # times: VeRA's promise


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the comparisons of methods check."""
    compared, costs = tables["comparison"], tables["method_costs"]
    return [*lesson_claims(tables), forgetting(compared), *promises(compared, costs, tables["comparison_smollm2"])]


def lesson_claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return one claim per method of the lesson's table. The findings of a claim are the numbers of both models."""
    names, claimed = tables["comparison"].settings["labels"], []
    ours = {
        m: lesson_rows(tables[f"comparison{suffix}"], tables[f"method_costs{suffix}"]) for m, suffix in MODELS.items()
    }
    for method, lesson in LESSON.items():
        rows = [row | {"model": model} for model, each in ours.items() for row in each if row["method"] == method]
        gains = ", ".join(f"{percent(row['ours'])} ({row['model']})" for row in rows if row["quantity"] == "quality")
        claimed.append(
            Claim(
                f"With {names[method]}, {lesson['share'].words} of the parameters are trained, the latency is "
                f"“{lesson['latency'].words}”, and the quality is {lesson['quality'].words} of the quality of full fine-tuning",
                "a table in many tutorials",
                agrees(*(row["verdict"] == "agrees" for row in rows if row["verdict"] != "chosen so")),
                f"of full fine-tuning's gain: {gains}",
                "`lora_np/studies/methods/lesson.py`, notebook 09",
                tuple(lesson_finding(row) for row in rows),
            )
        )
    return claimed


def lesson_finding(row: Mapping[str, Any]) -> Finding:
    """Return our measured value of one quantity in the lesson's table."""
    model, quantity = row["model"].split("-")[0].lower(), row["quantity"]
    place, label = f"On {model_in_text(row['model'])}", row["label"]
    merged = "merged " if "merged" in LESSON[row["method"]]["latency"].words else ""
    measured = {
        "share": f"{row['here']} of the parameters are trained with {label}",
        "latency": f"a token with {merged}{label} takes {row['here'].rstrip('×')} times as long as a token with the base",
        "quality": f"training with {label} recovers {row['here']} of full fine-tuning's gain",
    }[quantity]
    sentence = f"{place}, {measured}, {AGAINST_LESSON[row['verdict']]}."
    return Finding(
        f"lesson.{model}.{row['method']}.{quantity}",
        row["ours"],
        sentence,
        form=".2f" if quantity == "latency" else ".1%",
    )


def forgetting(compared: Table) -> Claim:
    """Return the claim that LoRA forgets less, checked when full fine-tuning has learned as much as LoRA."""
    base, prose, paths = compared.settings["base_loss"], compared.settings["base_prose"], {}
    for method in ("full", "lora"):
        runs = compared.where(phase="seeds", method=method)
        paths[method] = base - curve(runs, "heldout"), curve(runs, "prose") - prose
    (learned, forgotten), (reached, lost) = paths["full"], (path[-1] for path in paths["lora"])
    alike = forgotten_when(learned, forgotten, reached)
    how = "Learning lowers the loss on code, and forgetting raises the loss on prose."
    lora = f"{how} On the model tiny, LoRA (r = {R}) learns {reached:.3f} nats per byte and forgets {lost:.3f} nats per byte."
    full = f"{how} On the model tiny, full fine-tuning learns {learned[-1]:.3f} nats per byte and forgets {forgotten[-1]:.3f} "
    full += "nats per byte."
    if alike is None:
        full += " Full fine-tuning never learns as much as LoRA."
    else:
        full += (
            " When full fine-tuning has learned as much as LoRA learns in all steps, full fine-tuning has forgotten "
        )
        full += f"{alike:.3f} nats per byte."
    return Claim(
        "LoRA forgets less than full fine-tuning",
        "Biderman et al. 2024",
        agrees(None if alike is None else lost < alike),  # None: they have no loss in common
        f"{lost:.3f} against {forgotten[-1] if alike is None else alike:.3f} nats per byte of prose",
        STUDY,
        (
            Finding("methods.forgetting.lora", lost, lora, "nats per byte"),
            Finding("methods.forgetting.full", float(forgotten[-1] if alike is None else alike), full, "nats per byte"),
            *at_a_smaller_rate(compared),
        ),
    )


def at_a_smaller_rate(compared: Table) -> list[Finding]:
    """Return what LoRA and full fine-tuning forget at the next rate below their best rates.

    The list is empty if one of the two methods has no such rate.
    """
    found = []
    for method in ("lora", "full"):
        best, label = compared.where(phase="seeds", method=method)[0]["lr"], compared.settings["labels"][method]
        swept = {row["lr"]: row for row in compared.where(phase="sweep", method=method) if row["prose"]}
        below = [lr for lr in swept if lr < best]
        if not below:
            return []
        learned = {lr: compared.settings["base_loss"] - row["final"] for lr, row in swept.items()}
        lr = max(below)
        forgotten = swept[lr]["prose"][-1] - compared.settings["base_prose"]
        sentence = f"On the model tiny, {label} was run with one seed at {lr / best:g} times the best learning rate. At this rate, "
        sentence += f"{label} learns {learned[lr]:.3f} nats per byte of code and forgets {forgotten:.3f} nats per byte of prose."
        if best in learned:
            sentence += f" At {lr / best:g} times the best learning rate, {label} learns "
            sentence += f"{percent(1 - learned[lr] / learned[best])} less than at the best rate."
        found.append(Finding(f"methods.forgetting.{method}.smaller_rate", forgotten, sentence, "nats per byte"))
    return found


def promises(compared: Table, costs: Table, real: Table) -> list[Claim]:
    """Return the claim of each paper about its own method, checked by a comparison with LoRA seed by seed.

    One rule decides for all methods and for both models, "tiny" (`compared`) and SmolLM2-135M (`real`). "Better" means
    a lower final loss than LoRA's with every seed, and "worse" means a higher final loss than LoRA's with every seed. A
    single seed decides nothing. "Faster" means that the method reaches LoRA's final loss in fewer steps than LoRA, with
    every seed (`faster`). "Faster" is checked on "tiny" only, because the runs on SmolLM2-135M have too few
    evaluations.
    """
    runs = {method: compared.where(phase="seeds", method=method) for method in compared.settings["labels"]}
    lora = runs["lora"][0]["trainable"]
    peak = costs.where(method="lora-fa")[0]["peak_bytes"] / costs.where(method="lora")[0]["peak_bytes"]

    def better(method: str) -> list[bool | None]:
        """Return per model whether the method's loss is lower than LoRA's with every seed."""
        return [is_lower(lost) if len(lost) > 1 else None for lost in above_lora(method)]

    def as_good(method: str) -> list[bool | None]:
        """Return per model whether the method's loss is not higher than LoRA's with every seed."""
        return [min(lost) <= 0 if len(lost) > 1 else None for lost in above_lora(method)]

    def above_lora(method: str) -> list[list[float]]:
        """Return the method's final loss minus LoRA's final loss: per model a list with one number per seed."""
        ours, lora = (
            [table.where(phase="seeds", method=name) for table in (compared, real)] for name in (method, "lora")
        )
        return [paired_differences(*pair) for pair in zip(ours, lora, strict=True) if pair[0]]

    def claim(
        method: str, words: str, paper: str, *checks: bool | None, note: str = "", check: str = STUDY, number: str = ""
    ) -> Claim:
        ends = [against_lora(table, method, *of) for table, of in ((compared, TINY), (real, SMOLLM2))]
        found = [end for end in ends if end is not None]
        number = number or f"loss {found[0].number}, LoRA {mean(runs['lora'], 'final'):.3f} nats per byte"
        said = " ".join(filter(None, (note, *(end.sentence for end in found))))
        return Claim(words, paper, agrees(*checks), number, check, tuple(found), said)

    ratio = ratio_of_B(runs["lora+"][0])
    swept = f"In LoRA+ the learning rate of B is {ratio:g} times the learning rate of A. The learning rate of A was "
    swept += "chosen by a search."
    vera = runs["vera"][0]["trainable"]
    fewer = lora / vera
    counted = (
        f"On the model tiny, VeRA trains {vera:,} parameters, and LoRA trains {lora:,}, {fewer:.1f} times as many."
    )
    fewer_at = "VeRA trains a tenth of LoRA's parameters, at the same quality"
    return [
        claim(
            "lora+",
            "LoRA+ is better and faster than LoRA",
            "Hayou et al. 2024: 1 to 2 % better, up to twice as fast",
            *better("lora+"),
            faster(compared, "lora+"),
            note=f"{swept} {in_fewer_steps(compared, 'lora+')}",
        ),
        claim("dora", "DoRA is better than LoRA", "Liu et al. 2024", *better("dora")),
        claim(
            "pissa",
            "PiSSA converges faster than LoRA",
            "Meng et al. 2024",
            faster(compared, "pissa"),
            note=in_fewer_steps(compared, "pissa"),
            number=reached(compared, "pissa"),
        ),
        claim("vera", fewer_at, "Kopiczko et al. 2023", fewer >= FEWER, *as_good("vera"), note=counted),
        claim(
            "lora-fa",
            "LoRA-FA needs less memory than LoRA, at the same quality",
            "Zhang et al. 2023",
            *(peak < 1, *as_good("lora-fa")),
            note=f"The peak memory of a LoRA-FA step is {peak:.2f} times the peak memory of a LoRA step.",
            check=f"`test_lora_fa_keeps_n_r_numbers_in_place_of_n_in`; {STUDY}",
        ),
    ]


TINY = ("methods", "On the model tiny, which learns Python code", "nats per byte")
SMOLLM2 = ("methods.smollm2", "On SmolLM2-135M, which learns the voice of a lighthouse keeper", "nats per token")


def against_lora(compared: Table, method: str, name: str, place: str, unit: str) -> Finding | None:
    """Return the final loss of the method, compared with LoRA's loss seed by seed at the end and at each evaluation.

    `name` is the start of the finding's name, and `place` begins the sentence. Returns None if the table does not have
    the method.
    """
    ours, lora = (compared.where(phase="seeds", method=each) for each in (method, "lora"))
    if not ours:
        return None
    label, steps = compared.settings["labels"][method], ours[0]["steps"][-1]
    found = listed([str(step) for step in ahead(compared, method)])
    seeds = "With every seed" if len(ours) > 1 else "With the one seed"
    worse = f"at least one seed of {label}" if len(ours) > 1 else f"the one seed of {label}"
    way = (
        f"{seeds}, {label} has a lower loss than LoRA after {found} of {steps} steps."
        if found
        else f"At each evaluation during training, {worse} has a loss as high as LoRA's loss or higher."
    )
    compares = verdict(f"the final loss of {label}", "the final loss of LoRA", ours, lora)
    same = [row for row in lora if row["seed"] in {run["seed"] for run in ours}]
    sentence = (
        f"{place}, {label} ends at a held-out loss of {mean(ours, 'final'):.3f} {unit} and LoRA at "
        f"{mean(same, 'final'):.3f}. {compares} {way}"
    )
    ends = [row["final"] for row in ours]
    return Finding(f"{name}.{method}.loss", mean(ours, "final"), sentence, unit, (min(ends), max(ends)))


def ahead(compared: Table, method: str) -> list[int]:
    """Return the steps at which the method's held-out loss was below LoRA's held-out loss with every seed."""
    ours, lora = (compared.where(phase="seeds", method=name) for name in (method, "lora"))
    found = []
    for i, step in enumerate(ours[0]["steps"]):
        here, there = ([{"seed": row["seed"], "loss": row["heldout"][i]} for row in rows] for rows in (ours, lora))
        if step and max(paired_differences(here, there, "loss")) < 0:
            found.append(step)
    return found


def steps_to_loras_end(compared: Table, method: str) -> dict[int, int | None]:
    """Return for each seed after how many steps the method's held-out loss is at or below LoRA's final loss.

    The loss is known at the evaluations only. The number is None if the method's loss never falls to LoRA's final loss.
    """
    ends = {row["seed"]: row["final"] for row in compared.where(phase="seeds", method="lora")}
    return {
        row["seed"]: next(
            (n for n, loss in zip(row["steps"], row["heldout"], strict=True) if n and loss <= ends[row["seed"]]), None
        )
        for row in compared.where(phase="seeds", method=method)
        if row["seed"] in ends
    }


def sooner(compared: Table, method: str) -> list[int | None]:
    """Return for each seed after how many steps the method reaches LoRA's final loss.

    The number is None if the method is not faster than LoRA.
    """
    ours, lora = (steps_to_loras_end(compared, name) for name in (method, "lora"))
    return [steps if steps is not None and steps < (lora[seed] or math.inf) else None for seed, steps in ours.items()]


def faster(compared: Table, method: str) -> bool | None:
    """Return whether the method reaches LoRA's final loss in fewer steps than LoRA, or None if the seeds do not agree."""
    found = [steps is not None for steps in sooner(compared, method)]
    return True if all(found) else None if any(found) else False


def reached(compared: Table, method: str) -> str:
    """Return in words with how many seeds the method reaches LoRA's final loss in fewer steps than LoRA."""
    found = sooner(compared, method)
    steps = [n for n in found if n is not None]
    after = f" (after {listed([str(n) for n in steps])} steps)" if steps else ""
    return f"fewer steps to LoRA's final loss with {len(steps)} of {len(found)} seeds{after}"


def in_fewer_steps(compared: Table, method: str) -> str:
    """Return a sentence: with how many seeds the method needs fewer steps than LoRA to reach LoRA's final loss."""
    found, label = sooner(compared, method), compared.settings["labels"][method]
    steps = [n for n in found if n is not None]
    after = f" (after {listed([str(n) for n in steps])} steps)" if steps else ""
    goal = "to reach LoRA's final loss"
    if steps:
        return f"With {len(steps)} of {len(found)} seeds, {label} needs fewer steps than LoRA {goal}{after}."
    return f"With each of the {len(found)} seeds, {label} needs at least as many steps as LoRA {goal}, or does not reach this loss."


def curve(runs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return the mean of column `key` over the seeds, at each evaluation."""
    return np.mean([row[key] for row in runs], axis=0)
