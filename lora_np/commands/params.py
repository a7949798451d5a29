"""python -m lora_np params: calculate parameter counts."""

from __future__ import annotations

import argparse

from .on_paper import add_settings, settings

HELP = "count the parameters of a published model and its adapter"
USAGE = "--model MODEL [options]"
DESCRIPTION = """Calculate the parameter counts of a published model and its adapter.

The counts are exact. The command downloads nothing.

examples:
  python -m lora_np params --model llama-2-7b --r 16 --target-modules all-linear
  python -m lora_np params --model gpt-2 --method houlsby --bottleneck-size 64"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..costs import report

    print(report(arguments.model, **settings(arguments)))
