"""python -m lora_np params: exact parameter counts, on paper."""

from __future__ import annotations

import argparse

from .on_paper import add_settings, settings

HELP = "count a published model's parameters, and its adapter's, on paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(arguments: argparse.Namespace) -> None:
    from ..costs import report

    print(report(arguments.model, **settings(arguments)))
