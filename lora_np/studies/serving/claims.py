"""The claims about adapters in use: merged into the base, combined into one, and many of them on one base."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.findings import NOISE, Claim, Finding, agrees
from ..harness.paired import verdict
from ..harness.table import Table, mean, model_in_text
from ..harness.words import listed, percent
from .merging import OTHERS, SAME

NEEDED = ("merge_latency", "merge_drift", "combinations", "serving", "serving_step")
STUDY = "`lora_np/studies/serving/{}.py`, notebook 08"
ROUNDING = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}  # the relative error of rounding once
ALIKE, RIGHT, MANY = 1.1, 0.01, 1000  # limits of the verdicts: a ratio of times, a relative error, a number of adapters


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the studies of merging and serving check."""
    return [
        costs_nothing(tables["merge_latency"]),
        recovers(tables["merge_drift"]),
        linear_is_no_sum(tables["combinations"]),
        mixed_batch(tables["serving_step"]),
        thousands(tables["serving"]),
    ]


def costs_nothing(latency: Table) -> Claim:
    """Return the claim that a merged model gives the results of base and adapter at the cost of the base alone."""
    found = [
        Finding(
            f"merge.{state}.{row['model'].split('-')[0]}.token",
            row["token_ratio"],
            f"On {model_in_text(row['model'])}, a token with {article} {state} adapter takes {row['token_ratio']:.2f} times as "
            "long as a token with the base alone.",
            "× the base's time",
            form=".2f",
        )
        for article, state in (("a", "merged"), ("an", "unmerged"))
        for row in latency.where(state=state)
    ]
    merged = [f for f in found if ".merged." in f.name]
    return Claim(
        "A merged model gives the outputs of the base with its adapter, at the cost of the base alone",
        "Hu et al. 2021, §4.1",
        agrees(*(f.value <= NOISE for f in merged)),
        f"{' and '.join(f'{f.number}×' for f in merged)} the base's time per token",
        "`test_merged_equals_unmerged_to_1e_5_in_float32`, `lora_np/studies/timing/latency.py`",
        tuple(found),
        "The time per token decides the verdict. A test proves that the merged model and the model with the adapter "
        "compute the same outputs. "
        "In float32, the logits before and after the merge agree to 1e-5 of the largest logit. The merged model is a "
        "Transformer without adapters. " + " ".join(f.sentence for f in found),
    )


def recovers(drift: Table) -> Claim:
    """Return the claim that subtracting BA recovers W, checked after the largest number of merges in the table."""
    n, of, errors = drift.rows[0]["cycles"][-1], drift.settings["of"], {}
    for dtype in ROUNDING:
        errors[dtype] = [drift.where(dtype=dtype, adapters=which)[0]["errors"][-1] for which in (SAME, OTHERS)]
    one, many = (listed([f"{each[i]:.0e} in {dtype}" for dtype, each in errors.items()]) for i in (0, 1))
    same, others = (grown(drift, which) for which in (SAME, OTHERS))
    return Claim(
        "After a merge, subtracting BA recovers W",
        "Hu et al. 2021, §4.1",
        agrees(*(error <= ROUNDING[dtype] for dtype, each in errors.items() for error in each)),
        f"bfloat16, {n:,} merges: error {errors['bfloat16'][0]:.0e} to {errors['bfloat16'][1]:.0e} of ‖W‖",
        "`drift` in " + STUDY.format("merging"),
        note="W counts as recovered if the error is at most the error of rounding W once. "
        f"A matrix of the model tiny is merged and unmerged {n:,} times. With one adapter, the error as a share of ‖W‖ is {one}. "
        f"With {of} adapters one after another, the error as a share of ‖W‖ is {many}. "
        f"With one adapter, the error after {n:,} merges is {same} the error after one merge. With {of} adapters one after "
        f"another, the error after {n:,} merges is {others} the error after one merge.",
    )


def grown(drift: Table, which: str) -> str:
    """Return the growth of the error as text, for example "58 to 93 times".

    The growth is the error after all merges divided by the error after one merge; the range is over the dtypes.
    """
    rows = [drift.where(dtype=dtype, adapters=which)[0]["errors"] for dtype in ROUNDING]
    times = [errors[-1] / errors[0] for errors in rows]
    return f"{' to '.join(dict.fromkeys(f'{x:.2g}' for x in (min(times), max(times))))} times"


