"""Convert values to JSON, which the grader and the process of a student's program exchange.

Pickle is not used, because reading a message of an untrusted process must not run code. `decode` checks every field, and raises
ValueError, TypeError, KeyError, IndexError, OverflowError or RecursionError if the JSON is not a value.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_MESSAGE = 4 << 20  # bytes of a message
MOST_ARRAY = 1 << 20  # bytes of an array; the largest array of a right answer has 370 kB
MOST_AXES = 64  # of an array, as in NumPy
MOST_PARTS = 3_000  # of a collection
MOST_TEXT = 1_000  # characters of a string
NUMBERS = re.compile(r"[<>|=][biufc]\d{1,2}")  # the dtypes that may be sent: numbers and booleans
STATE, WORD = 128, 32  # bits of PCG64's two integers, and of the number that it keeps for later


@dataclass(frozen=True)
class Odd:
    """A value that no right answer has, for example an object of an unexpected type.

    An `Odd` value is not equal to any other value.

    Parameters
    ----------
    words : str
        A description of the value.
    kind : str
        The name of the value's type.
    """

    words: str
    kind: str = "object"

    def __eq__(self, other: object) -> bool:
        """Return False."""
        return False

    __hash__ = None  # type: ignore[assignment]


def mutable_parts(value: Any) -> list[Any]:
    """Return the arrays, dicts, lists and random generators in a value, each object once, in a fixed order."""
    found: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if id(value) in found:
            return
        if isinstance(value, np.ndarray | np.random.Generator | dict | list):
            found[id(value)] = value
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)

    visit(value)
    return list(found.values())


def encode(value: Any, parts: Sequence[Any] = (), budget: Iterator[int] | None = None, inside: bool = False) -> Any:
    """Return the value in JSON's types. An object of `parts` is sent as its index in `parts`, or as its content if
    `inside` is True."""
    budget = iter(range(MOST_PARTS)) if budget is None else budget
    if next(budget, None) is None:
        return {"odd": ["a collection with thousands of parts", "object"]}
    if parts and not inside:
        for number, part in enumerate(parts):
            if value is part or (isinstance(value, np.ndarray) and value.base is not None and is_view(value, part)):
                return {"part": number}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)[:MOST_TEXT]
    if isinstance(value, np.generic | np.ndarray):
        return _encoded_array(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else math.inf
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, np.random.Generator):
        return {"rng": value.bit_generator.state}
    if isinstance(value, tuple | list):
        items = [encode(item, parts, budget) for item in value[:MOST_PARTS]]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        pairs = list(value.items())[:MOST_PARTS]
        return {"dict": [[str(key)[:100], encode(item, parts, budget)] for key, item in pairs]}
    return {"odd": [f"a {type(value).__name__}"[:100], type(value).__name__[:100]]}


def is_view(array: np.ndarray, part: Any) -> bool:
    """Return True if the array has the same shape, dtype and address in memory as the array `part`."""
    if not isinstance(part, np.ndarray) or array.shape != part.shape or array.strides != part.strides:
        return False
    return array.dtype == part.dtype and array.ctypes.data == part.ctypes.data


def _encoded_array(value: np.generic | np.ndarray) -> dict[str, Any]:
    if value.dtype.kind not in "biufc" or value.nbytes > MOST_ARRAY:
        return {"odd": [f"an array of {value.dtype} and shape {value.shape}"[:100], type(value).__name__]}
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    shape = list(value.shape) if isinstance(value, np.ndarray) else None
    return {"array": [value.dtype.str, shape, data]}


def decode(value: Any, parts: Sequence[Any] = ()) -> Any:
    """Return the value that `encode` wrote."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [decode(item, parts) for item in value]
    ((kind, content),) = value.items()  # exactly one
    if kind == "part":
        return parts[range(len(parts))[content]]
    if kind == "tuple":
        return tuple(decode(item, parts) for item in content)
    if kind == "dict":
        return {str(key): decode(item, parts) for key, item in content}
    if kind == "complex":
        return complex(float(content[0]), float(content[1]))
    if kind == "rng":
        return generator(content)
    if kind == "odd":
        return Odd(str(content[0])[:100], str(content[1])[:100])
    if kind == "array":
        return _decoded_array(*content)
    raise ValueError(f"unknown kind of value {kind!r}")


def _decoded_array(dtype: Any, shape: Any, data: Any) -> Any:
    if not isinstance(dtype, str) or not NUMBERS.fullmatch(dtype):
        raise ValueError("the dtype is not numeric")
    numbers = np.frombuffer(base64.b64decode(data, validate=True), np.dtype(dtype))
    if shape is None:
        return numbers[0]
    sizes_fit = len(shape) <= MOST_AXES and all(isinstance(size, int) and 0 <= size <= MOST_ARRAY for size in shape)
    if not sizes_fit or math.prod(shape) != numbers.size:  # the product of huge numbers would take minutes
        raise ValueError("the shape does not fit the number of bytes")
    return numbers.reshape(shape).copy()  # owns its numbers and can be changed


def generator(state: Any) -> np.random.Generator:
    """Return a generator with the given state of PCG64."""
    inner = state["state"]
    numbers = {"state": (inner["state"], STATE), "inc": (inner["inc"], STATE)}
    numbers |= {name: (state[name], bits) for name, bits in (("has_uint32", 1), ("uinteger", WORD))}
    if state["bit_generator"] != "PCG64" or not all(
        type(number) is int and 0 <= number < 1 << bits for number, bits in numbers.values()
    ):
        raise ValueError("the state is not a state of PCG64")
    bits = np.random.PCG64(inner["state"])  # for `spawn`: equal states spawn equal generators
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": inner["state"], "inc": inner["inc"]},
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }
    return np.random.Generator(bits)


def update(part: Any, content: Any, parts: Sequence[Any]) -> None:
    """Replace the content of `part`, in place, by the content that the process sent after a call."""
    new = decode(content, parts)
    if isinstance(part, np.ndarray) and isinstance(new, np.ndarray) and part.dtype == new.dtype:
        if part.shape != new.shape:
            part.resize(new.shape, refcheck=False)
        np.copyto(part, new)
    elif isinstance(part, np.random.Generator) and isinstance(new, np.random.Generator):
        part.bit_generator.state = new.bit_generator.state
    elif isinstance(part, dict) and isinstance(new, dict):
        part.clear()
        part.update(new)
    elif isinstance(part, list) and isinstance(new, list):
        part[:] = new
    else:
        raise ValueError(f"the call turned a {type(part).__name__} into a {type(new).__name__}; expected the same type")
