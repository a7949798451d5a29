"""CuPy's double: an array module with CuPy's manners over NumPy's arithmetic, so that a machine without a GPU can hold the
core to them. Where CuPy is lenient and slow (it converts, it upcasts, it waits), the double refuses or counts.

What it enforces, each with its test in test_cupy_double.py:

- Nothing becomes a NumPy array by itself, and NumPy's functions take none of its arrays: `.get()` is the way.
- No host array meets a device array: not in an operator, a function, an index, an assignment, or `out=`.
- A reduction gives a 0-d array and no scalar. Reading it (`float`, `if`, `.item()`, printing) is a wait, and is counted;
  so is a boolean index, whose result has a size that only the device knows. Iteration is refused.
- float32 stays float32: one operation, one precision. CuPy would widen silently.
- Names and signatures are CuPy's (no `where=` in sum, no errstate), and so is `add.at`'s refusal of complex numbers.
- `traffic` counts what crosses the bus.

It takes CuPy's place by `sys.modules["cupy"] = cupy_double`; the library has no hook for it, and needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

# ------------------------------------------------------------------------------------------------------------ the count


@dataclass
class Traffic:
    """What crossed the bus since the last `reset`: arrays copied to the device and to the host, and waits for the device."""

    to_device: int = 0
    to_host: int = 0
    waits: int = 0

    def reset(self) -> None:
        self.to_device = self.to_host = self.waits = 0


traffic = Traffic()


# ---------------------------------------------------------------------------------------------------------- the manners


def _wrap(memory: Any) -> ndarray:
    """An array of ours over `memory`; a NumPy scalar becomes 0-d, as everything on a device is an array."""
    x = object.__new__(ndarray)
    x._memory = np.asarray(memory)
    return x


def _bare(x: Any) -> Any:
    """What NumPy computes with, for an array of ours (or a list of them) and for a scalar. A host array is refused."""
    if isinstance(x, ndarray):
        return x._memory
    if isinstance(x, list | tuple):
        return type(x)(map(_bare, x))
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: an array on the host meets one on the device; move it first")
    return x


def _call(function: Callable, *operands: Any, out: ndarray | None = None, **options: Any) -> ndarray:
    """`function` of NumPy's on bare operands, after the check of their dtypes, wrapped again."""
    _one_precision(*operands, out)
    if out is not None:
        options["out"] = _bare(out)
    result = function(*map(_bare, operands), **options)
    return _wrap(result) if out is None else out


def _one_precision(*operands: Any) -> None:
    """Raise TypeError where an operation would leave the precision of its floats. Python's numbers have none (NEP 50)."""
    flat = [x for each in operands for x in (each if isinstance(each, list | tuple) else [each])]
    dtypes = [x.dtype for x in flat if isinstance(x, ndarray | np.generic)]
    floats = [_precision(d) for d in dtypes if d.kind in "fc"]
    if floats and {*floats, _precision(np.result_type(*dtypes))} != {floats[0]}:
        raise TypeError(f"a silent upcast: {', '.join(map(str, dtypes))} in one operation; bring all to one precision")


def _precision(dtype: np.dtype) -> int:
    """Bytes of a real number of this dtype: a complex128 is two float64."""
    return dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize


def _index(key: Any) -> tuple:
    """An index as NumPy takes it, with an ellipsis at its end, so that a single number comes out as a 0-d view."""
    parts = list(key) if isinstance(key, tuple) else [key]
    for i, part in enumerate(parts):
        if isinstance(part, list):
            traffic.to_device += 1  # CuPy takes a list of numbers, and copies it over each time
        elif isinstance(part, ndarray) and part.dtype == bool:
            _read()  # how many are True decides the shape
        parts[i] = _bare(part)
    return (*parts,) if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)


def _read(blocking: bool = True) -> None:
    traffic.to_host += 1
    traffic.waits += blocking


# ------------------------------------------------------------------------------------------------------------ the array