def linear_is_no_sum(joined: Table) -> Claim:
    """Return the claim that the combination type `linear` makes a weighted sum."""
    rows = {kind: joined.where(kind=kind) for kind in ("cat", "linear")}
    rounding = max(row["error"] for row in joined.where(kind="share"))  # of cat, at several weights
    errors = [row["error"] for row in rows["linear"]]
    sums = {kind: [row | {"sum": row["code"] + row["voice"]} for row in found] for kind, found in rows.items()}
    compared = verdict("the sum with `linear`", "the sum with `cat`", sums["linear"], sums["cat"], "sum")
    return Claim(
        "`linear` makes the weighted sum of two adapters",
        "PEFT, `add_weighted_adapter`",
        agrees(*(error <= RIGHT for error in errors)),
        f"error of ΔW: {' to '.join(dict.fromkeys(percent(x) for x in (min(errors), max(errors))))} of the sum's norm",
        f"`tests/peft/test_merging.py`, and PEFT in `tests/oracles/test_merging_oracles.py`; {STUDY.format('merging')}",
        note=f"With the combination type `cat`, the error of ΔW is at most {rounding:.0e} of the sum's norm. Each combination "
        "type is used with its own best scale. The held-out losses of the model tiny on code and on the lighthouse "
        "keeper's answers are "
        f"added. The sum is {mean(sums['linear'], 'sum'):.2f} nats per byte with `linear` and {mean(sums['cat'], 'sum'):.2f} nats "
        f"per byte with `cat`. {compared}",
    )


def mixed_batch(step: Table) -> Claim:
    """Return the claim about the cost of a batch in which each row has its own adapter."""
    found, notes = [], []
    for model in dict.fromkeys(row["model"] for row in step.rows):
        row = {row["competitor"]: row for row in step.where(model=model)}
        ours, theirs, label = row["ours, each"], row.get("PEFT, each"), model_in_text(model)
        sentence = f"On {label}, a decode step of {step.settings['rows']} rows with one adapter per row takes "
        sentence += f"{ours['to_one']:.2f} times the time of a decode step with one adapter for all rows."
        found.append(Finding(f"serving.{model.split('-')[0]}.each", ours["to_one"], sentence, "×", form=".2f"))
        if theirs:
            notes.append(
                f"On {label}, PEFT's decode step with one adapter per row takes {theirs['to_one']:.1f} times the time of PEFT's "
                f"decode step with one adapter for all rows. This library needs less time for the step with one adapter per row: "
                f"PEFT takes {theirs['to_ours']:.1f} times as long on {label}."
            )
    return Claim(
        "A batch whose rows have different adapters costs as much as a batch with one adapter",
        "Chen et al. 2023, Punica",
        agrees(*(f.value < ALIKE for f in found)),
        f"{' and '.join(f'{f.number}×' for f in found)} one adapter's time, {step.settings['rows']} rows",
        STUDY.format("serving"),
        tuple(found),
        " ".join([*(f.sentence for f in found), *notes]),
    )


def thousands(table: Table) -> Claim:
    """Return the claim about the memory of 1,000 adapters, checked with the largest number of adapters that was measured."""
    many = table.where(adapters=max(row["adapters"] for row in table.rows))
    row = next(row for row in many if row["workload"] == "distinct")
    n, r, peft = row["adapters"], table.settings["r"], [each["peft_ratio"] for each in many if each.get("peft_ratio")]
    ours, merged = f"{row['bytes'] / 1e6:.0f} MB", f"{row['merged_bytes'] / 1e9:.2f} GB"
    base = model_in_text(table.settings["model"])
    sentence = (
        f"{n:,} adapters with r = {r} and one base, {base}, need {ours} of memory. {n:,} merged copies of {base} need "
    )
    sentence += f"{merged}."
    memory = Finding("serving.memory", row["merged_bytes"] / row["bytes"], sentence, "× less memory", form=".0f")
    return Claim(
        f"{MANY:,} adapters can be served from one base, with less memory than {MANY:,} merged models",
        "Sheng et al. 2023, S-LoRA: thousands of adapters",
        agrees(row["bytes"] < row["merged_bytes"] if n >= MANY else None),
        f"{n:,} adapters: {ours}; merged models: {merged}",
        STUDY.format("serving"),
        (memory,),
        f"{sentence} One adapter has {row['adapter_bytes']:,} bytes. Each row of the measured batches has its own adapter. A "
        f"decode step with merged models takes {row['merged_ratio']:.1f} times the time of a decode step with adapters on one base."
        + (
            f" PEFT's decode step of mixed batches takes {min(peft):.1f} to {max(peft):.1f} times the time of this "
            "library's decode step."
            if peft
            else ""
        ),
    )
