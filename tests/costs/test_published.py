"""Counts from any config.json: those of the live model, those of PEFT, and those that the models' pages state."""

from __future__ import annotations

import json

import pytest
from family_models import FAMILIES, family_model, settings_of

import lora_np as ln
from lora_np import costs

CONFIGS = {
    "full": None,
    "LoRA": ln.LoraConfig(r=3, target_modules="all-linear"),
    "DoRA": ln.LoraConfig(r=3, target_modules="all-linear", use_dora=True),
    "prefix": ln.PrefixTuningConfig(num_virtual_tokens=5),
}
STATED = {  # parameters, from the pages of the models
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen-2.5-0.5b": 494_032_768,
    "qwen-2.5-1.5b": 1_543_714_304,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-2.5-72b": 72_706_203_648,
    "qwen-3-0.6b": 596_049_920,
    "qwen-3-8b": 8_190_735_360,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "mistral-7b-v0.3": 7_248_023_552,
    "phi-3-mini": 3_821_079_552,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", CONFIGS)
def test_a_config_file_costs_what_the_live_model_costs(family, method, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings_of(family)))
    model, config = family_model(family), CONFIGS[method]
    live = model if config is None else ln.get_peft_model(model, config)
    paper = str(tmp_path)
    assert costs.count(paper, config) == costs.count(live)
    assert costs.flops(paper, config, batch=2, seq=9) == costs.flops(live, batch=2, seq=9)
    on_paper = costs.memory(paper, config, batch=2, seq=9, precision=costs.Precision(*["float64"] * 3, None, "float64"))
    assert on_paper == costs.memory(live, batch=2, seq=9)


@pytest.mark.parametrize("name", STATED)
def test_a_published_model_has_the_parameters_that_its_page_states(name):
    assert costs.count(name).total == STATED[name]


def test_a_name_that_is_unknown_lists_the_names_and_a_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown model 'llama-9'.*qwen-3-8b.*path of a config\.json"):
        costs.count("llama-9")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'mamba'"):
        costs.count(str(tmp_path))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", costs.PUBLISHED)
def test_the_counts_are_those_of_peft_on_the_meta_device(name, tmp_path):
    torch, peft, transformers = (pytest.importorskip(module) for module in ("torch", "peft", "transformers"))
    settings = costs.architecture_from_config(ln.TransformerConfig.from_dict(costs.PUBLISHED[name])).config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    counted = costs.count(name, ln.LoraConfig(r=8, target_modules="all-linear"))
    assert (counted.trainable, counted.total) == adapted.get_nb_trainable_parameters()
