"""Keep `python -m lora_np` from importing files of the current folder, for example a student's file named numpy.py.

Python puts the current folder in front of `sys.path` for every `python -m`. This file cannot protect Python's own
modules that are imported before this file. Python's option -P protects these modules too.
"""

from __future__ import annotations

import os
import re
import sys

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_the_command() -> bool:
    """Return True while Python imports lora_np for `python -m lora_np`, `python -mlora_np` or `python -Bm lora_np`."""
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)]  # then come the arguments of the command, as in sys.argv
    return re.fullmatch(r"(-[a-zA-Z]*m)?lora_np(\..*)?", module) is not None


if is_the_command() and sys.path[0] != PACKAGES and not sys.flags.safe_path:
    del sys.path[0]
