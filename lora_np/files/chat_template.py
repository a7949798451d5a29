"""Render a chat template with limits on work, memory and time. A template comes with a model and is a Jinja program.

Jinja's sandbox protects Python's internals, but it does not limit time and memory. A template can loop for years, or
write `'x' * 10**9`. Here each step of a template costs work units from a budget (template_budget.py).

`{% generation %}` and `{% endgeneration %}` enclose the text of an answer, as in transformers. `render_with_answers`
returns the positions of this text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache, wraps
from typing import Any

from ..optional import extra
from .template_budget import BUDGET, STEP, Budget, LimitExceeded, as_text, method_cost, percent_cost, size_of, spend

with extra("models", "a chat template"):
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension
    from jinja2.nodes import Call, CallBlock, Concat, EnvironmentAttribute, For, Getitem, Node, Slice, Tuple
    from jinja2.parser import Parser
    from jinja2.runtime import Namespace
    from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 50_000  # characters of a template; published templates have up to 20,000
BITS = 10_000  # largest number of bits in the operands of an integer operation

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


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Return the text of a conversation.

    `variables` are available to the template in addition to `messages`. Raises ValueError if the template is too long,
    exceeds its budget, or raises an error of any type.
    """
    return render_with_answers(template, messages, **variables)[0]


def render_with_answers(
    template: str, messages: Sequence[Mapping[str, Any]], **variables: Any
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and the start and end of each part that the template marks as an answer.

    The parts are sorted and do not overlap. `render` has the same arguments and raises the same errors.
    """
    if len(template) > LONGEST:
        raise ValueError(f"the chat template has {len(template)} characters; at most {LONGEST} are supported")
    budget = Budget(size_of(messages, 1, limit=None))
    token = BUDGET.set(budget)
    try:
        parts = []
        for part in _compiled(template).generate(messages=messages, **variables):
            spend(len(part))
            parts.append(part)
            budget.written += len(part)
        text = "".join(parts)
        text.encode("utf-8")  # half a surrogate pair raises UnicodeEncodeError
        return text, _united(budget.answers, len(text))
    except Exception as error:
        raise ValueError(f"{str(error) or type(error).__name__:.400}") from None
    finally:
        BUDGET.reset(token)


def _united(spans: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Unite spans that overlap or touch. Spans can overlap, because macros and blocks may mark text that is written
    later, or not at all."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            begin, before = found.pop()
            first, last = begin, max(last, before)
        found.append((first, last))
    return [(first, min(last, end)) for first, last in found if first < end]


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@cache
def _environment() -> Environment:
    extensions = ["jinja2.ext.loopcontrols", AnswerMarks]
    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=as_text)


def raise_exception(message: str) -> None:
    """The function `raise_exception` that a template can call: raise ValueError with `message`."""
    raise ValueError(message)


def strftime_now(form: str) -> str:
    """The function `strftime_now` that a template can call: return the local date and time in the format `form`."""
    spend(256 * len(form))  # the largest length of a result in CPython
    return datetime.now().strftime(form)


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson` of transformers, which does not escape HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class AnswerMarks(Extension):
    """The tags `{% generation %}` and `{% endgeneration %}`, which mark the text between them as an answer."""

    tags = {"generation"}  # noqa: RUF012, Jinja's attribute

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        text, budget = caller(), BUDGET.get()
        if text:
            budget.answers.append((budget.written, budget.written + len(text)))
        return text


# --------------------------------------------------------------------------------------------------------------- costs


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a filter; each call also spends work units."""
    first = int(hasattr(function, "jinja_pass_arg"))  # the position of the operand; the context comes before it

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        before, value, rest = args[:first], args[first], [*args[first + 1 :], *kwargs.values()]
        if name in ("join", "list"):
            spend(2 * STEP * len(value) if isinstance(value, str) else 0)
            value = list(value)
        spend(STEP + (0 if name in NOT_AS_TEXT else size_of(value, share=1)))
        if name == "join":
            spend(len(value) * size_of([*rest], share=1))
        elif name in WIDE:
            spend((size_of(value, share=1) + 1) * sum(abs(x) if isinstance(x, int) else size_of([x], 1) for x in rest))
        elif name == "replace":
            old, new, *_ = map(as_text, [*rest, "", ""])
            spend(as_text(value).count(old) * len(new))
        elif name == "format":
            spend(percent_cost(as_text(value), rest))
        elif name == "sum" and not all(isinstance(x, int | float | str | None) for x in rest):
            raise LimitExceeded("the filter `sum` adds only numbers")
        result = function(*before, value, *args[first + 1 :], **kwargs)
        if name not in EXISTING:
            spend(size_of(result))
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
    """Jinja's `namespace()`, but its text does not contain its attributes. If two namespaces contained each other, a
    text with the attributes would never end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Generator(CodeGenerator):
    """Compile a template. Operations that Jinja does not pass through the environment also cost work units."""

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
    """Jinja's sandbox, in which each operation spends work units."""

    code_generator_class = Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    counted = Counted

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        self.globals["namespace"] = OpaqueNamespace
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
        texts = [as_text(x) for x in values]
        spend(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def made(value: Any) -> Any:
        """Spend work units for a new string or container, and return it."""
        spend(STEP + size_of(value))
        return value

    @staticmethod
    def stepped(value: Any) -> Any:
        """Spend one work unit for a comparison, a test or an element, and return its value."""
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
        spend(STEP + method_cost(__obj, [*args, *kwargs.values()]))
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(owner, Mapping):  # the methods of a dictionary return an existing object
            spend(size_of(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend(STEP)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if bits > BITS or (operator == "**" and left.bit_length() * abs(right) > BITS):
                raise LimitExceeded(f"the template computes with integers of more than {BITS} bits")
        elif operator == "*":
            for x, times in ((left, right), (right, left)):
                spend(size_of(x) * max(0, times) if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str):
            spend(percent_cost(left, right))
        result = super().call_binop(context, operator, left, right)
        spend(size_of(result))
        return result
