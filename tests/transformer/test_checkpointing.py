"""Gradient checkpointing: the same gradients to the bit, with less memory."""

from __future__ import annotations

import numpy as np
import pytest
from adapted import adapted
from family_models import FAMILIES, family_model
from on_device import host

import lora_np as ln
from lora_np.costs import memory
from lora_np.studies.timing.step_cost import training_peak
from lora_np.training.subspace import SparseProjection, SubspaceModel


def gradients(model, tokens, seed=None):
    model.zero_grad()
    rng = None if seed is None else np.random.default_rng(seed)
    loss, cache = model.loss(tokens[:, :-1], tokens[:, 1:], rng=rng)
    after = None if rng is None else rng.bit_generator.state
    model.backward(cache)
    assert rng is None or rng.bit_generator.state == after, "the backward pass must not move the generator"
    return float(loss), {name: host(p.grad).copy() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_the_bit(model, tokens, seed=None):
    loss, expected = gradients(model, tokens, seed)
    model.gradient_checkpointing_enable()
    again, found = gradients(model, tokens, seed)
    assert again == loss and found.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient, err_msg=name)
    model.gradient_checkpointing_disable()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
def test_the_gradients_are_the_same_to_the_bit(family, full):
    model = family_model(family, np.float32)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (3, 20))
    assert_equal_to_the_bit(model if full else adapted(model), tokens)


def test_the_dropout_masks_are_drawn_again(make_model):
    model = adapted(make_model(np.float32), lora_dropout=0.5)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    assert_equal_to_the_bit(model, tokens, seed=4)
    assert gradients(model, tokens, seed=4)[0] != gradients(model, tokens)[0], "dropout must be on"


def test_train_takes_it_and_leaves_the_model_as_it_was(make_model, monkeypatch):
    seen = []

    def trained(**more):
        model = adapted(make_model(np.float32), lora_dropout=0.1)
        tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
        spied = type(model.model).loss

        def loss(self, *arguments, **settings):
            seen.append(self.gradient_checkpointing)
            return spied(self, *arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(type(model.model), "loss", loss)
            ln.train(model, [(tokens[:, :-1], tokens[:, 1:])], ln.AdamW(0.02), steps=3, workers=1, **more)
        assert not model.model.gradient_checkpointing
        return {name: host(p.value).tobytes() for name, p in model.named_parameters()}

    plain = trained()
    assert not any(seen)
    seen.clear()
    assert trained(gradient_checkpointing=True) == plain and all(seen)
    model = adapted(make_model(np.float32))
    model.gradient_checkpointing_enable()
    tokens = np.array([[1, 2, 3]])
    ln.train(model, [(tokens, tokens)], ln.AdamW(0.02), steps=1, gradient_checkpointing=True)
    assert model.gradient_checkpointing, "a model that had it on keeps it on"


def test_a_prefix_is_refused_and_says_what_to_do(make_model):
    model = ln.get_peft_model(make_model(), ln.PrefixTuningConfig(num_virtual_tokens=2))
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient checkpointing does not work with past_key_values.*disable"):
        model.loss(np.array([[1, 2]]), np.array([[2, 3]]))


def test_a_model_that_cannot_is_refused_before_training(make_model):
    inner = make_model()
    size = sum(p.value.size for _, p in inner.named_parameters())
    model = SubspaceModel(inner, SparseProjection(size, 3))
    with pytest.raises(TypeError, match="SubspaceModel has no gradient checkpointing"):
        ln.train(model, [(np.array([[1, 2]]), np.array([[2, 3]]))], ln.AdamW(0.1), steps=1, gradient_checkpointing=True)


@pytest.mark.parametrize("config", [None, ln.LoraConfig(target_modules="all-linear")], ids=["full", "lora"])
def test_the_peak_is_lower_and_what_the_costs_say(config):
    sizes = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 6}
    model = ln.Transformer.random(ln.TransformerConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model = model if config is None else ln.get_peft_model(model, config)
    window = np.random.default_rng(0).integers(0, 64, (4, 101))
    batch = [(window[:, :-1].copy(), window[:, 1:].copy())]
    without = training_peak(model, batch)
    model.gradient_checkpointing_enable()
    seen = training_peak(model, batch)
    assert seen < 0.6 * without
    told = memory(model, batch=4, seq=100, checkpointing=True)
    assert told.total - told.weights == pytest.approx(seen, rel=0.05)
