"""python -m lora_np bench: what a training step costs."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "what a training step costs: seconds and peak memory, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, default=None, help="write the table there too")


def run(arguments: argparse.Namespace) -> None:
    from ..studies.step_cost import step_cost

    table = step_cost()
    print(f"One training step on tiny, {table.settings['batch_size']} × {table.settings['seq_len']} tokens, AdamW")
    print(f"{'':24}{'trainable':>12}{'seconds':>10}{'peak MB':>10}{'time':>8}{'memory':>8}")
    full = table.rows[0]
    for row in table.rows:
        name = "full fine-tuning" if row["method"] == "full" else f"LoRA r={row['r']} {row['target_modules']}"
        ratios = f"{row['seconds'] / full['seconds']:8.2f}{row['peak_bytes'] / full['peak_bytes']:8.2f}"
        print(f"{name:24}{row['trainable']:12,}{row['seconds']:10.4f}{row['peak_bytes'] / 1e6:10.1f}{ratios}")
    if arguments.json:
        table.save(arguments.json)
