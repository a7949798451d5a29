"""Tests of the optimizers: each step equals its equations, which are written out here in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, host, xp

from lora_np import SGD, AdamW, Parameter, WarmupCosine, clip_grad_norm, ops, train
from lora_np.training.clipping import grad_norm
from lora_np.training.schedule import constant

RNG = np.random.default_rng(3)
THETA = RNG.standard_normal((4, 3))
GRADIENTS = RNG.standard_normal((3, 4, 3))  # gradients of three steps


def parameter(value, grad=None, trainable=True):
    p = Parameter(xp.array(value, dtype=np.float64), trainable)
    p.grad = None if grad is None else xp.array(grad, dtype=np.float64)
    return p


def run(optimizer, value, gradients, **step):
    """Return the values of the parameter after each gradient."""
    p, seen = parameter(value), []
    for t, g in enumerate(gradients, start=1):
        p.grad = xp.array(g)
        optimizer.step([("p", p)], t=t, **step)
        seen.append(host(p.value.copy()))
    return seen


# ------------------------------------------------------------------------------------------------------------ equations


def test_adamw_is_the_equation_of_loshchilov_and_hutter():
    lr, beta1, beta2, eps, decay = 0.03, 0.8, 0.95, 1e-3, 0.2  # ε is large enough to affect the result
    theta, m, v = THETA, 0.0, 0.0
    for t, g in enumerate(GRADIENTS, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        theta = theta - lr * decay * theta - lr * m_hat / (np.sqrt(v_hat) + eps)
        ours = run(AdamW(lr, (beta1, beta2), eps, decay), THETA, GRADIENTS[:t])[-1]
        assert_allclose(ours, theta, rtol=1e-13, err_msg=f"step {t}: is a bias correction or ε out of place?")


def test_sgd_with_momentum_is_pytorchs_equation():
    lr, momentum, decay = 0.1, 0.9, 0.02
    theta, u = THETA, 0.0
    for t, g in enumerate(GRADIENTS, start=1):
        u = momentum * u + g + decay * theta
        theta = theta - lr * u
        ours = run(SGD(lr, momentum, decay), THETA, GRADIENTS[:t])[-1]
        assert_allclose(ours, theta, rtol=1e-13, err_msg=f"step {t}")


def test_plain_sgd_keeps_no_state_and_goes_down_the_gradient():
    optimizer = SGD(lr=0.5)
    assert_array_equal(run(optimizer, THETA, GRADIENTS[:1])[0], THETA - 0.5 * GRADIENTS[0])
    assert not optimizer.state, "momentum 0 needs no velocity, which would be a copy of all weights"


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e6])
def test_the_first_adam_step_has_size_lr_whatever_the_gradients_scale(scale):
    g = np.array([3.0, -0.5, 1.0]) * scale
    moved = run(AdamW(lr=0.01, weight_decay=0), np.zeros(3), [g])[0]
    message = (
        "at t = 1, m̂ = g and √v̂ = |g|: only the sign is left. Without bias correction it would be (1−β₁)/√(1−β₂) · lr"
    )
    assert_allclose(moved, -0.01 * np.sign(g), rtol=1e-5, err_msg=message)


def test_weight_decay_is_decoupled_from_the_gradient():
    still = run(AdamW(lr=0.1, weight_decay=0.5), THETA, [np.zeros_like(THETA)])[0]
    assert_allclose(still, THETA * (1 - 0.1 * 0.5), rtol=1e-15, err_msg="a zero gradient must not stop the decay")
    for scale in (1e-3, 1e3):
        with_decay, without = (run(AdamW(0.1, weight_decay=d), THETA, [scale * GRADIENTS[0]])[0] for d in (0.5, 0))
        message = "decay divided by √v is L2, which AdamW exists to replace: it must not depend on the gradient"
        assert_allclose(without - with_decay, 0.1 * 0.5 * THETA, rtol=1e-10, err_msg=message)


def test_sgds_weight_decay_is_l2():
    decayed = run(SGD(lr=0.1, weight_decay=0.5), THETA, GRADIENTS[:1])[0]
    assert_array_equal(decayed, THETA - 0.1 * (GRADIENTS[0] + 0.5 * THETA))


def test_adam_trains_the_same_delta_w_when_a_and_b_are_scaled_by_powers_of_two():
    """(α/(pq), p·A, q·B) with learning rates p·lr for A and q·lr for B trains like (α, A, B) with lr, to the bit.

    Adam's update does not depend on the size of the gradient, so the learning rate sets the scale. The loss is ½‖y‖².
    """
    rng = np.random.default_rng(0)
    x, W, A, B = (xp.asarray(rng.standard_normal(shape)) for shape in ((7, 5), (4, 5), (2, 5), (4, 2)))

    def deltas(p, q):
        factors, scaling, seen = (Parameter(p * A), Parameter(q * B)), 3.5 / (p * q), []
        optimizer = AdamW(lr=0.01, eps=0, weight_decay=0)  # ε would set an absolute scale
        for t in range(1, 6):
            y, cache = ops.lora_linear_forward(x, W, *(f.value for f in factors), scaling)
            for f, g in zip(factors, ops.lora_linear_backward(y, cache)[1:], strict=True):
                f.grad = g
            optimizer.step([("A", factors[0])], lr=0.01 * p, t=t)
            optimizer.step([("B", factors[1])], lr=0.01 * q, t=t)
            seen.append(host(scaling * (factors[1].value @ factors[0].value)))
        return seen

    assert_array_equal(deltas(p=8, q=0.25), deltas(p=1, q=1))


# -------------------------------------------------------------------------------------------------------------- counting


def test_the_optimizer_counts_its_updates():
    """The bias correction of AdamW needs t. Without an argument t, AdamW counts 1, 2, 3."""
    optimizer, p, seen = AdamW(lr=0.03), parameter(THETA), []
    for g in GRADIENTS:
        p.grad = xp.array(g)
        optimizer.step([("p", p)])
        seen.append(host(p.value.copy()))
    assert_array_equal(seen, run(AdamW(lr=0.03), THETA, GRADIENTS))
    assert optimizer.t == 3
    p.grad = xp.array(GRADIENTS[0])
    optimizer.step([("p", p)], t=1)
    assert optimizer.t == 1, "counting continues from the given t"


def test_the_loop_of_a_tutorial_is_train_to_the_bit(make_model, random_batch):
    batches = [random_batch(seed=i) for i in range(3)]
    by_hand, trained = make_model(), make_model()
    optimizer = AdamW()
    for tokens, targets in batches:
        _, cache = by_hand.loss(tokens, targets)
        by_hand.backward(cache)
        optimizer.step(by_hand.named_parameters())
        optimizer.zero_grad(by_hand.named_parameters())
    assert not any(p.grad is not None for _, p in by_hand.named_parameters())
    train(trained, batches, other := AdamW(lr=1e-3), steps=3, progress=False)
    for name, value in trained.state_dict().items():
        assert_array_equal(by_hand.state_dict()[name], value, err_msg=name)
    assert optimizer.t == other.t == 3
    train(trained, batches, other, steps=2, progress=False)
    assert other.t == 2, "train resets the state and the count"


def test_parameters_in_the_place_of_the_learning_rate_are_refused_in_words(make_model):
    for kind in (SGD, AdamW):
        with pytest.raises(TypeError, match=r"lr is a generator; expected a number\. .* step\(\)"):
            kind(make_model().named_parameters())


# -------------------------------------------------------------------------------------------------------- what may move


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(0.1)], ids=["SGD", "AdamW"])
def test_only_a_trainable_parameter_with_a_gradient_moves(optimizer):
    frozen, unused = parameter(THETA, GRADIENTS[0], trainable=False), parameter(THETA)
    optimizer.step([("frozen", frozen), ("unused", unused)], t=1)
    assert np.array_equal(host(frozen.value), THETA), "a frozen weight changed: weight decay must skip it"
    assert np.array_equal(host(unused.value), THETA), (
        "a parameter that no loss reached has nothing to follow, decay included"
    )
    assert not optimizer.state, "a frozen parameter must have no state"


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), AdamW(0.1)], ids=["SGD", "AdamW"])
def test_the_state_shares_no_memory_with_the_gradient(optimizer):
    p = parameter(THETA, GRADIENTS[0])
    optimizer.step([("p", p)], t=1)
    shared = [name for name, x in optimizer.state["p"].items() if xp.shares_memory(x, p.grad)]
    assert not shared, f"{shared} shares memory with the gradient: the next backward would change it"


def test_a_float32_parameter_stays_float32():
    for optimizer in (SGD(0.1, momentum=0.9), AdamW(0.1)):
        p = Parameter(xp.asarray(THETA.astype(np.float32)))
        p.grad = xp.asarray(GRADIENTS[0].astype(np.float32))
        optimizer.step([("p", p)], t=1)
        assert {p.value.dtype, *(x.dtype for x in optimizer.state["p"].values())} == {np.dtype(np.float32)}


def test_the_lr_of_a_step_takes_the_place_of_the_optimizers_own():
    assert_array_equal(run(AdamW(7.0), THETA, GRADIENTS, lr=0.1), run(AdamW(0.1), THETA, GRADIENTS))


# ------------------------------------------------------------------------------------------------------------- schedule


def test_warmup_cosine_rises_in_a_line_and_falls_in_a_half_cosine():
    schedule = WarmupCosine(steps=110, warmup=10, floor=0.1)
    assert schedule(0) == 1 / 10, "step 0 must have a factor above 0"
    assert schedule(4) == 1 / 2
    assert schedule(9) == schedule(10) == 1, "the factor is 1 at the end of the warm-up"
    assert schedule(60) == pytest.approx(0.55), "half-way down, the factor is the mean of 1 and the floor"
    assert 0.1 < schedule(109) < 0.101, "the last step is just above the floor"
    assert schedule(110) == schedule(10_000) == pytest.approx(0.1), "after the last step, the factor stays at the floor"
    factors = [schedule(s) for s in range(10, 111)]
    assert factors == sorted(factors, reverse=True)


def test_without_warmup_the_first_step_has_the_full_rate_and_without_a_floor_the_end_is_zero():
    schedule = WarmupCosine(steps=4)
    assert [schedule(s) for s in range(5)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    )
    assert constant(0) == constant(10**9) == 1.0


# ------------------------------------------------------------------------------------------------------------- clipping


def gradients_of_norm_13():
    return [("a", parameter([0.0, 0.0], [3.0, 4.0])), ("b", parameter([[0.0]], [[12.0]])), ("frozen", parameter([1.0]))]


def test_clip_grad_norm_scales_all_gradients_by_one_factor_and_returns_the_norm_before():
    parameters = gradients_of_norm_13()
    assert float(clip_grad_norm(parameters, max_norm=2.0)) == pytest.approx(13), (
        "√(3² + 4² + 12²), over all tensors together"
    )
    assert float(grad_norm(parameters)) == pytest.approx(2, rel=1e-6)
    a, b = parameters[0][1].grad, parameters[1][1].grad
    assert_allclose(a / b[0, 0], [3 / 12, 4 / 12], err_msg="clipping must keep the direction")
    assert parameters[2][1].grad is None


def test_clip_grad_norm_leaves_a_short_gradient_alone_to_the_bit():
    parameters = gradients_of_norm_13()
    clip_grad_norm(iter(parameters), max_norm=14)
    assert parameters[0][1].grad.tolist() == [3.0, 4.0]
    assert parameters[1][1].grad.tolist() == [[12.0]]


def test_no_gradient_at_all_has_no_norm():
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        clip_grad_norm([("p", parameter([1.0]))], 1.0)


# ------------------------------------------------------------------------------------------------------------ bad input

BAD = {
    "a negative lr": (lambda: SGD(lr=-1e-3), "lr = -0.001; expected a number ≥ 0"),
    "an lr that is NaN": (lambda: AdamW(lr=math.nan), "lr = nan"),
    "a negative momentum": (lambda: SGD(lr=1, momentum=-0.1), "momentum = -0.1"),
    "a negative decay": (lambda: AdamW(lr=1, weight_decay=-0.1), "weight_decay = -0.1"),
    "a negative ε": (lambda: AdamW(lr=1, eps=-1e-8), "eps = -1e-08"),
    "a β of 1": (lambda: AdamW(lr=1, betas=(0.9, 1.0)), r"betas = \(0.9, 1.0\); expected two numbers in \[0, 1\)"),
    "a warm-up past the end": (lambda: WarmupCosine(steps=10, warmup=11), "warmup = 11, steps = 10"),
    "a floor above the top": (lambda: WarmupCosine(steps=10, floor=1.5), "floor = 1.5"),
    "clipping to a negative norm": (lambda: clip_grad_norm(gradients_of_norm_13(), -1.0), "max_norm = -1.0; expected"),
    "clipping to norm 0": (lambda: clip_grad_norm(gradients_of_norm_13(), 0.0), "max_norm = 0.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_setting_is_refused_by_name(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
