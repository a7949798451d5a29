"""How much memory does fine-tuning need? The memory of a training step is computed in parts, for published models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ... import costs
from ...peft import LoraConfig
from ..harness.table import Table

LLAMA_2 = ("llama-2-7b", "llama-2-13b", "llama-2-70b")
METHODS = {
    "full": (False, None),
    "lora": (True, None),
    "qlora": (True, "nf4"),
}  # method → (has an adapter, quantisation of the base)
CARDS = (24, 48, 80)  # memory of common GPUs, in GB


def memory_bill(
    models: Sequence[str] = LLAMA_2,
    r: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
    batch: int = 1,
    seq: int = 512,
    precision: str = "mixed",
) -> Table:
    """Compute the memory of each model in full fine-tuning, LoRA and QLoRA, with and without gradient checkpointing.

    The columns are `model`, `method`, `checkpointing`, `weights`, `adapter`, `gradients`, `optimizer`, `master`,
    `activations`, `temporaries` and `total`; all sizes are in bytes.
    """
    start = time.perf_counter()
    question = "What takes the memory of a training step, and which GPU has enough?"
    settings = {"r": r, "target_modules": target_modules, "batch": batch, "seq": seq, "precision": precision}
    table = Table("memory_bill", question, "python -m lora_np reproduce", settings | {"cards": list(CARDS)})
    step: dict[str, Any] = {"batch": batch, "seq": seq, "precision": precision}
    for method, (adapted, quantize) in METHODS.items():
        config = LoraConfig(r=r, target_modules=target_modules) if adapted else None
        for model in models:
            for on in (True, False):
                bill = costs.memory(model, config, **step, quantize=quantize, checkpointing=on)
                row = {"model": model, "method": method, "checkpointing": on}
                table.rows.append(row | vars(bill) | {"total": bill.total})
    table.seconds = time.perf_counter() - start
    return table
