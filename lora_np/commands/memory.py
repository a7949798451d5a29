"""python -m lora_np memory: calculate the memory of a training step."""

from __future__ import annotations

import argparse
from typing import Any

from ..costs import PRECISIONS
from .on_paper import add_settings, settings, sizes

HELP = "calculate the memory that training a published model takes"
USAGE = "--model MODEL [options]"
DESCRIPTION = """Calculate the memory that training a published model takes, in GB (10⁹ bytes).

The sum shows whether training fits on a GPU with 24, 48 or 80 GB. The command
downloads nothing and runs no model.

examples:
  python -m lora_np memory --model llama-65b --method qlora --r 16 --seq 512
  python -m lora_np memory --model llama-2-7b --method full --precision mixed"""
CARDS = (24, 48, 80)  # GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, _add_training)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument_group("training step").add_argument
    add("--seq", type=int, default=512, metavar="N", help="number of tokens per sequence (default %(default)s)")
    add("--batch", type=int, default=1, metavar="N", help="number of sequences per step (default %(default)s)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="16-bit",
        help="float32: all values in 32 bits; mixed: 16 bits with a float32 master copy of the trained weights; "
        "16-bit: 16 bits without a master copy (default %(default)s)",
    )
    add(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="gradient checkpointing: keep only the input of each block, and compute the block again in the backward "
        "pass (default: on)",
    )
    add(
        "--double-quant",
        action=argparse.BooleanOptionalAction,
        help="double quantisation: quantise the scales of a 4-bit base model too (default: on)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..costs import count, memory

    for name in ("seq", "batch"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}; expected at least 1")
    chosen = settings(arguments)
    if arguments.double_quant is not None and chosen["quantize"] is None:
        option = "--double-quant" if arguments.double_quant else "--no-double-quant"
        raise ValueError(f"{option} needs a quantised base model; add --quantize nf4, or leave out {option}")
    needed = memory(
        arguments.model,
        **chosen,
        batch=arguments.batch,
        seq=arguments.seq,
        precision=arguments.precision,
        double_quant=arguments.double_quant,
        checkpointing=arguments.checkpointing,
    )
    parts = [arguments.model, *sizes(arguments, chosen["config"])]
    parts += [f"{arguments.batch} × {arguments.seq} tokens", arguments.precision]
    parts += [f"gradient checkpointing {'on' if arguments.checkpointing else 'off'}"]
    print(", ".join(parts), count(arguments.model, chosen["config"]), sep="\n", end="\n\n")
    print(needed, end="\n\n")
    for card in CARDS:
        print(f"{card:>3} GB: {'fits' if needed.fits(card) else 'does not fit'}")
