"""Every backward in `ops` is the derivative of its forward, in every dtype, and the fragile forms hold at the extremes."""

from __future__ import annotations

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, host, xp

from lora_np import gradcheck, ops
from lora_np.backend import Array

pytestmark = pytest.mark.usefixtures("measured")
RNG = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return xp.asarray(RNG.standard_normal(shape))


# One case an op: forward and backward as gradcheck takes them, and inputs of sizes that no transposition survives.
IDS = xp.asarray(RNG.integers(0, 5, (2, 7)))  # with repeats, so that rows of the embedding collect several gradients
TARGETS = xp.asarray(np.where(RNG.random((3, 4)) < 0.3, ops.IGNORE_INDEX, RNG.integers(0, 6, (3, 4))))
FROZEN = normal(4, 5)
MASK = xp.arange(9) >= xp.asarray([[2], [0]])  # the first row begins with padding
TABLES = ops.rotary_tables(xp.arange(5), 6, 100.0, np.float64)


def linear_without_bias(dy, cache):
    return ops.linear_backward(dy, cache)[:2]


CASES = {
    "linear": (ops.linear_forward, linear_without_bias, {"x": normal(2, 3, 5), "W": normal(4, 5)}),
    "linear with a square W": (ops.linear_forward, linear_without_bias, {"x": normal(2, 3, 5), "W": normal(5, 5)}),
    "linear with bias": (
        ops.linear_forward,
        ops.linear_backward,
        {"x": normal(2, 3, 5), "W": normal(4, 5), "b": normal(4)},
    ),
    "lora": (
        lambda x, A, B: ops.lora_forward(x, A, B, scaling=7 / 2),
        ops.lora_backward,
        {"x": normal(2, 3, 5), "A": normal(2, 5), "B": normal(4, 2)},
    ),
    "lora_linear": (
        lambda x, A, B: ops.lora_linear_forward(x, FROZEN.astype(x.dtype), A, B, scaling=7 / 2),
        ops.lora_linear_backward,
        {"x": normal(2, 3, 5), "A": normal(2, 5), "B": normal(4, 2)},
    ),
    "lora over a frozen A": (
        lambda x, B: ops.lora_forward(x, FROZEN[:2].astype(x.dtype), B, 7 / 2, keep_x=False),
        lambda dy, cache: ops.lora_backward(dy, cache)[::2],
        {"x": normal(2, 3, 5), "B": normal(4, 2)},
    ),
    "row_norm": (
        lambda A, B: ops.row_norm_forward(FROZEN.astype(A.dtype), A, B, scaling=7 / 2),
        ops.row_norm_backward,
        {"A": normal(2, 5), "B": normal(4, 2)},
    ),
    "dora": (
        lambda x, u, A, B, m, n: ops.dora_forward(x, u, A, B, m, n, scaling=7 / 2),
        ops.dora_backward,
        {
            **{"x": normal(2, 3, 5), "u": normal(2, 3, 4), "A": normal(2, 5), "B": normal(4, 2)},
            **{"m": normal(4), "n": normal(4) ** 2 + 1},
        },
    ),
    "vera": (
        lambda x, d, b: ops.vera_forward(x, FROZEN[:3].astype(x.dtype), FROZEN[:, :3].astype(x.dtype), d, b),
        ops.vera_backward,
        {"x": normal(2, 3, 5), "d": normal(3), "b": normal(4)},
    ),
    "grouped_lora": (
        lambda x, A, B: ops.grouped_lora_forward(x, A, B, xp.asarray([7 / 2, 0.3, 2.0], dtype=x.real.dtype)),
        ops.grouped_lora_backward,
        {"x": normal(3, 4, 5), "A": normal(3, 2, 5), "B": normal(3, 6, 2)},
    ),
    "dropout": (
        lambda x: ops.dropout_forward(x, 0.4, np.random.default_rng(3)),  # the same mask in every call
        ops.dropout_backward,
        {"x": normal(4, 9)},
    ),
    "embedding": (lambda E: ops.embedding_forward(IDS, E), ops.embedding_backward, {"E": normal(5, 3)}),
    "rms_norm": (ops.rms_norm_forward, ops.rms_norm_backward, {"x": normal(2, 3, 5), "w": normal(5)}),
    "rotary": (
        lambda x: ops.rotary_forward(x, *(table.astype(x.real.dtype) for table in TABLES)),
        ops.rotary_backward,
        {"x": normal(2, 3, 5, 6)},
    ),
    "softmax": (ops.softmax_forward, ops.softmax_backward, {"x": normal(3, 5)}),
    "attention": (
        ops.attention_forward,
        ops.attention_backward,
        {"q": normal(2, 6, 4, 3), "k": normal(2, 2, 4, 3), "v": normal(2, 2, 4, 3)},  # 3 query heads a key/value head
    ),
    "attention with a past": (
        ops.attention_forward,
        ops.attention_backward,
        {"q": normal(2, 4, 3, 5), "k": normal(2, 2, 7, 5), "v": normal(2, 2, 7, 5)},
    ),
    "attention in blocks": (
        ops.attention_forward,
        ops.attention_backward,
        {"q": normal(1, 4, 150, 3), "k": normal(1, 2, 155, 3), "v": normal(1, 2, 155, 3)},  # three of them, and a past
    ),
    "attention with a window": (
        lambda q, k, v: ops.attention_forward(q, k, v, window=5),
        ops.attention_backward,
        {"q": normal(1, 4, 70, 3), "k": normal(1, 2, 73, 3), "v": normal(1, 2, 73, 3)},  # two blocks, and a past
    ),
    "attention with a window, a mask, a soft cap and a scale": (
        lambda q, k, v: ops.attention_forward(q, k, v, MASK, scale=0.3, window=4, softcap=1.5),
        ops.attention_backward,
        {"q": normal(2, 4, 7, 3), "k": normal(2, 2, 9, 3), "v": normal(2, 2, 9, 3)},
    ),
    "silu": (ops.silu_forward, ops.silu_backward, {"x": normal(3, 5)}),
    "gelu": (ops.gelu_forward, ops.gelu_backward, {"x": normal(3, 5)}),
    "swiglu": (ops.swiglu_forward, ops.swiglu_backward, {"gate": normal(3, 5), "up": normal(3, 5)}),
    "layer_norm": (
        ops.layer_norm_forward,
        ops.layer_norm_backward,
        {"x": normal(2, 3, 5), "w": normal(5), "b": normal(5)},
    ),
    "geglu": (ops.geglu_forward, ops.geglu_backward, {"gate": normal(3, 5), "up": normal(3, 5)}),
    "softcap": (lambda x: ops.softcap_forward(x, 1.5), ops.softcap_backward, {"x": normal(3, 5)}),
    "partial rotary": (
        lambda x: ops.rotary_forward(x, *(table.astype(x.real.dtype) for table in TABLES)),
        ops.rotary_backward,
        {"x": normal(2, 3, 5, 10)},  # 6 of 10 features are rotated
    ),
    "cross_entropy": (
        lambda logits: ops.cross_entropy_forward(logits, TARGETS),
        ops.cross_entropy_backward,
        {"logits": normal(3, 4, 6)},
    ),
}
cases = pytest.mark.parametrize("case", CASES)


