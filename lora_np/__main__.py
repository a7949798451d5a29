"""python -m lora_np …: the main jobs from a terminal; each is a file in commands/."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from .optional import MissingExtra

COMMANDS = (
    "reproduce",
    "study",
    "fetch",
    "train",
    "generate",
    "serve",
    "params",
    "memory",
    "pretrain",
    "bench",
    "exercises",
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, or what it returns; 1 with one line that says what was wrong."""
    for stream in (sys.stdout, sys.stderr):  # ΔW, → and × go out as UTF-8, also into a pipe on Windows
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError, MissingExtra) as error:
        print(
            f"lora_np {arguments.command}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"lora_np {arguments.command}: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lora_np", description="LoRA from scratch in NumPy and CuPy")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f".commands.{name}", __package__)
        one = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
