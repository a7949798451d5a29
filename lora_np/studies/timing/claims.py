"""The claims about the cost of a LoRA step: beside full fine-tuning here, and beside PyTorch with PEFT."""

from __future__ import annotations

from ..harness.table import Claim, Table

NEEDED = ("step_cost", "speed")
R = 8


def beside_full(cost: Table) -> Claim:
    """On "tiny", in NumPy."""
    return (
        "A step of LoRA is cheaper",
        "Hu et al. 2021, §4.2 (25 % less time on GPT-3)",
        f"on tiny, r = {R}, all linear layers: {ratios(cost)}; d = 128 is only {128 / R:g} r",
        "`python -m lora_np bench`",
    )


def ratios(cost: Table) -> str:
    """How many times full fine-tuning's time and memory LoRA of rank R in all linear layers takes."""
    full, lora = cost.rows[0], cost.where(r=R, target_modules="all-linear")[0]
    time, memory = (lora[key] / full[key] for key in ("seconds", "peak_bytes"))
    return f"{time:.2f}× the time, {memory:.2f}× the memory"


def beside_peft(speed: Table) -> Claim:
    """On SmolLM2-135M, with every thread of a processor."""
    side = {row["side"]: row for row in speed.where(case="smollm2-135m")}
    ours, peft, compiled = side["ours"], side["PEFT"], side.get("PEFT compiled")
    return (
        "A LoRA step by hand in NumPy, beside PyTorch with PEFT",
        "this project",
        f"a LoRA step of 2 × 256 tokens on SmolLM2-135M takes {ours['seconds']:.2f} s here, in PEFT {peft['ratio']:.2f}× as long"
        + (f", compiled {compiled['ratio']:.2f}×" if compiled else "")
        + f"; {ours['floor_share']:.0%} of it are the frozen products; peak memory "
        f"{ours['peak_bytes'] / peft['peak_bytes']:.2f}× PEFT's, libraries and weights included",
        f"`python -m lora_np bench`; {speed.settings['threads']} threads of {speed.settings['processor']}",
    )