@cases
def test_backward_agrees_with_the_complex_step_to_1e_12(case):
    forward, backward, inputs = CASES[case]
    gradcheck(forward, backward, inputs, method="complex-step", tolerance=1e-12).raise_if_wrong()


@cases
def test_backward_agrees_with_central_differences(case):
    forward, backward, inputs = CASES[case]
    gradcheck(forward, backward, inputs, method="central").raise_if_wrong()


def test_every_op_has_a_case_here():
    pairs = {name.removesuffix("_forward") for name in ops.__all__ if name.endswith("_forward")}
    assert pairs <= CASES.keys(), f"no proof for {sorted(pairs - CASES.keys())}: add a case to CASES"


@cases
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_the_dtype_that_goes_in_comes_out(case, dtype):
    forward, backward, inputs = CASES[case]
    y, cache = forward(*(x.astype(dtype) for x in inputs.values()))
    gradients = backward(xp.ones_like(y), cache)
    for g in gradients if isinstance(gradients, tuple) else (gradients,):
        assert g is None or g.dtype == dtype, f"{case}: {np.dtype(dtype)} in, a gradient of {g.dtype} out"
    assert y.dtype == dtype, f"{case}: {np.dtype(dtype)} in, {y.dtype} out"


@cases
def test_float32_agrees_with_float64_to_single_precision(case):
    forward, backward, inputs = CASES[case]

    def run(dtype):
        y, cache = forward(*(x.astype(dtype) for x in inputs.values()))
        gradients = backward(xp.ones_like(y), cache)
        return [y, *(g for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if g is not None)]

    for single, double in zip(run(np.float32), run(np.float64), strict=True):
        assert_allclose(single, double, rtol=2e-5, atol=2e-6, err_msg=case)


