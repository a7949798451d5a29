"""LoRA's variants DoRA, PiSSA, LoRA-FA, LoRA+ and VeRA, and their gradients.

test_family_oracles.py compares results and files with PEFT.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from adapted import ALL, adapted
from on_device import assert_allclose, assert_array_equal, host, xp

import lora_np as ln
from lora_np import SGD, AdamW, LoraConfig, Parameter, PeftModel, get_peft_model, gradcheck_model, ops, train
from lora_np.nn import Context, Linear
from lora_np.peft import AdaptedLinear, VeraConfig
from lora_np.peft.files import read_adapter
from lora_np.peft.lora import dora, pissa
from lora_np.peft.lora.method import LoraMethod
from lora_np.peft.placement import adapted_layers
from lora_np.peft.vera import VeraAdapter, VeraMethod
from lora_np.serve.adapters import AdapterStore

RNG = np.random.default_rng(11)
DORA = {"use_dora": True, "dora_norm": "true"}
PISSA = {"init_lora_weights": "pissa"}


def drawn(layer, config):
    """Return a new adapter for one layer, as in `get_peft_model`."""
    return LoraMethod().draw(config, layer.base_layer, np.random.default_rng(0), None)


def normal(*shape):
    return xp.asarray(RNG.standard_normal(shape))


def trained(peft_model, seed=3):
    """Return an adapter whose trainable parameters differ from their initial values: m ≠ n, B ≠ B₀."""
    rng = np.random.default_rng(seed)
    for _, p in peft_model.named_parameters():
        if p.trainable:
            p.value += xp.asarray(rng.normal(0, 0.2, p.value.shape).astype(p.value.dtype))
    return peft_model


def gradients(model, batch):
    model.zero_grad()
    model.backward(model.loss(*batch)[1])
    return {name: host(p.grad) for name, p in model.named_parameters() if p.grad is not None}


# ----------------------------------------------------------------------------------------------------------------- DoRA


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "rank_pattern": {"down_proj": 1}}, {"lora_dropout": 0.3}, {"freeze_A": True}, PISSA],
    ids=["all-linear", "rsLoRA, a rank of its own", "dropout", "A frozen", "from PiSSA"],
)
def test_dora_with_its_true_norm_agrees_with_the_complex_step_to_1e_12(make_model, random_batch, settings):
    peft_model = trained(adapted(make_model(), **DORA, **settings))
    dropout_seed = 5 if "lora_dropout" in settings else None
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12, dropout_seed=dropout_seed).raise_if_wrong()


def test_dora_over_four_bits_agrees_with_the_complex_step_to_1e_12(make_model, random_batch):
    peft_model = trained(adapted(ln.quantize_model(make_model(np.float32)), **DORA))
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.3}], ids=["plain", "dropout"])
def test_detached_dora_agrees_with_the_complex_step_of_the_function_whose_norm_is_held(
    make_model, random_batch, settings, monkeypatch
):
    """Fix each layer's row norms n at their current values. The detached gradient is exact for this function."""
    peft_model = trained(adapted(make_model(), use_dora=True, **settings))
    held = {}
    for layer in peft_model.lora_layers():
        adapter = layer.adapters["default"]
        norm = dora.row_norm(layer.base_layer, *adapter.factors(np.float64), adapter.config.scaling)
        held[id(layer.base_layer)] = norm

    def row_norm(base, A, B, scaling):
        n, cache = held[id(base)]
        return n.astype(A.dtype), cache

    with monkeypatch.context() as held_by:
        held_by.setattr(dora, "row_norm", row_norm)
        result = gradcheck_model(peft_model, *random_batch(), tolerance=1e-12, dropout_seed=5 if settings else None)
    result.raise_if_wrong()


def test_the_detached_gradient_is_not_the_gradient_of_the_loss(make_model, random_batch):
    """Detached and true gradients of A and B differ: their cosine is 0.96 in this case."""
    true = trained(adapted(make_model(), **DORA))
    detached = trained(adapted(make_model(), use_dora=True))
    assert_array_equal(true.forward(random_batch()[0])[0], detached.forward(random_batch()[0])[0])
    result = gradcheck_model(detached, *random_batch())
    assert result.wrong and all(("lora_A" in name) or ("lora_B" in name) for name in result.wrong)
    g, g_detached = gradients(true, random_batch()), gradients(detached, random_batch())
    message = "n has no part in dm, nor in the dx that the layers below get: they stay the gradient of the loss"
    for name in (name for name in g if "magnitude" in name):
        assert_allclose(g[name], g_detached[name], rtol=1e-10, err_msg=message)
    flat, flat_detached = (
        np.concatenate([x.ravel() for name, x in each.items() if "magnitude" not in name]) for each in (g, g_detached)
    )
    cosine = flat @ flat_detached / np.linalg.norm(flat) / np.linalg.norm(flat_detached)
    print(f"cosine {cosine:.4f}")
    assert 0.5 < cosine < 0.999


