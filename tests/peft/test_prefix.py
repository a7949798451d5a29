"""Prefix tuning: exact gradients through the key/value cache, with and without an MLP.

test_methods_oracles.py compares results and files with PEFT.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from on_device import assert_allclose, assert_array_equal, host, xp

import lora_np as ln
from lora_np import AdamW, PeftModel, PrefixTuningConfig, Transformer, costs, get_peft_model, gradcheck_model, train
from lora_np.files import load_arrays
from lora_np.nn import Context
from lora_np.training.parallel import loss_and_gradients
from lora_np.transformer.generation import last_logits
from lora_np.transformer.model import KeyValueCache

PLAIN = {"num_virtual_tokens": 3}
PROJECTED = {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 5}
both = pytest.mark.parametrize("settings", [PLAIN, PROJECTED], ids=["plain", "projected"])


def prefixed(model, seed=1, **settings):
    return get_peft_model(model, PrefixTuningConfig(**PLAIN | settings), seed=seed)


# ------------------------------------------------------------------------------------------------------------ gradients


@both
def test_a_prefix_agrees_with_the_complex_step_to_1e_12(make_model, random_batch, settings):
    result = gradcheck_model(prefixed(make_model(), **settings), *random_batch(), tolerance=1e-12).raise_if_wrong()
    assert len(result.errors) == (5 if "prefix_projection" in settings else 1)


def test_it_does_with_one_key_value_head_for_each_query_head_and_over_blocks_of_queries(make_model, random_batch):
    peft_model = prefixed(make_model(num_key_value_heads=4, max_position_embeddings=99))
    gradcheck_model(peft_model, *random_batch(1, 70), tolerance=1e-12).raise_if_wrong()


@both
def test_the_gradient_of_a_loss_of_your_own_is_that_of_the_loss(make_model, random_batch, settings):
    peft_model, (tokens, targets) = prefixed(make_model(), **settings), random_batch()
    peft_model.backward(peft_model.loss(tokens, targets)[1])
    expected = {name: p.grad.copy() for name, p in peft_model.named_parameters() if p.trainable}
    peft_model.zero_grad()
    logits, cache = peft_model.forward(tokens)
    _, loss_cache = ln.ops.cross_entropy_forward(logits, xp.asarray(targets))
    peft_model.backward_from_logits(ln.ops.cross_entropy_backward(1.0, loss_cache), cache)
    for name, p in peft_model.named_parameters():
        assert p.trainable == (name in expected)
        if p.trainable:
            assert_allclose(p.grad, expected[name], rtol=1e-11, atol=1e-14)


def test_in_a_past_with_tokens_the_gradient_is_the_last_calls(make_model, random_batch):
    """Keys of earlier tokens are constants, but the prefix has a gradient; the complex step on P agrees."""
    peft_model, (tokens, _) = prefixed(make_model()), random_batch()
    E = peft_model.prompt_encoder["default"].embedding.weight
    past = KeyValueCache(peft_model.config)
    peft_model.forward(tokens[:, :2], past_key_values=past)
    given = [[x[:, :, :5].copy() for x in layer.buffers] for layer in past.layers]  # 3 virtual and 2 real tokens
    logits, cache = peft_model.forward(tokens[:, 2:], past_key_values=past)
    dlogits = xp.asarray(np.random.default_rng(0).standard_normal(logits.shape))
    peft_model.backward_from_logits(dlogits, cache)
    gradient, value = E.grad, E.value
    v = xp.asarray(np.random.default_rng(1).standard_normal(value.shape))
    for _, p in peft_model.named_parameters():
        p.value = p.value.astype(complex)
    step = KeyValueCache(peft_model.config)
    step.begin((value + 1e-30j * v).reshape(3, 4, 2, 4), len(tokens))
    for layer, old in zip(step.layers, given, strict=True):
        layer.extend(*(x[:, :, 3:].astype(complex) for x in old))
    after, _ = peft_model.model.forward(tokens[:, 2:], past_key_values=step)
    assert float((after * dlogits).sum().imag) / 1e-30 == pytest.approx(float((gradient * v).sum()), rel=1e-12)


def test_two_backwards_of_one_past_add_up(make_model, random_batch):
    """Each backward pass adds its own gradient to the past and removes it from there."""
    peft_model, (tokens, _) = prefixed(make_model()), random_batch()
    E = peft_model.prompt_encoder["default"].embedding.weight
    dlogits = xp.asarray(np.random.default_rng(0).standard_normal((2, 6, 11)))
    past, halves = KeyValueCache(peft_model.config), [slice(0, 3), slice(3, 6)]
    caches = [peft_model.forward(tokens[:, half], past_key_values=past)[1] for half in halves]
    gradients = []
    for half, cache in zip(halves, caches, strict=True):
        E.grad = None
        peft_model.backward_from_logits(dlogits[:, half], cache)
        gradients.append(E.grad)
    E.grad = None
    past = KeyValueCache(peft_model.config)
    caches = [peft_model.forward(tokens[:, half], past_key_values=past)[1] for half in halves]
    for half, cache in reversed(list(zip(halves, caches, strict=True))):
        peft_model.backward_from_logits(dlogits[:, half], cache)
    assert_allclose(E.grad, gradients[0] + gradients[1], rtol=1e-12)


@both
def test_shards_add_up_to_the_whole_batch(make_model, random_batch, settings):
    peft_model, batch = prefixed(make_model(), **settings), random_batch(5)
    runs = []
    for workers in (1, 3):
        peft_model.zero_grad()
        loss = float(loss_and_gradients(peft_model, *batch, workers=workers))
        runs.append((loss, {name: p.grad for name, p in peft_model.named_parameters() if p.trainable}))
    (loss, gradients), (shared_loss, shared) = runs
    assert shared_loss == pytest.approx(loss, rel=1e-13)
    for name, gradient in gradients.items():
        assert_allclose(shared[name], gradient, rtol=1e-10, atol=1e-15, err_msg=name)


def test_a_frozen_prefix_costs_no_backward(make_model, random_batch, monkeypatch):
    peft_model = prefixed(make_model())
    peft_model.set_adapter("default", inference_mode=True)
    monkeypatch.setattr(ln.ops, "attention_backward", None)  # a call would raise TypeError
    peft_model.backward(peft_model.loss(*random_batch())[1])
    assert all(p.grad is None for _, p in peft_model.named_parameters())


# ------------------------------------------------------------------------------------------------------ what it computes


def test_a_prefix_that_is_what_tokens_computed_answers_as_those_tokens(make_model, random_batch):
    """The prefix of one row contains the row's own rotated keys and values."""
    model, (tokens, _) = make_model(), random_batch(1, 7)
    expected, _ = model.forward(tokens)
    past = KeyValueCache(model.config)
    model.forward(tokens[:, :3], past_key_values=past)
    P = xp.stack([x[0, :, :3].swapaxes(0, 1) for layer in past.layers for x in layer.buffers], axis=1)  # (v, 2L, g, d)
    peft_model = prefixed(model)
    peft_model.prompt_encoder["default"].embedding.weight.value = P.reshape(3, -1)
    assert_allclose(peft_model.forward(tokens[:, 3:])[0], expected[:, 3:], rtol=1e-11, atol=1e-12)


