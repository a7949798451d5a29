"""Mutants: a wrong version of a function, and the test of this suite that must fail on it."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True)
class Mutant:
    function: Callable
    right: str
    wrong: str
    caught_by: Callable
    arguments: dict


def mutated(function: Callable, right: str, wrong: str) -> CodeType:
    """The function's code with `right` replaced by `wrong`. `right` must occur exactly once in its source."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, (
        f"{function.__qualname__} holds {right!r} {source.count(right)} times: mend the mutant"
    )
    namespace: dict = {}
    exec(compile(source.replace(right, wrong), "<mutant>", "exec"), vars(sys.modules[function.__module__]), namespace)
    return namespace[function.__name__].__code__
