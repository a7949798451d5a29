"""How many parameters does LoRA train? The study counts LoRA's parameters for one matrix and for whole models."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ... import LoraConfig, costs
from ..harness.table import Table

COMMAND = "python -m lora_np reproduce"


def one_matrix(size: int = 4096, ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Table:
    """Count the parameters of a square matrix W (size, size) and of LoRA on W: size² and 2·r·size parameters.

    The columns are `r`, `full`, `lora`, `factor` and `share` with factor = full / lora and share = lora / full.
    """
    start = time.perf_counter()
    question = f"How many parameters does LoRA train in place of one {size} × {size} matrix?"
    table = Table("parameters_one_matrix", question, COMMAND, {"size": size, "ranks": list(ranks)})
    full = size * size
    for r in ranks:
        lora = costs.lora_parameters(size, size, r)
        table.rows.append({"r": r, "full": full, "lora": lora, "factor": full / lora, "share": lora / full})
    table.seconds = time.perf_counter() - start
    return table


def whole_models(query_value_r: int = 8, all_linear_r: int = 16) -> Table:
    """Count LoRA's parameters in each model of `costs.MODELS`: on queries and values only, and on all linear layers.

    The columns are `model`, `total`, `targets`, `r`, `trainable` and `share`. `total` is the number of parameters
    without the adapter. `share` is trainable / (total + trainable), as in PEFT.
    """
    start = time.perf_counter()
    settings = {"query_value_r": query_value_r, "all_linear_r": all_linear_r}
    table = Table("parameters_whole_models", "What share of a whole model does LoRA train?", COMMAND, settings)
    for model in costs.MODELS:
        for target_modules, r in ((query_value(model), query_value_r), ("all-linear", all_linear_r)):
            counted = costs.count(model, LoraConfig(r=r, target_modules=target_modules))
            targets = target_modules if isinstance(target_modules, str) else ", ".join(target_modules)
            row = {"model": model, "total": counted.base, "targets": targets, "r": r}
            table.rows.append(row | {"trainable": counted.trainable, "share": counted.share})
    table.seconds = time.perf_counter() - start
    return table


def query_value(model: str) -> list[str]:
    """Return the names of the layers for queries and values. In GPT-2, one layer computes queries, keys and values."""
    return ["c_attn"] if model == "gpt-2" else ["q_proj", "v_proj"]
