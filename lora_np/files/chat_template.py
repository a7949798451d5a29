"""Render a chat template with limits on work, memory and time. A template comes with a model and is a Jinja program.

Jinja's sandbox keeps a template away from Python's internals, but a template can still loop for years, or write
`'x' * 10**9`. Here each step of a template is paid from a budget of work units:

    one iteration, call, filter          STEP units
    a new string                         1 unit per character
    a new list, tuple or dictionary      STEP units per element, and 1/16 unit per character of its strings, where an
                                         object that occurs twice counts twice

If the result of an operation can be much larger than its operands (`*`, `replace`, `join`, widths of formats), the
result is paid before the operation runs. So the budget also limits memory, and no single operation takes long. Each
payment compares the processor time of this thread with the time limit. Processor time does not depend on the load of
the machine, and it is available in every thread.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from functools import cache, lru_cache, wraps
from typing import Any

from ..optional import extra

with extra("models", "a chat template"):
    from jinja2.compiler import CodeGenerator
    from jinja2.nodes import Call, Concat, EnvironmentAttribute, For, Getitem, Node, Slice, Tuple
    from jinja2.runtime import Namespace
    from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 50_000  # characters of a template; published templates have up to 20,000
WORK = 10_000_000  # units, and INPUT_WORK more for each unit of the conversation
INPUT_WORK = 32
SECONDS = 1.0  # of processor time, and one more for each million units of the conversation
STEP = 16
BITS = 10_000  # of the two operands of an integer operation
LONGEST_FORMAT = 10_000  # characters of the left operand of `%` and of `format`

STRING_METHODS = """
    capitalize casefold count endswith find format index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle
    isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split
    splitlines startswith strip swapcase title upper"""
METHODS = {"str": set(STRING_METHODS.split()), "dict": {"get", "items", "keys", "values"}, "list": {"count", "index"}}
REMOVED_FILTERS = ("filesizeformat", "pprint", "striptags", "urlize", "wordcount", "wordwrap", "xmlattr")
# filters that return an existing object, filters that do not write their operand as text, and filters whose arguments set a size
EXISTING = {"attr", "d", "default", "first", "last", "max", "min", "random"}
STRUCTURAL = """
    count dictsort float groupby int items length list map reject rejectattr reverse select selectattr sort unique"""
NOT_AS_TEXT = EXISTING | set(STRUCTURAL.split())
WIDE = {"batch", "center", "indent", "round", "slice", "tojson", "truncate"}


class LimitExceeded(Exception):
    """The template needs more than its budget."""


class Budget:
    """The work units and the processor time that are left to one rendering."""

    def __init__(self, conversation: int) -> None:
        self.left = WORK + INPUT_WORK * conversation
        self.seconds = SECONDS + conversation / 1e6
        self.end = time.thread_time() + self.seconds

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise LimitExceeded("the template needs more work or memory than allowed: it loops, or it writes too much")
        if time.thread_time() > self.end:
            raise LimitExceeded(f"the template needs more than {self.seconds:.1f} s of processor time")


_budget: ContextVar[Budget] = ContextVar("budget")


def spend(units: int) -> None:
    _budget.get().spend(units)


def render(template: str, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
    """Return the text of a conversation.

    `variables` are available to the template beside `messages`. Raises ValueError if the template is too long, exceeds
    its budget, or raises an error: a template is a program and may raise any error.
    """
    if len(template) > LONGEST:
        raise ValueError(f"the chat template has {len(template)} characters; at most {LONGEST} are supported")
    token = _budget.set(Budget(_size(messages, 1, limit=None)))
    try:
        parts = []
        for part in _compiled(template).generate(messages=messages, **variables):
            spend(len(part))
            parts.append(part)
        text = "".join(parts)
        text.encode("utf-8")  # half a surrogate pair raises UnicodeEncodeError
        return text
    except Exception as error:
        raise ValueError(f"{str(error) or type(error).__name__:.400}") from None
    finally:
        _budget.reset(token)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@cache
def _environment() -> Environment:
    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_text)


def raise_exception(message: str) -> None:
    """The function of this name in a template."""
    raise ValueError(message)


def to_json(x: Any, **options: Any) -> str:
    """The filter `tojson` of transformers, which does not escape HTML."""
    return json.dumps(x, ensure_ascii=False, **options)


# --------------------------------------------------------------------------------------------------------------- costs


def _size(value: Any, share: int = STEP, limit: int | None = -1) -> int:
    """Return the cost of a value; a character of a string in a container costs 1/share. Raises LimitExceeded at `limit`,
    by default the units that are left, so that a value with many references to one list is not walked to its end."""
    if isinstance(value, str):
        return len(value)
    found, todo = 0, [value]
    limit = _budget.get().left if limit == -1 else limit
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


def _text(value: Any) -> str:
    """Return str(value), paid before a container is written as text."""
    if not isinstance(value, str):
        spend(_size(value, share=1))
    return str(value)


def _method_cost(method: Any, args: Sequence[Any]) -> int:
    """Return the cost of a call of a string's method, as far as the result may be larger than the string."""
    method = getattr(method, "__wrapped__", method)  # the sandbox wraps `format`
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return 0
    lengths = [len(x) for x in args if isinstance(x, str)]
    if name in ("format", "format_map"):
        return _format_cost(text, "{", r":[^}]*(\{|\d{4})", args)
    if name == "replace" and len(lengths) == 2:
        return len(text) + text.count(args[0]) * lengths[1]
    if name == "join" and args:
        return _size(args[0], share=1) + len(text) * len(args[0])
    if name in ("split", "rsplit", "splitlines"):
        pieces = text.count(next(x for x in args if isinstance(x, str))) if lengths and all(lengths) else len(text) // 2
        return STEP * pieces + (len(text) * sum(lengths) // 64 if name == "rsplit" else 0)
    if name.startswith("r") or "strip" in name:  # these compare in up to len · len steps
        return len(text) * sum(lengths) // 64
    return len(text)


def _format_cost(form: str, field: str, wide: str, args: Any) -> int:
    if len(form) > LONGEST_FORMAT or re.search(wide, form):
        raise LimitExceeded(f"the format {form!r:.40} is too long, or has a width above 999")
    return len(form) + (1 + form.count(field)) * (1000 + _size([args], share=1))


def _percent_cost(form: str, args: Any) -> int:
    return _format_cost(form, "%", r"\*|\d{4}", args)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pays for its result."""
    first = int(hasattr(function, "jinja_pass_arg"))  # the position of the operand; the context comes before it

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = args[:first], args[first], [*args[first + 1 :], *kwargs.values()]
        if name in ("join", "list"):
            spend(2 * STEP * len(value) if isinstance(value, str) else 0)
            value = list(value)
        spend(STEP + (0 if name in NOT_AS_TEXT else _size(value, share=1)))
        if name == "join":
            spend(len(value) * _size([*rest], share=1))
        elif name in WIDE:
            spend((_size(value, share=1) + 1) * sum(abs(x) if isinstance(x, int) else _size([x], 1) for x in rest))
        elif name == "replace":
            old, new, *_ = map(_text, [*rest, "", ""])
            spend(_text(value).count(old) * len(new))
        elif name == "format":
            spend(_percent_cost(_text(value), rest))
        elif name == "sum" and not all(isinstance(x, int | float | str | None) for x in rest):
            raise LimitExceeded("sum adds numbers only")
        result = function(*before, value, *args[first + 1 :], **kwargs)
        if name not in EXISTING:
            spend(_size(result))
        return result

    return limited


# --------------------------------------------------------------------------------------------------------- environment


class Counted:
    """The operand of a `for` loop. Each iteration costs STEP units."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.iterable = iterable

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]  # TypeError, as Jinja expects

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            spend(STEP)
            yield item