def test_zero_is_no_no_op(make_model, random_batch):
    tokens, _ = random_batch()
    base = make_model().forward(tokens)[0]
    zero = prefixed(make_model(), init_weights="zero")
    assert not zero.prompt_encoder["default"].embedding.weight.value.any()
    assert xp.abs(zero.forward(tokens)[0] - base).max() > 0.1, "a zero key gets attention weight in the softmax"


def test_the_first_token_has_the_position_after_the_prefix(make_model, random_batch):
    """Prefix keys are not rotated, so positions are absolute: a shift by one position changes the output."""
    tokens, _ = random_batch()
    peft_model = prefixed(make_model())
    logits, _ = peft_model.forward(tokens)
    for first, same in ((3, True), (0, False)):
        places = np.tile(np.arange(first, first + tokens.shape[1]), (len(tokens), 1))
        past = peft_model.new_cache(len(tokens), "default")
        again, _ = peft_model.model.forward(tokens, past_key_values=past, context=Context(position_ids=places))
        assert np.allclose(host(again), host(logits), rtol=1e-12) == same


@both
def test_a_token_at_a_time_is_all_at_once(make_model, random_batch, settings):
    peft_model, (tokens, _) = prefixed(make_model(), **settings), random_batch()
    expected, _ = peft_model.forward(tokens)
    past = KeyValueCache(peft_model.config)
    pieces = [peft_model.forward(tokens[:, [i]], past_key_values=past)[0] for i in range(tokens.shape[1])]
    assert_allclose(xp.concatenate(pieces, axis=1), expected, rtol=1e-10, atol=1e-12)
    assert len(past) == 3 + tokens.shape[1]


