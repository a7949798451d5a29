"""Writes docs/methods.md, the table of all adapter methods in the registry."""

from __future__ import annotations

import sys
from pathlib import Path

from ..costs import count
from ..files import write_text
from ..peft.method import Method
from ..peft.registry import METHODS

PAGE = Path("docs/methods.md")
HEAD = """# The methods

`get_peft_model(model, config)` accepts every configuration in this table. Each method is one file in `lora_np/peft/` (LoRA is a
folder) and one line of `lora_np/peft/registry.py`. The command `python -m lora_np.report.methods` writes this page.
[CONTRIBUTING](../CONTRIBUTING.md#a-method) explains how to add a method.

The column "mergeable" says whether an adapter can be merged into the weight W. The column "mixed batch" says whether rows of
different adapters of this method can share a batch. The last column is the number of trained parameters in Llama-2-7B with the
method's default configuration.

| method | configuration | `train --method` | mergeable | mixed batch | trained in Llama-2-7B |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the text of docs/methods.md."""
    return HEAD + "".join(map(row, METHODS))


def row(method: Method) -> str:
    """Return the line of the table for one method."""
    config = method.config_type()
    try:
        method.check_mixable("", config)
        mixes = "yes"
    except ValueError:
        mixes = "no"
    summary = (sys.modules[method.__module__].__doc__ or "").split("\n")[0].rstrip(".")
    cells = (
        summary,
        f"`{method.config_type.__name__}`",
        ", ".join(f"`{name}`" for name in method.choices),
        "yes" if method.mergeable else "no",
        mixes,
        f"{count('llama-2-7b', config).trainable:,}",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    write_text(PAGE, page())
