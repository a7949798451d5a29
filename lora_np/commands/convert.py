"""python -m lora_np convert: write a pickled adapter as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from .help_page import counted

HELP = "write a pickled adapter (.bin) as safetensors"
USAGE = "FILE.bin [--out FILE]"
DESCRIPTION = """Write the tensors of a .bin file of PyTorch as a safetensors file.

Only tensors are read. A file with other objects is refused, and no code in the
file runs.

example:
  python -m lora_np convert keeper/adapter_model.bin   # to safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("file", type=Path, metavar="FILE.bin", help="file that torch.save or PEFT wrote")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: FILE.safetensors in the same folder); an existing file is not replaced",
    )


def run(arguments: argparse.Namespace) -> None:
    from ..files import read_pickled, save_arrays

    out = arguments.out or arguments.file.with_suffix(".safetensors")
    if out.exists():
        raise FileExistsError(f"{out} exists already; delete it, or give another file with --out")
    arrays = read_pickled(arguments.file)
    save_arrays(out, arrays, {"format": "pt"})
    print(f"{out}: {counted(len(arrays), 'tensor')}, {sum(x.size for x in arrays.values()):,} numbers")