def test_what_a_row_generates_does_not_depend_on_its_padding(make_model):
    peft_model = prefixed(make_model())
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    alone = [ln.generate(peft_model, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert ln.generate(peft_model, prompts, max_new_tokens=8) == alone
    with peft_model.disable_adapter():
        assert ln.generate(peft_model, prompts, max_new_tokens=8) == ln.generate(
            make_model(), prompts, max_new_tokens=8
        )
    assert alone != ln.generate(make_model(), prompts, max_new_tokens=8), "the prefix must change the text"


def test_a_padded_row_has_the_logits_that_it_has_alone(make_model, random_batch):
    peft_model, (tokens, _) = prefixed(make_model()), random_batch()
    past, mask = peft_model.new_cache(1, "default"), np.ones((1, 3 + 4), bool)
    expected = last_logits(peft_model.model, tokens[:1, 2:], mask, past, "default", True)
    past, mask = peft_model.new_cache(1, "default"), np.array([[True] * 3 + [False] * 2 + [True] * 4])
    padded = last_logits(peft_model.model, tokens[:1], mask, past, "default", True)
    np.testing.assert_allclose(padded, expected, rtol=1e-11, atol=1e-13)


def test_long_prompts_are_read_in_pieces(make_model, monkeypatch):
    monkeypatch.setattr(sys.modules["lora_np.transformer.generation"], "CHUNK", 2)
    test_what_a_row_generates_does_not_depend_on_its_padding(make_model)


def test_the_prefix_takes_its_part_of_the_context(make_model):
    peft_model = prefixed(make_model(), num_virtual_tokens=20)
    with pytest.raises(ValueError, match="after a prefix of 20 and 6 new tokens; this model accepts 32"):
        ln.generate(peft_model, [[1] * 7], max_new_tokens=6)
    assert len(ln.generate(peft_model, [[1] * 7], max_new_tokens=5)[0]) == 5
    with pytest.raises(ValueError, match="13 tokens after 20"):
        peft_model.forward(np.zeros((1, 13), int))


def test_masked_padding_changes_no_token_to_its_left(make_model, random_batch):
    peft_model, (tokens, _) = prefixed(make_model()), random_batch()
    mask = np.ones(tokens.shape, bool)
    mask[:, 4:] = False
    expected, _ = peft_model.forward(tokens[:, :4])
    assert_allclose(peft_model.forward(tokens, attention_mask=mask)[0][:, :4], expected, rtol=1e-11)


def test_a_mask_is_asked_for_what_it_is_without_a_prefix(make_model):
    """A mask of 0 and −∞ or of 0 and 1 raises an error instead of a wrong result. The mask covers only the tokens."""
    tokens = np.zeros((1, 5), int)
    for model in (make_model(), prefixed(make_model())):
        with pytest.raises(TypeError, match="attention_mask has dtype int64; expected booleans"):
            model.forward(tokens, attention_mask=np.ones((1, 5), np.int64))
        with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\); expected \(1, 5\)"):
            model.forward(tokens, attention_mask=np.ones((1, 3), bool))


def test_the_base_called_directly_or_with_the_adapter_disabled_is_the_base(make_model, random_batch):
    tokens, _ = random_batch()
    model = make_model()
    base, _ = model.forward(tokens)
    peft_model = prefixed(model)
    with_prefix, _ = peft_model.forward(tokens)
    assert_array_equal(model.forward(tokens)[0], base)
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)
    assert_array_equal(peft_model.forward(tokens)[0], with_prefix)
    assert not np.allclose(host(with_prefix), host(base))


def test_over_a_quantised_base_it_trains_too(make_model, random_batch):
    peft_model = prefixed(ln.quantize_model(make_model(np.float32), block_size=4))
    history = train(peft_model, [random_batch()], AdamW(lr=3e-2), steps=20, progress=False)
    assert history.column("loss")[-1] < 0.8 * history.column("loss")[0]


def test_quantising_leaves_the_mlp_alone(make_model, random_batch):
    peft_model = prefixed(make_model(), **PROJECTED)
    ln.quantize_model(peft_model, block_size=4)
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()


