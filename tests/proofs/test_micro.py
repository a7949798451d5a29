"""LoRA in one file equals the library: its loss, its gradients, its training, its merge."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from on_device import host

import lora_np as ln
from lora_np import micro

SOURCE = Path(micro.__file__)
S, R = 2.0, 8


def in_float64(arrays):
    return {name: in_float64(x) if isinstance(x, dict) else x.astype(np.float64) for name, x in arrays.items()}


@pytest.fixture
def pair():
    """The file's model and the library's, in float64, with the same A, and B that is not zero."""
    config, W = micro.load()
    lora, rng = micro.init_lora(W, R), np.random.default_rng(1)
    for factors in lora.values():
        factors["B"] = rng.normal(0, 0.02, factors["B"].shape)
    W, lora = in_float64(W), in_float64(lora)
    model = ln.load_model("tiny", dtype=np.float64)
    model = ln.get_peft_model(model, ln.LoraConfig(r=R, lora_alpha=S * R, target_modules="all-linear"))
    for name, layer in dict(model.model.named_modules()).items():
        if isinstance(layer, ln.AdaptedLinear):
            adapter, factors = layer.adapters["default"], lora[f"{name}.weight"]
            adapter.lora_A.value[...], adapter.lora_B.value[...] = factors["A"], factors["B"]
    return micro.Llama(config, W, lora, S), model


def tokens(i=0):
    return micro.batch(np.random.default_rng(9).integers(0, 256, 4000), i, rows=2, length=24)


def factors_of(model):
    """layer → {"A", "B"}: the library's Parameters by the file's names."""
    found = {}
    for name, p in model.named_parameters():
        if p.trainable:
            layer, kind = re.fullmatch(r"base_model\.model\.(.*)\.lora_([AB])\.default\.weight", name).groups()
            found.setdefault(f"{layer}.weight", {})[kind] = p
    return found


def test_the_files_loss_and_gradients_are_the_librarys(pair):
    mine, model = pair
    loss, cache = mine.loss(*tokens())
    mine.backward(cache)
    expected, library_cache = model.loss(*tokens())
    model.backward(library_cache)
    assert abs(loss - expected) < 1e-13 * expected
    parameters = factors_of(model)
    assert parameters.keys() == mine.grad.keys() == mine.lora.keys()
    for name, factors in parameters.items():
        for kind, p in factors.items():
            gradient = host(p.grad)
            np.testing.assert_allclose(mine.grad[name][kind], gradient, rtol=1e-9, atol=1e-12 * np.abs(gradient).max())


def test_the_files_training_is_the_librarys(pair):
    mine, model = pair
    optimizer, state = ln.AdamW(lr=1e-2), {}
    for t in range(1, 6):
        loss, cache = mine.loss(*tokens(t))
        mine.backward(cache)
        micro.adamw(mine.lora, mine.grad, state, t, lr=1e-2)
        model.zero_grad()
        expected, library_cache = model.loss(*tokens(t))
        model.backward(library_cache)
        optimizer.step(model.named_parameters())
        assert abs(loss - expected) < 1e-10 * expected, f"step {t}"


def test_the_files_merged_model_has_the_loss_of_the_unmerged(pair):
    mine, model = pair
    merged = micro.Llama(mine.config, micro.merge(mine.W, mine.lora, S))
    assert merged.loss(*tokens())[0] == pytest.approx(mine.loss(*tokens())[0], rel=1e-13)
    assert merged.loss(*tokens())[0] == pytest.approx(float(model.merge_and_unload().loss(*tokens())[0]), rel=1e-13)


def test_it_is_short_and_needs_numpy_alone():
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) < 200 and max(map(len, lines)) <= 100
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(lines), re.MULTILINE))
    assert imported <= sys.stdlib_module_names | {"numpy"}


def test_it_runs_as_a_file_of_its_own_and_learns():
    """With the package's weights, and without the package."""
    run = subprocess.run([sys.executable, SOURCE], capture_output=True, text=True, check=True).stdout
    before, after, merged = (
        float(re.search(rf"{what}.*: ([\d.]+)", run)[1]) for what in ("before", "after", "merging")
    )
    assert after < before - 0.05 and merged == pytest.approx(after, abs=2e-3)
