"""A GGUF file of each family is the model that was written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from family_gguf import write_family
from family_models import FAMILIES, SIZES, settings_of
from on_device import assert_allclose

import lora_np as ln

TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 9))
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WITHOUT = {  # what a GGUF file does not record
    "llama with biases",  # llama.cpp has the biases of q, k, v and o, but not those of the MLP
    "llama 3.1",  # its own test
    "llama with linear scaling",  # its own test
    "qwen2 with a window",
    "mistral",
    "qwen3 with biases",
    "gemma2",  # soft caps of float32: its own test
    "gemma2, untied",
    "gemma3_text",
}


def random_model(family, **changes):
    config = replace(ln.TransformerConfig.from_dict(settings_of(family)), **changes)
    model = ln.Transformer.random(config)
    rng = np.random.default_rng(1)
    for _, p in model.named_parameters():
        if p.value.ndim == 1:
            p.value += rng.normal(0, 0.1, p.value.shape).astype(np.float32)
        else:
            p.value *= 15
    return model


def comes_back(model, tmp_path, **changes):
    write_family(tmp_path / "model.gguf", model, **changes)
    again = ln.load_model(tmp_path / "model.gguf")
    assert again.config.to_dict() == {**again.config.to_dict(), **model.config.to_dict()}
    assert_allclose(again(TOKENS), model.to("auto")(TOKENS), rtol=1e-4, atol=1e-5)
    return again


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT])
def test_a_file_of_each_family_is_the_model_that_was_written(family, tmp_path):
    model = random_model(family)
    if model.config.model_type == "mistral":
        model.config = replace(model.config, model_type="llama")  # a file does not say which of the two it is
    again = comes_back(model, tmp_path)
    assert again.config.model_type == model.config.model_type


def test_gemma_2_has_soft_caps_and_a_scale_of_the_heads_size(tmp_path):
    model = random_model(
        "gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=6, layer_types=()
    )
    comes_back(model, tmp_path)


def test_the_27_billion_parameters_of_gemma_2_scale_by_the_width(tmp_path):
    model = random_model("gemma2", num_hidden_layers=46, query_pre_attn_scalar=4)
    comes_back(model, tmp_path)


def test_gemma_3_has_a_local_rotary_base(tmp_path):
    comes_back(
        random_model(
            "gemma3_text",
            num_hidden_layers=7,
            layer_types=(),
            query_pre_attn_scalar=6,
            rope_local_base_freq=10000.0,
        ),
        tmp_path,
        gemma3__rope__scaling__type="linear",
        gemma3__rope__scaling__factor=8.0,
    )


def test_llama_3s_frequencies_become_its_rope_scaling(tmp_path):
    scaling = {**ROPE, "factor": 32.0, "original_max_position_embeddings": 8192}
    model = random_model("llama 3.1", head_dim=64, rope_theta=500000.0, rope_scaling=scaling)
    f = 500000.0 ** (np.arange(0, 64, 2) / -64)
    divisors = (f / ln.ops.rotary.scaled_frequencies(f, scaling)).astype(np.float32)
    again = comes_back(model, tmp_path, extra={"rope_freqs.weight": divisors})
    assert again.config.rope_scaling == scaling
