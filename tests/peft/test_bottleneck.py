"""Bottleneck adapters: exact gradients, equality with the base at the start, one or two per block, combination with LoRA.

test_methods_oracles.py compares the gradients with PyTorch's autograd.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, host, xp

import lora_np as ln
from lora_np import AdamW, BottleneckConfig, LoraConfig, PeftModel, costs, get_peft_model, gradcheck_model, train
from lora_np.files import load_arrays, save_arrays
from lora_np.peft.bottleneck import BottleneckAdapter
from lora_np.peft.placement import adapted_layers
from lora_np.training.parallel import loss_and_gradients


def narrowed(model, seed=1, **changes):
    """Return a PeftModel without zero parameters, so that no gradient is zero by chance."""
    settings = {"bottleneck_size": 5, "init_weights": False} | changes
    return get_peft_model(model, BottleneckConfig(**settings), seed=seed)


def wrappers(peft_model):
    layers = adapted_layers(peft_model.model).items()
    kinds = {name: [type(adapter) for adapter in layer.adapters.values()] for name, layer in layers}
    return {name: layer for name, layer in layers if BottleneckAdapter in kinds[name]}


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("non_linearity", ["gelu", "silu"])
def test_bottlenecks_agree_with_the_complex_step_to_1e_12(make_model, random_batch, placement, non_linearity):
    peft_model = narrowed(make_model(), placement=placement, non_linearity=non_linearity)
    result = gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()
    assert len(result.errors) == (16 if placement == "houlsby" else 8)


def test_any_part_alone_gets_the_gradient_that_it_gets_among_all(make_model, random_batch):
    peft_model, batch = narrowed(make_model()), random_batch()
    parameters = dict(peft_model.named_parameters())
    peft_model.backward(peft_model.loss(*batch)[1])
    expected = {name: p.grad.copy() for name, p in parameters.items() if p.trainable}
    for name, gradient in expected.items():
        peft_model.model.freeze()
        parameters[name].trainable = True
        peft_model.backward(peft_model.loss(*batch)[1])
        assert_allclose(parameters[name].grad, gradient, rtol=1e-12, err_msg=name)
        assert sum(p.grad is not None for p in parameters.values()) == 1


def test_shards_add_up_to_the_whole_batch(make_model, random_batch):
    peft_model, batch = narrowed(make_model()), random_batch(5)
    runs = []
    for workers in (1, 3):
        peft_model.zero_grad()
        loss_and_gradients(peft_model, *batch, workers=workers)
        runs.append({name: p.grad for name, p in peft_model.named_parameters() if p.trainable})
    for name, gradient in runs[0].items():
        assert_allclose(runs[1][name], gradient, rtol=1e-10, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("adapter_dtype", ["float16", "bfloat16"])
def test_stored_in_16_bits_it_computes_in_32(make_model, random_batch, adapter_dtype):
    config = BottleneckConfig(bottleneck_size=5, init_weights=False)
    peft_model = get_peft_model(make_model(np.float32), config, adapter_dtype=adapter_dtype)
    peft_model.backward(peft_model.loss(*random_batch())[1])
    for _, p in peft_model.named_parameters():
        if p.trainable:
            assert p.value.dtype.itemsize == 2 and p.grad.dtype == np.float32


def test_over_a_quantised_base_it_trains_and_is_not_quantised_itself(make_model, random_batch):
    peft_model = narrowed(make_model())
    ln.quantize_model(peft_model, block_size=4)
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()


def test_an_adapter_called_like_a_lora_keeps_its_parameters_names(make_model):
    peft_model = get_peft_model(make_model(), BottleneckConfig(bottleneck_size=5), "lora_x")
    names = {name.rpartition("bottleneck_")[2] for name, p in peft_model.named_parameters() if p.trainable}
    assert names == {f"{side}.lora_x.{part}" for side in ("down", "up") for part in ("weight", "bias")}


def test_its_parts_are_no_layers_to_skip(make_model):
    with pytest.raises(ValueError, match=r"'default' matches no linear layer; .* q_proj, k_proj, v_proj, o_proj, gate"):
        ln.quantize_model(narrowed(make_model()), block_size=4, skip_modules=["default"])


# ------------------------------------------------------------------------------------------------------ what it computes


def test_at_init_the_adapted_model_equals_the_base_bit_for_bit(make_model, random_batch):
    tokens, _ = random_batch()
    for dtype in (np.float32, np.float64):
        base, _ = make_model(dtype).forward(tokens)
        assert_array_equal(
            get_peft_model(make_model(dtype), BottleneckConfig(bottleneck_size=5)).forward(tokens)[0], base
        )


def test_as_in_the_paper_it_starts_near_the_base(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = narrowed(make_model(), bottleneck_size=12, init_weights="houlsby")
    change = float(xp.abs(peft_model.forward(tokens)[0] - base).max() / xp.abs(base).max())
    assert 0 < change < 5e-3
    for layer in wrappers(peft_model).values():
        for side in (layer.adapters["default"].bottleneck_down, layer.adapters["default"].bottleneck_up):
            W, b = host(side.weight.value), host(side.bias.value)
            assert np.abs(W).max() <= 0.02 and not b.any()
            assert W.std() == pytest.approx(0.0088, rel=0.2), (
                "a normal distribution with std 0.01, truncated at two std, has std 0.0088"
            )


def test_a_block_adds_the_bottleneck_to_what_the_sublayer_wrote(make_model):
    peft_model = narrowed(make_model())
    x = xp.asarray(np.random.default_rng(0).standard_normal((2, 3, 20)))
    layer = peft_model.model.model.layers[1].mlp.down_proj
    y = x @ layer.base_layer.weight.value.T
    down, up = layer.adapters["default"].bottleneck_down, layer.adapters["default"].bottleneck_up
    a, _ = ln.ops.gelu_forward(y @ down.weight.value.T + down.bias.value)
    expected = y + a @ up.weight.value.T + up.bias.value
    z, _ = layer.forward(x, ln.Context(adapter="default"))
    assert_allclose(z, expected, rtol=1e-12)
    assert_array_equal(layer.forward(x)[0], layer.base_layer.forward(x)[0])


def test_houlsby_is_after_both_sublayers_and_pfeiffer_after_the_mlp(make_model):
    both, one = ("self_attn.o_proj", "mlp.down_proj"), ("mlp.down_proj",)
    for placement, layers in (("houlsby", both), ("pfeiffer", one)):
        expected = [f"model.layers.{i}.{layer}" for i in range(2) for layer in layers]
        assert list(wrappers(narrowed(make_model(), placement=placement))) == expected


def test_a_disabled_or_deleted_adapter_is_the_base(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = narrowed(make_model())
    adapted, _ = peft_model.forward(tokens)
    assert not np.allclose(host(adapted), host(base))
    assert_array_equal(peft_model.model.forward(tokens)[0], base)
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)
    assert_array_equal(peft_model.forward(tokens)[0], adapted)
    peft_model.delete_adapter("default")
    assert not wrappers(peft_model)
    assert_array_equal(peft_model.forward(tokens)[0], base)


def test_generating_a_token_at_a_time_takes_the_likeliest_of_all_at_once(make_model):
    peft_model = narrowed(make_model())
    new = ln.generate(peft_model, [[1, 2, 3]], max_new_tokens=6)[0]
    logits, _ = peft_model.forward(np.array([[1, 2, 3, *new[:-1]]]))
    assert new == host(logits[0, 2:].argmax(axis=-1)).tolist()


def test_training_moves_the_adapter_and_not_the_base(make_model, random_batch):
    peft_model = narrowed(make_model(np.float32), init_weights=True)
    before = {name: p.value.copy() for name, p in peft_model.named_parameters()}
    history = train(peft_model, [random_batch()], AdamW(lr=1e-2), steps=10, progress=False)
    assert history.column("loss")[-1] < history.column("loss")[0]
    for name, p in peft_model.named_parameters():
        assert xp.array_equal(p.value, before[name]) != (".bottleneck_" in name)


# ------------------------------------------------------------------------------------------------------ count and files


def test_the_live_count_is_that_on_paper(make_model):
    count = costs.count(narrowed(make_model()))
    assert costs.houlsby_parameters(12, 5) == 2 * 5 * 12 + 12 + 5
    assert count.trainable == count.total - count.base == 2 * 2 * costs.houlsby_parameters(12, 5)
    assert costs.count(narrowed(make_model(), placement="pfeiffer")).trainable == 2 * costs.houlsby_parameters(12, 5)


def test_the_bottleneck_is_d_over_the_reduction_factor():
    assert BottleneckConfig().width(4096) == 256
    assert BottleneckConfig(reduction_factor=5).width(12) == 2
    assert BottleneckConfig(reduction_factor=16).width(12) == 1
    assert BottleneckConfig(bottleneck_size=7, reduction_factor=2).width(12) == 7


@pytest.mark.parametrize("changes", [{}, {"placement": "pfeiffer", "non_linearity": "silu"}, {"bottleneck_size": None}])
def test_what_is_saved_comes_back_to_the_bit(make_model, random_batch, tmp_path, changes):
    before = narrowed(make_model(np.float32), **changes)
    before.save_pretrained(tmp_path)
    after = PeftModel.from_pretrained(make_model(np.float32), tmp_path, is_trainable=True)
    tokens, _ = random_batch()
    assert_array_equal(after.forward(tokens)[0], before.forward(tokens)[0])
    assert [n for n, p in after.named_parameters() if p.trainable] == [
        n for n, p in before.named_parameters() if p.trainable
    ]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"


def changed(key, change):
    """Return a folder with a changed or deleted tensor `key`."""

    def spoil(folder):
        arrays, metadata = load_arrays(folder / "adapter_model.safetensors")
        new = change(arrays.pop(key))
        save_arrays(folder / "adapter_model.safetensors", arrays | ({} if new is None else {key: new}), metadata)

    return spoil


def edited(**changes):
    def spoil(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


UP = "base_model.model.model.layers.0.mlp.down_proj.bottleneck_up.weight"
SPOILT = {
    "a missing tensor": (changed(UP, lambda x: None), "bottleneck_up.weight is missing"),
    "a wrong shape": (changed(UP, lambda x: x[:, :4]), r"has shape \(12, 4\); .* need \(12, 5\)"),
    "integers": (changed(UP, lambda x: x.astype(np.int64)), "has dtype int64"),
    "another activation": (edited(non_linearity="silu"), "non_linearity is 'silu', .* saved with 'gelu'"),
    "an unknown key": (edited(adapter_dropout=0.1), "adapter_dropout is 0.1; lora_np does not support this feature"),
    "another method": (edited(peft_type="PREFIX_TUNING"), "adapter_config.json: "),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_folder_that_does_not_fit_is_refused_and_nothing_changes(what, make_model, tmp_path):
    spoil, message = SPOILT[what]
    narrowed(make_model()).save_pretrained(tmp_path)
    spoil(tmp_path)
    model = make_model()
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path)
    assert model.trainable and not adapted_layers(model)


# ------------------------------------------------------------------------------------------------ with LoRA on one layer


@pytest.mark.parametrize("order", [("lora", "narrow"), ("narrow", "lora")])
def test_beside_lora_on_the_same_layers_each_answers_as_it_does_alone(make_model, random_batch, tmp_path, order):
    tokens, _ = random_batch()
    configs = {
        "lora": LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False),
        "narrow": BottleneckConfig(bottleneck_size=5, init_weights=False),
    }
    alone = {name: get_peft_model(make_model(), config, name).forward(tokens)[0] for name, config in configs.items()}
    peft_model = get_peft_model(make_model(), configs[order[0]], order[0])
    peft_model.add_adapter(order[1], configs[order[1]])
    assert len(peft_model.lora_layers()) == 14 and len(wrappers(peft_model)) == 4
    for name in configs:
        peft_model.set_adapter(name)
        assert_array_equal(peft_model.forward(tokens)[0], alone[name])
        gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()
        peft_model.save_pretrained(tmp_path / name, name)
        again = PeftModel.from_pretrained(make_model(), tmp_path / name)
        assert_array_equal(again.forward(tokens)[0], alone[name])
    peft_model.delete_adapter("lora" if peft_model.active_adapter == "narrow" else "narrow")
    peft_model.delete_adapter(peft_model.active_adapter)
    assert [n for n, _ in peft_model.model.named_modules()] == [n for n, _ in make_model().named_modules()]


def test_merging_lora_works_under_a_bottleneck(make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = get_peft_model(make_model(), LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    expected, _ = peft_model.forward(tokens)
    peft_model.add_adapter("narrow", BottleneckConfig(bottleneck_size=5, init_weights=False))
    plain = peft_model.merge_and_unload()
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in make_model().named_modules()]
    assert_allclose(plain.forward(tokens)[0], expected, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ bad input

BAD = {
    "size 0": (lambda m: BottleneckConfig(bottleneck_size=0), ValueError, "bottleneck_size = 0"),
    "half a feature": (lambda m: BottleneckConfig(bottleneck_size=2.5), TypeError, "whole number"),
    "a factor of 0": (lambda m: BottleneckConfig(reduction_factor=0), ValueError, "reduction_factor = 0"),
    "a factor in words": (lambda m: BottleneckConfig(reduction_factor="8"), TypeError, "= '8'; expected a number"),
    "relu": (lambda m: BottleneckConfig(non_linearity="relu"), ValueError, "'relu'; expected 'gelu' or 'silu'"),
    "nowhere": (lambda m: BottleneckConfig(placement="lora"), ValueError, "expected 'houlsby' or 'pfeiffer'"),
    "an unknown init": (lambda m: BottleneckConfig(init_weights="bert"), ValueError, "init_weights = 'bert'"),
    "merging": (lambda m: narrowed(m).merge_adapter(), ValueError, "'default' has a BottleneckConfig.*merged"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(make_model())