@cases
def test_forward_and_backward_leave_their_inputs_and_the_cache_alone(case):
    """A cache may be used twice: two backward calls with one cache give the same gradients."""
    forward, backward, inputs = CASES[case]
    before = {name: x.copy() for name, x in inputs.items()}
    y, cache = forward(*inputs.values())
    dy = xp.full_like(y, 0.5)
    first, second = backward(dy, cache), backward(dy, cache)
    np.testing.assert_equal(host(first), host(second), err_msg=f"{case}: the backward changed its cache")
    assert (dy == 0.5).all(), f"{case}: the backward wrote into dy"
    for name, x in inputs.items():
        assert_array_equal(x, before[name], err_msg=f"{case} wrote into its input {name}")


# ── identities ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lora_gradients_are_the_full_gradient_seen_through_the_factors():
    """dA = s·Bᵀ dW and dB = s·dW Aᵀ, with dW = dyᵀx of full fine-tuning (FACTS: Hu et al. 2021)."""
    x, W, A, B, s = normal(6, 5), normal(4, 5), normal(2, 5), normal(4, 2), 3.5
    y, cache = ops.lora_linear_forward(x, W, A, B, s)
    dy = normal(*y.shape)
    _, dA, dB = ops.lora_linear_backward(dy, cache)
    dW = ops.linear_backward(dy, (x, W, False))[1]
    assert_allclose(dA, s * B.T @ dW, rtol=1e-12)
    assert_allclose(dB, s * dW @ A.T, rtol=1e-12)


def test_at_the_start_dA_is_exactly_zero_and_dB_is_not():
    """B = 0, so nothing that A does reaches y yet: a gradient check at init proves nothing about A."""
    y, cache = ops.lora_linear_forward(normal(6, 5), normal(4, 5), normal(2, 5), xp.zeros((4, 2)), 2.0)
    _, dA, dB = ops.lora_linear_backward(normal(*y.shape), cache)
    assert not dA.any() and dB.any()


def test_lora_equals_the_layer_with_the_merged_weight():
    x, W, A, B, s = normal(6, 5), normal(4, 5), normal(2, 5), normal(4, 2), 3.5
    y, _ = ops.lora_linear_forward(x, W, A, B, s)
    assert_allclose(y, x @ (W + s * B @ A).T, rtol=1e-12)


def test_dropout_keeps_the_expectation_and_draws_a_mask_for_each_number():
    y, mask = host(ops.dropout_forward(xp.ones((200, 300)), 0.25, np.random.default_rng(0)))
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert abs(y.mean() - 1) < 0.01, "what is kept must be scaled by 1/(1 − p)"
    assert abs(mask.std(axis=0).mean() - mask.std()) < 0.01, "one mask a feature, where each token needs its own"


def test_dropout_is_the_identity_in_evaluation():
    x = normal(3, 4)
    assert ops.dropout_forward(x, 0.9, None)[0] is x


def test_attention_sees_no_future():
    q, k, v = normal(1, 2, 5, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4)
    before, _ = ops.attention_forward(q, k, v)
    k[:, :, 3:], v[:, :, 3:] = 100.0, -100.0
    after, _ = ops.attention_forward(q, k, v)
    assert_array_equal(before[:, :, :3], after[:, :, :3])


def test_attention_with_a_past_equals_the_tail_of_attention_without():
    q, k, v = normal(2, 4, 7, 6), normal(2, 2, 7, 6), normal(2, 2, 7, 6)
    whole, _ = ops.attention_forward(q, k, v)
    tail, _ = ops.attention_forward(q[:, :, 4:], k, v)
    assert_allclose(tail, whole[:, :, 4:], rtol=1e-13)