@pytest.mark.parametrize("adapter_dtype", ["float16", "bfloat16"])
@both
def test_a_prefix_stored_in_16_bits_computes_in_32(make_model, random_batch, settings, adapter_dtype):
    config = PrefixTuningConfig(**settings)
    peft_model = get_peft_model(make_model(np.float32), config, adapter_dtype=adapter_dtype)
    logits, _ = peft_model.forward(random_batch()[0])
    peft_model.backward(peft_model.loss(*random_batch())[1])
    assert logits.dtype == np.float32
    for _, p in peft_model.named_parameters():
        if p.trainable:
            assert p.value.dtype.itemsize == 2 and p.grad.dtype == np.float32


# ------------------------------------------------------------------------------------------------------ count and files


def test_llama_2_7b_with_20_virtual_tokens_trains_5_242_880():
    assert costs.prefix_parameters(20, 32, 32, 128) == 5_242_880
    config = ln.TransformerConfig(8, 4096, 8, 32, 32, 32)  # only the attention; vocabulary and MLP do not matter
    peft_model = get_peft_model(Transformer.empty(config, np.float16), PrefixTuningConfig(num_virtual_tokens=20))
    assert costs.count(peft_model).trainable == 5_242_880


def test_the_live_count_is_that_on_paper(make_model, config):
    count = costs.count(prefixed(make_model()))
    on_paper = costs.prefix_parameters(3, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    assert count.trainable == count.total - count.base == on_paper
    kv, m, width = 8, 5, 32
    projected = costs.count(prefixed(make_model(), **PROJECTED))
    assert projected.trainable == 3 * kv + (kv + 1) * m + (m + 1) * width


def test_the_names_are_pefts(make_model):
    names = [name for name, p in prefixed(make_model(), **PROJECTED).named_parameters() if p.trainable]
    parts = ("embedding.weight", "transform.0.weight", "transform.0.bias", "transform.2.weight", "transform.2.bias")
    assert names == [f"prompt_encoder.default.{part}" for part in parts]


def test_it_starts_as_pytorch_starts_an_embedding_and_a_linear(make_model):
    table = prefixed(make_model(), num_virtual_tokens=30).prompt_encoder["default"].embedding.weight.value
    assert float(table.std()) == pytest.approx(1, rel=0.05) and abs(float(table.mean())) < 0.1
    encoder = prefixed(make_model(), **PROJECTED | {"encoder_hidden_size": 300}).prompt_encoder["default"]
    for linear, fan_in in ((encoder.transform["0"], 8), (encoder.transform["2"], 300)):
        for p in (linear.weight, linear.bias):
            assert 0.9 / np.sqrt(fan_in) < float(xp.abs(p.value).max()) <= 1 / np.sqrt(fan_in)
    zero = prefixed(make_model(), **PROJECTED, init_weights="zero").prompt_encoder["default"]
    assert not zero.forward(np.float64)[0].any() and zero.embedding.weight.value.any()


@both
def test_what_is_saved_comes_back_to_the_bit(make_model, random_batch, tmp_path, settings):
    before = prefixed(make_model(np.float32), **settings)
    before.save_pretrained(tmp_path)
    after = PeftModel.from_pretrained(make_model(np.float32), tmp_path)
    tokens, _ = random_batch()
    assert_array_equal(after.forward(tokens)[0], before.forward(tokens)[0])
    after.save_pretrained(tmp_path / "again")
    first, again = (load_arrays(folder / "adapter_model.safetensors")[0] for folder in (tmp_path, tmp_path / "again"))
    assert list(first) == ["prompt_embeddings"] and np.array_equal(*(x["prompt_embeddings"] for x in (first, again)))
    texts = [(folder / "adapter_config.json").read_text() for folder in (tmp_path, tmp_path / "again")]
    assert texts[0] == texts[1]


def test_a_loaded_prefix_trains_as_keys_and_values(make_model, random_batch, tmp_path):
    """The MLP is not saved."""
    prefixed(make_model(), **PROJECTED).save_pretrained(tmp_path)
    after = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    assert [n for n, p in after.named_parameters() if p.trainable] == ["prompt_encoder.default.embedding.weight"]
    gradcheck_model(after, *random_batch(), tolerance=1e-12).raise_if_wrong()


@both
def test_a_stopped_training_goes_on_as_if_it_had_not(make_model, random_batch, tmp_path, settings):
    batches = [random_batch(seed=seed) for seed in range(6)]

    def run(steps, name, **more):
        peft_model = prefixed(make_model(np.float32), **settings)
        file = tmp_path / f"{name}.safetensors"
        train(peft_model, batches, AdamW(lr=1e-2), steps, checkpoint=file, checkpoint_every=2, progress=False, **more)
        return {name: host(p.value) for name, p in peft_model.named_parameters()}

    class Stop(Exception):
        pass

    class Stopping(list):
        def __getitem__(self, i):
            if i == 4:
                raise Stop
            return super().__getitem__(i)

    whole = run(6, "whole")
    batches = Stopping(batches)
    with pytest.raises(Stop):
        run(6, "stopped")
    batches = list(batches)
    resumed = run(6, "stopped", resume=True)
    assert all(np.array_equal(resumed[name], value) for name, value in whole.items())


def test_training_moves_the_prefix_and_not_the_base(make_model, random_batch):
    peft_model = prefixed(make_model(np.float32), **PROJECTED)
    before = {name: p.value.copy() for name, p in peft_model.named_parameters()}
    train(peft_model, [random_batch()], AdamW(lr=1e-2), steps=3, progress=False)
    for name, p in peft_model.named_parameters():
        assert xp.array_equal(p.value, before[name]) != ("prompt_encoder" in name)


# ------------------------------------------------------------------------------------------------------------ bad input

BAD = {
    "no token": (lambda m: PrefixTuningConfig(num_virtual_tokens=0), ValueError, "num_virtual_tokens = 0"),
    "half a token": (lambda m: PrefixTuningConfig(num_virtual_tokens=2.5), TypeError, "whole number"),
    "an unknown init": (lambda m: PrefixTuningConfig(init_weights="ones"), ValueError, "init_weights = 'ones'"),
    "a projection of 5": (lambda m: PrefixTuningConfig(prefix_projection=5), TypeError, "prefix_projection = 5"),
    "another base": (
        lambda m: prefixed(m, num_attention_heads=4),
        ValueError,
        "num_attention_heads is 4, but this base has 2",
    ),
    "merging": (lambda m: prefixed(m).merge_adapter(), ValueError, "'default' has a PrefixTuningConfig.*merged"),
    "weighing": (
        lambda m: prefixed(m).add_weighted_adapter(["default"], [1.0], "new"),
        ValueError,
        "cannot be merged",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_clear_error(what, make_model):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(make_model())


def test_a_past_of_another_dtype_is_refused(make_model, random_batch):
    peft_model = get_peft_model(make_model(), PrefixTuningConfig(**PLAIN))
    peft_model.prompt_encoder["default"].astype(np.float32)
    with pytest.raises(TypeError, match="the cache contains float32 keys, but this call computed float64"):
        peft_model.forward(random_batch()[0])


def test_a_prefix_does_not_begin_a_past_that_has_been_read(make_model, random_batch):
    model, past = make_model(), KeyValueCache(make_model().config)
    model.forward(random_batch()[0], past_key_values=past)
    with pytest.raises(ValueError, match="must come before all tokens, but this cache already contains 6"):
        past.begin(xp.zeros((3, 4, 2, 4)), 2)


def test_a_past_goes_on_with_the_prefix_that_it_began_with_and_with_no_other(make_model, random_batch):
    """Without an error, the call would give the result of neither model."""
    tokens, _ = random_batch()
    peft_model = prefixed(make_model())
    peft_model.add_adapter("q", PrefixTuningConfig(num_virtual_tokens=4))
    none, first = KeyValueCache(peft_model.config), KeyValueCache(peft_model.config)
    peft_model.forward(tokens, past_key_values=first)
    with peft_model.disable_adapter():
        expected, _ = peft_model.forward(tokens, past_key_values=none)
        with pytest.raises(ValueError, match="was filled with the prefix of 'default', but this call uses no prefix"):
            peft_model.forward(tokens, past_key_values=first)
    with pytest.raises(ValueError, match="was filled with no prefix, but this call uses the prefix of 'default'"):
        peft_model.forward(tokens, past_key_values=none)
    peft_model.set_adapter("q")
    with pytest.raises(
        ValueError, match="was filled with the prefix of 'default', but this call uses the prefix of 'q'"
    ):
        peft_model.forward(tokens, past_key_values=first)
    assert (len(none), len(first)) == (6, 3 + 6), "an error must not change the past"
    with peft_model.disable_adapter():
        assert_array_equal(expected, make_model().forward(tokens)[0])
        peft_model.forward(tokens, past_key_values=none)
    peft_model.set_adapter("default")
    peft_model.forward(tokens, past_key_values=first)
    assert (len(none), len(first)) == (12, 3 + 12), "the call with the past's own prefix continues"
