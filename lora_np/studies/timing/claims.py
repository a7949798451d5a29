"""The claims about the cost of a LoRA step: compared with full fine-tuning, and with PyTorch and PEFT."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.findings import NOISE, Claim, Finding, agrees
from ..harness.table import Table

NEEDED = ("step_cost", "speed")
R = 8


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return two claims about a LoRA step: compared with full fine-tuning on "tiny", and with PEFT on SmolLM2-135M."""
    return [cheaper(tables["step_cost"]), as_fast_as_peft(tables["speed"])]


def cheaper(cost: Table) -> Claim:
    """Return the claim about the time and the memory of a LoRA step on "tiny", compared with a full step."""
    seconds, memory = (
        Finding(
            f"timing.tiny.{key}",
            value,
            f"On the model tiny, a LoRA step with r = {R} takes {value:.2f} times {what}.",
            form=".2f",
        )
        for (key, what), value in zip(
            {
                "seconds": "the time of a full fine-tuning step",
                "peak_bytes": "the memory of a full fine-tuning step (the base's weights are not counted)",
            }.items(),
            ratios(cost),
            strict=True,
        )
    )
    return Claim(
        "A step of LoRA is cheaper than a step of full fine-tuning",
        "Hu et al. 2021, §4.2: 25 % less time on GPT-3",
        agrees(seconds.value < 1 / NOISE, memory.value < 1 / NOISE),
        f"{seconds.number}× the time, {memory.number}× the memory",
        f"`{cost.command}`",
        (seconds, memory),
        f"{seconds.sentence} {memory.sentence} The steps are measured with LoRA on all linear layers. The hidden size of the model "
        f"tiny, 128, is only {128 / R:g} times the rank. A LoRA step counts as cheaper if it takes less than "
        f"{1 / NOISE:.2f} times the time and less than {1 / NOISE:.2f} times the memory of a full fine-tuning step. "
        "The times of two equal steps can differ by 5 %.",
    )


def ratios(cost: Table) -> tuple[float, float]:
    """Return two ratios of a LoRA step (rank R, all linear layers) to a full fine-tuning step: time and memory."""
    full, lora = cost.rows[0], cost.where(r=R, target_modules="all-linear")[0]
    return lora["seconds"] / full["seconds"], lora["peak_bytes"] / full["peak_bytes"]


def as_fast_as_peft(speed: Table) -> Claim:
    """Return the claim about time and memory of a LoRA step on SmolLM2-135M, here and in PyTorch with PEFT."""
    rows = {row["competitor"]: row for row in speed.where(case="smollm2-135m")}
    ours, peft, compiled = rows["ours"], rows["PEFT"], rows.get("PEFT compiled")
    step = Finding(
        "timing.smollm2-135m.step",
        ours["seconds"],
        f"A LoRA step of 2 × 256 tokens on SmolLM2-135M takes {ours['seconds']:.2f} s in this library. The "
        f"products with frozen matrices alone take {ours['floor_share']:.0%} of the time of a LoRA step.".replace(
            "%", " %"
        ),
        "s",
        form=".2f",
    )
    others = [
        Finding(
            f"timing.smollm2-135m.{key}",
            row["ratio"],
            f"For a LoRA step on SmolLM2-135M, {name} takes {row['ratio']:.2f} times as long as this library.",
            form=".2f",
        )
        for key, name, row in (
            ("peft", "PyTorch with PEFT", peft),
            ("peft_compiled", "PyTorch with PEFT and torch.compile", compiled),
        )
        if row
    ]
    memory = Finding(
        "timing.smollm2-135m.memory",
        ours["peak_bytes"] / peft["peak_bytes"],
        f"For a LoRA step on SmolLM2-135M, this library's peak memory is {ours['peak_bytes'] / peft['peak_bytes']:.2f} times "
        "the peak memory of PyTorch with PEFT. Both memories include the libraries and the weights.",
        form=".2f",
    )
    return Claim(
        "A LoRA step in NumPy, with gradients by hand, is as fast as a LoRA step in PyTorch with PEFT",
        "this project",
        agrees(*(other.value >= 1 / NOISE for other in others)),
        f"PEFT: {peft['ratio']:.2f}× the time" + (f", compiled: {compiled['ratio']:.2f}×" if compiled else ""),
        f"`python -m lora_np bench`; {speed.settings['threads']} threads of {speed.settings['processor']}",
        (step, *others, memory),
    )
