"""python -m lora_np pretrain: train the model "tiny" from random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files import lock
from .help_page import check_folder
from .run_folder import LOCK

HELP = 'train the model "tiny" of this package again, from random weights'
USAGE = "[--output FOLDER] [--steps N]"
DESCRIPTION = """Train the model "tiny" of this package again, from random weights.

Ctrl-C saves the state and stops. Start the command again to continue.

examples:
  python -m lora_np pretrain                 # the model in this package
  python -m lora_np pretrain --steps 100     # a short trial"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options")
    group.add_argument(
        "--output",
        type=Path,
        default=Path("runs/tiny"),
        metavar="FOLDER",
        help="folder for the checkpoint and the model (default %(default)s)",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="number of steps (default: as many as for the model in this package)"
    )


def run(arguments: argparse.Namespace) -> None:
    from ..studies.pretraining.study import pretrain
    from ..training.interrupts import sigterm_as_ctrl_c

    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps {arguments.steps}; expected at least 1")
    check_folder(arguments.output)
    with lock(arguments.output / LOCK), sigterm_as_ctrl_c():
        pretrain(arguments.output, **({} if arguments.steps is None else {"steps": arguments.steps}))
    print((arguments.output / "README.md").read_text(encoding="utf-8"))
