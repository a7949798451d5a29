"""python -m lora_np reproduce: the main job."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train on real text, draw every figure, run the notebooks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="the settings of the committed figures (hours, resumable)")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where pictures and tables go")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="the notebooks to run")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each (default 2)")


def run(arguments: argparse.Namespace) -> None:
    from ..report.reproduce import reproduce

    reproduce(arguments.full, arguments.figures, arguments.notebooks, arguments.workers)