def test_a_window_shows_the_last_tokens_only_and_counts_no_padding():
    q, k, v = normal(2, 1, 7, 6), normal(2, 1, 7, 6), normal(2, 1, 7, 6)
    mask = np.array([[True] * 7, [True, True, False, False, True, True, True]])
    o, _ = ops.attention_forward(q, k, v, xp.asarray(mask), window=3)
    without, _ = ops.attention_forward(q, k, v, window=3)
    assert_allclose(without[0], o[0], rtol=1e-13)
    q, k, v, o = host([q, k, v, o])
    for row, query in [(0, 0), (0, 2), (0, 6), (1, 4), (1, 6)]:
        seen = np.flatnonzero(mask[row, : query + 1])[-3:]  # the last three tokens up to the query
        p, _ = ops.softmax_forward(k[row, 0, seen] @ q[row, 0, query] / np.sqrt(6))
        assert_allclose(o[row, 0, query], p @ v[row, 0, seen], rtol=1e-12)


def test_a_soft_cap_bounds_every_score():
    q, k, v = 100 * normal(1, 1, 4, 6), 100 * normal(1, 1, 4, 6), normal(1, 1, 4, 6)
    o, _ = ops.attention_forward(q, k, v, softcap=1e-9)
    assert_allclose(o[0, 0, 3], v[0, 0].mean(axis=0), rtol=1e-6)  # all scores are nearly equal


