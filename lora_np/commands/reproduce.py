"""python -m lora_np reproduce: make the tables and pictures again, and execute the notebooks if asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..optional import extra

HELP = "make the tables and pictures again"
USAGE = "[options]"
DESCRIPTION = """Make the tables and pictures again.

Run this command in a clone of the repository. Without --full, the command takes
minutes, uses small settings and writes to figures/quick. Each part draws its
pictures before the next part begins. With --full, the command takes hours, uses
the settings of the committed tables, writes docs/results.md and executes the
notebooks. If --full is stopped, start the command again to continue.

examples:
  python -m lora_np reproduce
  python -m lora_np reproduce --notebooks
  python -m lora_np reproduce --full --workers 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options")
    group.add_argument("--full", action="store_true", help="use the settings of the committed tables (hours)")
    group.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of parallel runs, one core each (default %(default)s)",
    )
    folders = parser.add_argument_group("folders")
    folders.add_argument(
        "--figures",
        type=Path,
        default=Path("figures"),
        metavar="FOLDER",
        help="folder for tables and pictures (default %(default)s)",
    )
    folders.add_argument(
        "--notebooks",
        type=Path,
        nargs="?",
        const=Path("notebooks"),
        metavar="FOLDER",
        help="also execute the notebooks of this folder (if FOLDER is omitted: notebooks)",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..report.reproduce import reproduce

    notebooks = arguments.notebooks or (Path("notebooks") if arguments.full else None)
    with extra("course", "drawing pictures"):  # a missing package is reported now, not after the training runs
        import matplotlib  # noqa: F401
    if notebooks:
        with extra("course", "running a notebook"):
            import jupytext  # noqa: F401
            import nbclient  # noqa: F401
    with extra("studies", "a study of several runs"):
        import joblib  # noqa: F401
        import threadpoolctl  # noqa: F401
    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}; expected at least 1")
    reproduce(arguments.full, arguments.figures, notebooks, arguments.workers)
