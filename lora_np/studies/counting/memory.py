"""What does fine-tuning fit into? Every part of a training step's memory, of published models, on paper."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ... import costs
from ...peft import LoraConfig
from ..harness.table import Table

LLAMA_2 = ("llama-2-7b", "llama-2-13b", "llama-2-70b")
METHODS = {"full": (False, None), "lora": (True, None), "qlora": (True, "nf4")}  # has an adapter; the base in four bits
CARDS = (24, 48, 80)  # GB, as GPUs are sold


def memory_bill(
    models: Sequence[str] = LLAMA_2,
    r: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
    batch: int = 1,
    seq: int = 512,
    precision: str = "mixed",
) -> Table:
    """Each model under full fine-tuning, LoRA and QLoRA, with and without checkpointed activations.

    Rows: model, method, checkpointing, the parts of `costs.Memory` in bytes (weights, adapter, gradients, optimizer, master,
    activations, temporaries), and their total.
    """
    start = time.perf_counter()
    question = "What takes the memory of a training step, and which card does it fit into?"
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
