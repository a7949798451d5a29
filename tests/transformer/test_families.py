"""Each family without PyTorch: exact gradients, every method over it, folders, batches, generation, and its costs."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from family_models import FAMILIES, LLAMA3, SIZES, family_model, settings_of
from on_device import assert_allclose, assert_array_equal, host

import lora_np as ln
from lora_np import Transformer, TransformerConfig, costs, gradcheck_model, ops
from lora_np.files import load_arrays, save_arrays
from lora_np.training.parallel import loss_and_gradients

families = pytest.mark.parametrize("family", FAMILIES)
WINDOW = np.random.default_rng(3).integers(0, SIZES["vocab_size"], (3, 12))
TOKENS, TARGETS = WINDOW[:, :-1], WINDOW[:, 1:]
LORA = ln.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
METHODS = {
    "LoRA": LORA,
    "DoRA": replace(LORA, use_dora=True, dora_norm="true"),
    "prefix": ln.PrefixTuningConfig(num_virtual_tokens=5),
    "VeRA": ln.VeraConfig(r=5, target_modules="all-linear"),
    "Houlsby": ln.BottleneckConfig(bottleneck_size=3),
}
methods = pytest.mark.parametrize("method", METHODS)


def on_device(family, dtype=np.float64):
    return family_model(family, dtype).to("auto")


@families
def test_every_gradient_agrees_with_the_complex_step_to_1e_12(family):
    gradcheck_model(on_device(family), TOKENS, TARGETS, tolerance=1e-12).raise_if_wrong()


@families
def test_any_single_trainable_parameter_gets_the_gradient_that_it_gets_among_all(family):
    model = on_device(family)
    model.backward(model.loss(TOKENS, TARGETS)[1])
    among_all = {name: p.grad for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        model.freeze()
        p.trainable = True
        model.backward(model.loss(TOKENS, TARGETS)[1])
        assert_array_equal(p.grad, among_all[name], err_msg=f"{name} alone")
        assert [n for n, q in model.named_parameters() if q.grad is not None] == [name]


@families
@methods
def test_the_gradients_of_every_method_are_exact_and_a_step_lowers_the_loss(family, method):
    model = ln.get_peft_model(on_device(family), METHODS[method])
    gradcheck_model(model, TOKENS, TARGETS, tolerance=1e-11).raise_if_wrong()
    before, cache = model.loss(TOKENS, TARGETS)
    model.zero_grad()
    model.backward(cache)
    ln.SGD(lr=1e-3).step(model.named_parameters(), t=1)
    assert model.loss(TOKENS, TARGETS)[0] < before


@families
def test_qlora_trains_over_the_family_and_its_merge_has_the_same_logits(family):
    base = ln.quantize_model(on_device(family, np.float32), block_size=16)
    biases = {name for name, _ in on_device(family).named_parameters() if name.endswith("bias")}
    assert biases <= {name for name, _ in base.named_parameters()}, "quantising a layer lost its bias"
    model = ln.get_peft_model(base, LORA)
    history = ln.train(model, [(TOKENS, TARGETS)], ln.AdamW(lr=1e-3), steps=2, progress=False)
    losses = history.column("loss")
    assert losses[1] < losses[0]
    logits = model(TOKENS)
    merged = ln.dequantize_model(model).merge_and_unload()
    assert_allclose(merged(TOKENS), logits, rtol=1e-3, atol=1e-3)


@families
def test_a_merged_adapter_has_the_logits_of_the_unmerged(family):
    model = ln.get_peft_model(on_device(family), LORA)
    logits = model(TOKENS)
    assert_allclose(model.merge_and_unload()(TOKENS), logits, rtol=1e-9, atol=1e-10)


def assert_same_model(again, model):
    """Equal weights. GPT-2's weights from a file are transposed views, whose products can round differently."""
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, array in model.state_dict().items():
        assert_array_equal(again.state_dict()[name], array)
    assert_allclose(again(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)


@families
def test_a_folder_and_a_quantised_folder_come_back(family, tmp_path):
    model = on_device(family, np.float32)
    model.save_pretrained(tmp_path / "plain")
    again = ln.load_model(tmp_path / "plain")
    assert again.config == model.config
    assert_same_model(again, model)
    ln.quantize_model(model, block_size=16).save_pretrained(tmp_path / "nf4")
    again = ln.load_model(tmp_path / "nf4")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert_allclose(again(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)


@families
def test_a_model_quantised_while_it_loads_is_the_quantised_model(family, tmp_path):
    model = on_device(family, np.float32)
    model.save_pretrained(tmp_path)
    again = ln.load_model(tmp_path, quantize="nf4")
    ln.quantize_model(model)
    assert repr(again) == repr(model)
    assert_array_equal(again(TOKENS), model(TOKENS))


@families
def test_rows_with_different_adapters_have_the_logits_that_they_have_alone(family):
    model = ln.get_peft_model(on_device(family), LORA, "a")
    model.add_adapter("b", replace(LORA, r=2), seed=5)
    names = ["a", "b", "__base__"]
    mixed = model.forward(TOKENS, adapter_names=names)[0]
    for row, name in enumerate(names):
        alone = model.forward(TOKENS[row : row + 1], adapter_names=[name])[0]
        assert_allclose(mixed[row], alone[0], rtol=1e-10, atol=1e-11)
    prompts = [TOKENS[0], TOKENS[1, :4], TOKENS[2, :7]]
    new = ln.generate(model, prompts, 8, adapter_names=names)
    for row, name in enumerate(names):
        assert new[row] == ln.generate(model, [prompts[row]], 8, adapter_names=[name])[0]


@families
def test_a_mixed_batch_is_the_same_beside_an_adapter_with_trained_copies(family):
    names, prompts = ["a", "b", "__base__"], [TOKENS[0], TOKENS[1, :4], TOKENS[2, :7]]
    model = ln.get_peft_model(on_device(family), LORA, "a")
    model.add_adapter("b", replace(LORA, r=2, use_dora=True), seed=5)
    logits, new = model.forward(TOKENS, adapter_names=names)[0], ln.generate(model, prompts, 8, adapter_names=names)
    copies = ["wte", "wpe", "lm_head"] if family == "gpt2" else ["embed_tokens", "norm", "lm_head"]
    model.add_adapter("copies", replace(LORA, modules_to_save=copies), seed=6)
    step = costs.flops(model, batch=2, seq=9)
    model.set_adapter("copies")
    gradcheck_model(model, TOKENS, TARGETS, tolerance=1e-11).raise_if_wrong()
    assert_array_equal(model.forward(TOKENS, adapter_names=names)[0], logits)
    assert ln.generate(model, prompts, 8, adapter_names=names) == new
    assert step == costs.flops(ln.get_peft_model(on_device(family), LORA), batch=2, seq=9)


@families
def test_generation_with_a_cache_computes_what_the_whole_text_computes(family):
    model = on_device(family)
    past = ln.transformer.KeyValueCache(model.config)
    parts = [model.forward(TOKENS[:, i:j], past_key_values=past)[0] for i, j in ((0, 6), (6, 7), (7, 11))]
    assert_allclose(np.concatenate([host(x) for x in parts], axis=1), host(model(TOKENS)), rtol=1e-9, atol=1e-10)


@families
def test_requests_that_are_served_together_get_the_tokens_of_generate(family):
    """Rows of one batch are at different positions, and shorter rows are masked on the left."""
    model = ln.get_peft_model(on_device(family), LORA, "a")
    server = ln.AdapterServer(model)
    prompts = [TOKENS[0], TOKENS[1, :3], TOKENS[2, :7]]
    requests = [server.submit(prompt, "a", 9) for prompt in prompts]
    while any(request.finish_reason is None for request in requests):
        server.step()
    for prompt, request in zip(prompts, requests, strict=True):
        assert list(request.tokens) == ln.generate(model, [prompt], 9)[0]


@families
def test_two_workers_compute_the_gradients_of_one(family):
    model = ln.get_peft_model(on_device(family), LORA)
    alone, alone_loss = {}, None
    for workers in (1, 2):
        model.zero_grad()
        loss = loss_and_gradients(model, TOKENS, TARGETS, np.random.default_rng(0), workers=workers)
        found = {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}
        alone, alone_loss = (found, loss) if workers == 1 else (alone, alone_loss)
    assert_allclose(loss, alone_loss, rtol=1e-12)
    for name, gradient in found.items():
        assert_allclose(gradient, alone[name], rtol=1e-9, atol=1e-12)


@families
def test_a_prefix_before_a_padded_prompt_answers_as_before_the_prompt_alone(family):
    model = ln.get_peft_model(on_device(family), METHODS["prefix"])
    prompts = [TOKENS[0], TOKENS[1, :3]]
    assert ln.generate(model, prompts, 8)[1] == ln.generate(model, prompts[1:], 8)[0]


@families
@methods
@pytest.mark.parametrize("length", [11, 70])  # 70: two blocks of queries
def test_every_product_of_a_live_step_is_counted(family, method, length, double, monkeypatch):
    model = ln.get_peft_model(family_model(family, np.float32), METHODS[method]).to("cupy")
    computed, multiply = [0], double.ndarray.__matmul__

    def counted(x, y):
        z = multiply(x, y)
        computed[-1] += 2 * prod(z.shape) * x.shape[-1]
        return z

    monkeypatch.setattr(double.ndarray, "__matmul__", counted)
    tokens, targets = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 2, length))
    _, cache = model.loss(tokens, targets)
    computed.append(0)
    model.backward(cache)
    expected = costs.flops(model, batch=2, seq=length, attention_block=ops.attention.BLOCK)
    assert computed == [expected.products.forward, expected.products.dx + expected.products.dW]


