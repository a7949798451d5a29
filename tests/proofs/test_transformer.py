"""The whole model: its gradient is exact through every layer at once, and nothing is computed that nobody needs."""

from __future__ import annotations

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, xp

from lora_np import Context, Linear, Parameter, Transformer, TransformerConfig, gradcheck_model, ops

pytestmark = pytest.mark.usefixtures("measured")
layouts = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@layouts
def test_the_whole_model_agrees_with_the_complex_step_to_1e_12(make_model, random_batch, tied):
    tokens, targets = random_batch()
    targets = np.where(np.arange(6) % 3 == 1, ops.IGNORE_INDEX, targets)
    gradcheck_model(make_model(tie_word_embeddings=tied), tokens, targets, tolerance=1e-12).raise_if_wrong()


def test_the_whole_model_agrees_with_central_differences(make_model, random_batch):
    gradcheck_model(make_model(), *random_batch(), method="central").raise_if_wrong()


@layouts
def test_any_single_trainable_parameter_gets_the_gradient_that_it_gets_among_all(make_model, random_batch, tied):
    """What is skipped for frozen parameters must not change the gradient of those that are not: each alone, then compared."""
    model = make_model(tie_word_embeddings=tied)
    _, cache = model.loss(*random_batch())
    model.backward(cache)
    among_all = {name: p.grad for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        model.freeze()
        p.trainable = True
        _, cache = model.loss(*random_batch())
        model.backward(cache)
        assert_array_equal(p.grad, among_all[name], err_msg=f"{name} alone")
        assert [n for n, q in model.named_parameters() if q.grad is not None] == [name], (
            "a frozen parameter got a gradient"
        )


def test_tokens_that_are_no_array_are_named(make_model):
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        make_model().loss([[1, 2]], np.array([[1, 2]]))


def test_the_head_reads_only_what_counts(make_model, random_batch, monkeypatch):
    tokens, targets = random_batch()
    targets = np.where(np.arange(6) % 3 == 1, ops.IGNORE_INDEX, targets)
    model, read = make_model(), []
    real = ops.linear_forward

    def spy(x, W, b=None):
        read.append(x.shape) if W.shape[0] == model.config.vocab_size else None
        return real(x, W, b)

    monkeypatch.setattr(ops, "linear_forward", spy)
    model.loss(tokens, targets)
    assert read == [((targets != ops.IGNORE_INDEX).sum(), model.config.hidden_size)]


def test_a_frozen_model_computes_no_gradient_at_all(make_model, random_batch, monkeypatch):
    model = make_model().freeze()
    _, cache = model.loss(*random_batch())
    monkeypatch.setattr(ops, "attention_backward", lambda *a: pytest.fail("a dx was computed that nobody needs"))
    model.backward(cache)
    assert all(p.grad is None for _, p in model.named_parameters())


def count_products(monkeypatch, model, batch) -> dict[str, int]:
    """How many dx and dW products the linear layers compute in one backward."""
    counts = {"dx": 0, "dW": 0}
    real = ops.linear_backward

    def counting(dy, cache, need_dx=True):
        gradients = real(dy, cache, need_dx)
        counts["dx"] += gradients[0] is not None
        counts["dW"] += gradients[1] is not None
        return gradients

    monkeypatch.setattr(ops, "linear_backward", counting)
    _, cache = model.loss(*batch)
    model.backward(cache)
    return counts


def test_no_dx_is_computed_below_the_lowest_trainable_parameter(make_model, random_batch, monkeypatch):
    """Only the last block's v_proj trains: dx through the head, the MLP's three and o_proj, and nothing further down."""
    model = make_model().freeze()
    model.model.layers[-1].self_attn.v_proj.weight.trainable = True
    assert count_products(monkeypatch, model, random_batch()) == {"dx": 5, "dW": 1}


def test_full_fine_tuning_computes_every_product_once(make_model, random_batch, monkeypatch):
    model = make_model()
    linears = sum(isinstance(m, Linear) for _, m in model.named_modules())
    assert count_products(monkeypatch, model, random_batch()) == {"dx": linears, "dW": linears}


def test_a_frozen_linear_keeps_no_activations():
    layer, x = Linear(xp.ones((4, 3))), xp.ones((2, 3))
    assert layer.forward(x)[1][0] is not None
    layer.freeze()
    assert layer.forward(x)[1][0] is None


def test_a_backward_through_a_forward_that_ran_frozen_is_refused(make_model, random_batch):
    """The norms and the embedding would get gradients, and no projection."""
    model = make_model().freeze()
    _, cache = model.loss(*random_batch())
    model.unfreeze()
    with pytest.raises(RuntimeError, match="the forward pass ran while this parameter was frozen"):
        model.backward(cache)
    assert all(p.grad is None for _, p in model.named_parameters())


def test_what_is_frozen_between_forward_and_backward_gets_no_gradient(make_model, random_batch):
    model = make_model()
    _, cache = model.loss(*random_batch())
    frozen = model.model.layers[1].mlp.up_proj.weight
    frozen.trainable = False
    model.backward(cache)
    assert frozen.grad is None and model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_gradients_accumulate_until_zero_grad(make_model, random_batch):
    model = make_model()
    batches = [random_batch(seed=1), random_batch(seed=2)]
    single = []
    for batch in batches:
        model.zero_grad()
        model.backward(model.loss(*batch)[1])
        single.append({name: p.grad.copy() for name, p in model.named_parameters()})
    model.zero_grad()
    for batch in batches:
        model.backward(model.loss(*batch)[1])
    for name, p in model.named_parameters():
        assert_allclose(p.grad, single[0][name] + single[1][name], rtol=1e-12, atol=1e-15, err_msg=name)


def test_two_batches_can_be_in_flight_at_once(make_model, random_batch):
    """Caches are passed, not stored: the backward of the first is the same after a second forward."""
    model = make_model()
    _, first = model.loss(*random_batch(seed=1))
    model.backward(first)
    alone = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    _, first = model.loss(*random_batch(seed=1))
    model.loss(*random_batch(seed=2))
    model.backward(first)
    for name, p in model.named_parameters():
        assert_array_equal(p.grad, alone[name], err_msg=name)


def test_a_batch_is_its_rows_one_by_one(make_model, random_batch):
    model = make_model()
    tokens, _ = random_batch(rows=3)
    logits, _ = model.forward(tokens)
    for i in range(3):
        assert_allclose(model.forward(tokens[i : i + 1])[0][0], logits[i], rtol=1e-12, atol=1e-13)


def test_a_logit_depends_on_no_later_token(make_model, random_batch):
    model = make_model()
    tokens, _ = random_batch()
    before, _ = model.forward(tokens)
    changed = tokens.copy()
    changed[:, 4:] = (tokens[:, 4:] + 1) % model.config.vocab_size
    assert_array_equal(model.forward(changed)[0][:, :4], before[:, :4])


def test_float32_comes_out_of_a_float32_model(make_model, random_batch):
    model = make_model(np.float32)
    loss, cache = model.loss(*random_batch())
    model.backward(cache)
    assert loss.dtype == np.float32
    assert {p.grad.dtype for _, p in model.named_parameters()} == {np.dtype(np.float32)}


def test_names_are_hugging_faces(make_model):
    names = [name for name, _ in make_model().named_parameters()]
    assert names[:3] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ]
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]


