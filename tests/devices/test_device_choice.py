"""Which device: the GPU where one answers, NumPy elsewhere; and one line of reason where CuPy was asked for and cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lora_np import AdamW, load_model
from lora_np.backend import VARIABLE, device_module, why_no_gpu


def reason_of(error: pytest.ExceptionInfo) -> str:
    reason = str(error.value)
    assert "\n" not in reason, "one line, for a terminal"
    return reason


# ------------------------------------------------------------------------------------------------- the name and the variable


@pytest.mark.parametrize(
    ("device", "variable", "expected"),
    [
        ("auto", None, "cupy"),
        ("auto", "", "cupy"),
        ("auto", "auto", "cupy"),
        ("auto", "cupy", "cupy"),
        ("auto", "numpy", "numpy"),
        ("cupy", "numpy", "cupy"),
        ("numpy", "cupy", "numpy"),
        ("numpy", "nonsense", "numpy"),
    ],
)
def test_auto_takes_the_gpu_unless_the_variable_says_otherwise_and_a_name_is_a_name(
    device, variable, expected, double, monkeypatch
):
    monkeypatch.delenv(VARIABLE) if variable is None else monkeypatch.setenv(VARIABLE, variable)
    assert device_module(device) is {"cupy": double, "numpy": np}[expected]
    model = load_model("tiny", device=device)
    assert {type(p.value) for _, p in model.named_parameters()} == {device_module(device).ndarray}


def test_another_name_is_refused_and_traced_to_the_variable(monkeypatch, make_model):
    with pytest.raises(ValueError, match="device 'cuda'; expected 'numpy', 'cupy' or 'auto'"):
        make_model().to("cuda")
    monkeypatch.setenv(VARIABLE, "tpu")
    with pytest.raises(ValueError, match=r"device 'tpu' \(from LORA_NP_DEVICE\); expected"):
        load_model("tiny")


# ------------------------------------------------------------------------------------------------------------------ no GPU


@pytest.fixture
def no_gpu():
    """CuPy as it was installed, on a machine without a GPU."""
    pytest.importorskip("cupy", reason="make test-gpu installs CuPy")
    if why_no_gpu() is None:
        pytest.skip("a GPU answers here")


@pytest.mark.cupy
def test_importing_and_loading_are_silent_where_cupy_finds_no_gpu(no_gpu):
    code = (
        "import lora_np as ln; m = ln.load_model('tiny'); assert type(m.model.norm.weight.value).__module__ == 'numpy'"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.cupy
def test_auto_takes_numpy_where_cupy_finds_no_gpu(no_gpu, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    assert device_module("auto") is np


@pytest.mark.cupy
def test_asking_for_cupy_without_a_gpu_says_what_cuda_says(no_gpu, make_model, monkeypatch):
    model, optimizer = make_model(), AdamW(1e-3)
    before = model.state_dict()
    for ask in (model.to, optimizer.to, lambda device: load_model("no such model", device=device)):
        with pytest.raises(RuntimeError, match=r"^CuPy cannot use a GPU: CuPy is installed, but CUDA ") as error:
            ask("cupy")
        reason_of(error)
    assert all(model.state_dict()[name] is value for name, value in before.items()), "refused before anything moved"
    monkeypatch.setenv(VARIABLE, "cupy")
    with pytest.raises(RuntimeError, match=r"^CuPy cannot use a GPU: "):
        load_model("tiny")


def test_without_cupy_the_reason_is_how_to_install_it(monkeypatch, make_model):
    monkeypatch.setitem(sys.modules, "cupy", None)  # what Python keeps for a module that cannot be imported
    monkeypatch.delenv(VARIABLE)
    assert device_module("auto") is np
    with pytest.raises(RuntimeError, match=r"CuPy is not installed; run pip install \"cupy-cuda13x\[ctk\]\"") as error:
        make_model().to("cupy")
    reason_of(error)


def test_a_broken_cupy_is_not_called_a_missing_one(monkeypatch, tmp_path):
    """CuPy's own message is a box of twenty lines; its cause is one."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cupy.py").write_text(
        "try:\n    raise ImportError('libcublas.so.13: cannot open shared object file')\n"
        "except ImportError as error:\n    raise ImportError('\\n=====\\nFailed to import CuPy.\\n') from error\n"
    )
    assert why_no_gpu() == "CuPy is installed, but its import fails: libcublas.so.13: cannot open shared object file"


def test_a_driver_without_a_gpu_is_told_apart_from_no_driver(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False, runtime=SimpleNamespace(getDeviceCount=lambda: 0))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert why_no_gpu() == "CuPy is installed, but CUDA finds no GPU"


def test_a_gpu_gives_no_reason(double):
    assert why_no_gpu() is None
