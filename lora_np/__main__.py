"""The command line, `python -m lora_np COMMAND`. Each command is a file in commands/."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

from .commands.help_page import HelpPage, add_help
from .commands.settings_file import use_file
from .optional import MissingExtra
from .terminal import visible_output

COMMANDS = {  # the sections of the help page, and their commands
    "learn": ("notebooks", "exercises"),
    "load and train models": ("fetch", "convert", "train", "pretrain"),
    "use a model": ("generate", "serve"),
    "calculate before training": ("params", "memory"),
    "measure": ("study", "bench", "reproduce"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command, print an error as one line, and return the exit status: 0 after success, 1 after an error."""
    for stream in (sys.stdout, sys.stderr):  # print ΔW, → and × as UTF-8, also into a pipe on Windows
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    with visible_output():  # names and texts of other people, also in errors and warnings
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    parser = _parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    arguments = parser.parse_args(argv)
    try:
        if getattr(arguments, "config", None):
            use_file(arguments.parser, arguments)
            arguments = parser.parse_args(argv)  # with the values of the file as defaults
        return arguments.run(arguments) or 0
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError, MissingExtra) as error:
        print(f"lora_np {arguments.command}: {_message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lora_np {arguments.command}: stopped", file=sys.stderr)
        return 130


def _message(error: Exception) -> str:
    if isinstance(error, KeyError):
        return str(error.args[0])  # str(error) would have quotation marks
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"  # without "[Errno 13]"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    commands = {name: import_module(f".commands.{name}", __package__) for names in COMMANDS.values() for name in names}
    parser = argparse.ArgumentParser(
        "python -m lora_np",
        usage="%(prog)s COMMAND [options]",
        description=_overview(commands),
        formatter_class=HelpPage,
        add_help=False,
    )
    # SUPPRESS, because the description already lists the commands
    added = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS
    )
    for name, command in commands.items():
        one = added.add_parser(
            name,
            usage=command.USAGE and f"%(prog)s {command.USAGE}",
            description=f"{command.DESCRIPTION}\n",
            formatter_class=HelpPage,
            add_help=False,
        )
        command.add_arguments(one)
        add_help(one)
        one.set_defaults(run=command.run, parser=one)
    add_help(parser)
    return parser


def _overview(commands: dict[str, Any]) -> str:
    lines = ["LoRA and other adapter methods from scratch, in NumPy and CuPy."]
    for title, names in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<10} {commands[name].HELP}" for name in names)]
    lines += ["", "python -m lora_np COMMAND --help shows the options of a command and an example."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