class ndarray:
    """cupy.ndarray as the core may use it."""

    __slots__ = ("_memory",)

    # what it is: known to the host without asking the device
    dtype = property(lambda self: self._memory.dtype)
    shape = property(lambda self: self._memory.shape)
    ndim = property(lambda self: self._memory.ndim)
    size = property(lambda self: self._memory.size)
    nbytes = property(lambda self: self._memory.nbytes)
    itemsize = property(lambda self: self._memory.itemsize)

    def __len__(self) -> int:
        return len(self._memory)

    # views
    T = property(lambda self: _wrap(self._memory.T))
    real = property(lambda self: _wrap(self._memory.real))
    imag = property(lambda self: _wrap(self._memory.imag))

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return _wrap(self._memory.reshape(*shape, order=order))

    def ravel(self, order: str = "C") -> ndarray:
        return _wrap(self._memory.ravel(order))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return _wrap(self._memory.swapaxes(axis1, axis2))

    def transpose(self, *axes: Any) -> ndarray:
        return _wrap(self._memory.transpose(*axes))

    def view(self, dtype: Any = None) -> ndarray:
        return _wrap(self._memory.view(self.dtype if dtype is None else dtype))

    # copies
    def astype(self, dtype: Any, order: str = "K", *, copy: bool = True) -> ndarray:
        return _wrap(self._memory.astype(dtype, order=order, copy=copy))

    def copy(self, order: str = "C") -> ndarray:
        return _wrap(self._memory.copy(order))

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: dict) -> ndarray:
        return self.copy()

    # reductions: a 0-d array, and no `where` or `initial`
    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.sum, self, out=out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.mean, self, out=out, axis=axis, dtype=dtype, keepdims=keepdims)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False
    ) -> ndarray:
        return _call(np.std, self, out=out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
        return _call(np.cumsum, self, axis=axis, dtype=dtype, out=out)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.max, self, out=out, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.min, self, out=out, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.any, self, out=out, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _call(np.all, self, out=out, axis=axis, keepdims=keepdims)

    def argmax(self, axis: Any = None, out: Any = None) -> ndarray:
        return _call(np.argmax, self, out=out, axis=axis)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:
        return _call(np.clip, self, min, max, out=out)

    # indexing
    def __getitem__(self, key: Any) -> ndarray:
        return _wrap(self._memory[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        _one_precision(self, value)
        self._memory[_index(key)] = _bare(value)

    # to the host: each is a wait
    def get(self, stream: Any = None, order: str = "C", *, blocking: bool = True) -> np.ndarray:
        """A copy in the host's memory."""
        _read(blocking)
        return self._memory.copy(order)

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self) -> bytes:
        return self.get().tobytes()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __complex__(self) -> complex:
        return complex(self._number())

    def _number(self) -> Any:
        if self.size != 1:
            raise TypeError("only an array of one number converts to a Python number")
        return self.item()

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else self.get(), spec)

    def __reduce__(self) -> tuple:
        return array, (self.get(),)  # through the host, as CuPy's arrays are pickled

    # not to the host behind one's back
    def __array__(self, dtype: Any = None, copy: Any = None) -> None:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> None:
        raise TypeError(f"np.{ufunc.__name__} on a device array: write xp = array_module(x), xp.{ufunc.__name__}(x)")

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> None:
        raise TypeError(
            f"np.{function.__name__} on a device array: write xp = array_module(x), xp.{function.__name__}(x)"
        )

    def __iter__(self) -> None:
        raise TypeError(
            "iteration over a device array: a kernel and a wait for each number; .get() it once, or compute whole"
        )

    # operators: see below
    def __neg__(self) -> ndarray:
        return _call(np.negative, self)

    def __pos__(self) -> ndarray:
        return self

    def __abs__(self) -> ndarray:
        return _call(np.absolute, self)

    def __invert__(self) -> ndarray:
        return _call(np.invert, self)

    __hash__ = None


def _operand(x: Any) -> Any:
    """Operators and ufuncs take arrays of ours and scalars, and nothing else: no list, no None, no host array."""
    if not isinstance(x, ndarray | np.generic | bool | int | float | complex):
        raise TypeError(f"Unsupported type {type(x)}: operators on the device take its arrays and plain numbers")
    return x


def _add_operator(name: str, function: np.ufunc) -> None:
    setattr(ndarray, f"__{name}__", lambda x, y: _call(function, x, _operand(y)))
    if name in ("lt", "le", "eq", "ne", "gt", "ge"):
        return
    setattr(ndarray, f"__r{name}__", lambda y, x: _call(function, _operand(x), y))
    if name != "matmul":  # CuPy has no @= either: Python then writes x = x @ y
        setattr(ndarray, f"__i{name}__", lambda x, y: _call(function, x, _operand(y), out=x))


for _name, _function in {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "pow": np.power},
    **{"floordiv": np.floor_divide, "mod": np.remainder, "matmul": np.matmul},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
    **{
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    },
}.items():
    _add_operator(_name, _function)


