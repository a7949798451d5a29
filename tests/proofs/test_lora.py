"""LoRA on a whole model: exact gradients, a base that does not move, and merging that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from adapted import ALL, adapted
from on_device import assert_allclose, assert_array_equal, xp

from lora_np import AdamW, LoraConfig, Transformer, VeraConfig, get_peft_model, gradcheck_model, train

pytestmark = pytest.mark.usefixtures("measured")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r"model\.layers\.1\.mlp\..*", "use_rslora": True},
        {"lora_dropout": 0.3},
    ],
    ids=["all-linear", "q and v", "rsLoRA on one MLP", "dropout"],
)
def test_lora_on_the_whole_model_agrees_with_the_complex_step_to_1e_12(make_model, random_batch, settings):
    peft_model = adapted(make_model(), **settings)
    dropout_seed = 5 if "lora_dropout" in settings else None
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12, dropout_seed=dropout_seed).raise_if_wrong()


def test_at_init_the_adapted_model_equals_the_base_bit_for_bit(make_model, random_batch):
    tokens, _ = random_batch()
    for dtype in (np.float32, np.float64):
        base, _ = make_model(dtype).forward(tokens)
        after, _ = get_peft_model(make_model(dtype), LoraConfig(r=4, target_modules=ALL)).forward(tokens)
        assert_array_equal(after, base)


def test_the_frozen_weights_do_not_change_by_one_bit_in_training(make_model, random_batch):
    peft_model = adapted(make_model(np.float32))
    before = {name: (p.value.copy(), p.trainable) for name, p in peft_model.named_parameters()}
    train(peft_model, [random_batch()], AdamW(lr=1e-2), steps=5)
    for name, p in peft_model.named_parameters():
        value, trainable = before[name]
        assert trainable == ("lora_" in name)
        assert xp.array_equal(p.value, value) != trainable, (
            f"{name} {'did not train' if trainable else 'is frozen, and moved'}"
        )


def test_merged_equals_unmerged_to_1e_5_in_float32(make_model, random_batch):
    peft_model = adapted(make_model(np.float32))
    tokens, _ = random_batch()
    bypass, _ = peft_model.forward(tokens)
    peft_model.merge_adapter()
    merged, _ = peft_model.forward(tokens)
    assert xp.abs(merged - bypass).max() <= 1e-5 * xp.abs(bypass).max()
    peft_model.unmerge_adapter()
    back, _ = peft_model.forward(tokens)
    assert xp.abs(back - bypass).max() <= 1e-5 * xp.abs(bypass).max()


def test_merging_twice_changes_nothing_more(make_model):
    peft_model = adapted(make_model())
    peft_model.merge_adapter()
    once = {name: p.value.copy() for name, p in peft_model.named_parameters()}
    peft_model.merge_adapter()
    for name, p in peft_model.named_parameters():
        assert_array_equal(p.value, once[name], err_msg=name)


def test_merge_and_unload_gives_a_plain_transformer_that_computes_the_same(make_model, random_batch):
    peft_model = adapted(make_model())
    tokens, _ = random_batch()
    before, _ = peft_model.forward(tokens)
    plain = peft_model.merge_and_unload()
    assert type(plain) is Transformer
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in make_model().named_parameters()]
    assert_allclose(plain.forward(tokens)[0], before, rtol=1e-11, atol=1e-12)


def test_after_merge_and_unload_there_is_no_adapter_to_save_or_merge(make_model, tmp_path):
    """A PeftModel that still named one would write a folder without tensors over a good one."""
    peft_model = adapted(make_model())
    peft_model.save_pretrained(tmp_path)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    peft_model.merge_and_unload()
    for call in (lambda: peft_model.save_pretrained(tmp_path), lambda: peft_model.set_adapter("default")):
        with pytest.raises(ValueError, match="there is no adapter 'default'; this model has none"):
            call()
    for call in (peft_model.merge_adapter, peft_model.merge_and_unload):
        with pytest.raises(RuntimeError, match="no adapter is active"):
            call()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


def test_the_change_of_a_merged_weight_is_the_scaled_product(make_model):
    peft_model = adapted(make_model(), use_rslora=True)
    layer = peft_model.lora_layers()[0]
    before = layer.base_layer.weight.value.copy()
    A, B = layer.adapters["default"].lora_A.value, layer.adapters["default"].lora_B.value
    peft_model.merge_adapter()
    assert_allclose(layer.base_layer.weight.value - before, 7 / 3**0.5 * B @ A, rtol=1e-10, atol=1e-12)


def test_a_disabled_adapter_is_the_base_bit_for_bit_and_comes_back(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = adapted(make_model())
    with_adapter, _ = peft_model.forward(tokens)
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)
    assert_array_equal(peft_model.forward(tokens)[0], with_adapter)
    with pytest.raises(ZeroDivisionError), peft_model.disable_adapter():
        raise ZeroDivisionError
    assert_array_equal(peft_model.forward(tokens)[0], with_adapter)


def test_disabling_a_merged_adapter_gives_the_base_too(make_model, random_batch):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = adapted(make_model())
    peft_model.merge_adapter()
    with peft_model.disable_adapter():
        assert_allclose(peft_model.forward(tokens)[0], base, rtol=1e-10, atol=1e-11)
    assert peft_model.merged


def test_the_base_called_directly_is_still_the_base(make_model, random_batch):
    tokens, _ = random_batch()
    model = make_model()
    base, _ = model.forward(tokens)
    adapted(model)
    assert_array_equal(model.forward(tokens)[0], base)


def test_training_a_merged_adapter_is_refused(make_model, random_batch):
    peft_model = adapted(make_model())
    peft_model.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge_adapter"):
        peft_model.backward(peft_model.loss(*random_batch())[1])


def test_dropout_is_on_the_bypass_only_and_only_in_training(make_model, random_batch):
    """With p near 1 the bypass all but vanishes and what is left is the base, undisturbed."""
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = adapted(make_model(), lora_dropout=1 - 1e-12)
    assert_array_equal(peft_model.forward(tokens, rng=np.random.default_rng(0))[0], base)
    assert not xp.array_equal(peft_model.forward(tokens)[0], base), "in evaluation nothing drops"


def test_A_starts_uniform_with_the_fan_in_of_its_input_and_B_at_zero(make_model):
    """Kaiming-uniform with a = √5 is U(±1/√in); the wrong fan-in, r, would be U(±1/√r)."""
    peft_model = get_peft_model(make_model(), LoraConfig(r=64, target_modules=ALL), seed=0)
    for layer in peft_model.lora_layers():
        A, bound = layer.adapters["default"].lora_A.value, 1 / np.sqrt(layer.in_features)
        assert 0.97 * bound < float(xp.abs(A).max()) <= bound
        assert not layer.adapters["default"].lora_B.value.any()


def test_gaussian_init_has_std_one_over_r(make_model):
    peft_model = get_peft_model(make_model(), LoraConfig(r=50, target_modules=ALL, init_lora_weights="gaussian"))
    A = xp.concatenate([layer.adapters["default"].lora_A.value.ravel() for layer in peft_model.lora_layers()])
    assert float(A.std()) == pytest.approx(1 / 50, rel=0.05)


def test_the_same_seed_draws_the_same_adapter(make_model):
    def first(seed):
        return adapted(make_model(), seed=seed).lora_layers()[0].adapters["default"].lora_A.value

    assert xp.array_equal(first(3), first(3)) and not xp.array_equal(first(3), first(4))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], 4),
        ("down_proj", 2),
        (r".*\.0\..*_proj", 7),
        (ALL, 14),
        (["layers.1.self_attn.q_proj"], 1),
        (["lm_head"], 1),
    ],
)
def test_target_modules_as_list_suffix_expression_or_all_linear(make_model, targets, expected):
    assert len(adapted(make_model(), target_modules=targets).lora_layers()) == expected


@pytest.mark.parametrize("kind", [LoraConfig, VeraConfig])
def test_a_configuration_keeps_target_modules_of_its_own(kind):
    """A list that somebody appends to later would name layers without an adapter, and the saved folder would not load."""
    names = ["v_proj", "q_proj"]
    config = kind(target_modules=names)
    names.append("up_proj")
    assert config.target_modules == ("v_proj", "q_proj")
    assert kind(target_modules=(name for name in ["v_proj", "q_proj"])) == config
    assert repr(kind(target_modules={"v_proj", "q_proj"})) == repr(kind(target_modules=("q_proj", "v_proj"))), (
        "a set has another order in each process, and a checkpoint knows its run by this text"
    )
    for wrong in (None, 3, [1], ["q_proj", None]):
        with pytest.raises(TypeError, match=r"target_modules = .*expected a list of layer names"):
            kind(target_modules=wrong)


def test_scaling_is_alpha_over_r_and_over_its_root_with_rslora():
    assert LoraConfig(r=16, lora_alpha=32).scaling == 2
    assert LoraConfig(r=16, lora_alpha=32, use_rslora=True).scaling == 8


def test_print_trainable_parameters_counts_what_trains(make_model, capsys):
    adapted(make_model(), target_modules=["q_proj"]).print_trainable_parameters()
    line = capsys.readouterr().out
    assert f"trainable params: {2 * 3 * (12 + 16)} ||" in line  # two layers, r (in + out)


BAD = {
    "rank 0": (lambda m: LoraConfig(r=0), ValueError, "must be at least 1"),
    "a fractional rank": (lambda m: LoraConfig(r=2.5), TypeError, "whole number"),
    "alpha 0": (lambda m: LoraConfig(lora_alpha=0), ValueError, "lora_alpha = 0"),
    "dropout 1": (lambda m: LoraConfig(lora_dropout=1.0), ValueError, "expected 0 ≤ lora_dropout < 1"),
    "an unknown init": (lambda m: LoraConfig(init_lora_weights="eva"), ValueError, "'eva'"),
    "an unknown target": (
        lambda m: adapted(m, target_modules=["q_proj", "query"]),
        ValueError,
        "'query' matches no linear layer.*q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    ),
    "no target": (lambda m: adapted(m, target_modules=[]), ValueError, "empty"),
    "an adapter on an adapter": (lambda m: adapted(adapted(m)), TypeError, "without adapters"),
    "the base of one again": (lambda m: adapted(adapted(m).model), ValueError, "has adapters already"),
    "a config of another kind": (lambda m: get_peft_model(m, {"r": 8}), TypeError, "expected a LoraConfig.* got dict"),
    "merging while disabled": (lambda m: merge_while_disabled(adapted(m)), RuntimeError, "disabled"),
}


def merge_while_disabled(peft_model):
    with peft_model.disable_adapter():
        peft_model.merge_adapter()


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(make_model())


def test_a_refused_config_changes_nothing(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="matches no linear layer"):
        adapted(model, target_modules=["query"])
    assert model.trainable and type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear"
