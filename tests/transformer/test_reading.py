"""The way of generation through a model: few rows times a large matrix, one query per row, and no caches for a backward pass."""

from __future__ import annotations

import numpy as np
import pytest
from family_models import FAMILIES, family_model
from on_device import assert_allclose, host, xp

from lora_np import ops
from lora_np.nn import Context
from lora_np.ops import few_rows
from lora_np.transformer import KeyValueCache

RNG = np.random.default_rng(5)
B, H, G, S, D = 3, 6, 2, 9, 4
Q, K, V = (xp.asarray(RNG.standard_normal(shape)) for shape in ((B, H, 1, D), (B, G, S, D), (B, G, S, D)))
PADDED = xp.arange(S) >= xp.asarray([[0], [2], [7]])  # two rows begin with padding


@pytest.mark.parametrize("mask", [None, PADDED], ids=["no mask", "padding"])
@pytest.mark.parametrize(
    "scores", [{}, {"window": 4}, {"window": 20}, {"softcap": 0.7}, {"scale": 0.3, "window": 1}], ids=str
)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_step_of_attention_is_attention_with_one_query(mask, scores, dtype):
    q, k, v = (x.astype(dtype) for x in (Q, K, V))
    step = ops.attention_step(q, k, v, mask, **scores)
    assert step.dtype == dtype
    assert_allclose(step, ops.attention_forward(q, k, v, mask, **scores)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((Q, K, V, xp.where(PADDED, 0.0, -np.inf)), TypeError, "attention_mask has dtype float64"),
        ((Q, K, V, PADDED[:1]), ValueError, r"attention_mask has shape \(1, 9\); expected \(3, 9\)"),
        ((xp.concatenate([Q, Q], axis=2), K, V), ValueError, r"q has shape \(3, 6, 2, 4\)"),
        ((Q, K, V[:, :, 1:]), ValueError, r"v has shape \(3, 2, 8, 4\)"),
        ((Q[:, :5], K, V), ValueError, "5 query heads"),
        ((Q, K.astype(np.float32), V), TypeError, "k has dtype float32"),
    ],
)
def test_a_step_of_attention_refuses_what_attention_refuses(arrays, error, message):
    with pytest.raises(error, match=message):
        ops.attention_step(*arrays)
    if arrays[0].shape[2] == 1:
        with pytest.raises(error, match=message):
            ops.attention_forward(*arrays)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [0, 3])
def test_reading_a_text_gives_the_hidden_states_of_the_forward_pass(family, padding):
    model = family_model(family).to("auto")
    tokens = RNG.integers(0, model.config.vocab_size, (2, 12))
    mask = np.arange(12) >= np.array([[0], [padding]])
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    ours, theirs = KeyValueCache(model.config), KeyValueCache(model.config)
    for start, stop in ((0, 9), (9, 10), (10, 12)):  # a prompt, one token, two tokens
        context = Context(
            attention_mask=mask[:, :stop] if padding else None,
            position_ids=positions[:, start:stop] if padding else None,
        )
        x = model.read(tokens[:, start:stop], context, ours)
        wanted, _ = model.hidden(tokens[:, start:stop], context, theirs)
        seen = host(mask[:, start:stop])
        assert_allclose(host(x)[seen], host(wanted)[seen], rtol=1e-11, atol=1e-12)
    assert len(ours) == 12


@pytest.mark.parametrize("out", [1, 5, 64, 193], ids="{} outputs".format)
@pytest.mark.parametrize("rows", [2, 7, 32], ids="{} rows".format)
def test_blocks_of_rows_are_one_product(out, rows):
    x, W = RNG.standard_normal((rows, 24)), RNG.standard_normal((out, 24))
    y = few_rows.in_small_blocks(x, W, 6)
    assert y.flags.c_contiguous
    assert_allclose(y, x @ W.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(300, 300), (3, 100_000), (100_000, 3), (1025, 70)], ids=str)
@pytest.mark.parametrize("blocks", [True, False], ids=["in small blocks", "in large blocks"])
def test_few_rows_times_a_large_matrix_is_the_plain_product(dtype, shape, blocks, monkeypatch):
    monkeypatch.setattr(few_rows, "one_thread_without_packing", lambda: blocks)
    W = RNG.standard_normal(shape).astype(dtype)
    for rows in (1, 2, 8, 32, 33):
        x = RNG.standard_normal((rows, shape[1])).astype(dtype)
        for same in (W, np.asfortranarray(W)):
            y = few_rows.times_transposed(x, same)
            tolerance = 1e-4 if dtype == np.float32 else 1e-12
            assert y.flags.c_contiguous and y.dtype == dtype
            assert_allclose(y, x @ W.T, rtol=tolerance, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("act", ["swiglu", "geglu"])
@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (3, 0, 4), (0,)])
def test_activations_of_empty_arrays_are_empty(act, shape):
    forward, backward = (getattr(ops, f"{act}_{way}") for way in ("forward", "backward"))
    y, cache = forward(xp.zeros(shape), xp.zeros(shape))
    assert y.shape == shape and all(x.shape == shape for x in backward(y, cache))