# -------------------------------------------------------------------------------------------------------- the functions


class ufunc:
    """An elementwise function: called with arrays and scalars, `out` an array of ours."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function

    def __call__(
        self, *operands: Any, out: ndarray | None = None, dtype: Any = None, casting: str = "same_kind"
    ) -> ndarray:
        return _call(self._function, *map(_operand, operands), out=out, dtype=dtype, casting=casting)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        """x[indices] ∘= b, in which a repeated index counts each time; by atomic operations, which know no complex number."""
        if self._function is not np.add or a.dtype.kind == "c":
            raise TypeError("cupy.add.at only supports int32, int64, float16, float32, float64, uint32, uint64")
        _one_precision(a, b)
        np.add.at(a._memory, _index(indices), _bare(b))


absolute = abs = ufunc(np.absolute)
add, subtract, multiply, divide, power = map(ufunc, (np.add, np.subtract, np.multiply, np.divide, np.power))
negative, maximum, minimum = map(ufunc, (np.negative, np.maximum, np.minimum))
exp, log, sqrt, cos, sin, tanh = map(ufunc, (np.exp, np.log, np.sqrt, np.cos, np.sin, np.tanh))
isfinite = ufunc(np.isfinite)


def array(obj: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    """A new array on the device; from the host, that is a transfer."""
    if isinstance(obj, ndarray):
        return _wrap(np.array(obj._memory, dtype, copy=copy))
    traffic.to_device += 1
    return _wrap(np.array(obj, dtype))


def asarray(a: Any, dtype: Any = None) -> ndarray:
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    return _call(np.ascontiguousarray, a, dtype=dtype)


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Uninitialised, so here: full of what no test overlooks."""
    return _wrap(np.full(shape, 113, dtype))


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return _wrap(np.zeros(shape, dtype))


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return _wrap(np.ones(shape, dtype))


def full(shape: Any, fill_value: Any, dtype: Any = None) -> ndarray:
    return _wrap(np.full(shape, _operand(fill_value), dtype))


def zeros_like(a: ndarray, dtype: Any = None) -> ndarray:
    return _call(np.zeros_like, a, dtype=dtype)


def empty_like(prototype: ndarray, dtype: Any = None) -> ndarray:
    return _call(np.full_like, prototype, 113, dtype=dtype)


def ones_like(a: ndarray, dtype: Any = None) -> ndarray:
    return _call(np.ones_like, a, dtype=dtype)


def full_like(a: ndarray, fill_value: Any, dtype: Any = None) -> ndarray:
    return _call(np.full_like, a, _operand(fill_value), dtype=dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    return _wrap(np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype))


def where(condition: ndarray, x: Any, y: Any) -> ndarray:
    return _call(np.where, condition, _operand(x), _operand(y))


def tril(m: ndarray, k: int = 0) -> ndarray:
    return _call(np.tril, m, k)


def einsum(subscripts: str, *operands: ndarray) -> ndarray:
    return _call(np.einsum, subscripts, *operands)


def tile(A: ndarray, reps: Any) -> ndarray:
    return _call(np.tile, A, reps)


def take_along_axis(a: ndarray, indices: ndarray, axis: int | None) -> ndarray:
    return _wrap(np.take_along_axis(_bare(a), _bare(indices), axis))


def searchsorted(a: ndarray, v: ndarray, side: str = "left") -> ndarray:
    return _call(np.searchsorted, a, v, side)


def stack(tup: list[ndarray], axis: int = 0) -> ndarray:
    return _call(np.stack, tup, axis=axis)


def concatenate(tup: list[ndarray], axis: int = 0) -> ndarray:
    return _call(np.concatenate, tup, axis=axis)


def broadcast_to(array: ndarray, shape: tuple[int, ...]) -> ndarray:
    return _call(np.broadcast_to, array, shape)


def array_equal(a1: ndarray, a2: ndarray) -> ndarray:
    return _wrap(np.array_equal(_bare(a1), _bare(a2)))


def shares_memory(a: ndarray, b: ndarray) -> bool:
    return np.shares_memory(_bare(a), _bare(b))


cuda = SimpleNamespace(is_available=lambda: True)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"the double has no {name!r}; if CuPy has it, and with the signature that you need, add it here"
    )
