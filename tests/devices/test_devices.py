"""The core is one and the same on every device: its whole suite passes there, and side by side the numbers are equal."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import cupy_double
import numpy as np
import pytest

from lora_np import SGD, AdamW, LoraConfig, clip_grad_norm, get_peft_model, ops, train
from lora_np.backend import to_host

TESTS = Path(__file__).parents[1]
SUITE = [
    "ops",
    "gradcheck",
    "transformer",
    "lora",
    "prefix",
    "bottleneck",
    "methods",
    "optim",
    "train",
    "pretrained",
    "quantize",
]


def run_on(device: str, file: str) -> None:
    """Run a file of tests with its arrays on `device`, in a process of its own: on_device.py reads the variable."""
    command = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", next(TESTS.rglob(file))]
    environment = os.environ | {"LORA_NP_TESTS_ON": device}
    run = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert run.returncode == 0, f"{file} on {device}:\n{run.stdout[-5000:]}{run.stderr[-1000:]}"
    assert f"arrays of {'cupy_double' if device == 'double' else device} (" in run.stdout, "it passed, but elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("device", ["double", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_the_cores_whole_suite_passes_on(device, name):
    run_on(device, f"test_{name}.py")


@pytest.mark.slow
def test_the_double_catches_what_numpy_lets_pass():
    run_on("double", "test_device_mutants.py")


# ------------------------------------------------------------------------------------------------------------ there and back


def bits(arrays):
    return {name: (x.dtype, x.shape, to_host(x).tobytes()) for name, x in arrays.items()}


@pytest.fixture(params=["double", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The array module of another device, which `.to("cupy")` reaches: the double, and a GPU where there is one."""
    return request.getfixturevalue("double") if request.param == "double" else pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_comes_back_from_the_device_to_the_bit(dtype, tied, make_model, device):
    model = make_model(dtype, tie_word_embeddings=tied)
    before = bits(model.state_dict())
    model.to("cupy")
    assert {type(p.value) for _, p in model.named_parameters()} == {device.ndarray}
    assert bits(model.state_dict()) == before
    model.to("numpy")
    assert {type(p.value) for _, p in model.named_parameters()} == {np.ndarray}
    assert bits(model.state_dict()) == before


def test_moving_drops_gradients_and_keeps_what_is_frozen(make_model, random_batch, device):
    model = get_peft_model(make_model(), LoraConfig(r=2))
    model.backward(model.loss(*random_batch())[1])
    trainable = {name for name, p in model.named_parameters() if p.trainable}
    model.to("cupy")
    assert all(p.grad is None for _, p in model.named_parameters())
    assert {name for name, p in model.named_parameters() if p.trainable} == trainable


@pytest.mark.parametrize("make_optimizer", [lambda: AdamW(0.01), lambda: SGD(0.1, momentum=0.9)], ids=["AdamW", "SGD"])
def test_the_optimizers_state_moves_beside_the_model(make_optimizer, make_model, random_batch, device):
    """Two steps on NumPy, then one more: here, and on the device after both have moved. It is the same step."""
    model, optimizer = make_model(), make_optimizer()
    train(model, [random_batch()], optimizer, steps=2)
    stayed, state = copy.deepcopy(model), copy.deepcopy(optimizer)
    model.to("cupy"), optimizer.to("cupy")
    assert {type(x) for slots in optimizer.state.values() for x in slots.values()} == {device.ndarray}
    for m, o in ((stayed, state), (model, optimizer)):
        m.backward(m.loss(*random_batch())[1])
        o.step(m.named_parameters(), t=3)
    for name, value in stayed.state_dict().items():
        np.testing.assert_allclose(to_host(model.state_dict()[name]), value, rtol=1e-10, atol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------------------------------------ side by side


def make_pair(make_model, dtype, method, dropout=0.0):
    """The same model twice, on NumPy and on the device; with an adapter, each is given its own there."""
    pair = [make_model(dtype).to(where) for where in ("numpy", "cupy")]
    if method == "full":
        return pair
    settings = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)
    return [get_peft_model(model, settings, seed=5) for model in pair]


def test_an_adapter_starts_with_the_same_numbers_on_both(make_model, device):
    here, there = make_pair(make_model, np.float32, "lora")
    assert bits(here.state_dict()) == bits(there.state_dict())
    assert {type(p.value) for _, p in there.named_parameters()} == {device.ndarray}


def test_the_dropout_masks_are_the_same_on_both(device):
    x = np.random.default_rng(0).standard_normal((5, 7)).astype("f")
    here, there = (ops.dropout_forward(y, 0.3, np.random.default_rng(1))[1] for y in (x, device.asarray(x)))
    assert type(there) is device.ndarray and to_host(there).tobytes() == here.tobytes()


@pytest.mark.parametrize(("method", "dropout"), [("full", 0.0), ("lora", 0.3)])
def test_two_models_train_in_turn_on_two_devices_and_stay_equal(method, dropout, make_model, random_batch, device):
    """Step by step in one process. The double is equal to the bit; a GPU adds up in another order."""
    pair = make_pair(make_model, np.float64, method, dropout)
    optimizers = [AdamW(0.01), AdamW(0.01)]
    for t in range(1, 6):
        seen = []
        for model, optimizer in zip(pair, optimizers, strict=True):
            model.zero_grad()
            loss, cache = model.loss(*random_batch(seed=t), rng=np.random.default_rng(t))
            model.backward(cache)
            norm = clip_grad_norm(model.named_parameters(), 1.0)
            optimizer.step(model.named_parameters(), t=t)
            seen.append((float(loss), float(norm)))
        assert seen[0] == (seen[1] if device is cupy_double else pytest.approx(seen[1], rel=1e-6)), f"step {t}"
    here, there = (model.state_dict() for model in pair)
    if device is cupy_double:
        assert bits(here) == bits(there)
    for name, value in here.items():
        np.testing.assert_allclose(to_host(there[name]), value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_run_that_began_on_one_device_goes_on_on_the_other(make_model, random_batch, tmp_path, double):
    """A checkpoint holds host arrays. Over the double, whose arithmetic is NumPy's, the two halves are the whole to the bit."""
    batches = [random_batch(seed=seed) for seed in range(3)]
    settings = {"steps": 6, "max_grad_norm": 1.0, "checkpoint_every": 3}
    whole, moved = make_pair(make_model, np.float32, "lora", dropout=0.3)
    expected = train(whole, batches, AdamW(0.05), **settings).column("loss")

    class Stopped(list):
        def __getitem__(self, i):
            if len(asked) == 4:
                raise KeyboardInterrupt
            asked.append(i)
            return super().__getitem__(i)

    asked, here = [], make_pair(make_model, np.float32, "lora", dropout=0.3)[0]
    with pytest.raises(KeyboardInterrupt):
        train(here, Stopped(batches), AdamW(0.05), checkpoint=tmp_path / "run", **settings)
    history = train(moved, batches, AdamW(0.05), checkpoint=tmp_path / "run", resume=True, **settings)
    assert history.column("loss") == expected
    assert bits(moved.state_dict()) == bits(whole.state_dict())
