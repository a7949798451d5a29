"""modules_to_save: a head, an embedding, norms and projections are trained in full, and the base stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from adapted import adapted, state
from family_models import SIZES, family_model
from on_device import assert_array_equal, host, xp

import lora_np as ln
from lora_np.files import load_arrays

COPIES = {
    "head": ["lm_head"],
    "embedding": ["embed_tokens"],
    "both": ["lm_head", "embed_tokens"],
    "norms": ["norm"],
    "a projection": ["1.self_attn.o_proj"],
}
copies = pytest.mark.parametrize("names", COPIES.values(), ids=COPIES.keys())
tied = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def changed(peft_model, seed=4):
    """Change the trained copies, so that a copy and its module differ."""
    rng = np.random.default_rng(seed)
    for name, p in peft_model.named_parameters():
        if ".modules_to_save." in name:
            p.value += xp.asarray(rng.standard_normal(p.value.shape) / 5).astype(p.value.dtype)
    return peft_model


@tied
@copies
def test_gradients_agree_with_the_complex_step_to_1e_12(names, tied, make_model, random_batch):
    peft_model = changed(adapted(make_model(tie_word_embeddings=tied), modules_to_save=names))
    trained = [name for name, p in peft_model.named_parameters() if p.trainable]
    assert sum(".modules_to_save." in name for name in trained) == (5 if names == ["norm"] else len(names))
    ln.gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()


@tied
@copies
def test_a_copy_starts_as_its_module_and_training_leaves_the_base_as_it_is(names, tied, make_model, random_batch):
    model = make_model(tie_word_embeddings=tied)
    tokens, _ = batch = random_batch()
    base, before = model.forward(tokens)[0], {name: host(p.value).copy() for name, p in model.named_parameters()}
    peft_model = ln.get_peft_model(model, ln.LoraConfig(modules_to_save=names))
    assert_array_equal(peft_model.forward(tokens)[0], base)
    ln.train(peft_model, [batch], ln.AdamW(lr=1e-2), steps=2, progress=False)
    assert xp.abs(peft_model.forward(tokens)[0] - base).max() > 0
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)
    plain = peft_model.unload()
    assert {name: host(p.value).tobytes() for name, p in plain.named_parameters()} == {
        name: x.tobytes() for name, x in before.items()
    }
    assert hasattr(plain, "lm_head") != tied


@tied
@copies
def test_saved_and_loaded_it_gives_the_same_logits_and_the_keys_are_pefts(
    names, tied, make_model, random_batch, tmp_path
):
    tokens, _ = random_batch()
    before = changed(adapted(make_model(tie_word_embeddings=tied), modules_to_save=names))
    before.save_pretrained(tmp_path)
    keys = [key for key in load_arrays(tmp_path / "adapter_model.safetensors")[0] if ".lora_" not in key]
    assert keys and all(key.startswith("base_model.model.") and key.endswith(".weight") for key in keys)
    after = ln.PeftModel.from_pretrained(make_model(tie_word_embeddings=tied), tmp_path)
    assert_array_equal(after.forward(tokens)[0], before.forward(tokens)[0])
    assert after.peft_config["default"].modules_to_save == tuple(names)


@copies
def test_each_of_two_adapters_has_its_own_copy(names, make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = changed(adapted(make_model(), modules_to_save=names))
    first = peft_model.forward(tokens)[0]
    peft_model.add_adapter("other", ln.LoraConfig(modules_to_save=names, init_lora_weights=False), seed=7)
    peft_model.set_adapter("other")
    changed(peft_model, seed=8)
    peft_model.add_adapter("plain", ln.LoraConfig(target_modules=["lm_head", "q_proj"]))
    other = peft_model.forward(tokens)[0]
    peft_model.set_adapter("plain")
    assert_array_equal(peft_model.forward(tokens)[0], make_model().forward(tokens)[0])
    peft_model.set_adapter("other")
    assert_array_equal(peft_model.forward(tokens)[0], other)
    assert xp.abs(other - first).max() > 0.01
    peft_model.delete_adapter("default")
    assert_array_equal(peft_model.forward(tokens)[0], other)


@copies
def test_merging_puts_the_copy_in_the_place_of_its_module_and_unmerging_restores_it(names, make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = changed(adapted(make_model(), modules_to_save=names))
    expected, before = peft_model.forward(tokens)[0], state(peft_model)
    peft_model.merge_adapter()
    assert xp.abs(peft_model.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    peft_model.unmerge_adapter()
    assert xp.abs(peft_model.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    for name, value in before[0].items():
        if ".modules_to_save." in name:
            assert state(peft_model)[0][name] == value
    plain = peft_model.merge_and_unload()
    assert xp.abs(plain.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    assert type(plain.model.norm) is ln.nn.RMSNorm and type(plain.model.embed_tokens) is ln.nn.Embedding


SHARED = {name: {"modules_to_save": names} for name, names in COPIES.items()} | {
    "a LoRA of the head": {"target_modules": ["lm_head", "q_proj"]},
    "a LoRA of the head and a copy of the embedding": {
        "target_modules": ["lm_head"],
        "modules_to_save": ["embed_tokens"],
    },
}


@pytest.mark.parametrize("what", SHARED)
def test_merging_into_a_shared_weight_unties_the_head_and_unmerging_ties_it_again(
    what, make_model, random_batch, tmp_path
):
    tokens, _ = random_batch()
    model = make_model(tie_word_embeddings=True)
    base = model.forward(tokens)[0]
    peft_model = changed(adapted(model, **SHARED[what]))
    expected, before = peft_model.forward(tokens)[0], state(peft_model)
    peft_model.merge_adapter()
    assert xp.abs(peft_model.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    with peft_model.disable_adapter():
        assert xp.abs(peft_model.forward(tokens)[0] - base).max() <= 1e-12 * xp.abs(base).max()
    peft_model.unmerge_adapter()
    assert xp.abs(peft_model.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    assert state(peft_model)[0].keys() == before[0].keys()
    plain = peft_model.merge_and_unload()
    assert xp.abs(plain.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()
    untied = what not in ("norms", "a projection")
    assert plain.config.tie_word_embeddings != untied and hasattr(plain, "lm_head") == untied
    ln.save_model(plain, tmp_path)
    again = ln.load_model(tmp_path, dtype=np.float64)
    assert xp.abs(xp.asarray(again.forward(host(tokens))[0]) - expected).max() <= 1e-12 * xp.abs(expected).max()


def test_a_shared_weight_is_restored_in_the_dtype_of_the_model(make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = changed(adapted(make_model(tie_word_embeddings=True), modules_to_save=["embed_tokens", "lm_head"]))
    peft_model.merge_adapter()
    peft_model.model.astype(np.float32)
    peft_model.unmerge_adapter()
    with peft_model.disable_adapter():
        assert peft_model.forward(tokens)[0].dtype == np.float32
    assert {p.value.dtype for _, p in peft_model.named_parameters()} == {np.dtype(np.float32)}


def test_an_embedding_stays_adapted_when_another_adapter_is_deleted(make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = changed(adapted(make_model(tie_word_embeddings=True), modules_to_save=["embed_tokens"]))
    expected = peft_model.forward(tokens)[0]
    peft_model.add_adapter("head", ln.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    peft_model.delete_adapter("head")
    assert_array_equal(peft_model.forward(tokens)[0], expected)
    peft_model.merge_adapter()
    assert xp.abs(peft_model.forward(tokens)[0] - expected).max() <= 1e-12 * xp.abs(expected).max()


def test_what_is_not_possible_with_copies_is_refused(make_model, random_batch):
    peft_model = adapted(make_model(), modules_to_save=["lm_head"])
    with pytest.raises(
        ValueError, match="'default' has its own lm_head; rows with this adapter cannot be in a mixed batch"
    ):
        peft_model.forward(random_batch()[0], adapter_names=["default"] * len(random_batch()[0]))
    with pytest.raises(ValueError, match="the costs of modules_to_save are not defined"):
        ln.costs.flops(peft_model, batch=1, seq=8)
    with pytest.raises(ValueError, match="the costs of modules_to_save are not defined"):
        ln.costs.count("llama-2-7b", ln.LoraConfig(modules_to_save=["lm_head"]))


def test_adapters_of_some_blocks_are_combined_and_saved_for_these_blocks(make_model, random_batch, tmp_path):
    tokens, _ = random_batch()
    peft_model = adapted(make_model(), target_modules=["q_proj"], layers_to_transform=[1])
    peft_model.add_adapter(
        "other", ln.LoraConfig(target_modules=["q_proj"], exclude_modules=r".*\.0\..*", init_lora_weights=False)
    )
    peft_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="cat")
    peft_model.save_pretrained(tmp_path, "both")
    peft_model.set_adapter("both")
    after = ln.PeftModel.from_pretrained(make_model(), tmp_path)
    assert_array_equal(after.forward(tokens)[0], peft_model.forward(tokens)[0])
    peft_model.add_adapter("copy", ln.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
    with pytest.raises(ValueError, match=r"'copy' has its own norm, .* combine adapters without modules_to_save"):
        peft_model.add_weighted_adapter(["default", "copy"], [0.5, 0.5], "wrong", combination_type="cat")


REFUSED = {
    "no such module": ({"modules_to_save": ["classifier"]}, "modules_to_save: 'classifier' matches no module"),
    "a module of modules": ({"modules_to_save": ["mlp"]}, r"selects model\.layers\.0\.mlp, a MLP; only lm_head"),
    "all targets": ({"modules_to_save": ["q_proj"], "target_modules": ["q_proj"]}, "leave no layer to adapt"),
    "no such block": (
        {"layers_to_transform": [0, 7]},
        r"no targeted layer in block 7; targeted layers are in the blocks \[0, 1\]",
    ),
    "an exclusion without effect": (
        {"exclude_modules": ["up_proj"]},
        "exclude_modules: 'up_proj' matches no targeted layer",
    ),
    "everything excluded": ({"exclude_modules": ["q_proj", "v_proj"]}, "leave no layer to adapt"),
    "PiSSA in a shared weight": (
        {"target_modules": ["lm_head"], "init_lora_weights": "pissa", "r": 2},
        "PiSSA would change both",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_selection_without_effect_is_refused_and_the_model_is_unchanged(what, make_model):
    settings, message = REFUSED[what]
    model = make_model(tie_word_embeddings="shared" in what)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        ln.get_peft_model(model, ln.LoraConfig(**settings))
    assert state(model) == before


def test_a_quantised_head_is_not_trained_in_full(make_model):
    model = ln.quantize_model(make_model(np.float32), skip_modules=())
    with pytest.raises(ValueError, match=r"selects lm_head, a QuantizedLinear; .* unquantised"):
        ln.get_peft_model(model, ln.LoraConfig(modules_to_save=["lm_head"]))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"layers_pattern": ["h"]}, ValueError, "layers_pattern has an effect only together with layers_to_transform"),
        ({"layers_to_transform": ["0"]}, TypeError, "layers_to_transform = '0'; expected indices of blocks"),
        ({"layers_to_transform": True}, TypeError, "layers_to_transform = True; expected indices"),
        ({"layers_to_transform": -1}, ValueError, "layers_to_transform = -1; expected at least 0"),
        ({"modules_to_save": [3]}, TypeError, r"modules_to_save = \[3\]"),
        ({"exclude_modules": [3]}, TypeError, r"exclude_modules = \[3\]"),
        ({"layers_to_transform": 0, "layers_pattern": "(h"}, ValueError, r"'\(h' is not a valid regular expression"),
    ],
)
def test_a_selection_of_a_wrong_type_is_refused(bad, error, message):
    with pytest.raises(error, match=message):
        ln.LoraConfig(**bad)


SELECTIONS = {
    "upper layers": ({"layers_to_transform": 1}, ["1.self_attn.q_proj", "1.self_attn.v_proj"]),
    "by the name of the list": (
        {"layers_to_transform": [0], "layers_pattern": ["layers"]},
        ["0.self_attn.q_proj", "0.self_attn.v_proj"],
    ),
    "without some": ({"exclude_modules": ["v_proj", "0.self_attn.q_proj"]}, ["1.self_attn.q_proj"]),
    "without an expression": ({"exclude_modules": r".*\.0\..*"}, ["1.self_attn.q_proj", "1.self_attn.v_proj"]),
    "a full name in any block": (
        {"target_modules": ["q_proj", "model.layers.0.mlp.up_proj"], "layers_to_transform": [1]},
        ["0.mlp.up_proj", "1.self_attn.q_proj"],
    ),
    "all-linear in one block, without the MLP": (
        {"target_modules": "all-linear", "layers_to_transform": [1], "exclude_modules": r".*\.mlp\..*"},
        [f"1.self_attn.{name}_proj" for name in "qkvo"],
    ),
}


@pytest.mark.parametrize("what", SELECTIONS)
def test_only_the_selected_layers_are_adapted_and_a_saved_adapter_selects_them_again(what, make_model, tmp_path):
    settings, expected = SELECTIONS[what]
    peft_model = ln.get_peft_model(make_model(), ln.LoraConfig(**settings))
    for model in (peft_model, None):
        if model is None:
            peft_model.save_pretrained(tmp_path)
            model = ln.PeftModel.from_pretrained(make_model(), tmp_path)
        names = [name for name, m in model.model.named_modules() if isinstance(m, ln.AdaptedLinear)]
        assert sorted(names) == sorted(f"model.layers.{name}" for name in expected)


@pytest.mark.parametrize("names", [["wte"], ["wpe"], ["wte", "wpe"], ["wte", "lm_head"]], ids="+".join)
def test_the_embeddings_of_gpt2_are_trained_and_merged_and_its_tied_head_stays(names, tmp_path):
    tokens = np.random.default_rng(3).integers(0, SIZES["vocab_size"], (3, 7))
    model = ln.get_peft_model(
        family_model("gpt2").to("auto"), ln.LoraConfig(target_modules=["c_attn"], modules_to_save=names)
    )
    base = model.forward(tokens)[0]
    expected = changed(model).forward(tokens)[0]
    assert xp.abs(expected - base).max() > 0.01
    ln.gradcheck_model(model, tokens, tokens, tolerance=1e-12).raise_if_wrong()
    model.save_pretrained(tmp_path)
    again = ln.PeftModel.from_pretrained(family_model("gpt2").to("auto"), tmp_path)
    assert_array_equal(again.forward(tokens)[0], expected)
    model.merge_adapter()
    assert xp.abs(model.forward(tokens)[0] - expected).max() < 1e-12
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    assert xp.abs(plain.forward(tokens)[0] - expected).max() < 1e-12
