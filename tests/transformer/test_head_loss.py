"""The output head and the loss in blocks of rows: the same numbers as with all logits at once, with less memory."""

from __future__ import annotations

import numpy as np
import pytest
from adapted import adapted
from family_models import family_model
from on_device import host

import lora_np as ln
from lora_np.costs import memory
from lora_np.ops import parts
from lora_np.studies.timing.step_cost import training_peak
from lora_np.transformer import head_loss

MODELS = {
    "untied": lambda make: adapted(make(np.float64)),
    "tied": lambda make: adapted(make(np.float64, tie_word_embeddings=True)),
    "a soft cap": lambda make: adapted(family_model("gemma2", np.float64)),
    "gpt-2": lambda make: adapted(family_model("gpt2", np.float64)),
    "a norm alone": lambda make: only_the_norm(make(np.float64)),
}
models = pytest.mark.parametrize("model", MODELS)


def in_blocks(model, monkeypatch):
    """Set blocks of at most 4 rows. Return the numbers of rows in the later calls of the head's forward and backward."""
    monkeypatch.setattr(head_loss, "ROWS", 4)
    monkeypatch.setattr(head_loss, "LOGITS", 1)
    monkeypatch.setattr(parts, "CACHED", 80)  # one to seven rows of logits
    transformer = model.model if isinstance(model, ln.PeftModel) else model
    weight, calls = transformer.linear_head.weight, {"forward": [], "backward": []}
    for name, rows in calls.items():
        spied = getattr(ln.nn.Linear, name)

        def spy(layer, x, *arguments, spied=spied, rows=rows, **settings):
            if layer.weight is weight:
                rows.append(x.size // x.shape[-1])
            return spied(layer, x, *arguments, **settings)

        monkeypatch.setattr(ln.nn.Linear, name, spy)
    return calls


def only_the_norm(model):
    model.freeze()
    model.model.norm.weight.trainable = True
    return model


def batch_for(model, ignored=0):
    window = np.random.default_rng(0).integers(0, model.config.vocab_size, (3, 12))
    tokens, targets = window[:, :-1].copy(), window[:, 1:].copy()
    targets[0, :ignored] = -100
    return tokens, targets


def gradients(model, batch, seed=None, dloss=0.7):
    model.zero_grad()
    loss, cache = model.loss(*batch, rng=None if seed is None else np.random.default_rng(seed))
    model.backward(cache, dloss)
    return host(loss), {name: host(p.grad).copy() for name, p in model.named_parameters() if p.grad is not None}


@models
@pytest.mark.parametrize("ignored", [0, 5])
@pytest.mark.parametrize("seed", [None, 1])
def test_loss_and_gradients_are_those_of_all_logits_at_once(model, ignored, seed, make_model, monkeypatch):
    model = MODELS[model](make_model)
    batch = batch_for(model, ignored)
    loss, expected = gradients(model, batch, seed)
    with monkeypatch.context() as patch:
        calls = in_blocks(model, patch)
        again, found = gradients(model, batch, seed)
    assert max(calls["forward"]) <= 4 and max(calls["backward"]) <= 4, "a block has at most 4 rows"
    assert sum(calls["backward"]) == 33 - ignored
    assert again == pytest.approx(loss, rel=1e-13)
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-14, err_msg=name)


@models
@pytest.mark.parametrize("seed", [None, 1])
def test_the_whole_model_in_blocks_agrees_with_the_complex_step(model, seed, make_model, monkeypatch):
    model = MODELS[model](make_model)
    in_blocks(model, monkeypatch)
    ln.gradcheck_model(model, *batch_for(model, ignored=3), dropout_seed=seed).raise_if_wrong()


def test_training_computes_the_logits_once_and_evaluation_no_gradient(make_model, monkeypatch):
    model = adapted(make_model(np.float64))
    calls, batch = in_blocks(model, monkeypatch), batch_for(model)
    _, cache = model.loss(*batch, rng=np.random.default_rng(0))
    model.backward(cache)
    assert sum(calls["forward"]) == sum(calls["backward"]) == 33
    ln.evaluate(model, [batch])
    assert (sum(calls["forward"]), sum(calls["backward"])) == (66, 33)


@pytest.mark.parametrize("seed", [None, 1])
def test_a_cache_is_for_one_backward_pass(seed, make_model, monkeypatch):
    model = adapted(make_model(np.float64))
    in_blocks(model, monkeypatch)
    _, cache = model.loss(*batch_for(model), rng=None if seed is None else np.random.default_rng(seed))
    model.backward(cache)
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        model.backward(cache)


def test_a_frozen_model_computes_no_gradient(make_model, monkeypatch):
    model = make_model(np.float64).freeze()
    calls = in_blocks(model, monkeypatch)
    _, cache = model.loss(*batch_for(model), rng=np.random.default_rng(0))
    model.backward(cache)
    assert calls["forward"] and not calls["backward"]


OTHER_HEADS = {
    "trained": lambda make: make(np.float64),
    "tied and trained": lambda make: make(np.float64, tie_word_embeddings=True),
    "LoRA": lambda make: adapted(make(np.float64), target_modules=["lm_head"], lora_dropout=0.3),
    "a trained copy": lambda make: adapted(make(np.float64), modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_any_other_head_computes_all_rows_at_once(head, make_model, monkeypatch):
    model = OTHER_HEADS[head](make_model)
    batch = batch_for(model)
    loss, expected = gradients(model, batch, seed=1)
    in_blocks(model, monkeypatch)
    again, found = gradients(model, batch, seed=1)
    assert again == loss and found.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-14, err_msg=name)


def test_a_quantised_head_is_decoded_once_per_pass(make_model):
    model = ln.quantize_model(make_model(np.float32, hidden_size=16), block_size=16, skip_modules=())
    assert not head_loss.works_in_blocks(model.linear_head)


@pytest.mark.parametrize(
    ("n", "vocabulary", "rows"), [(512, 256, 512), (512, 49152, 256), (600, 49152, 200), (5, 10**6, 5)]
)
def test_the_rows_of_a_block(n, vocabulary, rows):
    """Small logits stay whole; other rows are divided into equal blocks of at most 256 rows, or of 2²² logits."""
    assert head_loss.block_rows(n, vocabulary) == rows


@pytest.mark.parametrize("rows", [128, 40])  # more than few_rows.FEW: a product of fewer rows copies its result
@pytest.mark.parametrize("capped", [None, 30.0], ids=["uncapped", "soft cap"])
@pytest.mark.parametrize(
    "config", [ln.LoraConfig(target_modules="all-linear"), ln.PrefixTuningConfig()], ids=["lora", "prefix"]
)
def test_the_peak_is_what_the_costs_say(rows, capped, config, monkeypatch):
    sizes = {"vocab_size": 5000, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    changes = {"model_type": "gemma2", "final_logit_softcapping": capped} if capped else {}
    whole = ln.TransformerConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **changes)
    model = ln.get_peft_model(ln.Transformer.random(whole), config)
    window = np.random.default_rng(0).integers(0, 5000, (4, 101))
    batch = (window[:, :-1].copy(), window[:, 1:].copy())
    without = training_peak(model, [batch])
    monkeypatch.setattr(head_loss, "ROWS", rows)
    monkeypatch.setattr(head_loss, "LOGITS", 1)
    told, seen = memory(model, batch=4, seq=100), training_peak(model, [batch])
    assert seen < 0.8 * without
    assert told.total - told.weights == pytest.approx(seen, rel=0.05)
