"""python -m lora_np params: exact parameter counts, on paper."""

from __future__ import annotations

import argparse

from ..ledger import MODELS

HELP = "count a published model's parameters, and LoRA's, on paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(MODELS)
    parser.add_argument("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--r", type=int, default=8, help="the rank (default 8)")
    parser.add_argument(
        "--target-modules",
        default="all-linear",
        help="all-linear (default), names with commas between, or a regular expression",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..ledger import report

    print(report(arguments.model, arguments.r, target_modules(arguments.target_modules)))


def target_modules(text: str) -> str | list[str]:
    """What a terminal says for LoraConfig's target_modules: a list has commas between its names."""
    return text.split(",") if "," in text else text