def test_attention_in_blocks_is_attention(monkeypatch):
    """Blocks leave out only what does not count, with padding and a past too."""
    q, k, v, do = normal(2, 4, 7, 6), normal(2, 2, 9, 6), normal(2, 2, 9, 6), normal(2, 4, 7, 6)
    mask = xp.asarray(np.arange(9) > np.array([[1], [-1]]))

    def all_of_it():
        found = []
        for window in (None, 4):
            o, cache = ops.attention_forward(q, k, v, mask, window=window)
            found += [o, *ops.attention_backward(do, cache)]
        return found

    whole = all_of_it()
    monkeypatch.setattr(ops.attention, "BLOCK", 3)
    for blocked, expected in zip(all_of_it(), whole, strict=True):
        assert_allclose(blocked, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_a_gated_activation_in_parts_and_in_place_computes_the_same(activation, monkeypatch):
    forward, backward = getattr(ops, f"{activation}_forward"), getattr(ops, f"{activation}_backward")
    gate_up, dy = normal(2, 7, 10), normal(2, 7, 5)
    gate, up = gate_up[..., :5], gate_up[..., 5:]  # views, as in a fused projection
    y, cache = forward(gate, up)
    before = gate_up.copy()
    dgate, dup = backward(dy, cache)
    assert_array_equal(gate_up, before, err_msg="without overwrite, the inputs do not change")
    monkeypatch.setattr(ops.parts, "CACHED", 75)  # 1 to 5 rows
    assert_allclose(forward(gate, up)[0], y, rtol=1e-14)
    found = backward(dy, cache, overwrite=True)
    assert found[0] is gate and found[1] is up
    assert_allclose(gate_up[..., :5], dgate, rtol=1e-14)
    assert_allclose(gate_up[..., 5:], dup, rtol=1e-14)


@pytest.mark.parametrize("shape", [(7,), (1, 5), (9, 5), (2, 9, 5), (3, 2, 4, 5), (0, 5)])
def test_the_parts_of_an_array_are_views_and_together_all_of_it(shape, monkeypatch):
    monkeypatch.setattr(ops.parts, "CACHED", 40)  # 4 rows of 5 numbers in two arrays
    x = xp.zeros(shape)
    for part in ops.parts.parts(x, arrays=2):
        assert x[part].size <= max(20, shape[-1]) or not isinstance(x, np.ndarray)
        x[part] += 1
    assert_array_equal(x, xp.ones(shape))


def test_cross_entropy_may_take_the_logits_memory_and_computes_the_same():
    logits, targets = normal(4, 6), xp.asarray([2, 5, 0, 1])
    kept, (loss, cache) = logits.copy(), ops.cross_entropy_forward(logits, targets)
    loss_too, cache_too = ops.cross_entropy_forward(kept, targets, overwrite=True)
    assert_array_equal(loss, loss_too)
    assert_array_equal(ops.cross_entropy_backward(1.0, cache), ops.cross_entropy_backward(1.0, cache_too))
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        ops.cross_entropy_backward(1.0, cache_too)


def test_a_rotation_keeps_lengths_and_sees_only_relative_positions():
    cos, sin = ops.rotary_tables(xp.asarray([0, 3, 10, 13]), 8, 10000.0, np.float64)
    q, k = xp.broadcast_to(normal(8), (4, 8)).copy(), xp.broadcast_to(normal(8), (4, 8)).copy()
    q, rq, rk = host([q, ops.rotary_forward(q, cos, sin)[0], ops.rotary_forward(k, cos, sin)[0]])
    assert_allclose(np.linalg.norm(rq, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-13)
    assert_allclose(rq[1] @ rk[0], rq[3] @ rk[2], rtol=1e-12)  # both are three apart


def test_an_ignored_target_changes_neither_loss_nor_gradient():
    logits, targets = normal(1, 4, 6), xp.asarray([[2, ops.IGNORE_INDEX, 5, 0]])
    loss, cache = ops.cross_entropy_forward(logits, targets)
    kept = [0, 2, 3]
    loss_without, cache_without = ops.cross_entropy_forward(logits[:, kept], targets[:, kept])
    assert float(loss) == pytest.approx(float(loss_without), rel=1e-14)
    gradient = ops.cross_entropy_backward(1.0, cache)
    assert not gradient[0, 1].any()
    assert_allclose(gradient[:, kept], ops.cross_entropy_backward(1.0, cache_without), rtol=1e-13)


# ── extremes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

float_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@float_dtypes
def test_silu_at_the_extremes(dtype):
    """Far left silu is 0 and far right it is x, with no overflow on the way (a warning is an error here)."""
    x = xp.asarray([-1e38, -1e4, -800, -100, -20, 0, 20, 100, 800, 1e4, 1e38], dtype)
    with np.errstate(all="raise", under="ignore"):
        y, cache = ops.silu_forward(x)
        dx = ops.silu_backward(xp.ones_like(x), cache)
    x, y, dx = host([x, y, dx])
    assert_allclose(y[x >= 100], x[x >= 100])
    assert (np.abs(y[:4]) < 1e-30).all() and y[0] == y[5] == 0
    assert_allclose(y[4], -20 / (1 + np.exp(20.0)), rtol=1e-6)  # small, and relatively right
    assert_allclose(dx[[0, 1, 5, 9, 10]], [0, 0, 0.5, 1, 1], atol=1e-30)


@float_dtypes
def test_softmax_and_cross_entropy_at_the_extremes(dtype):
    """Logits of ±10⁴ overflow exp; taking the largest out first leaves loss and gradient exact."""
    z = xp.asarray([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [1e30, 1e30, -1e30]], dtype)
    with np.errstate(all="raise", under="ignore"):
        p, _ = ops.softmax_forward(z)
        loss, cache = ops.cross_entropy_forward(z, xp.asarray([1, 0, 0]))
        gradient = ops.cross_entropy_backward(1.0, cache)
    assert_allclose(p, [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]], rtol=1e-6)
    assert_allclose(loss, (1e4 + np.log(3) + np.log(2)) / 3, rtol=1e-6)
    assert_allclose(gradient * 3, [[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3], [-0.5, 0.5, 0]], rtol=1e-6)


@float_dtypes
def test_attention_at_the_extremes(dtype):
    """Scores of ±10⁶: the softmax becomes a choice, not a NaN."""
    q, k = xp.full((1, 1, 3, 4), 1e3, dtype), xp.full((1, 1, 3, 4), 1e3, dtype)
    k[0, 0, 0] *= -1
    v = xp.arange(12, dtype=dtype).reshape(1, 1, 3, 4)
    with np.errstate(all="raise", under="ignore"):
        o, cache = ops.attention_forward(q, k, v)
        gradients = ops.attention_backward(xp.ones_like(o), cache)
    o, v = host([o, v])
    assert_allclose(o[0, 0], [v[0, 0, 0], v[0, 0, 1], (v[0, 0, 1] + v[0, 0, 2]) / 2], rtol=1e-6)
    assert all(xp.isfinite(g).all() for g in gradients)


@float_dtypes
def test_rms_norm_of_what_overflows_is_nan_rather_than_a_silent_zero(dtype):
    """1/√inf is 0: a destroyed model would go on with a finite loss, and training would not notice."""
    with np.errstate(over="ignore"):
        y, _ = ops.rms_norm_forward(
            xp.asarray([[1e200 if dtype == np.float64 else 1e20] * 4], dtype), xp.ones(4, dtype)
        )
    assert np.isnan(host(y)).all()


@float_dtypes
def test_rms_norm_of_zero_is_zero_and_finite(dtype):
    y, cache = ops.rms_norm_forward(xp.zeros((2, 4), dtype), xp.ones(4, dtype))
    dx, dw = ops.rms_norm_backward(xp.ones((2, 4), dtype), cache)
    assert not y.any() and xp.isfinite(dx).all() and not dw.any()


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────

x, W, A, B = normal(2, 5), normal(4, 5), normal(2, 5), normal(4, 2)
BAD = {
    "another size": (lambda: ops.linear_forward(x, normal(4, 6)), ValueError, r"last axis of size 6"),
    "a bias that would broadcast": (lambda: ops.linear_forward(x, W, normal(1)), ValueError, r"b has shape \(1,\)"),
    "mixed dtypes": (lambda: ops.linear_forward(x.astype("f"), W), TypeError, "convert one of the two arrays"),
    "integers for floats": (lambda: ops.linear_forward(np.ones((2, 5), int), W), TypeError, "expected a float array"),
    "a list": (lambda: ops.linear_forward([[1.0] * 5], W), TypeError, "expected a NumPy or CuPy array, got list"),
    "A of another width": (lambda: ops.lora_linear_forward(x, W, normal(2, 4), B, 1.0), ValueError, "A has shape"),
    "A and B swapped": (lambda: ops.lora_linear_forward(x, W, B, A, 1.0), ValueError, "A has shape"),
    "A and B of different ranks": (
        lambda: ops.lora_linear_forward(x, W, A, normal(4, 3), 1.0),
        ValueError,
        "B has shape",
    ),
    "B that would broadcast": (lambda: ops.lora_linear_forward(x, W, A, normal(1, 2), 1.0), ValueError, "B has shape"),
    "a norm weight that would broadcast": (
        lambda: ops.rms_norm_forward(x, normal(1)),
        ValueError,
        "last axis of size 1",
    ),
    "an id past the table": (
        lambda: ops.embedding_forward(np.array([0, 4]), W),
        ValueError,
        "contains 4, outside 0 … 3",
    ),
    "a negative id": (lambda: ops.embedding_forward(np.array([-1]), W), ValueError, "contains -1"),
    "ids that are floats": (lambda: ops.embedding_forward(np.array([0.0]), W), TypeError, "expected integers"),
    "targets of another shape": (lambda: ops.cross_entropy_forward(x, np.array([1])), ValueError, "targets has shape"),
    "a target past the vocabulary": (lambda: ops.cross_entropy_forward(x, np.array([1, 5])), ValueError, "contains 5"),
    "nothing but ignored targets": (
        lambda: ops.cross_entropy_forward(x, np.array([-100, -100])),
        ValueError,
        "no token",
    ),
    "dropout of 1": (lambda: ops.dropout_forward(x, 1.0, RNG), ValueError, "expected 0 ≤ p < 1"),
    "an odd head": (lambda: ops.rotary_tables(np.arange(3), 5, 1e4, np.float32), ValueError, "must be even"),
    "tables of another length": (lambda: ops.rotary_forward(normal(4, 6), *TABLES), ValueError, "cos has shape"),
    "tables of another dtype": (
        lambda: ops.rotary_forward(normal(5, 6).astype("f"), *TABLES),
        TypeError,
        "cos has dtype float64, but x has dtype float32",
    ),
    "heads that do not divide": (
        lambda: ops.attention_forward(normal(1, 3, 2, 4), normal(1, 2, 2, 4), normal(1, 2, 2, 4)),
        ValueError,
        "must be a multiple",
    ),
    "fewer keys than queries": (
        lambda: ops.attention_forward(normal(1, 2, 3, 4), normal(1, 2, 2, 4), normal(1, 2, 2, 4)),
        ValueError,
        "at least as many keys",
    ),
    "gate and up that would broadcast": (lambda: ops.swiglu_forward(x, normal(1, 5)), ValueError, "up has shape"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error(what):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call()
