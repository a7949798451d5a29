"""python -m lora_np pretrain: "tiny" again, from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = 'train the embedded base "tiny" again, from nothing'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("runs/tiny"), help="a folder (default runs/tiny); resumes there"
    )
    parser.add_argument("--steps", type=int, default=None, help="fewer steps, for a look")


def run(arguments: argparse.Namespace) -> None:
    from ..studies.pretraining.study import pretrain

    pretrain(arguments.output, **({} if arguments.steps is None else {"steps": arguments.steps}))
    print((arguments.output / "README.md").read_text(encoding="utf-8"))
