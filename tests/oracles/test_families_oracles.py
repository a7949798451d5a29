"""Each family against transformers and PEFT: a folder that we save, with random weights, is the same model there.

"measured" beside a bound shows with `pytest tests/oracles/test_families_oracles.py -rP`.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from family_gguf import write_family
from family_models import FAMILIES, SIZES, family_model
from oracle_models import (
    DoubleTorch,
    assert_close,
    gradients,
    largest_difference,
    peft,
    random_batch,
    relative_error,
    their_loss,
    torch,
    transformers,
)

import lora_np as ln

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
families = pytest.mark.parametrize("family", FAMILIES)
TOKENS, TARGETS = random_batch(2)


@pytest.fixture
def precise(monkeypatch):
    """transformers without its detours through float32: see oracle_models."""
    rope = importlib.import_module("transformers.modeling_rope_utils")
    monkeypatch.setattr(rope, "torch", DoubleTorch("torch"))
    for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gpt2"):
        modeling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        monkeypatch.setattr(modeling, "torch", DoubleTorch("torch"))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def in_transformers(ours, folder):
    """Our model, saved and loaded there. Its gradients are on: dropout, if any, is off in eval."""
    ln.save_model(ours, folder)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert not report["mismatched_keys"]
    return theirs.eval()


def pair(family, folder):
    ours = family_model(family)
    return ours, in_transformers(ours, folder)


def their_gradients(theirs):
    """Their gradients; the weight of a Conv1D is transposed there."""
    conv1d = tuple(f"{n}.weight" for n, m in theirs.named_modules() if isinstance(m, transformers.pytorch_utils.Conv1D))
    return {name: g.T if name in conv1d else g for name, g in gradients(theirs).items()}


@families
def test_logits_and_every_gradient_are_those_of_transformers(family, precise, tmp_path):
    ours, theirs = pair(family, tmp_path)
    loss, cache = ours.loss(TOKENS, TARGETS)
    ours.backward(cache)
    their = their_loss(theirs, TOKENS, TARGETS)
    their.backward()
    logits = theirs(torch.from_numpy(TOKENS)).logits.detach().numpy()
    error = relative_error(ours(TOKENS), logits)
    print(f"measured {error:.1e} in the logits")
    assert error < 1e-10 and abs(float(loss) - their.item()) < 1e-10
    assert len(gradients(ours)) == len(dict(ours.named_parameters()))
    assert_close(gradients(ours), their_gradients(theirs), 1e-10, "a gradient is not the one that torch finds")


@families
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_folder_that_transformers_writes_is_the_same_model_here(family, dtype, precise, tmp_path):
    """Its config.json has the layout of transformers 5, with rope_parameters and layer_types."""
    ours, theirs = pair(family, tmp_path / "ours")
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    again = ln.load_model(tmp_path / "theirs", np.float64)
    assert again.config.kinds == ours.config.kinds
    explicit = {"layer_types": ours.config.layer_types, "rope_local_base_freq": ours.config.rope_local_base_freq}
    assert replace(again.config, **explicit) == ours.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float64, attn_implementation="eager"
    )
    logits = theirs.eval()(torch.from_numpy(TOKENS)).logits.detach().numpy()
    assert relative_error(again(TOKENS), logits) < 1e-10


@families
def test_a_padded_batch_has_the_same_logits(family, precise, tmp_path):
    """Left padding, as in generation; only the logits of tokens are compared."""
    ours, theirs = pair(family, tmp_path)
    mask = np.ones(TOKENS.shape, bool)
    mask[1, :4] = False
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    mine, _ = ours.forward(TOKENS, context=ln.Context(attention_mask=mask, position_ids=positions))
    arguments = {"attention_mask": torch.from_numpy(mask).long(), "position_ids": torch.from_numpy(positions)}
    others = theirs(torch.from_numpy(TOKENS), **arguments).logits.detach().numpy()
    assert largest_difference(mine[mask], others[mask]) < 1e-10


@families
def test_thirty_greedy_tokens_are_the_same(family, precise, tmp_path):
    ours, theirs = pair(family, tmp_path)
    theirs.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    mine = ln.generate(ours, [*TOKENS, TOKENS[0, :5]], max_new_tokens=30)
    more = [theirs.generate(torch.from_numpy(row[None]), **settings)[0, len(row) :].tolist() for row in TOKENS]
    assert mine[: len(TOKENS)] == more
    assert mine[-1] == ln.generate(ours, [TOKENS[0, :5]], max_new_tokens=30)[0], "padding changed a row"
    assert len({token for row in mine for token in row}) > 3, "a model that repeats one token tests nothing"


def fill(arrays):
    rng = np.random.default_rng(1)
    for x in arrays:
        x += 0.2 * rng.standard_normal(x.shape)


@families
@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_an_adapter_trained_here_answers_in_peft_and_comes_back(family, use_dora, precise, tmp_path):
    ours, theirs = pair(family, tmp_path / "model")
    base = family_model(family)
    config = ln.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", use_dora=use_dora)
    ours = ln.get_peft_model(ours, config)
    fill([p.value for name, p in ours.named_parameters() if p.trainable])
    optimizer = ln.AdamW(lr=1e-2)
    ours.backward(ours.loss(TOKENS, TARGETS)[1])
    optimizer.step(ours.named_parameters(), t=1)
    ours.zero_grad()
    ours.save_pretrained(tmp_path / "here")
    there = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "here"), is_trainable=True).eval()
    logits = there(input_ids=torch.from_numpy(TOKENS)).logits.detach().numpy()
    assert largest_difference(ours(TOKENS), logits) < 1e-9
    assert largest_difference(ours(TOKENS), base(TOKENS)) > 0.1, "the adapter does nothing"
    ours.backward(ours.loss(TOKENS, TARGETS)[1])
    their_loss(there, TOKENS, TARGETS).backward()
    assert_close(gradients(ours), gradients(there), 1e-9, "a gradient of the adapter is another one")
    there.save_pretrained(str(tmp_path / "there"))
    back = ln.PeftModel.from_pretrained(base, tmp_path / "there")
    assert largest_difference(back(TOKENS), logits) < 1e-9
    merged = there.merge_and_unload()(torch.from_numpy(TOKENS)).logits.detach().numpy()
    assert largest_difference(back.merge_and_unload()(TOKENS), merged) < 1e-9


@pytest.mark.parametrize("family", ["llama 3.1", "gpt2"])
@pytest.mark.parametrize("value", [False, True])
def test_fan_in_fan_out_of_a_file_changes_nothing_because_peft_sets_it(family, value, precise, tmp_path):
    ours, theirs = pair(family, tmp_path / "model")
    ours = ln.get_peft_model(ours, ln.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    ours.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    assert settings["fan_in_fan_out"] == (family == "gpt2")
    path.write_text(json.dumps(settings | {"fan_in_fan_out": value}))
    there = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    logits = there(input_ids=torch.from_numpy(TOKENS)).logits.detach().numpy()
    back = ln.PeftModel.from_pretrained(family_model(family), tmp_path / "adapter")
    assert largest_difference(back(TOKENS), logits) < 1e-9


# transformers reads no head size of a qwen3 file, and neither caps nor scale of a Gemma file: these are its defaults.
GGUF_CHANGES = {
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gpt2": {"intermediate_size": 96, "max_position_embeddings": 1024},
    "gemma2": {
        **{"head_dim": 256, "query_pre_attn_scalar": 256},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    },
    "gemma3_text": {
        **{"head_dim": 256, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0},
        **{"rope_scaling": None, "layer_types": ()},
    },
}


@pytest.mark.parametrize("family", GGUF_CHANGES)
def test_a_gguf_file_is_the_same_model_in_transformers(family, tmp_path):
    model = family_model(family, np.float32)
    config = replace(model.config, **GGUF_CHANGES[family])
    model = family_model(family, np.float32, config=config)
    write_family(tmp_path / "model.gguf", model, tokenizer__ggml__tokens=[str(i) for i in range(config.vocab_size)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    logits = theirs.eval()(torch.from_numpy(TOKENS)).logits.detach().numpy()
    ours = ln.load_model(tmp_path / "model.gguf", device="numpy")
    assert ours.config.to_dict() == {**ours.config.to_dict(), **config.to_dict()}
    assert largest_difference(ours(TOKENS), logits) < 2e-4


# config.json files as they lie on the Hub, in the layout of transformers 4, with small sizes.
PUBLISHED = {
    "Llama 3.2": {
        **{"model_type": "llama", "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "head_dim": 4},
        **{"rope_theta": 500000.0, "tie_word_embeddings": True, "pretraining_tp": 1, "use_cache": True},
        "rope_scaling": {
            **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
            **{"original_max_position_embeddings": 8192},
        },
    },
    "Qwen 2.5": {
        **{"model_type": "qwen2", "hidden_act": "silu", "max_window_layers": 1, "rope_theta": 1000000.0},
        **{"sliding_window": 4, "use_sliding_window": False, "use_mrope": False, "attention_dropout": 0.0},
    },
    "Mistral 7B v0.1": {"model_type": "mistral", "hidden_act": "silu", "sliding_window": 4, "rope_theta": 10000.0},
    "Qwen 3": {
        **{"model_type": "qwen3", "attention_bias": False, "head_dim": 6, "rope_scaling": None},
        **{"sliding_window": None, "use_sliding_window": False, "max_window_layers": 2},
    },
    "Phi-3 mini": {
        **{"model_type": "phi3", "sliding_window": 4, "rope_scaling": None, "original_max_position_embeddings": 64},
        **{"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "pad_token_id": 3},
    },
    "Gemma 2": {
        **{"model_type": "gemma2", "head_dim": 4, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4},
        **{"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "cache_implementation": "hybrid"},
        **{"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    },
    "Gemma 3 1B": {
        **{"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 4, "sliding_window_pattern": 2},
        **{"rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None, "query_pre_attn_scalar": 8},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": True},
    },
    "GPT-2": {
        **{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 128, "n_ctx": 128},
        **{"activation_function": "gelu_new", "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-05, "summary_type": "x"},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_file_means_here_what_it_means_in_transformers(name, precise, tmp_path):
    settings = {"vocab_size": 37, **PUBLISHED[name]}
    if name != "GPT-2":
        settings = SIZES | settings
    ours = family_model(None, config=ln.TransformerConfig.from_dict(settings))
    ln.save_model(ours, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    logits = theirs.eval()(torch.from_numpy(TOKENS)).logits.detach().numpy()
    assert relative_error(ours(TOKENS), logits) < 1e-10


EMBEDDINGS = {
    "a copy": lambda name: {"modules_to_save": [name]},
    "a copy, tied": lambda name: {"modules_to_save": [name], "ensure_weight_tying": True},
    "norms": lambda name: {"modules_to_save": ["layernorm", "norm"]},
    "two copies": lambda name: {"modules_to_save": [name, "lm_head"]},
    "LoRA": lambda name: {"target_modules": [name, "c_attn", "q_proj"]},
    "tied LoRA": lambda name: {"target_modules": [name, "c_attn", "q_proj"], "ensure_weight_tying": True},
    "tokens": lambda name: {"trainable_token_indices": [1, 5, 36]},
    "the same tokens of the head": lambda name: {"trainable_token_indices": {name: [1, 2], "lm_head": [1, 2]}},
    "other tokens of the head": lambda name: {"trainable_token_indices": {name: [1, 2], "lm_head": [1, 3]}},
}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_a_trained_embedding_of_peft_has_its_logits_here_also_merged(family, case, precise, tmp_path):
    """An embedding with a scale (Gemma), with another name (GPT-2), and a plain one (Qwen 3), with norms on q and k."""
    ours, theirs = pair(family, tmp_path / "base")
    if (family, case) == ("gpt2", "norms"):
        pytest.skip("LayerNorm has a bias, so it is refused")
    settings = {"r": 3, "target_modules": ["c_attn", "q_proj"]}
    settings |= EMBEDDINGS[case]("wte" if family == "gpt2" else "embed_tokens")
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(5)
    for p in theirs.parameters():
        p.data += torch.randn_like(p) / 10 * p.requires_grad
    theirs.save_pretrained(tmp_path / "adapter")
    logits = theirs(torch.from_numpy(TOKENS)).logits.detach().numpy()
    model = ln.PeftModel.from_pretrained(ours, tmp_path / "adapter")
    assert relative_error(model(TOKENS), logits) < 1e-10
    assert relative_error(model.merge_and_unload()(TOKENS), logits) < 1e-10