def test_the_true_gradient_is_the_detached_one_without_its_part_along_each_row():
    """Row o of ∂L/∂V is the part of g_o dW_o orthogonal to V_o, because scaling a row of V does not change y."""
    x, W, A, B, m, s = normal(6, 5), normal(4, 5), normal(2, 5), normal(4, 2), normal(4), 3.5
    n, norm_cache = ops.row_norm_forward(W, A, B, s)
    y, cache = ops.dora_forward(x, x @ W.T, A, B, m, n, s)
    dy = normal(*y.shape)
    _, _, dA, dB, _, dn = ops.dora_backward(dy, cache)
    V, dV = W + s * B @ A, (m / n)[:, None] * (dy.T @ x)
    assert_allclose(y, x @ ((m / n)[:, None] * V).T, rtol=1e-12)
    assert_allclose(dB, s * dV @ A.T, rtol=1e-11)
    unit = V / n[:, None]
    dV = dV - (dV * unit).sum(axis=1, keepdims=True) * unit
    dA_norm, dB_norm = ops.row_norm_backward(dn, norm_cache)
    assert_allclose(dB + dB_norm, s * dV @ A.T, rtol=1e-11, atol=1e-12)
    assert_allclose(dA + dA_norm, s * B.T @ dV, rtol=1e-11, atol=1e-12)


