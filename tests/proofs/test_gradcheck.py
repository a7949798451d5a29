"""The proof can fail: gradcheck says which gradient is wrong, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
from on_device import xp

from lora_np import gradcheck, gradcheck_model, ops


def square(x, w):
    return x * x * w, (x, w)


def square_backward(dy, cache):
    x, w = cache
    return 2 * dy * x * w, dy * x * x


INPUTS = {"x": xp.asarray([1.0, -2.0, 3.0]), "w": xp.asarray([0.5, 1.5, -1.0])}


@pytest.mark.parametrize("method", ["complex-step", "central"])
def test_a_right_gradient_passes(method):
    result = gradcheck(square, square_backward, INPUTS, method=method)
    assert result.ok and result.raise_if_wrong() is result


@pytest.mark.parametrize("method", ["complex-step", "central"])
def test_a_wrong_gradient_is_named_with_the_size_of_its_error(method):
    """1 % too much in x must be reported as about 1 % in x, and nothing in w."""
    result = gradcheck(
        square, lambda dy, c: (1.01 * square_backward(dy, c)[0], square_backward(dy, c)[1]), INPUTS, method=method
    )
    assert result.wrong == ["x"]
    assert 1e-4 < result.errors["x"] < 2e-2
    with pytest.raises(AssertionError, match=r"x .*WRONG"):
        result.raise_if_wrong()


def test_one_wrong_entry_among_many_is_found():
    def wrong(dy, cache):
        dx, dW, _ = ops.linear_backward(dy, cache)
        dW[3, 7] += 1e-6
        return dx, dW

    rng = np.random.default_rng(0)
    inputs = {"x": xp.asarray(rng.standard_normal((9, 20))), "W": xp.asarray(rng.standard_normal((30, 20)))}
    result = gradcheck(ops.linear_forward, wrong, inputs)
    assert result.wrong == ["W"]


def test_the_directions_are_not_a_callers_own_random_numbers():
    """With the same default_rng(0) for x and for dy, dyᵀx would be symmetric, and a transposed dW would pass."""
    rng = np.random.default_rng(0)
    inputs = {"x": xp.asarray(rng.standard_normal((3, 4))), "W": xp.asarray(rng.standard_normal((4, 4)))}

    def transposed(dy, cache):
        dx, dW, _ = ops.linear_backward(dy, cache)
        return dx, dW.T

    assert gradcheck(ops.linear_forward, transposed, inputs).wrong == ["W"]


def test_a_nan_is_wrong():
    assert gradcheck(square, lambda dy, c: (xp.full(3, np.nan), None), INPUTS).wrong == ["x"]


def test_a_gradient_of_zeros_where_there_is_one_is_wrong():
    assert gradcheck(square, lambda dy, c: (xp.zeros(3), xp.zeros(3)), INPUTS).wrong == ["x", "w"]


def test_the_complex_step_is_exact_where_central_differences_cannot_be():
    """The subtraction costs the difference some six of sixteen digits; the complex step loses none."""
    exact = gradcheck(square, square_backward, INPUTS, method="complex-step").errors
    difference = gradcheck(square, square_backward, INPUTS, method="central").errors
    assert max(exact.values()) < 1e-15 < 1e-13 < max(difference.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backward": lambda dy, c: (dy,)}, ValueError, "returned 1 gradients for the 2 inputs"),
        ({"backward": lambda dy, c: (dy[:2], dy)}, ValueError, "the gradient of x has shape"),
        ({"inputs": {"x": xp.arange(3), "w": INPUTS["w"]}}, TypeError, "x has dtype int64"),
        ({"method": "guess"}, ValueError, "expected one of"),
        ({"directions": 0}, ValueError, "at least 1"),
        ({"backward": lambda dy, c: (None, None)}, ValueError, "returned only None"),
    ],
)
def test_bad_input_is_a_clear_error(change, error, message):
    arguments = {"forward": square, "backward": square_backward, "inputs": INPUTS} | change
    with pytest.raises(error, match=message):
        gradcheck(**arguments)


def test_checking_a_model_leaves_it_as_it_was(make_model, random_batch):
    model = make_model(np.float32)
    before = {name: (p.value, p.value.copy()) for name, p in model.named_parameters()}
    gradcheck_model(model, *random_batch())
    for name, p in model.named_parameters():
        array, copy = before[name]
        assert p.value is array and (array == copy).all() and p.grad is None, name


def test_a_model_with_nothing_to_train_is_refused(make_model, random_batch):
    with pytest.raises(ValueError, match="no parameter is trainable"):
        gradcheck_model(make_model().freeze(), *random_batch())
