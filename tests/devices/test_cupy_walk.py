"""What the core asks of an array module, the real CuPy has: every name, every signature, every dtype, as the source says it.

No GPU is needed for that, only the package (`make test-gpu` installs it).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cupy_walk import ON_THE_HOST, RANDOM, REAL_ONLY, TYPES, WARNINGS, complaint, signature, uses

import lora_np

cupy = pytest.importorskip("cupy", reason="the walk compares with CuPy; make test-gpu installs it")
pytestmark = pytest.mark.cupy

PACKAGE = Path(lora_np.__file__).parent
HOST = {  # whose arrays never leave the host; everything else is walked, a new file too
    *("__init__", "__main__", "micro", "optional", "progress", "plots", "files", "data", "pretrained", "costs"),
    *("report", "studies", "exercises", "nn.targets", "training.subspace", "transformer.config"),
    *("peft.combination", "serve.adapters", "serve.engine_thread", "serve.http", "serve.protocol"),
    *("serve.completions", "serve.request", "serve.stop_strings", "serve.workers"),
}
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
WALKED = {  # "ops.linear" → its file
    name.removesuffix(".__init__"): path for name, path in FILES.items() if not {name, name.partition(".")[0]} & HOST
}
USES = [use for module, path in WALKED.items() for use in uses(path.read_text(encoding="utf-8"), module)]
NAMES = {use.name for use in USES}


@pytest.mark.parametrize("module", WALKED)
def test_cupy_has_what_the_module_asks_for(module):
    complaints = [c for use in USES if use.where.startswith(f"{module}.") and (c := complaint(use))]
    assert not complaints, "on a GPU this would fail:\n  " + "\n  ".join(complaints)


def test_the_walk_goes_where_the_arrays_are():
    """The test above passes on an empty walk too. These places are known."""
    assert {
        "ops.linear",
        "nn.module",
        "transformer.model",
        "peft.lora.layer",
        "training.loop",
        "gradient_check",
        "backend",
    } <= WALKED.keys()
    assert {"exp", "einsum", "add.at", "take_along_axis", "stack", "isfinite", "empty"} <= NAMES, "of xp"
    assert {"ndarray.sum", "ndarray.astype", "ndarray.real", "ndarray.T", "ndarray.clip"} <= NAMES, "of an array"
    assert {"add", "multiply", "true_divide", "power", "negative", "matmul"} <= NAMES, "by operators"
    assert any(use.name == "zeros_like" and use.where.startswith("training.optim.AdamW._update") for use in USES), (
        "xp, g = …, …"
    )


def test_what_is_allowed_on_the_host_is_still_there():
    asked = {use.name for use in USES if use.name.startswith("np.")}
    places = {use.where.partition(":")[0] for use in USES if use.name.startswith("np.")}
    assert asked >= TYPES | WARNINGS | RANDOM and places >= ON_THE_HOST.keys(), (
        "an allowance that nobody needs hides a mistake"
    )
    assert REAL_ONLY.keys() <= NAMES


WRONG = {
    "a name that is misspelt": ("xp.expp(x)", "CuPy has no expp"),
    "a name that only NumPy has": ("xp.errstate(all='ignore')", "CuPy has no errstate"),
    "where in a sum": ("x.sum(where=x > 0)", "sum.* does not take .*where"),
    "initial in a maximum": ("x.max(initial=0.0)", "max.* does not take .*initial"),
    "where in a mean": ("xp.mean(x, where=x > 0)", "mean.* does not take .*where"),
    "mode in take": ("xp.take(x, x, mode='clip')", "take.* does not take .*mode"),
    "out in einsum, which its docstring leaves out": ("xp.einsum('i->', x, out=x)", "einsum.* does not take .*out"),
    "hermitian in svd": ("xp.linalg.svd(x, hermitian=True)", "svd.* does not take .*hermitian"),
    "an argument too many": ("x.swapaxes(0, 1, 2)", "swapaxes.* too many positional"),
    "an argument too few": ("xp.take_along_axis(x, x)", "take_along_axis.* missing a required argument: 'axis'"),
    "casting in astype, which it names and does not do": ("x.astype('f', casting='safe')", "does not do it"),
    "NumPy's exp": ("np.exp(x)", "computes on the host"),
    "NumPy's zeros, asked by name": ("xp.asarray(np.zeros(3))", "np.zeros.* computes on the host"),
    "a ufunc without a complex loop": ("xp.floor(x)", "floor has no loop for complex128"),
    "an operator without a complex loop": ("xp.remainder(x, 2)", "remainder has no loop for complex128"),
    "complex numbers in add.at": ("xp.add.at(x, ids, dy)", "adds real numbers only"),
    "the module called in place": ("array_module(x).errstate()", "CuPy has no errstate"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_walk_finds(what):
    line, message = WRONG[what]
    source = f"def f(x):\n    n, xp = x.size, array_module(x)\n    y = {line}\n    return y\n"
    complaints = " ".join(filter(None, map(complaint, uses(source, "ops.snippet"))))
    assert re.search(message, complaints), (
        f"{line} passes the walk, or is refused for another reason: {complaints or '…'}"
    )


def test_a_signature_is_read_from_a_docstring_where_the_code_is_compiled():
    assert list(signature(cupy.ndarray.sum).parameters) == ["self", "axis", "dtype", "out", "keepdims"]
    assert list(signature(cupy.exp).parameters) == ["x", "out", "casting", "dtype"]
    assert list(signature(cupy.einsum).parameters) == ["subscripts", "operands", "dtype", "optimize"]


def test_cupy_has_the_names_that_the_one_file_asks_numpy_for():
    """Where `import cupy as np` takes the place of `import numpy as np`."""
    source = (PACKAGE / "micro.py").read_text(encoding="utf-8")
    asked = set(re.findall(r"\bnp\.((?:random\.)?\w+)", source))
    missing = [name for name in asked if not hasattr(cupy.random if "." in name else cupy, name.split(".")[-1])]
    assert "exp" in asked and not missing, f"CuPy has no {missing}"
