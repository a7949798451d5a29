"""python -m lora_np memory: the bytes of a training step, on paper."""

from __future__ import annotations

import argparse

from ..ledger import METHODS, MODELS, PRECISIONS
from .params import target_modules

HELP = "the memory that training a published model takes, on paper"
CARDS = (24, 48, 80)  # GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(MODELS)
    parser.add_argument("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--method", choices=METHODS, default="lora", help="%(choices)s (default lora)")
    parser.add_argument("--r", type=int, help="the rank (default 8)")
    parser.add_argument(
        "--target-modules", help="all-linear (default), names with commas between, or a regular expression"
    )
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
        default=True,
        help="quantise the scales of NF4 too, for qlora (the default)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..ledger import count, memory

    r, targets = arguments.r, arguments.target_modules and target_modules(arguments.target_modules)
    if arguments.method != "full":
        r, targets = 8 if r is None else r, targets or "all-linear"
    needed = memory(
        arguments.model,
        arguments.batch,
        arguments.seq,
        arguments.method,
        r,
        targets,
        precision=arguments.precision,
        double_quant=arguments.double_quant,
        checkpointing=arguments.checkpointing,
    )
    parts = [
        arguments.model,
        arguments.method,
        *([f"r = {r}"] if r else []),
        f"{arguments.batch} × {arguments.seq} tokens",
    ]
    parts += [arguments.precision, f"gradient checkpointing {'on' if arguments.checkpointing else 'off'}"]
    print(", ".join(parts), count(arguments.model, r, targets, "full" if r is None else "lora"), sep="\n", end="\n\n")
    print(needed, end="\n\n")
    for card in CARDS:
        print(f"{card:>3} GB: {'fits' if needed.fits(card) else 'does not fit'}")