def test_a_tied_head_is_one_parameter(make_model):
    assert "lm_head.weight" not in dict(make_model(tie_word_embeddings=True).named_parameters())


BAD_CALLS = {
    "an id past the vocabulary": (lambda m: m.forward(np.array([[11]])), ValueError, "contains 11, outside 0 … 10"),
    "a negative id": (lambda m: m.forward(np.array([[-1]])), ValueError, "contains -1"),
    "one sequence without a batch": (lambda m: m.forward(np.array([1, 2])), ValueError, r"expected \(any, any\)"),
    "no token": (lambda m: m.forward(np.zeros((1, 0), int)), ValueError, "accepts 1 to 32 in total"),
    "too many tokens": (lambda m: m.forward(np.zeros((1, 33), int)), ValueError, "accepts 1 to 32 in total"),
    "tokens that are floats": (lambda m: m.forward(np.zeros((1, 3))), TypeError, "expected integers"),
    "targets of another shape": (
        lambda m: m.loss(np.zeros((1, 3), int), np.zeros((1, 2), int)),
        ValueError,
        "targets has",
    ),
    "weights of another model": (lambda m: m.load_state_dict({"a": np.ones(2)}), KeyError, r"unknown \['a'\]"),
    "a number for a parameter": (lambda m: Parameter(3.0), TypeError, "expected a NumPy or CuPy array"),
    "a gradient of another shape": (
        lambda m: Parameter(np.ones(2)).add_grad(np.ones(1)),
        ValueError,
        "the gradient has shape",
    ),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD_CALLS[what]
    with pytest.raises(error, match=message):
        call(make_model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"head_dim": 5}, "must be even"),
        ({"head_dim": 0, "hidden_size": 13}, "not divisible by 4 heads"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**vars(config) | change)


def test_a_failed_call_leaves_nothing_behind(make_model, random_batch):
    model = make_model()
    tokens, targets = random_batch()
    before = model.loss(tokens, targets)[0]
    with pytest.raises(ValueError, match="contains 99"):
        model.loss(np.full_like(tokens, 99), targets)
    assert model.loss(tokens, targets)[0] == before and Transformer.random(model.config) is not None


def test_a_context_is_an_argument_that_cannot_be_changed():
    with pytest.raises(AttributeError):
        Context().adapter = "other"