def test_the_norm_of_v_is_found_without_v():
    W, A, B, s = normal(4, 5), normal(2, 5), normal(4, 2), 3.5
    message = "the length of each row (of an output), not of each column"
    assert_allclose(
        ops.row_norm_forward(W, A, B, s)[0], ((W + s * B @ A) ** 2).sum(1) ** 0.5, rtol=1e-13, err_msg=message
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dora_starts_as_the_base_bit_for_bit(make_model, random_batch, dtype):
    tokens, _ = random_batch()
    base, _ = make_model(dtype).forward(tokens)
    peft_model = get_peft_model(make_model(dtype), LoraConfig(r=4, target_modules=ALL, use_dora=True, lora_dropout=0.3))
    assert_array_equal(peft_model.forward(tokens)[0], base)
    assert xp.abs(peft_model.forward(tokens, rng=np.random.default_rng(0))[0] - base).max() < 1e-4 * xp.abs(base).max()


def test_dora_whose_factors_are_in_16_bits_starts_as_the_base_too(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model(np.float32).forward(tokens)
    config = LoraConfig(r=4, target_modules=ALL, use_dora=True)
    peft_model = get_peft_model(make_model(np.float32), config, adapter_dtype="float16")
    assert_array_equal(peft_model.forward(tokens)[0], base)


@pytest.mark.parametrize("settings", [{}, PISSA, {"lora_dropout": 0.3}], ids=["plain", "from PiSSA", "dropout"])
def test_merged_dora_is_unmerged_dora_and_comes_back(make_model, random_batch, settings):
    peft_model = trained(adapted(make_model(), use_dora=True, **settings))
    tokens, _ = random_batch()
    bypass, _ = peft_model.forward(tokens)
    before = [layer.base_layer.weight.value.copy() for layer in peft_model.lora_layers()]
    change = [layer.delta_weight("default") for layer in peft_model.lora_layers()]
    peft_model.merge_adapter(safe_merge=True)
    assert_allclose(peft_model.forward(tokens)[0], bypass, rtol=1e-10, atol=1e-11)
    for layer, W, delta in zip(peft_model.lora_layers(), before, change, strict=True):
        assert_allclose(layer.base_layer.weight.value, W + delta, rtol=1e-11, atol=1e-12)
    peft_model.unmerge_adapter()
    for layer, W in zip(peft_model.lora_layers(), before, strict=True):
        assert_array_equal(layer.base_layer.weight.value, W)
    assert_allclose(peft_model.merge_and_unload().forward(tokens)[0], bypass, rtol=1e-10, atol=1e-11)


def test_dora_and_lora_merge_together_and_come_out_again(make_model):
    peft_model = trained(adapted(make_model(), use_dora=True))
    for name, settings in (("other", {"use_dora": True}), ("plain", {})):
        config = LoraConfig(r=2, target_modules=ALL, init_lora_weights=False, **settings)
        peft_model.add_adapter(name, config)
        peft_model.set_adapter(name)
        trained(peft_model, seed=8)
    layers, names = peft_model.lora_layers(), ["default", "other", "plain"]
    before = [layer.base_layer.weight.value.copy() for layer in layers]
    expected = [
        sum((layer.delta_weight(name) for name in names), start=W) for layer, W in zip(layers, before, strict=True)
    ]
    peft_model.merge_adapter(names)
    for layer, W in zip(layers, expected, strict=True):
        assert_allclose(layer.base_layer.weight.value, W, rtol=1e-10, atol=1e-11)
    with pytest.raises(
        RuntimeError, match="depends on W, but W contains the merged adapters 'default', 'other' and 'plain'"
    ):
        layers[0].delta_weight("default")
    peft_model.unmerge_adapter()
    for layer, W in zip(layers, before, strict=True):
        assert_array_equal(layer.base_layer.weight.value, W)


def test_a_row_that_dora_shrinks_to_nothing_comes_back_from_a_merge(make_model, random_batch):
    """One row has m = 0. A multiplication by 0 cannot be reversed, so unmerging must restore a copy of W."""
    tokens, _ = random_batch()
    peft_model = adapted(make_model(), use_dora=True)
    peft_model.add_adapter("other", LoraConfig(r=2, target_modules=ALL, use_dora=True))
    for layer in peft_model.lora_layers():
        for name in ("default", "other"):
            layer.adapters[name].lora_magnitude_vector.value *= 0.5
            layer.adapters[name].lora_magnitude_vector.value[0] = 0
    with peft_model.disable_adapter():
        base, _ = peft_model.forward(tokens)
    peft_model.merge_adapter(["default", "other"])
    peft_model.unmerge_adapter()
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)


def test_dora_refuses_a_base_that_trains(make_model, random_batch):
    peft_model = adapted(make_model(), use_dora=True)
    peft_model.model.model.layers[1].mlp.down_proj.base_layer.weight.trainable = True
    with pytest.raises(RuntimeError, match="DoRA does not compute dW"):
        peft_model.backward(peft_model.loss(*random_batch())[1])


def test_dora_refuses_a_row_that_has_no_direction(make_model):
    model = make_model()
    model.model.layers[1].mlp.up_proj.weight.value[3] = 0
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj has a row of zeros"):
        adapted(model, use_dora=True)
    assert not any(isinstance(m, AdaptedLinear) for _, m in model.named_modules()), "an error must not change the model"


def test_a_loaded_dora_refuses_a_row_that_has_no_direction_too(make_model, tmp_path):
    """Otherwise m/n would be 0/0 or m/0, and the loss NaN."""
    adapted(make_model(), use_dora=True).save_pretrained(tmp_path)
    model = make_model()
    model.model.layers[1].mlp.up_proj.weight.value[3] = 0
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*layers\.1\.mlp\.up_proj has a row of zeros"):
        PeftModel.from_pretrained(model, tmp_path)
    assert not any(isinstance(m, AdaptedLinear) for _, m in model.named_modules()), "an error must not change the model"


@pytest.mark.parametrize("settings", [{"use_dora": True}, PISSA, {"freeze_A": True}], ids=str)
def test_two_workers_find_the_gradients_of_one(make_model, random_batch, settings):
    found = []
    for workers in (1, 2):
        peft_model = trained(adapted(make_model(), **settings))
        ln.training.parallel.loss_and_gradients(peft_model, *random_batch(rows=4), workers=workers)
        found.append({name: p.grad for name, p in peft_model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert_allclose(found[1][name], grad, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_a_saved_pissa_is_served_beside_others(make_model, random_batch, tmp_path, dtype, tolerance):
    """A mixed batch loads PiSSA as the LoRA of twice the rank in its folder."""
    tokens, _ = random_batch(rows=3)
    alone = trained(adapted(make_model(dtype), **PISSA))
    alone.save_pretrained(tmp_path)
    peft_model = ln.get_peft_model(make_model(dtype), LoraConfig(init_lora_weights=False), "other")
    store = AdapterStore(peft_model, 2, [tmp_path])
    store.load("pissa", ".")
    names = ["pissa", "__base__", "other"]
    mixed, _ = peft_model.forward(tokens, adapter_names=names)
    assert_allclose(mixed[:1], alone.forward(tokens[:1])[0], rtol=tolerance, atol=tolerance)
    for row, name in enumerate(names[:2]):
        assert not np.allclose(host(mixed[row]), host(mixed[row + 1])), f"{name} does not change the logits"


def test_dora_adapters_are_not_combined(make_model):
    peft_model = adapted(make_model(), use_dora=True)
    with pytest.raises(ValueError, match="'default' is DoRA"):
        peft_model.add_weighted_adapter(["default"], [1.0], "half")


def test_training_dora_moves_the_adapter_alone(make_model, random_batch):
    peft_model = adapted(make_model(np.float32), use_dora=True)
    before = {name: p.value.copy() for name, p in peft_model.named_parameters()}
    train(peft_model, [random_batch()], AdamW(lr=1e-2), steps=3, progress=False)
    for name, p in peft_model.named_parameters():
        assert xp.array_equal(p.value, before[name]) == (".lora_" not in name), name


@pytest.mark.parametrize("settings", [{"use_dora": True}, DORA, {"freeze_A": True}], ids=str)
def test_what_is_saved_comes_back_to_the_bit_with_what_trains(make_model, random_batch, tmp_path, settings):
    before = trained(adapted(make_model(), **settings))
    before.save_pretrained(tmp_path)
    after = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    for (name, p), (other, q) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert name == other and p.trainable == q.trainable
        assert_array_equal(p.value, q.value, err_msg=name)
    assert_array_equal(after.forward(random_batch()[0])[0], before.forward(random_batch()[0])[0])
    assert all(getattr(after.peft_config["default"], key) == value for key, value in settings.items())


# ---------------------------------------------------------------------------------------------------------------- PiSSA


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_pissa_at_the_start_is_the_base_to_1e_12(make_model, random_batch, settings):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    start, _ = adapted(make_model(), **PISSA, **settings).forward(tokens)
    assert_allclose(start, base, rtol=1e-12, atol=1e-12)


def test_what_pissa_leaves_has_the_tail_of_the_singular_values(make_model):
    W = {name: host(p.value) for name, p in make_model().named_parameters()}
    peft_model = adapted(make_model(), **PISSA)
    for name, layer in peft_model.model.named_modules():
        if isinstance(layer, AdaptedLinear):
            sigma = np.linalg.svd(W[f"{name}.weight"], compute_uv=False)
            left = np.linalg.svd(host(layer.base_layer.weight.value), compute_uv=False)
            assert_allclose(left, np.concatenate([sigma[3:], np.zeros(3)]), rtol=1e-12, atol=1e-12, err_msg=name)
            A, B = host(layer.adapters["default"].lora_A.value), host(layer.adapters["default"].lora_B.value)
            assert_allclose(7 / 3 * np.linalg.norm(A, axis=1) ** 2, sigma[:3], rtol=1e-12)
            assert_allclose(7 / 3 * np.linalg.norm(B, axis=0) ** 2, sigma[:3], rtol=1e-12)


def test_pissa_agrees_with_the_complex_step_to_1e_12(make_model, random_batch):
    gradcheck_model(trained(adapted(make_model(), **PISSA)), *random_batch(), tolerance=1e-12).raise_if_wrong()


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "alpha_pattern": {"q_proj": 3}}, {"use_dora": True}], ids=str
)
def test_a_saved_pissa_is_a_lora_of_twice_the_rank_on_the_base_as_it_was(make_model, random_batch, tmp_path, settings):
    tokens, _ = random_batch()
    peft_model = trained(adapted(make_model(), **PISSA, **settings, rank_pattern={"down_proj": 1}))
    expected, _ = peft_model.forward(tokens)
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    assert_allclose(loaded.forward(tokens)[0], expected, rtol=1e-10, atol=1e-11)
    config = loaded.peft_config["default"]
    assert config.r == 6 and config.for_layer("mlp.down_proj").r == 2 and config.init_lora_weights is True
    assert config.scaling == pytest.approx(peft_model.peft_config["default"].scaling)


def test_pissa_disabled_or_taken_out_is_the_base(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = trained(adapted(make_model(), **PISSA))
    with peft_model.disable_adapter():
        assert_allclose(peft_model.forward(tokens)[0], base, rtol=1e-11, atol=1e-11)
    assert_allclose(peft_model.model.forward(tokens)[0], base, rtol=1e-11, atol=1e-11)
    peft_model.merge_adapter()
    with peft_model.disable_adapter():
        assert_allclose(peft_model.forward(tokens)[0], base, rtol=1e-11, atol=1e-11)
    peft_model.unmerge_adapter()
    peft_model.delete_adapter("default")
    assert_allclose(peft_model.forward(tokens)[0], base, rtol=1e-11, atol=1e-11)


def test_a_weight_that_is_not_finite_is_found_before_pissa_takes_anything_out(make_model):
    model = make_model()
    model.model.layers[1].self_attn.v_proj.weight.value[0, 0] = np.nan
    before = {name: host(value).copy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.v_proj has a weight that is not finite"):
        adapted(model, **PISSA)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(np.array_equal(host(after[n]), before[n], True) for n in before)


def test_the_gradient_passes_through_what_pissa_took_out_of_a_layer():
    """A call without the adapter uses the original W, in the forward pass and for dx."""
    layer = AdaptedLinear(Linear(normal(4, 5)).freeze())
    W = layer.base_layer.weight.value.copy()
    adapter = layer.adapters["default"] = drawn(layer, LoraConfig(r=2, **PISSA))
    pissa.subtract_from_base(layer, adapter)
    dy = normal(6, 4)
    _, cache = layer.forward(normal(6, 5))
    assert_allclose(layer.backward(dy, cache), dy @ W, rtol=1e-11, atol=1e-12)


def test_qpissa_is_nearer_to_the_base_than_a_quantised_base(make_model):
    """PiSSA leaves smaller weights in the base, so quantisation loses less of them, as the paper claims."""
    base = make_model(np.float32, hidden_size=64, intermediate_size=96)
    W = {name: host(p.value).copy() for name, p in base.named_parameters()}
    peft_model = ln.quantize_model(adapted(base, r=8, **PISSA))
    plain = ln.quantize_model(make_model(np.float32, hidden_size=64, intermediate_size=96))
    weights = {name: p.value for name, p in ln.dequantize_model(plain).named_parameters()}
    for name, layer in peft_model.model.named_modules():
        if isinstance(layer, AdaptedLinear):
            with_pissa = layer.base_layer.dequantized().weight.value + layer.delta_weight("default")
            lost = [np.linalg.norm(host(x) - W[f"{name}.weight"]) for x in (with_pissa, weights[f"{name}.weight"])]
            assert lost[0] < lost[1], name
    with pytest.raises(RuntimeError, match="the base changed after PiSSA"):
        peft_model.delete_adapter("default")
    assert peft_model.peft_config, "an error must not change the model"


def test_qpissa_is_saved_as_a_model_for_no_adapter_on_the_base_is_that_model(make_model, random_batch, tmp_path):
    tokens, _ = random_batch()
    peft_model = ln.quantize_model(adapted(make_model(np.float32), **PISSA))
    trained = host(peft_model.forward(tokens)[0])
    with pytest.raises(
        RuntimeError,
        match=r"q_proj: the base changed after PiSSA.*quantize_model.*save_model\(dequantize_model",
    ):
        peft_model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    ln.save_model(ln.dequantize_model(peft_model).merge_and_unload(), tmp_path / "model")
    assert_allclose(ln.load_model(tmp_path / "model").forward(tokens)[0], trained, rtol=1e-4, atol=1e-4)


BAD_PISSA = {
    "a second adapter": (
        lambda m: adapted(m, **PISSA).add_adapter("b", LoraConfig()),
        RuntimeError,
        "PiSSA initialisation has changed the base",
    ),
    "PiSSA with other adapters": (
        lambda m: adapted(m).add_adapter("b", LoraConfig(r=2, **PISSA)),
        RuntimeError,
        "PiSSA changes the base, but this model has other adapters",
    ),
    "more than there is": (
        lambda m: adapted(m, r=9, **PISSA),
        ValueError,
        "k_proj has 8 singular values; PiSSA with r = 9",
    ),
    "a quantised base": (lambda m: adapted(ln.quantize_model(m), **PISSA), ValueError, "q_proj is quantised"),
    "DoRA's norm in other words": (lambda m: adapted(m, dora_norm="none"), ValueError, "dora_norm = 'none'"),
    "a switch in words": (lambda m: adapted(m, freeze_A="yes"), TypeError, "freeze_A = 'yes'; expected True or False"),
}


@pytest.mark.parametrize("what", BAD_PISSA)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD_PISSA[what]
    with pytest.raises(error, match=message):
        call(make_model())


# -------------------------------------------------------------------------------------------------------------- LoRA-FA


def test_lora_fa_trains_b_alone_and_agrees_with_the_complex_step_to_1e_12(make_model, random_batch):
    for settings in ({}, {"lora_dropout": 0.3}):
        peft_model = adapted(make_model(), freeze_A=True, **settings)
        assert all(p.trainable == (".lora_B." in name) for name, p in peft_model.named_parameters())
        dropout_seed = 5 if settings else None
        gradcheck_model(peft_model, *random_batch(), tolerance=1e-12, dropout_seed=dropout_seed).raise_if_wrong()
    full = adapted(make_model())
    g, g_fa = gradients(full, random_batch()), gradients(adapted(make_model(), freeze_A=True), random_batch())
    for name in g_fa:
        assert_array_equal(g_fa[name], g[name], err_msg="the gradient of B is that of LoRA")


def nbytes(cache):
    """Return the bytes of the arrays in a cache."""
    if isinstance(cache, xp.ndarray):
        return cache.nbytes
    return sum(map(nbytes, cache)) if isinstance(cache, tuple | list) else 0


def test_lora_fa_keeps_n_r_numbers_in_place_of_n_in():
    """LoRA saves x and h, N·(in + r) numbers. With a frozen A it saves only h, N·r numbers."""
    kept = {}
    for freeze_A in (False, True):
        layer = AdaptedLinear(Linear(normal(300, 200)).freeze())
        layer.adapters["default"] = drawn(layer, LoraConfig(r=4, freeze_A=freeze_A))
        layer.adapters["default"].set_trainable(True)
        _, cache = layer.forward(normal(50, 200), Context(adapter="default"))
        kept[freeze_A] = nbytes(cache) - 8 * (300 * 200 + 4 * (200 + 300))
    assert kept == {False: 8 * 50 * (200 + 4), True: 8 * 50 * 4}


def test_lora_fa_that_is_loaded_to_train_stays_lora_fa(make_model, tmp_path):
    adapted(make_model(), freeze_A=True).save_pretrained(tmp_path)
    assert read_adapter(tmp_path)[2]["freeze_A"]
    peft_model = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    assert all(p.trainable == (".lora_B." in name) for name, p in peft_model.named_parameters())


# ---------------------------------------------------------------------------------------------------------------- LoRA+


@pytest.mark.parametrize("make", [AdamW, SGD])
def test_lora_plus_is_a_learning_rate_of_its_own_for_b(make_model, random_batch, make):
    """The weight decay η λ θ is multiplied too, as in PyTorch with the learning rate of a parameter group."""
    plus, slow, fast = (adapted(make_model()) for _ in range(3))
    for model, settings in (
        (plus, {"lr": 0.01, "lr_ratio": {"lora_B": 16}}),
        (slow, {"lr": 0.01}),
        (fast, {"lr": 0.16}),
    ):
        optimizer = make(weight_decay=0.1, **settings)
        gradients(model, random_batch())
        optimizer.step(model.named_parameters(), t=1)
    slow, fast = dict(slow.named_parameters()), dict(fast.named_parameters())
    for name, p in plus.named_parameters():
        assert_array_equal(p.value, (fast if ".lora_B." in name else slow)[name].value, err_msg=name)


def test_adam_trains_the_same_model_when_factors_and_rates_are_scaled_by_powers_of_two(make_model, random_batch):
    """(α/(pq), p·A, q·B) with learning rates (p·lr, q·lr), as in LoRA+, equals (α, A, B) with lr exactly."""

    def run(p, q):
        model = adapted(make_model(), lora_alpha=6 / (p * q))
        for name, parameter in model.named_parameters():
            parameter.value *= p if ".lora_A." in name else q if ".lora_B." in name else 1
        optimizer = AdamW(lr=0.01, eps=0, weight_decay=0, lr_ratio={"lora_A": p, "lora_B": q})
        history = train(model, [random_batch()], optimizer, steps=4, progress=False)
        return history.column("loss"), [host(layer.delta_weight("default")) for layer in model.lora_layers()]

    (losses, deltas), (scaled_losses, scaled_deltas) = run(1, 1), run(8, 0.25)
    assert losses == scaled_losses and losses[-1] < losses[0]
    for delta, scaled in zip(deltas, scaled_deltas, strict=True):
        assert_array_equal(delta, scaled)


def test_lora_plus_resumes_to_the_bit_and_only_with_its_own_ratio(make_model, random_batch, tmp_path):
    batches, settings = [random_batch(seed=i) for i in range(4)], {"lr": 0.01, "lr_ratio": {"lora_B": 8}}
    whole = adapted(make_model())
    train(whole, batches, AdamW(**settings), steps=4, progress=False)
    path = tmp_path / "run"
    stopped = adapted(make_model())
    with pytest.raises(KeyboardInterrupt):
        train(
            stopped,
            Interrupted(batches, at=2),
            AdamW(**settings),
            4,
            checkpoint=path,
            checkpoint_every=2,
            progress=False,
        )
    resumed = adapted(make_model())
    with pytest.raises(ValueError, match=r"lr_ratio was \{'lora_B': 8\}, now absent"):
        train(resumed, batches, AdamW(lr=0.01), 4, checkpoint=path, resume=True, progress=False)
    train(resumed, batches, AdamW(**settings), 4, checkpoint=path, resume=True, progress=False)
    for (name, p), (_, q) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert_array_equal(p.value, q.value, err_msg=name)


class Interrupted:
    """Batches that raise KeyboardInterrupt after some steps."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __getitem__(self, step):
        if step > self.at:
            raise KeyboardInterrupt
        return self.batches[step]


def test_a_ratio_for_nothing_is_refused(make_model, random_batch):
    with pytest.raises(ValueError, match="lr_ratio key 'lora_C' matches no trainable parameter"):
        train(adapted(make_model()), [random_batch()], AdamW(lr=1, lr_ratio={"lora_C": 2}), steps=1)
    for ratio in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=rf"lr_ratio\['lora_B'\] = {ratio}; expected a number > 0"):
            SGD(lr=1, lr_ratio={"lora_B": ratio})


# ----------------------------------------------------------------------------------------------------------------- VeRA

VERA = VeraConfig(r=6, target_modules=ALL, init_weights=False)
METHOD = VeraMethod()


def with_vera(model, config=VERA, seed=1):
    """Return `model` with a VeRA adapter, whose d and b are trainable."""
    return get_peft_model(model, config, seed=seed)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_vera_agrees_with_the_complex_step_to_1e_12(make_model, random_batch, dropout):
    config = replace(VERA, vera_dropout=dropout)
    model = with_vera(make_model(), config)
    result = gradcheck_model(model, *random_batch(), tolerance=1e-12, dropout_seed=5 if dropout else None)
    assert len(result.raise_if_wrong().errors) == 2 * 14, "only d and b of each layer have gradients"


def test_vera_over_four_bits_agrees_with_the_complex_step_to_1e_12(make_model, random_batch):
    model = with_vera(ln.quantize_model(make_model(np.float32)))
    gradcheck_model(model, *random_batch(), tolerance=1e-12).raise_if_wrong()


def test_vera_starts_as_the_base_bit_for_bit(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model(np.float32).forward(tokens)
    model = with_vera(make_model(np.float32), VeraConfig(r=6, target_modules=ALL))
    assert_array_equal(model.forward(tokens)[0], base)
    for layer in adapted_layers(model.model).values():
        assert (layer.adapters["default"].vera_lambda_d.value == np.float32(0.1)).all()


def test_vera_shares_its_factors_and_trains_r_plus_out_a_layer(make_model, random_batch):
    model = with_vera(make_model())
    layers = adapted_layers(model.model).values()
    for kept in ("vera_A", "vera_B"):
        assert len({id(getattr(layer.adapters["default"], kept)) for layer in layers}) == 1
    A, B = (xp.abs(getattr(next(iter(layers)).adapters["default"], kept).value) for kept in ("vera_A", "vera_B"))
    assert A.shape == (6, 20) and B.shape == (20, 6), "A has the largest input size, B the largest output size"
    for layer in layers:
        message = "a layer uses the first columns of A and the first rows of B"
        mine_A, mine_B, _, _ = layer.adapters["default"].factors(np.float64)
        assert_array_equal(xp.abs(mine_A), A[:, : layer.in_features], err_msg=message)
        assert_array_equal(xp.abs(mine_B), B[: layer.out_features], err_msg=message)
    assert 0.9 * (6 / 20) ** 0.5 < float(A.max()) <= (6 / 20) ** 0.5 and 0.9 < float(B.max()) <= 1
    trainable = sum(p.value.size for _, p in model.named_parameters() if p.trainable)
    assert trainable == sum(6 + layer.out_features for layer in layers)
    before = {name: p.value.copy() for name, p in model.named_parameters()}
    train(model, [random_batch()], AdamW(lr=1e-2), steps=2, progress=False)
    for name, p in model.named_parameters():
        assert xp.array_equal(p.value, before[name]) == ("vera_lambda_" not in name), name


def test_merged_vera_is_unmerged_vera_and_comes_back(make_model, random_batch):
    tokens, _ = random_batch()
    model = with_vera(make_model())
    expected, _ = model.forward(tokens)
    layers = adapted_layers(model.model).values()
    before = [layer.base_layer.weight.value.copy() for layer in layers]
    assert model.mergeable
    model.merge_adapter(safe_merge=True)
    for layer, W in zip(layers, before, strict=True):
        assert_allclose(layer.base_layer.weight.value, W + layer.delta_weight("default"), rtol=1e-12, atol=1e-13)
    assert_allclose(model.forward(tokens)[0], expected, rtol=1e-11, atol=1e-12)
    with pytest.raises(RuntimeError, match="unmerge_adapter"):
        model.backward(model.loss(*random_batch())[1])
    model.unmerge_adapter()
    for layer, W in zip(layers, before, strict=True):
        assert_allclose(layer.base_layer.weight.value, W, rtol=1e-11, atol=1e-12)
    plain = model.merge_and_unload()
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in make_model().named_modules()]
    assert_allclose(plain.forward(tokens)[0], expected, rtol=1e-11, atol=1e-12)


def test_vera_and_dora_merge_into_the_same_weight(make_model, random_batch):
    """DoRA's ΔW depends on the original W, so both ΔW are computed before W changes."""
    tokens, _ = random_batch()
    model = trained(adapted(make_model(), use_dora=True))
    model.add_adapter("vera", VERA)
    wrapped, before = adapted_layers(model.model).values(), []
    expected = []
    for outer in wrapped:
        W = outer.base_layer.weight.value
        before.append(W.copy())
        expected.append(W + outer.delta_weight("default") + outer.delta_weight("vera"))
    model.merge_adapter(["vera", "default"])
    for outer, W in zip(wrapped, expected, strict=True):
        assert_allclose(outer.base_layer.weight.value, W, rtol=1e-11, atol=1e-12)
    merged, _ = model.forward(tokens)
    with model.disable_adapter():
        assert_array_equal(model.forward(tokens)[0], make_model().forward(tokens)[0])
    assert_allclose(model.forward(tokens)[0], merged, rtol=1e-12, atol=1e-13)
    model.unmerge_adapter()
    for outer, W in zip(wrapped, before, strict=True):
        assert_array_equal(outer.base_layer.weight.value, W)
    model.merge_adapter(["default", "vera"])
    plain = model.merge_and_unload()
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in make_model().named_modules()]
    assert_allclose(plain.forward(tokens)[0], merged, rtol=1e-12, atol=1e-13)


def test_vera_over_four_bits_is_not_merged_and_never_combined(make_model):
    quantized = with_vera(ln.quantize_model(make_model(np.float32)))
    for safe_merge in (False, True):
        with pytest.raises(RuntimeError, match="the base is quantised"):
            quantized.merge_adapter(safe_merge=safe_merge)
    model = adapted(make_model())
    model.add_adapter("vera", VERA)
    with pytest.raises(ValueError, match="'vera' has a VeraConfig; only LoRA adapters can be combined"):
        model.add_weighted_adapter(["default", "vera"], [1.0, 1.0], "both")


def test_vera_keeps_n_r_numbers():
    layer = AdaptedLinear(Linear(normal(300, 200)).freeze())
    factors = normal(4, 250), normal(300, 4), np.ones(4), np.ones(300)
    layer.adapters["default"] = VeraAdapter(
        VeraConfig(r=4), layer.base_layer, *map(Parameter, map(xp.asarray, factors))
    )
    _, cache = layer.forward(normal(50, 200), Context(adapter="default"))
    assert nbytes(cache) == 8 * (50 * 4 + 300 * 200 + 4 * (200 + 300) + 300 + 4), (
        "only h is saved in addition to W, A, B, d and b"
    )


def test_a_saved_vera_comes_back_to_the_bit(make_model, random_batch, tmp_path):
    tokens, _ = random_batch()
    model = with_vera(make_model())
    model.save_pretrained(tmp_path)
    again = ln.PeftModel.from_pretrained(make_model(), tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert again.peft_config["default"] == replace(VERA, target_modules=settings["target_modules"])
    assert_array_equal(again.forward(tokens)[0], model.forward(tokens)[0])
    again.add_adapter("other", VeraConfig(r=3))
    assert_array_equal(again.forward(tokens)[0], model.forward(tokens)[0])
    again.delete_adapter("other")
    assert sorted(METHOD.arrays(again, "default")) == sorted(METHOD.arrays(model, "default"))


def test_vera_stands_around_lora_and_each_answers_to_its_own_name(make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = adapted(make_model(), target_modules=["q_proj", "down_proj"])
    base, lora = make_model().forward(tokens)[0], peft_model.forward(tokens)[0]
    peft_model.add_adapter("vera", VERA, seed=1)
    assert_array_equal(peft_model.forward(tokens)[0], lora)
    peft_model.set_adapter("vera")
    assert_array_equal(peft_model.forward(tokens)[0], with_vera(make_model()).forward(tokens)[0])
    assert_array_equal(peft_model.model.forward(tokens)[0], base)
    peft_model.set_adapter("default")
    peft_model.delete_adapter("vera")
    assert_array_equal(peft_model.forward(tokens)[0], lora)
    assert not any("vera" in layer.adapters for layer in adapted_layers(peft_model.model).values())


def without(key):
    return lambda tensors: {name: x for name, x in tensors.items() if key not in name}


BAD_VERA = {
    "no projections": (
        without("vera_A"),
        r"base_model\.vera_A is missing; save the adapter with `save_projection=True`",
    ),
    "a missing vector": (without("1.mlp.up_proj.vera_lambda_b"), r"layers\.1\.mlp\.up_proj\.vera_lambda_b is missing"),
    "one too many": (lambda tensors: tensors | {"x.vera_lambda_b": np.ones(3)}, r"unexpected tensor x\.vera_lambda_b"),
    "a projection too small": (
        lambda tensors: tensors | {"base_model.vera_A": np.ones((6, 12))},
        r"base_model\.vera_A has shape \(6, 12\); .* need \(6, 20\)",
    ),
}


@pytest.mark.parametrize("what", BAD_VERA)
def test_vera_tensors_that_do_not_fit_are_refused_by_name(what, make_model):
    damage, message = BAD_VERA[what]
    tensors, model = damage(METHOD.arrays(with_vera(make_model()), "default")), adapted(make_model())
    with pytest.raises(ValueError, match=message):
        METHOD.restore(model, "other", VERA, tensors)
    assert not adapted_layers(model.model, "other"), "an error must not change the model"


BAD_VERA_CONFIG = {
    "rank 0": (lambda: VeraConfig(r=0), ValueError, "must be at least 1"),
    "a fractional rank": (lambda: VeraConfig(r=2.5), TypeError, "whole number"),
    "dropout 1": (lambda: VeraConfig(vera_dropout=1.0), ValueError, "expected 0 ≤ vera_dropout < 1"),
    "an infinite d": (lambda: VeraConfig(d_initial=np.inf), ValueError, "d_initial = inf"),
    "a switch in words": (lambda: VeraConfig(init_weights="no"), TypeError, "init_weights = 'no'"),
    "dropout in words": (lambda: VeraConfig(vera_dropout="0"), TypeError, "vera_dropout = '0'; expected a number"),
    "a d in words": (lambda: VeraConfig(d_initial="1"), TypeError, "d_initial = '1'; expected a number"),
    "no key": (lambda: VeraConfig(projection_prng_key=None), TypeError, "projection_prng_key = None; expected a whole"),
    "a target that is no name": (
        lambda: METHOD.config({"peft_type": "VERA", "target_modules": ["q_proj", 3]}),
        ValueError,
        r"target_modules is \['q_proj', 3\]; expected the names",
    ),
    "a target that is no expression": (
        lambda: METHOD.config({"peft_type": "VERA", "target_modules": "q_proj("}),
        ValueError,
        "regular expression",
    ),
    "a bias": (
        lambda: METHOD.config({"peft_type": "VERA", "target_modules": ["q_proj"], "bias": "all"}),
        ValueError,
        "bias is 'all'; lora_np does not support this feature of PEFT",
    ),
    "no layers": (
        lambda: METHOD.config({"peft_type": "VERA"}),
        ValueError,
        "target_modules is None; expected the names",
    ),
}


@pytest.mark.parametrize("what", BAD_VERA_CONFIG)
def test_a_bad_vera_configuration_is_a_clear_error(what):
    call, error, message = BAD_VERA_CONFIG[what]
    with pytest.raises(error, match=message):
        call()
