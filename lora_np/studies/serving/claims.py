"""The claims about adapters in use: merged, made one, and many of them on one base."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.table import Claim, Table, model_name
from .merging import OTHERS, SAME

NEEDED = ("merge_latency", "merge_drift", "combinations", "serving", "serving_step")


def merged(latency: Table) -> Claim:
    """For README's table, where it is among the first."""
    merged, unmerged = (
        " and ".join(f"{row['token_ratio']:.2f}× on {model_name(row['model'])}" for row in latency.where(state=state))
        for state in ("merged", "unmerged")
    )
    return (
        "Merged, it computes the same at the base's cost",
        "Hu et al. 2021, §4.1",
        "the same to 1e-5 of the largest logit in float32, as a plain Transformer of the base's shape; a new token "
        f"takes {merged} the base's time, unmerged {unmerged}",
        "`test_merged_equals_unmerged_to_1e_5_in_float32`, `latency` in `lora_np/studies/timing/latency.py`",
    )


def on_adapters(tables: Mapping[str, Table]) -> list[Claim]:
    """The claims that are no matter of training."""
    joined, step, settings = tables["combinations"], tables["serving_step"], tables["serving"].settings
    cat, linear = (joined.where(kind=kind)[0] for kind in ("cat", "linear"))
    rounding = max(row["error"] for row in joined.where(kind="share"))  # of cat, at several weights
    many = tables["serving"].where(adapters=max(row["adapters"] for row in tables["serving"].rows))
    distinct = next(row for row in many if row["workload"] == "distinct")
    peft = [row["peft_ratio"] for row in many if row.get("peft_ratio")]
    dearest = max(row["to_one"] for row in step.where(competitor="ours, each"))
    study = "`lora_np/studies/serving/serving.py`, notebook 08"
    both = {kind: f"{row['code'] + row['voice']:.2f}" for kind, row in (("cat", cat), ("linear", linear))}
    return [
        (
            "Subtracting BA again recovers W",
            "Hu et al. 2021, §4.1",
            "up to the rounding of one merge, which adds up where other adapters take turns: "
            + "; ".join(drifted(tables["merge_drift"], d) for d in ("float32", "float16", "bfloat16")),
            "`drift` in `lora_np/studies/serving/merging.py`, notebook 08",
        ),
        (
            "`linear` makes of two adapters their weighted sum",
            "PEFT, `add_weighted_adapter`",
            f"no: its ΔW is off by {linear['error']:.0%} of the sum's norm, cat's by {rounding:.0e} at most; both held-out "
            f"losses together {both['linear']} nats a byte with linear at its best scale, {both['cat']} with cat",
            "`tests/peft/test_merging.py`, and PEFT in `tests/oracles/test_merging_oracles.py`; "
            "`lora_np/studies/serving/merging.py`",
        ),
        (
            "A batch costs the same whether its rows share an adapter or not",
            "Chen et al. 2023 (Punica)",
            f"{'nearly' if dearest < 1.1 else 'no'}: a decode step of {step.settings['rows']} rows, each on its own, takes "
            + "; ".join(in_a_batch(step, model) for model in dict.fromkeys(row["model"] for row in step.rows)),
            study,
        ),
        (
            "Thousands of adapters can be served from one base",
            "Sheng et al. 2023 (S-LoRA: up to 4× the throughput)",
            f"{distinct['adapters']} adapters of r = {settings['r']} on {settings['model']} take {distinct['bytes'] / 1e6:.0f} MB, "
            f"base and all, {distinct['adapter_bytes']:,} bytes each; as merged models "
            f"{distinct['merged_bytes'] / 1e9:.2f} GB, and where each row has its own, {distinct['merged_ratio']:.1f}× as "
            "long a step" + (f"; PEFT's mixed batch takes {min(peft):.1f} to {max(peft):.1f}× as long" if peft else ""),
            study,
        ),
    ]


def drifted(drift: Table, dtype: str) -> str:
    """What is left in the weight after the most merges and unmerges."""
    (one,), (turns,) = (drift.where(dtype=dtype, adapters=which) for which in (SAME, OTHERS))
    n = turns["cycles"][-1]
    return (
        f"{dtype} after {n} times {one['errors'][-1]:.0e} of ‖W‖ with one adapter, {turns['errors'][-1]:.0e} with "
        f"{drift.settings['of']} in turns"
    )


def in_a_batch(step: Table, model: str) -> str:
    """How many times one adapter's step that of as many adapters as rows takes, here and in PEFT."""
    side = {row["competitor"]: row for row in step.where(model=model)}
    theirs = side.get("PEFT, each")
    said = f"{side['ours, each']['to_one']:.2f}× one adapter's on {model_name(model)}"
    return said + (f" (in PEFT {theirs['to_one']:.1f}×, {theirs['to_ours']:.1f}× as long as here)" if theirs else "")
