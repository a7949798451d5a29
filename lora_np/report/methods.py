"""The page docs/methods.md: the methods of the registry, from what each says of itself."""

from __future__ import annotations

import sys
from pathlib import Path

from ..costs import count
from ..peft.method import Method
from ..peft.registry import METHODS

PAGE = Path("docs/methods.md")
HEAD = """# The methods

`get_peft_model(model, config)` takes any of these configurations. Each method is one file in `lora_np/peft/` (LoRA is a
folder) and one line of `lora_np/peft/registry.py`. This page is written by `python -m lora_np.report.methods`;
[CONTRIBUTING](../CONTRIBUTING.md#a-method) shows how to add a method.

The last column counts the parameters that train in Llama-2-7B with the method's defaults.

| method | configuration | `train --method` | merged into W | rows mix in a batch | trained in Llama-2-7B |
|---|---|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    return HEAD + "".join(map(row, METHODS))


def row(method: Method) -> str:
    """One line of the table."""
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
    PAGE.write_text(page(), encoding="utf-8")
