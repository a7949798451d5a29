"""The double holds the core to CuPy's manners: each of them, shown to be enforced; and it has nothing that CuPy has not."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from types import ModuleType

import cupy_double as xp
import numpy as np
import pytest
from cupy_double import Traffic, traffic
from cupy_walk import signature

from lora_np.backend import array_module, move, to_host

HOST = np.arange(6.0).reshape(2, 3)


@pytest.fixture
def x():
    """HOST on the device, with the count at zero."""
    x = xp.asarray(HOST)
    traffic.reset()
    return x


# ------------------------------------------------------------------------------------- nothing converts behind one's back

IMPLICIT = {
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array(x),
    "np.asarray of a list of them": lambda x: np.asarray([x, x]),
    "a ufunc of NumPy's": lambda x: np.exp(x),
    "a function of NumPy's": lambda x: np.concatenate([x, x]),
    "np.sum, which would call x.sum": lambda x: np.sum(x),
    "np.testing": lambda x: np.testing.assert_array_equal(x, HOST),
    "iteration": lambda x: list(x),
    "unpacking": lambda x: (lambda a, b: None)(*x),
    "membership": lambda x: 3.0 in x,
    "float of several": lambda x: float(x),
    "int of several": lambda x: int(x),
    "math.sqrt of several": lambda x: math.sqrt(x),
    "range": lambda x: range(x[0, 0]),
}


@pytest.mark.parametrize("what", IMPLICIT)
def test_nothing_converts_to_the_host_by_itself(what, x):
    with pytest.raises(TypeError):
        IMPLICIT[what](x)
    assert traffic == Traffic(), "it was refused, so nothing moved"


@pytest.mark.parametrize("truth", [lambda x: bool(x), lambda x: bool(x > 0), lambda x: x == x and True])
def test_several_numbers_have_no_truth(truth, x):
    with pytest.raises(ValueError, match="ambiguous"):
        truth(x)


MIXED = {
    "device + host": lambda x: x + HOST,
    "host + device": lambda x: HOST + x,
    "device @ host": lambda x: x @ HOST.T,
    "host @ device": lambda x: HOST.T @ x,
    "device > host": lambda x: x > HOST,
    "in place, on the device": lambda x: x.__iadd__(HOST),
    "in place, on the host": lambda x: HOST.copy().__iadd__(x),
    "a ufunc": lambda x: xp.maximum(x, HOST),
    "a function": lambda x: xp.where(x > 0, x, HOST),
    "a list of both": lambda x: xp.stack([x, HOST]),
    "out on the host": lambda x: xp.exp(x, out=HOST.copy()),
    "a host index": lambda x: x[np.array([0, 1])],
    "a host mask": lambda x: x[HOST > 2],
    "a host value": lambda x: x.__setitem__(0, HOST[0]),
    "a host value at a device index": lambda x: x.__setitem__(xp.asarray([0]), HOST[:1]),
    "a device index into the host": lambda x: HOST[xp.asarray([0])],
    "a device value into the host": lambda x: HOST.copy().__setitem__(0, x[0]),
    "add.at with host ids": lambda x: xp.add.at(x, np.array([0]), x[:1]),
    "a list for an operand": lambda x: x * [1.0, 2.0, 3.0],
    "None for an operand": lambda x: x + None,
    "a NumPy scalar on the left, whose type decides": lambda x: np.float64(2.0) * x,
}


@pytest.mark.parametrize("what", MIXED)
def test_host_and_device_never_meet(what, x):
    with pytest.raises((TypeError, IndexError)):
        MIXED[what](x)
    np.testing.assert_array_equal(x.get(), HOST, err_msg="it was refused, so nothing changed")


# ---------------------------------------------------------------------------------------------------------- what is counted

COUNTED = {  # what → to the device, to the host, waits
    "asarray of a host array": (lambda x: xp.asarray(HOST), Traffic(1, 0, 0)),
    "array of a list": (lambda x: xp.array([1.0, 2.0]), Traffic(1, 0, 0)),
    "asarray of a number": (lambda x: xp.asarray(3.0), Traffic(1, 0, 0)),
    "asarray of what is there": (lambda x: xp.asarray(x), Traffic()),
    "zeros, full and arange": (lambda x: (xp.zeros(3), xp.full(3, 7.0), xp.arange(3)), Traffic()),
    "arithmetic": (lambda x: xp.exp(x * 2 + 1) @ x.T, Traffic()),
    "a reduction": (lambda x: x.sum() / x.max(), Traffic()),
    "a number taken by its place": (lambda x: x[1, 2], Traffic()),
    "rows taken by ids": (lambda x: x[xp.arange(2)], Traffic()),
    "rows taken by a list": (lambda x: x[[0, 1]], Traffic(1, 0, 0)),
    "numbers taken by a mask": (lambda x: x[x > 2], Traffic(0, 1, 1)),
    "numbers set by a mask": (lambda x: x.__setitem__(x > 2, 0.0), Traffic(0, 1, 1)),
    "get": (lambda x: x.get(), Traffic(0, 1, 1)),
    "get without waiting": (lambda x: x.get(blocking=False), Traffic(0, 1, 0)),
    "float": (lambda x: float(x.sum()), Traffic(0, 1, 1)),
    "int": (lambda x: int(x.sum()), Traffic(0, 1, 1)),
    "complex": (lambda x: complex(x.sum()), Traffic(0, 1, 1)),
    "item": (lambda x: x.sum().item(), Traffic(0, 1, 1)),
    "if": (lambda x: "yes" if x.max() > 0 else "no", Traffic(0, 1, 1)),
    "not": (lambda x: not (x > 0).all(), Traffic(0, 1, 1)),
    "max of Python's": (lambda x: max(0.0, x.sum()), Traffic(0, 1, 1)),
    "math.sqrt": (lambda x: math.sqrt(x.sum()), Traffic(0, 1, 1)),
    "print": (lambda x: f"{x.sum():.3f} {x}", Traffic(0, 2, 2)),
    "tolist and tobytes": (lambda x: (x.tolist(), x.tobytes()), Traffic(0, 2, 2)),
    "its shape, size and dtype": (lambda x: (x.shape, x.size, x.ndim, len(x), x.dtype, x.nbytes), Traffic()),
    "a pickle, there and back": (lambda x: pickle.loads(pickle.dumps(x)), Traffic(1, 1, 1)),
    "a copy": (lambda x: (x.copy(), copy.deepcopy(x)), Traffic()),
}


@pytest.mark.parametrize("what", COUNTED)
def test_every_crossing_of_the_bus_is_counted(what, x):
    action, expected = COUNTED[what]
    action(x)
    assert traffic == expected


# ------------------------------------------------------------------------------------------------------- everything is 0-d


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "std", "any", "all"])
def test_a_reduction_gives_a_0_d_array_and_no_scalar(reduce, x):
    result = getattr(x, reduce)()
    assert type(result) is xp.ndarray and result.shape == () and not isinstance(result, np.generic)
    assert result.get() == getattr(HOST, reduce)()


def test_a_number_taken_by_its_place_is_a_0_d_view(x):
    number = x[1, 2]
    assert type(number) is xp.ndarray and number.shape == ()
    x[1, 2] = 70.0
    assert float(number) == 70.0, "a view, as every basic index gives"


def test_a_0_d_array_has_a_dtype_that_counts(x):
    single = x.astype("float32")
    assert (single.sum() * 2.0).dtype == (1 / single.max() ** 0.5).dtype == np.float32


# ----------------------------------------------------------------------------------------------------- no silent upcast

UPCAST = {
    "float32 + float64": lambda x, y: y + x,
    "float32 += float64, which would lose digits": lambda x, y: y.__iadd__(x),
    "float32 * a 0-d float64": lambda x, y: y * x.sum(),
    "float32 * NumPy's float64": lambda x, y: y * np.float64(2),
    "float32 * int64": lambda x, y: y * xp.arange(3),
    "float32 @ float64": lambda x, y: y @ x.T,
    "where": lambda x, y: xp.where(x > 0, x, y),
    "einsum": lambda x, y: xp.einsum("ij,ij->i", x, y),
    "stack": lambda x, y: xp.stack([x, y]),
    "out": lambda x, y: xp.exp(x, out=y),
    "assignment": lambda x, y: y.__setitem__(0, x[0]),
    "add.at": lambda x, y: xp.add.at(y, xp.arange(2), x),
    "complex64 * float64": lambda x, y: y.astype("complex64") * x,
}
KEPT = {
    "float32 and Python's numbers": (lambda x: 2 * x.astype("f") ** 2 + 0.5, "float32"),
    "float32 and a mask": (lambda x: x.astype("f") * (x > 2), "float32"),
    "complex128 and float64": (lambda x: (x + 1j * 1e-30) * x, "complex128"),
    "integers divided": (lambda x: xp.arange(4) / 2, "float64"),
    "a conversion that is asked for": (lambda x: x.astype("f").astype("d"), "float64"),
}


@pytest.mark.parametrize("what", UPCAST)
def test_floats_of_two_precisions_never_meet(what, x):
    with pytest.raises(TypeError, match="a silent upcast: "):
        UPCAST[what](x, xp.asarray(HOST.astype("float32")))


@pytest.mark.parametrize("what", KEPT)
def test_what_keeps_its_precision_is_fine(what, x):
    compute, dtype = KEPT[what]
    assert compute(x).dtype == dtype


# ------------------------------------------------------------------------------------------------------ the same numbers


def test_the_arithmetic_is_numpys(x):
    np.testing.assert_array_equal(((2 - x) / 3 @ x.T).get(), (2 - HOST) / 3 @ HOST.T)
    np.testing.assert_array_equal(xp.where(x > 2, x, 0.0).get(), np.where(HOST > 2, HOST, 0.0))
    x[:, 1:] *= -1
    np.testing.assert_array_equal(x.get(), HOST * [1, -1, -1])
    xp.add.at(x, xp.asarray([0, 0]), xp.ones((2, 3)))
    np.testing.assert_array_equal(x.get(), HOST * [1, -1, -1] + [[2], [0]])


def test_add_at_knows_no_complex_numbers(x):
    with pytest.raises(TypeError, match="only supports int32"):
        xp.add.at(x.astype("complex128"), xp.asarray([0]), x[:1].astype("complex128"))


def test_what_comes_back_is_a_copy(x):
    x.get()[:] = 0
    xp.asarray(HOST)[:] = 0
    assert float(x.sum()) == HOST.sum() == 15


def test_the_library_finds_its_module_by_the_array_alone(x):
    assert array_module(x) is xp
    assert array_module(HOST) is np
    assert to_host(x).tobytes() == HOST.tobytes() == to_host(HOST).tobytes()
    assert move(x, like=x) is x and move(HOST, like=HOST) is HOST
    assert type(move(HOST, like=x)) is xp.ndarray and type(move(x, like=HOST)) is np.ndarray


def test_what_the_double_lacks_it_says(x):
    with pytest.raises(AttributeError, match="the double has no 'errstate'; if CuPy has it"):
        _ = xp.errstate


# ----------------------------------------------------------------------------------------------- nothing that CuPy has not

OWN = {"Traffic", "traffic", "Any", "Callable", "SimpleNamespace", "annotations", "dataclass"}
FUNCTIONS = {
    name: thing
    for name, thing in vars(xp).items()
    if not (name.startswith("_") or name in OWN or isinstance(thing, ModuleType))
}
METHODS = {
    name: thing for name, thing in vars(xp.ndarray).items() if not name.startswith("_") or name.startswith("__r")
}


@pytest.mark.cupy
def test_every_name_of_the_double_is_cupys():
    cupy = pytest.importorskip("cupy")
    assert {"exp", "einsum", "asarray", "cuda"} <= FUNCTIONS.keys() and {
        "sum",
        "get",
        "T",
        "__rsub__",
    } <= METHODS.keys()
    assert not FUNCTIONS.keys() - dir(cupy), "the double must not be richer than CuPy"
    assert not METHODS.keys() - dir(cupy.ndarray)
    assert not hasattr(cupy.ndarray, "__index__") and not hasattr(xp.ndarray, "__index__")
    assert not hasattr(cupy.ndarray, "__imatmul__") and not hasattr(xp.ndarray, "__imatmul__")


@pytest.mark.cupy
def test_every_parameter_of_the_double_is_cupys():
    """By name, and where it may be given by position also by place."""
    cupy = pytest.importorskip("cupy")
    pairs = [(name, f, getattr(cupy, name)) for name, f in FUNCTIONS.items() if inspect.isfunction(f)]
    pairs += [
        (f"ndarray.{n}", f, getattr(cupy.ndarray, n))
        for n, f in METHODS.items()
        if inspect.isfunction(f) and n[0] != "_"
    ]
    pairs += [("exp", xp.exp.__call__, cupy.exp), ("add.at", xp.add.at, cupy.add.at)]
    assert len(pairs) > 30
    for name, ours, theirs in pairs:
        allowed = [p for p in signature(theirs).parameters if p != "self"]
        for place, p in enumerate(p for p in inspect.signature(ours).parameters.values() if p.name != "self"):
            if p.kind is p.VAR_POSITIONAL:
                break
            assert p.name in allowed, f"{name}: CuPy takes {allowed}, and no {p.name}"
            assert p.kind is p.KEYWORD_ONLY or allowed[place] == p.name, (
                f"{name}: {p.name} is at another place in CuPy's"
            )
