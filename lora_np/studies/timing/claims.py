"""The claims about the cost of a LoRA step: compared with full fine-tuning, and with PyTorch and PEFT."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.findings import Claim, Finding, agrees
from ..harness.table import Table

NEEDED = ("step_cost", "speed")
R = 8


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that timing decides: LoRA against full fine-tuning on "tiny", and against PEFT on SmolLM2-135M."""
    return [cheaper(tables["step_cost"]), as_fast_as_peft(tables["speed"])]


def cheaper(cost: Table) -> Claim:
    """The time and the memory of a LoRA step on "tiny", divided by those of a full step."""
    seconds, memory = (
        Finding(f"timing.tiny.{key}", value, f"On tiny, a LoRA step takes {value:.2f} times {what}.", form=".2f")
        for (key, what), value in zip(
            {"seconds": "the time of a full step", "peak_bytes": "the memory of a full step"}.items(),
            ratios(cost),
            strict=True,
        )
    )
    return Claim(
        "A step of LoRA is cheaper",
        "Hu et al. 2021, §4.2: 25 % less time on GPT-3",
        agrees(seconds.value < 1, memory.value < 1),
        f"{seconds.number}× the time, {memory.number}× the memory",
        "`python -m lora_np bench`",
        (seconds, memory),
        f"Measured on tiny with r = {R} on all linear layers, where the hidden size 128 is only {128 / R:g} times the rank.",
    )


def ratios(cost: Table) -> tuple[float, float]:
    """LoRA's time and memory, divided by those of full fine-tuning: rank R on all linear layers."""
    full, lora = cost.rows[0], cost.where(r=R, target_modules="all-linear")[0]
    return lora["seconds"] / full["seconds"], lora["peak_bytes"] / full["peak_bytes"]


def as_fast_as_peft(speed: Table) -> Claim:
    """The seconds and the memory of a LoRA step on SmolLM2-135M here, and the same in PyTorch with PEFT."""
    rows = {row["competitor"]: row for row in speed.where(case="smollm2-135m")}
    ours, peft, compiled = rows["ours"], rows["PEFT"], rows.get("PEFT compiled")
    step = Finding(
        "timing.smollm2-135m.step",
        ours["seconds"],
        f"A LoRA step of 2 × 256 tokens on SmolLM2-135M takes {ours['seconds']:.2f} s here; {ours['floor_share']:.0%} of it "
        "are the frozen matrix products.".replace("%", " %"),
        "s",
        form=".2f",
    )
    others = [
        Finding(
            f"timing.smollm2-135m.{key}", row["ratio"], f"{name} takes {row['ratio']:.2f} times as long.", form=".2f"
        )
        for key, name, row in (("peft", "PEFT", peft), ("peft_compiled", "PEFT with torch.compile", compiled))
        if row
    ]
    memory = Finding(
        "timing.smollm2-135m.memory",
        ours["peak_bytes"] / peft["peak_bytes"],
        f"The peak memory here is {ours['peak_bytes'] / peft['peak_bytes']:.2f} times PEFT's, with libraries and weights.",
        form=".2f",
    )
    return Claim(
        "A LoRA step by hand in NumPy is as fast as PyTorch with PEFT",
        "this project",
        agrees(*(other.value >= 1 for other in others)),
        f"PEFT: {peft['ratio']:.2f}× the time" + (f", compiled: {compiled['ratio']:.2f}×" if compiled else ""),
        f"`python -m lora_np bench`; {speed.settings['threads']} threads of {speed.settings['processor']}",
        (step, *others, memory),
    )