class OpaqueNamespace(Namespace):
    """A `namespace()`, which as text does not show its attributes: they may refer to each other."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Generator(CodeGenerator):
    """Compile a template so that operations that Jinja does not pass through the environment are paid too."""

    def _paid(self, function: str, visit: Callable[..., None], node: Node, frame: Any) -> None:
        self.write(f"environment.{function}(")
        visit(node, frame)
        self.write(")")

    def visit(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        spend(1)
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: For, frame: Any) -> None:
        node.iter = Call(EnvironmentAttribute("counted"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: Getitem, frame: Any) -> None:
        paid = "made" if isinstance(node.arg, Slice) else "stepped"
        self._paid(paid, super().visit_Getitem, node, frame)

    def visit_Tuple(self, node: Tuple, frame: Any) -> None:
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
        else:
            self._paid("made", super().visit_Tuple, node, frame)

    def visit_List(self, node: Node, frame: Any) -> None:
        self._paid("made", super().visit_List, node, frame)

    def visit_Dict(self, node: Node, frame: Any) -> None:
        self._paid("made", super().visit_Dict, node, frame)

    def visit_Compare(self, node: Node, frame: Any) -> None:
        self._paid("stepped", super().visit_Compare, node, frame)

    def visit_Test(self, node: Node, frame: Any) -> None:
        self._paid("stepped", super().visit_Test, node, frame)


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a price for each operation."""

    code_generator_class = Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    counted = Counted

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "namespace": OpaqueNamespace}
        self.filters["tojson"] = to_json
        for name in REMOVED_FILTERS:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = _limited_filter(name, function)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of a macro or a block."""
        parts = list(parts)
        spend(sum(map(len, parts)))
        return "".join(parts)

    @staticmethod
    def joined(values: Sequence[Any]) -> str:
        """The operator `~`."""
        texts = [_text(x) for x in values]
        spend(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def made(value: Any) -> Any:
        """Pay for a new string or container."""
        spend(STEP + _size(value))
        return value

    @staticmethod
    def stepped(value: Any) -> Any:
        """Pay for a comparison, a test or an element."""
        spend(1)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | Mapping | list | tuple):
            kind = "str" if isinstance(obj, str) else "dict" if isinstance(obj, Mapping) else "list"
            return attr in METHODS[kind]
        return not isinstance(obj, bytes | int | float) and super().is_safe_attribute(obj, attr, value)

    def call(
        __self, __context: Any, __obj: Any, *args: Any, **kwargs: Any
    ) -> Any:  # Jinja's names: kwargs may have any
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join" and args:
            args = (list(args[0]), *args[1:])
        spend(STEP + _method_cost(__obj, [*args, *kwargs.values()]))
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(owner, Mapping):  # these methods return an existing object
            spend(_size(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend(STEP)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if bits > BITS or (operator == "**" and left.bit_length() * abs(right) > BITS):
                raise LimitExceeded(f"an integer operation with more than {BITS} bits")
        elif operator == "*":
            for x, times in ((left, right), (right, left)):
                spend(_size(x) * max(0, times) if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str):
            spend(_percent_cost(left, right))
        result = super().call_binop(context, operator, left, right)
        spend(_size(result))
        return result
