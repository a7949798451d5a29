"""What the tests of the core share: a model that is small, and of which no two sizes are alike."""

from __future__ import annotations

import os

# One thread for each process, set before NumPy is imported: the tests run side by side, and threads that wait spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import cupy_double
import numpy as np
import on_device  # before all else: it decides what "auto" is
import pytest
from tokenizer_cases import byte_level_bpe

from lora_np import Transformer, TransformerConfig
from lora_np.backend import why_no_gpu
from lora_np.pretrained.models import fetched


def pytest_report_header() -> str:
    return f"arrays of {on_device.xp.__name__} (LORA_NP_TESTS_ON: numpy, double or cupy)"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked gpu needs one, and one marked smollm2 the model; elsewhere it is skipped, and says why."""
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)
    if item.get_closest_marker("smollm2") and (reason := why_no_smollm2()):
        pytest.skip(reason)


@cache
def why_no_smollm2() -> str:
    """Why the fetched model cannot be read, or "": asked once, as each answer reads its 98 MB."""
    try:
        fetched("smollm2-135m")
    except FileNotFoundError as reason:
        return str(reason)
    return ""


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """CuPy's double in CuPy's place, for one test: `model.to("cupy")` goes there, and its traffic starts at zero."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    cupy_double.traffic.reset()
    return cupy_double


@pytest.fixture
def config() -> TransformerConfig:
    """Two blocks, four query heads on two key/value heads, and no square matrix: q (16, 12), k (8, 12), o (12, 16)."""
    return TransformerConfig(
        vocab_size=11,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
    )


@pytest.fixture
def make_model(config: TransformerConfig) -> Callable[..., Transformer]:
    """`make_model(dtype, seed, **changes to the config)`: random weights of a size that gives ordinary logits.

    The usual std of 0.02 is for wide models: at this width every layer would be nearly zero, and hide mistakes.
    """

    def make(dtype: type = np.float64, seed: int = 0, **changes: int | bool) -> Transformer:
        model = Transformer.random(replace(config, **changes), seed, dtype)
        rng = np.random.default_rng(seed)
        for _, p in model.named_parameters():
            if p.value.ndim == 2:
                p.value *= 15
            else:
                p.value += rng.normal(0, 0.1, p.value.shape).astype(dtype)  # a norm's weights, else all 1
        return model.to("auto")

    return make


@pytest.fixture
def random_batch(config: TransformerConfig) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`random_batch(rows, length, seed)` → tokens and targets on the host, both (rows, length), the targets one step later."""

    def make(rows: int = 2, length: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        window = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))
        return window[:, :-1], window[:, 1:]

    return make


@pytest.fixture(scope="module", params=["gpt-2", "smollm"])
def trained(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """(how it cuts text before the merges, a small tokenizers.Tokenizer): see tokenizer_cases."""
    return request.param, byte_level_bpe(request.param)
