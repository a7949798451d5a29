"""A file below tests/ as a module, where there is nothing to import: the mutants run the suite's own tests."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parents[1]


@cache
def by_path(path: str) -> ModuleType:
    """tests/`path`, executed once."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec and spec.loader, path
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module
