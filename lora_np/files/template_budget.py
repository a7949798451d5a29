"""The budget of one rendering of a chat template: limits on work, memory and time.

Each step of a template costs work units from a budget:

    one iteration, call, filter          STEP units
    a new string                         1 unit per character
    a new list, tuple or dictionary      STEP units per element, and 1/16 unit per character of its strings; an
                                         object that occurs twice counts twice

If the result of an operation can be much larger than its operands (`*`, `replace`, `join`, widths of formats), the work
units for the result are spent before the operation runs. So the budget also limits memory, and no single operation
takes long. Whenever work units are spent, the processor time of this thread is compared with the time limit. Processor
time does not depend on the load of the machine, and it is available in every thread.

A template runs in Python, so it holds Python's lock (GIL) and delays all other threads, such as the server's engine. Outside
the main thread, a rendering therefore sleeps for a short time after each millisecond of processor time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import ItemsView, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from time import sleep, thread_time
from typing import Any

WORK = 10_000_000  # units; each unit of the conversation adds INPUT_WORK units
INPUT_WORK = 32
SECONDS = 1.0  # of processor time; each million units of the conversation adds one second
BEFORE_PAUSE, PAUSE = 0.001, 0.001  # seconds of processor time between two pauses, and seconds of a pause
STEP = 16
LONGEST_FORMAT = 10_000  # characters of the left operand of `%` and of `format`


class LimitExceeded(Exception):
    """The template needs more than its budget."""


class Budget:
    """The work units and the processor time that are left to one rendering, and the answers that it has marked so far."""

    def __init__(self, conversation: int) -> None:
        self.left = WORK + INPUT_WORK * conversation
        self.seconds = SECONDS + conversation / 1e6
        now = thread_time()
        self.end = now + self.seconds
        self.pause = float("inf") if threading.current_thread() is threading.main_thread() else now + BEFORE_PAUSE
        self.written = 0  # characters
        self.answers: list[tuple[int, int]] = []  # the first character of each answer, and the character after the last

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise LimitExceeded(
                "the template needs more work or memory than allowed, because it loops or writes too much"
            )
        now = thread_time()
        if now > self.end:
            raise LimitExceeded(f"the template needs more than {self.seconds:.1f} s of processor time")
        if now > self.pause:
            sleep(PAUSE)
            self.pause = now + BEFORE_PAUSE


BUDGET: ContextVar[Budget] = ContextVar("budget")


def spend(units: int) -> None:
    BUDGET.get().spend(units)


def size_of(value: Any, share: int = STEP, limit: int | None = -1) -> int:
    """Return the cost of a value. A character of a string in a container costs 1/share work units.

    Raises LimitExceeded as soon as the cost is above `limit` (by default, the units that are left). So the count ends
    early for a value with many references to one list.
    """
    if isinstance(value, str):
        return len(value)
    found, todo = 0, [value]
    limit = BUDGET.get().left if limit == -1 else limit
    while todo:
        x = todo.pop()
        found += STEP + (len(x) // share if isinstance(x, str) else 0)
        if isinstance(x, Mapping):
            todo += [*x.keys(), *x.values()]
        elif isinstance(x, list | tuple | KeysView | ValuesView | ItemsView):
            todo += x
        if limit is not None and found + STEP * len(todo) > limit:
            raise LimitExceeded("the template needs more memory than allowed")
    return found


def as_text(value: Any) -> str:
    """Return str(value). If the value is not a string, the work units for its text are spent before the text is
    made."""
    if not isinstance(value, str):
        spend(size_of(value, share=1))
    return str(value)


def method_cost(method: Any, args: Sequence[Any]) -> int:
    """Return the cost of calling a string's method. The cost covers the result and the time of the method."""
    method = getattr(method, "__wrapped__", method)  # the sandbox wraps `format`
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return 0
    lengths = [len(x) for x in args if isinstance(x, str)]
    if name in ("format", "format_map"):
        return format_cost(text, "{", r":[^}]*(\{|\d{4})", args)
    if name == "replace" and len(lengths) == 2:
        return len(text) + text.count(args[0]) * lengths[1]
    if name == "join" and args:
        return size_of(args[0], share=1) + len(text) * len(args[0])
    if name in ("split", "rsplit", "splitlines"):
        pieces = text.count(next(x for x in args if isinstance(x, str))) if lengths and all(lengths) else len(text) // 2
        return STEP * pieces + (len(text) * sum(lengths) // 64 if name == "rsplit" else 0)
    if name.startswith("r") or "strip" in name:  # these methods take up to len · len steps
        return len(text) * sum(lengths) // 64
    return len(text)


def format_cost(form: str, field: str, wide: str, args: Any) -> int:
    if len(form) > LONGEST_FORMAT or re.search(wide, form):
        raise LimitExceeded(f"the format string {form!r:.40} is too long, or has a width above 999")
    return len(form) + (1 + form.count(field)) * (1000 + size_of([args], share=1))


def percent_cost(form: str, args: Any) -> int:
    return format_cost(form, "%", r"\*|\d{4}", args)
