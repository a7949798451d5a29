"""python -m lora_np memory: the bytes of a training step, on paper."""

from __future__ import annotations

import argparse

from ..costs import PRECISIONS
from .on_paper import add_settings, settings, sizes

HELP = "the memory that training a published model takes, on paper"
CARDS = (24, 48, 80)  # GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--seq", type=int, default=512, help="tokens in a sequence (default 512)")
    parser.add_argument("--batch", type=int, default=1, help="sequences in a step (default 1)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="16-bit",
        help="float32; mixed, 16 bits with a float32 master copy; 16-bit, without one (default)",
    )
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep of each block its input alone, and run it again for its backward (the default)",
    )
    parser.add_argument(
        "--double-quant",
        action=argparse.BooleanOptionalAction,
        help="quantise the scales of a quantised base too (the default)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..costs import count, memory

    how = settings(arguments)
    needed = memory(
        arguments.model,
        **how,
        batch=arguments.batch,
        seq=arguments.seq,
        precision=arguments.precision,
        double_quant=arguments.double_quant,
        checkpointing=arguments.checkpointing,
    )
    parts = [arguments.model, *sizes(arguments, how["config"])]
    parts += [f"{arguments.batch} × {arguments.seq} tokens", arguments.precision]
    parts += [f"gradient checkpointing {'on' if arguments.checkpointing else 'off'}"]
    print(", ".join(parts), count(arguments.model, how["config"]), sep="\n", end="\n\n")
    print(needed, end="\n\n")
    for card in CARDS:
        print(f"{card:>3} GB: {'fits' if needed.fits(card) else 'does not fit'}")
