"""The specific parts of IA³: its two lists of layers, and its ΔW, which depends on W."""

from __future__ import annotations

import json

import pytest
from on_device import assert_allclose, host

import lora_np as ln
from lora_np import IA3Config, PeftModel, get_peft_model


@pytest.mark.parametrize(
    "targets", [["k_proj", "v_proj"], ["model.layers.0.mlp.down_proj", "k_proj"], "all-linear"], ids=str
)
def test_the_layers_of_the_input_are_written_as_a_part_of_the_targets(targets, make_model, random_batch, tmp_path):
    """PEFT raises an error if feedforward_modules are not in target_modules."""
    model = get_peft_model(make_model(), IA3Config(target_modules=targets, init_ia3_weights=False))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(written["feedforward_modules"]) <= set(written["target_modules"])
    tokens, _ = random_batch()
    again = PeftModel.from_pretrained(make_model(), tmp_path)
    assert_allclose(again(tokens), model(tokens), rtol=1e-12)


def test_a_wrong_name_among_the_layers_of_the_input_is_refused(make_model):
    with pytest.raises(ValueError, match="target module 'nope' matches no linear layer"):
        get_peft_model(make_model(), IA3Config(feedforward_modules=["nope"]))
    with pytest.raises(TypeError, match="feedforward_modules = 3; expected a list of layer names"):
        IA3Config(feedforward_modules=3)
    assert IA3Config(feedforward_modules=None) == IA3Config()


def test_its_change_of_a_quantised_weight_can_be_asked_for(make_model):
    model = get_peft_model(ln.quantize_model(make_model()), IA3Config(init_ia3_weights=False))
    layer = model.model.model.layers[0].self_attn.k_proj
    expected = (host(layer.adapters["default"].ia3_l.value) - 1) * host(layer.base_layer.dequantized().weight.value)
    assert_allclose(layer.delta_weight("default"), expected, rtol=1e-6)