@families
def test_parameters_are_counted_exactly(family):
    model = ln.get_peft_model(family_model(family), LORA)
    counted = costs.count(model)
    assert counted.base == sum(x.size for x in family_model(family).state_dict().values())
    assert counted.trainable == sum(p.value.size for _, p in model.named_parameters() if p.trainable)


@families
def test_a_configuration_survives_its_file(family):
    config = TransformerConfig.from_dict(settings_of(family))
    assert TransformerConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["model_type"] == config.model_type


REFUSED = {
    "another family": ({"model_type": "mixtral"}, "model_type is 'mixtral'; expected one of llama"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected one of silu"),
    "another rotary embedding": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    "the same, as transformers 4 wrote it": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "attention to later tokens": (
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        "use_bidirectional_attention is True; gemma3_text models with this feature are not supported",
    ),
    "the vision tower of Gemma 3": ({"model_type": "gemma3"}, "model_type is 'gemma3'; expected one of"),
    "scores divided by the layer's index": (
        {"model_type": "gpt2", "n_embd": 24, "scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx is True",
    ),
    "scores that are not scaled": ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights is False"),
    "Phi-3's long contexts": (
        {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        "rope_type is 'longrope'; expected 'default', 'linear' or 'llama3'",
    ),
    "a scaling without its numbers": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "low_freq_factor is None",
    ),
    "a factor of zero": ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0; expected a positive"),
    "layers of an unknown type": (
        {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked_attention"] * 2},
        "layer_types contains 'chunked_attention'",
    ),
}

WRONG = [None, True, 0, -1, 4.5, 10**30, float("nan"), float("inf"), "4", "", [], [4], [None], {}, {"a": 1}]
KEYS = [
    *("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "rope_local_base_freq"),
    *("sliding_window", "layer_types", "use_sliding_window", "max_window_layers", "sliding_window_pattern"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "hidden_act", "hidden_activation"),
    *("attention_bias", "mlp_bias", "model_type", "n_embd", "n_inner", "n_head", "activation_function"),
    *("use_bidirectional_attention", "scale_attn_weights", "num_key_value_heads", "head_dim"),
]


@pytest.mark.parametrize("key", KEYS)
def test_any_value_of_any_key_is_a_configuration_or_a_value_error(key):
    for family in {settings["model_type"]: name for name, settings in FAMILIES.items()}.values():
        for value in [*WRONG, {"rope_type": []}, {"full_attention": 3}, {"rope_type": "llama3", "factor": "8"}]:
            try:
                config = TransformerConfig.from_dict(settings_of(family) | {"use_sliding_window": True, key: value})
            except ValueError:
                continue
            assert len(config.kinds) == 2


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_refused_by_its_name(case):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_dict(SIZES | changes)


def test_a_config_without_key_value_heads_has_one_for_each_query_head():
    for settings in (
        {k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
        SIZES | {"num_key_value_heads": None},
    ):
        assert TransformerConfig.from_dict(settings).num_key_value_heads == SIZES["num_attention_heads"]


def test_the_first_file_of_gpt_2_loads(tmp_path):
    """It has names without "transformer.", the causal masks, and no num_key_value_heads, n_inner or model.safetensors' head."""
    model = on_device("gpt2", np.float32)
    model.save_pretrained(tmp_path)
    arrays = {n.removeprefix("transformer."): x for n, x in load_arrays(tmp_path / "model.safetensors")[0].items()}
    assert arrays["h.0.attn.c_attn.weight"].shape == (24, 72), "in a file, the weight of a Conv1D is (in, out)"
    arrays |= {f"h.{i}.attn.bias": np.tri(128, dtype=np.float32)[None, None] for i in range(2)}
    save_arrays(tmp_path / "model.safetensors", arrays)
    assert_same_model(ln.load_model(tmp_path), model)


WINDOWS = {
    "mistral": ({"sliding_window": None}, "FFFFFFF"),
    "mistral, an old file": ({"model_type": "mistral"}, "SSSSSSS"),
    "qwen2": ({"use_sliding_window": False, "sliding_window": 8}, "FFFFFFF"),
    "qwen2, upper layers": ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 5}, "FFFFFSS"),
    "gemma2": ({}, "SFSFSFS"),
    "gemma3_text": ({"sliding_window": 512}, "SSSSSFS"),
    "gemma3_text, every third": ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, "SSFSSFS"),
    "gemma3_text, explicit": ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 7}, "FFFFFFF"),
    "llama": ({"sliding_window": 8}, "FFFFFFF"),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_layers_with_a_window_are_those_of_transformers(case):
    changes, expected = WINDOWS[case]
    config = TransformerConfig.from_dict(SIZES | {"model_type": case, "num_hidden_layers": 7} | changes)
    assert "".join(kind[0].upper() for kind in config.kinds) == expected
    assert TransformerConfig.from_dict(config.to_dict()).kinds == config.kinds


def test_an_empty_model_has_the_shapes_of_a_random_one():
    for family in FAMILIES:
        config = TransformerConfig.from_dict(settings_of(family))
        shapes = [
            {n: x.shape for n, x in make(config).state_dict().items()}
            for make in (Transformer.empty, Transformer.random)
        ]
        assert shapes[0] == shapes[1]


def test_llama_3_scales_low_frequencies_only():
    """Pairs that turn more than `high_freq_factor` times in the old context are unchanged; slow pairs are divided by the factor."""
    old = ops.rotary_tables(np.arange(2), 16, 500.0, np.float64)
    new = ops.rotary_tables(np.arange(2), 16, 500.0, np.float64, LLAMA3)
    f, scaled = (np.arctan2(sin[1], cos[1])[:8] for cos, sin in (old, new))
    turns = f * LLAMA3["original_max_position_embeddings"] / (2 * np.pi)
    assert_allclose(scaled[turns < 1], f[turns < 1] / 8)
    between = (turns >= 1) & (turns <= 4)
    assert between.any() and (f[between] / 8 < scaled[between]).all() and (scaled[between] < f[between]).all()
    fast = {**LLAMA3, "original_max_position_embeddings": 10**9}
    assert_array_equal(ops.rotary_tables(np.arange(2), 16, 500.0, np.float64, fast)[1], old[1])
