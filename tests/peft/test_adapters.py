"""Saving, loading and several adapters: loading restores saved adapters exactly, and an error names a file that does not fit.

test_adapters_oracles.py proves that PEFT and lora_np read each other's folders.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from adapted import adapted, state
from on_device import assert_array_equal, host, xp

import lora_np as ln
from lora_np import AdamW, LoraConfig, PeftModel, get_peft_model, gradcheck_model, train
from lora_np.files import load_arrays, save_arrays
from lora_np.nn import Context, Linear
from lora_np.peft.lora.config import first_match
from lora_np.peft.lora.method import LoraMethod

Q_V = {"target_modules": ["q_proj", "v_proj"]}
POET = Q_V
PIRATE = {"r": 5, "lora_alpha": 2, "target_modules": ["v_proj", "down_proj"], "use_rslora": True}
RANKS = {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5}
ALPHAS = {"v_proj": 3, r"1\.mlp\.(gate|up)_proj": 20}
CONFIGS = {
    "all-linear": {},
    "q and v": Q_V,
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": RANKS, "alpha_pattern": ALPHAS, "use_rslora": True},
    "an expression": {"target_modules": r".*\.1\..*_proj"},
    "a suffix": {"target_modules": "up_proj"},
    "dropout": {"lora_dropout": 0.25},
    "a named base": {"base_model_name_or_path": "me/model"},
}
configs = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())


def weights(folder):
    return folder / "adapter_model.safetensors"


def settings(folder):
    return folder / "adapter_config.json"


def content(folder):
    """Return the content of both files. (Safetensors files with equal content can differ in the order of their metadata.)"""
    arrays, metadata = load_arrays(weights(folder))
    return (
        settings(folder).read_bytes(),
        metadata,
        {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()},
    )


def rewrite(folder, arrays=None, **metadata):
    """Rewrite the weights file with other arrays or metadata and a correct digest."""
    theirs, known = load_arrays(weights(folder))
    save_arrays(weights(folder), theirs | (arrays or {}), known | metadata)


def saved(make_model, folder, name="default", dtype=np.float64, seed=1, **changes):
    """Save a new adapter of the base model of these tests."""
    peft_model = adapted(make_model(dtype), seed=seed, **changes)
    peft_model.save_pretrained(folder)
    return peft_model


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@configs
def test_what_is_saved_comes_back_to_the_bit(changes, dtype, make_model, random_batch, tmp_path):
    before = saved(make_model, tmp_path, dtype=dtype, **changes)
    after = PeftModel.from_pretrained(make_model(dtype), tmp_path)
    theirs = dict(after.named_parameters())
    for name, p in before.named_parameters():
        assert theirs[name].value.dtype == dtype
        assert_array_equal(theirs[name].value, p.value, err_msg=name)
    tokens, _ = random_batch()
    assert_array_equal(after.forward(tokens)[0], before.forward(tokens)[0])


@configs
def test_what_was_loaded_is_saved_as_the_same_files(changes, make_model, tmp_path):
    saved(make_model, tmp_path / "first", **changes)
    PeftModel.from_pretrained(make_model(), tmp_path / "first").save_pretrained(tmp_path / "second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    assert sorted(os.listdir(tmp_path / "second")) == [settings(tmp_path).name, weights(tmp_path).name]


def test_a_configuration_whose_targets_are_a_list_comes_back_equal(make_model, tmp_path):
    """all-linear and a suffix are saved as a list of layers; a regular expression is saved unchanged."""
    before = saved(
        make_model, tmp_path, **Q_V, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, lora_dropout=0.1
    )
    after = PeftModel.from_pretrained(make_model(), tmp_path)
    assert after.peft_config == before.peft_config


@pytest.mark.parametrize(
    ("targets", "written"),
    [
        ("all-linear", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("q_proj", ["q_proj"]),
        ("layers.0.self_attn.q_proj", ["model.layers.0.self_attn.q_proj"]),
        (r".*\.(gate|up)_proj", r".*\.(gate|up)_proj"),
        (r".*layers\.1\.mlp.*", [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]),
        (r".*mlp.*", ["gate_proj", "up_proj", "down_proj"]),
        (("q_proj", "lm_head"), ["q_proj", "lm_head"]),
        pytest.param({"v_proj", "q_proj"}, ["q_proj", "v_proj"], id="a set"),
    ],
    ids=str,
)
def test_targets_are_written_so_that_peft_means_the_same_layers(targets, written, make_model):
    """In PEFT a string is a regular expression for all modules: "q_proj" matches none, and .*mlp.* matches the MLP itself."""
    model = make_model()
    assert LoraMethod().settings(LoraConfig(target_modules=targets), model)["target_modules"] == written
    get_peft_model(model, LoraConfig(target_modules=targets))
    assert LoraMethod().settings(LoraConfig(target_modules=targets), model)["target_modules"] == written


def test_an_expression_that_reaches_a_tied_head_is_written_as_it_is(make_model):
    """A tied head is a layer that a regular expression can match, here and in PEFT."""
    config = LoraConfig(target_modules=r".*(o_proj|head)")
    for tied in (False, True):
        assert (
            LoraMethod().settings(config, make_model(tie_word_embeddings=tied))["target_modules"] == r".*(o_proj|head)"
        )


def test_patterns_whose_order_decides_are_written_one_a_layer(make_model):
    """The file's keys are sorted, and the first match is used. Without a change, .*attn.* would then match before q_proj."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"q_proj": 2, ".*attn.*": 5})
    written = LoraMethod().settings(config, make_model())["rank_pattern"]
    for name in (f"model.layers.{i}.{layer}" for i in range(2) for layer in ("self_attn.q_proj", "self_attn.v_proj")):
        assert first_match(dict(sorted(written.items())), name, 4) == config.for_layer(name).r
    assert len(written) == 4


def test_numpy_numbers_in_a_configuration_are_numbers_in_the_file(make_model, tmp_path):
    numbers = {"r": np.int64(2), "lora_alpha": np.float32(0.5), "rank_pattern": {"q_proj": np.int32(3)}}
    saved(make_model, tmp_path, **numbers)
    found = json.loads(settings(tmp_path).read_text(encoding="utf-8"))
    assert (found["r"], found["lora_alpha"], found["rank_pattern"]) == (2, 0.5, {"q_proj": 3})


def test_a_loaded_adapter_takes_the_dtype_of_the_base(make_model, tmp_path):
    before = saved(make_model, tmp_path, dtype=np.float64)
    after = PeftModel.from_pretrained(make_model(np.float32), tmp_path)
    for a, b in zip(after.lora_layers(), before.lora_layers(), strict=True):
        assert_array_equal(a.adapters["default"].lora_A.value, b.adapters["default"].lora_A.value.astype(np.float32))


def test_training_goes_on_after_loading_as_if_it_had_not_stopped(make_model, random_batch, tmp_path):
    """SGD has no state besides the weights. (The checkpoint of `train` also saves optimizer state.)"""
    batches = [random_batch(seed=i) for i in range(4)]
    whole = adapted(make_model())
    train(whole, batches, ln.SGD(lr=0.1), steps=4, progress=False)
    part = adapted(make_model())
    train(part, batches[:2], ln.SGD(lr=0.1), steps=2, progress=False)
    part.save_pretrained(tmp_path)
    rest = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    train(rest, batches[2:], ln.SGD(lr=0.1), steps=2, progress=False)
    others = dict(rest.named_parameters())
    for name, p in whole.named_parameters():
        assert_array_equal(others[name].value, p.value, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ({"q_proj": 2}, "model.layers.0.self_attn.q_proj", 2),
        ({"proj": 2}, "model.layers.0.self_attn.q_proj", None),  # a key matches only after a dot
        ({"self_attn": 2}, "model.layers.0.self_attn.q_proj", None),  # a key matches only the end of a name
        ({r"layers\.1\..*": 2}, "model.layers.1.mlp.up_proj", 2),
        ({r"layers\.1\..*": 2}, "model.layers.11.mlp.up_proj", None),
        ({"q_proj|v_proj": 2}, "model.layers.0.self_attn.v_proj", 2),
        ({"lm_head": 2}, "lm_head", 2),
        ({".*attn.*": 5, "q_proj": 2}, "model.layers.0.self_attn.q_proj", 5),  # the first match is used
        ({}, "lm_head", None),
    ],
)
def test_a_pattern_matches_the_end_of_a_name_from_a_dot_on(pattern, name, expected):
    assert first_match(pattern, name, None) == expected


def test_patterns_give_each_layer_its_rank_and_its_scaling(make_model):
    peft_model = adapted(make_model(), rank_pattern=RANKS, alpha_pattern=ALPHAS, use_rslora=True)
    found = {}
    for name, layer in peft_model.model.named_modules():
        if isinstance(layer, ln.AdaptedLinear):
            found[name] = (layer.adapters["default"].lora_A.value.shape[0], layer.adapters["default"].config.scaling)
    assert found["model.layers.0.self_attn.q_proj"] == (2, 7 / 2**0.5)
    assert found["model.layers.0.self_attn.v_proj"] == (3, 3 / 3**0.5)
    assert found["model.layers.1.mlp.up_proj"] == (3, 20 / 3**0.5)
    assert found["model.layers.0.mlp.up_proj"] == (3, 7 / 3**0.5)
    assert found["model.layers.1.mlp.down_proj"] == (5, 7 / 5**0.5)


def test_gradients_with_patterns_and_a_second_adapter_agree_with_the_complex_step_to_1e_12(make_model, random_batch):
    peft_model = adapted(make_model(), rank_pattern=RANKS, alpha_pattern=ALPHAS, use_rslora=True)
    peft_model.add_adapter("other", LoraConfig(init_lora_weights=False, **Q_V))
    gradcheck_model(peft_model, *random_batch(), tolerance=1e-12).raise_if_wrong()


# ----------------------------------------------------------------------------------------------------- several adapters


@pytest.fixture
def two(make_model, tmp_path):
    """Return a model with two saved adapters of different ranks and layers: poet, which is active, and pirate."""
    saved(make_model, tmp_path / "poet", seed=2, **POET)
    saved(make_model, tmp_path / "pirate", seed=3, **PIRATE)
    peft_model = PeftModel.from_pretrained(make_model(), tmp_path / "poet", adapter_name="poet")
    peft_model.load_adapter(tmp_path / "pirate", "pirate")
    return peft_model


def test_each_of_two_adapters_answers_as_it_does_alone(two, make_model, random_batch, tmp_path):
    tokens, _ = random_batch()
    for name in ("poet", "pirate", "poet"):
        two.set_adapter(name)
        alone = PeftModel.from_pretrained(make_model(), tmp_path / name)
        assert_array_equal(two.forward(tokens)[0], alone.forward(tokens)[0])


def test_a_loaded_adapter_waits_until_it_is_chosen(two, random_batch):
    tokens, _ = random_batch()
    assert two.active_adapter == "poet"
    poet, _ = two.forward(tokens)
    two.set_adapter("pirate")
    assert not xp.array_equal(two.forward(tokens)[0], poet)


def test_only_layers_that_an_adapter_is_for_are_wrapped(two):
    kinds = {name: isinstance(layer, ln.AdaptedLinear) for name, layer in two.model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] and kinds["model.layers.0.mlp.down_proj"]
    assert not kinds["model.layers.0.self_attn.k_proj"] and not kinds["model.layers.0.mlp.up_proj"]
    v_proj = two.model.model.layers[0].self_attn.v_proj
    assert {name: a.lora_A.value.shape[0] for name, a in v_proj.adapters.items()} == {"poet": 3, "pirate": 5}


def test_loading_freezes_unless_told_otherwise(two, make_model, tmp_path):
    assert not two.trainable, "no adapter must be trainable"
    two.load_adapter(tmp_path / "poet", "student", is_trainable=True)
    assert {name.split(".")[-2] for name, p in two.named_parameters() if p.trainable} == {"student"}
    student = PeftModel.from_pretrained(make_model(), tmp_path / "poet", is_trainable=True)
    assert all(p.trainable == ("lora_" in name) for name, p in student.named_parameters())


def test_set_adapter_makes_it_the_only_one_that_trains_or_none_in_inference_mode(two):
    two.set_adapter("pirate")
    assert {name.split(".")[-2] for name, p in two.named_parameters() if p.trainable} == {"pirate"}
    two.set_adapter("poet", inference_mode=True)
    assert not two.trainable


def test_training_one_adapter_moves_neither_the_base_nor_the_other(two, random_batch):
    two.set_adapter("pirate")
    before = {name: host(p.value).copy() for name, p in two.named_parameters()}
    train(two, [random_batch()], AdamW(lr=1e-2), steps=3, progress=False)
    for name, p in two.named_parameters():
        moved = not np.array_equal(host(p.value), before[name])
        assert moved == (".pirate." in name), f"{name} {'moved' if moved else 'did not train'}"
        assert p.grad is None


def test_a_gradient_of_an_adapter_that_is_set_aside_is_dropped(two, random_batch):
    two.set_adapter("pirate")
    two.backward(two.loss(*random_batch())[1])
    two.set_adapter("poet")
    assert all(p.grad is None for _, p in two.named_parameters())


def test_print_trainable_parameters_counts_every_adapter_and_what_trains(two, capsys):
    two.print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 0 ||")
    two.set_adapter("poet")
    two.print_trainable_parameters()
    line = capsys.readouterr().out
    poet = 2 * 3 * ((12 + 16) + (12 + 8))  # two layers, r·(in + out) for q and v
    pirate = 2 * 5 * ((12 + 8) + (20 + 12))
    base = sum(p.value.size for name, p in two.named_parameters() if "lora_" not in name)
    assert line.startswith(f"trainable params: {poet:,} || all params: {base + poet + pirate:,} ||")


def test_each_adapter_is_saved_on_its_own(two, tmp_path):
    for name in ("poet", "pirate"):
        two.save_pretrained(tmp_path / "again", adapter_name=name)
        assert content(tmp_path / "again") == content(tmp_path / name)


def test_delete_adapter_leaves_no_trace_of_it(two, make_model, random_batch, tmp_path):
    two.delete_adapter("pirate")
    alone = PeftModel.from_pretrained(make_model(), tmp_path / "poet", adapter_name="poet")
    assert state(two) == state(alone)
    two.delete_adapter("poet")
    tokens, _ = random_batch()
    assert_array_equal(two.forward(tokens)[0], make_model().forward(tokens)[0])
    assert two.active_adapter is None and not two.peft_config and not two.lora_layers()
    assert all(type(m) is Linear for name, m in two.model.named_modules() if name.endswith("_proj"))
    two.load_adapter(tmp_path / "poet", "poet")
    two.set_adapter("poet", inference_mode=True)
    assert state(two) == state(alone)


def test_the_next_adapter_after_the_active_one_is_deleted_is_the_first_by_name(two):
    two.add_adapter("ghost", LoraConfig())
    with pytest.warns(UserWarning, match="'poet' was active and is deleted; the active adapter is now 'ghost'"):
        two.delete_adapter("poet")
    assert two.active_adapter == "ghost"


def test_a_new_adapter_beside_others_starts_as_the_base(two, random_batch):
    tokens, _ = random_batch()
    with two.disable_adapter():
        base, _ = two.forward(tokens)
    two.add_adapter("new", LoraConfig(r=2, target_modules="all-linear"))
    two.set_adapter("new")
    assert_array_equal(two.forward(tokens)[0], base)
    assert two.trainable


def test_the_base_stays_to_the_bit_whatever_comes_and_goes(two, make_model, random_batch, tmp_path):
    before = {name: host(p.value).copy() for name, p in make_model().named_parameters()}
    two.set_adapter("pirate")
    train(two, [random_batch()], AdamW(lr=1e-2), steps=2, progress=False)
    two.load_adapter(tmp_path / "poet", "third", is_trainable=True)
    two.set_adapter("third")
    two.save_pretrained(tmp_path / "third", "third")
    two.delete_adapter("pirate")
    for name, p in two.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert_array_equal(p.value, before[plain], err_msg=f"{name} is frozen, and moved")
            assert not p.trainable


# ----------------------------------------------------------------------------------------------- merged, and disabled


def test_merging_merges_the_active_adapter(two, random_batch):
    tokens, _ = random_batch()
    two.set_adapter("pirate")
    expected, _ = two.forward(tokens)
    two.merge_adapter()
    merged, _ = two.forward(tokens)
    assert xp.abs(merged - expected).max() <= 1e-12 * xp.abs(expected).max()
    two.unmerge_adapter()
    two.set_adapter("poet")


def test_saving_while_merged_writes_the_same_files(two, tmp_path):
    two.merge_adapter()
    two.save_pretrained(tmp_path / "merged", "poet")
    assert content(tmp_path / "merged") == content(tmp_path / "poet")


@pytest.mark.parametrize("how", ["merged", "disabled"])
@pytest.mark.parametrize("what", ["load_adapter", "add_adapter", "set_adapter", "delete_adapter"])
def test_adapters_do_not_come_go_or_change_while_one_is_merged_or_all_are_disabled(what, how, two, tmp_path):
    calls = {
        "load_adapter": lambda: two.load_adapter(tmp_path / "poet", "third"),
        "add_adapter": lambda: two.add_adapter("third", LoraConfig()),
        "set_adapter": lambda: two.set_adapter("pirate"),
        "delete_adapter": lambda: two.delete_adapter("pirate"),
    }
    if how == "merged":
        two.merge_adapter()
        before = state(two)
        with pytest.raises(RuntimeError, match="merged into the weights; call unmerge_adapter"):
            calls[what]()
        assert state(two) == before
    else:
        with two.disable_adapter():
            before = state(two)
            with pytest.raises(RuntimeError, match="disabled; leave the block `with disable_adapter"):
                calls[what]()
            assert state(two) == before
    assert two.active_adapter == "poet"


def test_a_call_for_another_adapter_than_the_merged_one_is_refused(two, random_batch):
    """Without an error, the call would use the sum of both adapters."""
    tokens, _ = random_batch()
    two.merge_adapter()
    with pytest.raises(
        RuntimeError,
        match="the weights contain the merged adapter 'poet'; call unmerge_adapter\\(\\) before using 'pirate'",
    ):
        two.model.forward(tokens, context=Context(adapter="pirate"))


def test_after_disable_adapter_everything_is_as_before(two):
    two.set_adapter("pirate", inference_mode=True)
    before = state(two)
    with two.disable_adapter(), two.disable_adapter():
        pass
    assert state(two) == before and not two.disabled


# ------------------------------------------------------------------------------------------------------- killed half-way

SAVE = """
import os, signal, sys
import numpy as np
from dataclasses import replace
from lora_np import LoraConfig, Transformer, TransformerConfig, get_peft_model

folder, alpha, seed, renames = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
config = TransformerConfig(11, 12, 20, 2, 4, 2, head_dim=4, max_position_embeddings=32)
model = get_peft_model(Transformer.random(config), LoraConfig(r=2, lora_alpha=alpha, init_lora_weights=False), seed=seed)
rename = os.replace
def killed(*args):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    rename(*args)
os.replace = killed
model.save_pretrained(folder)
"""


def save_and_be_killed(folder, alpha, seed, renames):
    """Save an adapter in another process, which is killed after `renames` renamed files."""
    command = [sys.executable, "-c", SAVE, str(folder), str(alpha), str(seed), str(renames)]
    done = subprocess.run(command, env=os.environ | {"LORA_NP_DEVICE": "numpy"}, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if renames < 2 else 0), done.stderr


kills = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@kills
def test_a_save_that_is_killed_before_its_files_are_whole_leaves_the_old_adapter(tmp_path):
    save_and_be_killed(tmp_path, 4.0, seed=0, renames=2)
    before = content(tmp_path)
    save_and_be_killed(tmp_path, 9.0, seed=1, renames=0)
    assert content(tmp_path) == before


@kills
def test_a_save_that_is_killed_between_its_two_renames_is_the_new_adapter_or_is_refused(make_model, tmp_path):
    """With an equal configuration, the new factors are loaded. With another one, they would be scaled by the old α."""
    save_and_be_killed(tmp_path, 4.0, seed=0, renames=2)
    save_and_be_killed(tmp_path, 4.0, seed=1, renames=1)
    fresh = tmp_path / "fresh"
    save_and_be_killed(fresh, 4.0, seed=1, renames=2)
    assert content(tmp_path) == content(fresh)
    PeftModel.from_pretrained(make_model(), tmp_path)
    save_and_be_killed(tmp_path, 9.0, seed=2, renames=1)
    with pytest.raises(ValueError, match=r"lora_alpha is 4\.0, but the weights were saved with 9\.0.*stopped"):
        PeftModel.from_pretrained(make_model(), tmp_path)
    save_and_be_killed(tmp_path, 9.0, seed=2, renames=2)
    PeftModel.from_pretrained(make_model(), tmp_path)


@kills
def test_a_first_save_that_is_killed_leaves_no_adapter(make_model, tmp_path):
    save_and_be_killed(tmp_path, 4.0, seed=0, renames=1)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        PeftModel.from_pretrained(make_model(), tmp_path)


def test_a_save_that_fails_leaves_the_old_adapter_and_nothing_else(make_model, tmp_path, monkeypatch):
    peft_model = saved(make_model, tmp_path)
    before = content(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lora_np.files.arrays._write", full)
    with pytest.raises(
        OSError, match=r"No space left on device; this file was not written.*adapter_model\.safetensors"
    ):
        peft_model.save_pretrained(tmp_path)
    assert content(tmp_path) == before
    assert len(os.listdir(tmp_path)) == 2, "a temporary file was not deleted"


# ------------------------------------------------------------------------------------------------------------- refusals


def edit_settings(folder, **changes):
    found = json.loads(settings(folder).read_text(encoding="utf-8"))
    settings(folder).write_text(json.dumps(found | changes), encoding="utf-8")
    edit_arrays(folder, lambda arrays: arrays)  # without the copy of the settings, as in a file of PEFT


def edit_arrays(folder, edit):
    """Replace the arrays of the file by `edit(arrays)`."""
    save_arrays(weights(folder), edit(load_arrays(weights(folder))[0]), {"format": "pt"})


def without(name):
    return lambda folder: edit_arrays(folder, lambda arrays: {n: x for n, x in arrays.items() if name not in n})


def changed(name, change):
    return lambda folder: edit_arrays(
        folder, lambda arrays: {n: change(x) if name in n else x for n, x in arrays.items()}
    )


def renamed(old, new):
    return lambda folder: edit_arrays(folder, lambda arrays: {n.replace(old, new): x for n, x in arrays.items()})


def configured(**changes):
    return lambda folder: edit_settings(folder, **changes)


DAMAGE = {
    "a tensor with no place": (
        renamed("0.self_attn.q_proj", "7.self_attn.q_proj"),
        r"unexpected tensor \S*layers\.7\.self_attn",
    ),
    "an adapter's name in some keys": (
        renamed("lora_A.weight", "lora_A.default.weight"),
        r"unexpected tensor \S*lora_A\.default",
    ),
    "keys without the prefix": (renamed("base_model.model.", ""), r"unexpected tensor model\.layers\.0"),
    "a missing tensor": (without("1.self_attn.v_proj.lora_B"), r"layers\.1\S*v_proj\.lora_B\.weight is missing"),
    "many missing tensors": (without("lora_B"), r"lora_B\.weight, \S+, \S+ and 1 more is missing"),
    "no tensor": (lambda folder: edit_arrays(folder, lambda arrays: {}), "is missing"),
    "another rank": (configured(r=4), r"q_proj\.lora_A\.weight has shape \(3, 12\); .* need \(4, 12\)"),
    "another width": (changed("0.self_attn.q_proj.lora_B", lambda x: x[:5].copy()), r"lora_B\S* has shape \(5, 3\)"),
    "a transposed factor": (changed("lora_A", lambda x: x.T.copy()), r"lora_A\.weight has shape \(12, 3\)"),
    "integers": (changed("q_proj.lora_A", lambda x: x.astype(np.int8)), r"q_proj\.lora_A\.weight has dtype int8"),
    "other layers": (configured(target_modules=["q_proj"]), r"unexpected tensor .*v_proj"),
    "no such layer": (configured(target_modules=["query"]), r"matches no linear layer; .* are q_proj, k_proj"),
    "no layers named": (configured(target_modules=None), "target_modules is None"),
    "layers that are no names": (configured(target_modules=[3]), r"target_modules is \[3\]"),
    "no valid expression": (configured(target_modules="(q_proj"), r"'\(q_proj' is not a valid regular expression"),
    "another kind": (configured(peft_type="LOHA"), "peft_type is 'LOHA'; expected 'LORA'"),
    "no kind": (configured(peft_type=None), "peft_type is None"),
    "modules_to_save": (
        configured(modules_to_save=["lm_head"]),
        r"base_model\.model\.lm_head\.weight is missing",
    ),
    "DoRA without its magnitudes": (configured(use_dora=True), r"q_proj\.lora_magnitude_vector, .* is missing"),
    "DoRA in words": (configured(use_dora="yes"), r"adapter_config\.json: use_dora = 'yes'; expected True or"),
    "a bias in B": (configured(lora_bias=True), "lora_bias is True"),
    "some layers only": (configured(layers_to_transform=[0]), r"unexpected tensor \S*layers\.1\."),
    "the first layer only": (configured(layers_to_transform=0), r"unexpected tensor \S*layers\.1\."),
    "a layer excluded": (configured(exclude_modules=["v_proj"]), r"unexpected tensor \S*layers\.0\S*v_proj"),
    "blocks with another name": (
        configured(layers_to_transform=[0], layers_pattern=["h"]),
        "layers_to_transform and modules_to_save leave no layer to adapt",
    ),
    "blocks that are no numbers": (
        configured(layers_to_transform=["0"]),
        r"layers_to_transform = '0'; expected indices",
    ),
    "layers repeated": (configured(layer_replication=[[0, 2], [1, 2]]), "layer_replication is"),
    "parameters": (configured(target_parameters=["x"]), r"target_parameters is \['x'\]"),
    "megatron": (configured(megatron_config={"x": 1}), "megatron_config is"),
    "aLoRA": (configured(alora_invocation_tokens=[1]), "alora_invocation_tokens is"),
    "a feature of tomorrow": (
        configured(use_tomorrow="yes", peft_version="0.99.0"),
        r"use_tomorrow is 'yes'; the file is from PEFT 0\.99\.0, which is newer",
    ),
    "PiSSA": (
        configured(init_lora_weights="pissa_niter_4"),
        "init_lora_weights is 'pissa_niter_4': the base was changed by random numbers",
    ),
    "a rank of 0": (configured(r=0), r"adapter_config\.json: r = 0; the rank must be at least 1"),
    "a rank in words": (configured(r="8"), r"adapter_config\.json: r = '8'; the rank is a whole number"),
    "a pattern of rank 0": (configured(rank_pattern={"q_proj": 0}), r"rank_pattern\['q_proj'\] = 0"),
    "patterns that are a list": (configured(alpha_pattern=[1]), r"alpha_pattern = \[1\]; expected a mapping"),
    "rsLoRA in words": (
        configured(use_rslora="false"),
        r"adapter_config\.json: use_rslora = 'false'; expected True or",
    ),
    "an alpha in words": (configured(lora_alpha="8"), r"adapter_config\.json: lora_alpha = '8'; expected a number"),
    "no object": (lambda folder: settings(folder).write_text("[1]"), r"adapter_config\.json: expected a JSON object"),
    "no JSON": (
        lambda folder: settings(folder).write_text("{'r': 8}"),
        r"adapter_config\.json: Expecting property name",
    ),
    "no text": (lambda folder: settings(folder).write_bytes(b"\xff\xfe\x00"), r"adapter_config\.json: .*utf-8"),
    "half a file": (
        lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:300]),
        r"adapter_model\.safetensors is damaged",
    ),
    "an edited α": (
        lambda folder: settings(folder).write_text(
            settings(folder).read_text().replace('"lora_alpha": 7', '"lora_alpha": 8')
        ),
        "lora_alpha is 8, but the weights were saved with 7.*configuration was edited",
    ),
    "a record that is a list": (
        lambda folder: rewrite(folder, **{"lora_np.config": "[1]"}),
        r"adapter_model\.safetensors: expected a JSON object, got \[1\]",
    ),
    "a record that is half": (
        lambda folder: rewrite(folder, **{"lora_np.config": "{x"}),
        r"adapter_model\.safetensors: Expecting property name",
    ),
    "training that is a number": (
        lambda folder: rewrite(folder, **{"lora_np.training": "3"}),
        r"adapter_model\.safetensors: expected a JSON object, got 3",
    ),
}


def test_a_weight_of_the_base_in_the_file_is_looked_for_in_four_bits_too(make_model, tmp_path):
    """PEFT also saves the head's weight with an adapter for the head. For a quantised head, its codes are compared."""
    saved(make_model, tmp_path, dtype=np.float32, target_modules=["lm_head"])
    head = host(make_model(np.float32).lm_head.weight.value)
    rewrite(tmp_path, {"base_model.model.lm_head.base_layer.weight": head})

    def in_four_bits(seed):
        return ln.quantize_model(make_model(np.float32, seed), skip_modules=())

    for same in (head, head.astype(np.float16)):  # in float32, and in the 16 bits that a file can have
        rewrite(tmp_path, {"base_model.model.lm_head.base_layer.weight": same})
        assert PeftModel.from_pretrained(in_four_bits(0), tmp_path).active_adapter == "default"
    for other in (in_four_bits(5), make_model(np.float32, 5)):
        with pytest.raises(ValueError, match=r"differs from the weight of this base.*another base"):
            PeftModel.from_pretrained(other, tmp_path)
    rewrite(tmp_path, {"base_model.model.lm_head.base_layer.weight": 3 * head})  # equal codes, but another scale
    with pytest.raises(ValueError, match=r"differs from the weight of this base"):
        PeftModel.from_pretrained(in_four_bits(0), tmp_path)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_does_not_fit_is_refused_by_name_and_nothing_changes(what, make_model, tmp_path):
    damage, message = DAMAGE[what]
    saved(make_model, tmp_path, **Q_V)
    damage(tmp_path)
    model = make_model()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path)
    assert state(model) == before, "an error must not change the model"
    peft_model = adapted(model, target_modules=["up_proj"])
    before = state(peft_model)
    with pytest.raises(ValueError, match=message):
        peft_model.load_adapter(tmp_path, "another")
    assert state(peft_model) == before, "an error must not change the model"


def test_an_edited_configuration_without_effect_on_the_numbers_is_read(make_model, tmp_path):
    saved(make_model, tmp_path, **Q_V)
    off = {"use_tomorrow": False, "tomorrow_config": None, "tomorrow_pattern": {}, "megatron_core": "megatron.core"}
    text = (
        json.loads(settings(tmp_path).read_text()) | off | {"base_model_name_or_path": "you/model", "revision": "main"}
    )
    settings(tmp_path).write_text(json.dumps(text))
    assert (
        PeftModel.from_pretrained(make_model(), tmp_path).peft_config["default"].base_model_name_or_path == "you/model"
    )


def test_settings_that_peft_does_not_know_either_are_ignored_with_a_warning_that_names_them(make_model, tmp_path):
    """Trainers add their own keys. PEFT ignores them and warns."""
    saved(make_model, tmp_path, **Q_V)
    edit_settings(tmp_path, unsloth_fixed=True, trainer="mine")
    with pytest.warns(UserWarning, match=r"unknown settings \['trainer', 'unsloth_fixed'\] are ignored"):
        PeftModel.from_pretrained(make_model(), tmp_path)


@pytest.mark.parametrize("version", ["0.21.2", "0.7.0", "0.21", None, "", 7])
def test_an_unknown_setting_is_ignored_unless_a_newer_version_of_peft_wrote_the_file(version, make_model, tmp_path):
    saved(make_model, tmp_path, **Q_V)
    edit_settings(tmp_path, peft_version=version, use_tomorrow="yes")
    if version == 7:
        with pytest.raises(ValueError, match="from PEFT 7, which is newer than"):
            PeftModel.from_pretrained(make_model(), tmp_path)
    else:
        with pytest.warns(UserWarning, match="use_tomorrow"):
            PeftModel.from_pretrained(make_model(), tmp_path)


@pytest.mark.parametrize("name", ["default", "my.poet"])
def test_keys_with_the_adapters_name_are_read(name, make_model, random_batch, tmp_path):
    before = saved(make_model, tmp_path, **Q_V, use_dora=True)
    renamed("lora_A.weight", f"lora_A.{name}.weight")(tmp_path)
    renamed("lora_B.weight", f"lora_B.{name}.weight")(tmp_path)
    renamed("lora_magnitude_vector", f"lora_magnitude_vector.{name}.weight")(tmp_path)
    tokens, _ = random_batch()
    assert_array_equal(PeftModel.from_pretrained(make_model(), tmp_path).forward(tokens)[0], before.forward(tokens)[0])


def test_a_bias_setting_without_biases_is_read_and_a_trained_bias_is_refused(make_model, tmp_path):
    saved(make_model, tmp_path, **Q_V)
    edit_settings(tmp_path, bias="all")
    assert PeftModel.from_pretrained(make_model(), tmp_path).active_adapter == "default"
    key = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
    edit_arrays(tmp_path, lambda arrays: arrays | {key: np.zeros(16)})
    with pytest.raises(
        ValueError, match=rf"bias is 'all' and the file contains {key}; trained biases are not supported"
    ):
        PeftModel.from_pretrained(make_model(), tmp_path)


BAD_TOKENS = {
    "a token out of range": ({"trainable_token_indices": [0, 999]}, (2, 12), "tokens below"),
    "too few rows": (
        {"trainable_token_indices": [0, 1, 2]},
        (2, 12),
        r"has shape \(2, 12\) for the tokens \[0, 1, 2\]",
    ),
    "rows of another width": ({"trainable_token_indices": [0, 1]}, (2, 11), "expected one row of 12 numbers"),
    "tokens that are no numbers": ({"trainable_token_indices": ["0", True]}, (2, 12), "tokens below"),
    "another module": (
        {"trainable_token_indices": {"wte": [0, 1]}},
        (2, 12),
        r"unexpected tensor \S*trainable_tokens_delta",
    ),
    "one number": ({"trainable_token_indices": 3}, (2, 12), "adapter_config.json"),
    "modules in one text": (
        {"trainable_token_indices": [0, 1], "modules_to_save": "norm"},
        (2, 12),
        "modules_to_save = 'norm'",
    ),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_trained_tokens_that_do_not_fit_are_refused_and_nothing_changes(what, make_model, tmp_path):
    settings, shape, message = BAD_TOKENS[what]
    saved(make_model, tmp_path, **Q_V)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    edit_arrays(tmp_path, lambda arrays: arrays | {key: np.ones(shape)})
    edit_settings(tmp_path, **settings)
    model = make_model()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path)
    assert state(model) == before


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_needs_an_unquantised_base_and_a_rank_that_fits(
    init, make_model, tmp_path
):
    saved(make_model, tmp_path, dtype=np.float32, r=3, **Q_V)
    edit_settings(tmp_path, init_lora_weights=init)
    with pytest.raises(ValueError, match="The weight must be unquantised"):
        PeftModel.from_pretrained(ln.quantize_model(make_model(np.float32)), tmp_path)
    edit_settings(tmp_path, r=4)
    with pytest.raises(ValueError, match=r"lora_A.weight has shape \(3, 12\).*expected rank 4"):
        PeftModel.from_pretrained(make_model(np.float32), tmp_path)


def test_what_is_not_there_is_named(make_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter in .*nowhere: .*adapter_config\.json is missing"):
        PeftModel.from_pretrained(make_model(), tmp_path / "nowhere")
    saved(make_model, tmp_path / "runs" / "poet")
    saved(make_model, tmp_path / "runs" / "checkpoint-10" / "pirate")
    with pytest.raises(FileNotFoundError, match=r"in its subfolders checkpoint-10/pirate, poet\. Give one of these"):
        PeftModel.from_pretrained(make_model(), tmp_path / "runs")
    saved(make_model, tmp_path)
    weights(tmp_path).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing; .*pickle and is not read"):
        PeftModel.from_pretrained(make_model(), tmp_path)


BAD = {
    "a name that is taken": (
        lambda m, folder: m.load_adapter(folder, "default"),
        ValueError,
        "'default' exists already",
    ),
    "a name with a dot": (
        lambda m, folder: m.load_adapter(folder, "v1.2"),
        ValueError,
        "invalid adapter name 'v1.2'",
    ),
    "a name with a slash": (
        lambda m, folder: m.add_adapter("a/b", LoraConfig()),
        ValueError,
        "invalid adapter name 'a/b'",
    ),
    "a factor's name": (
        lambda m, folder: m.load_adapter(folder, "lora_B"),
        ValueError,
        "invalid adapter name 'lora_B'.*other than __base__, lora_A, lora_B",
    ),
    "no name": (lambda m, folder: m.load_adapter(folder, ""), ValueError, "invalid adapter name ''"),
    "the base's name": (lambda m, folder: m.load_adapter(folder, "__base__"), ValueError, "other than __base__"),
    "selecting a missing adapter": (
        lambda m, _: m.set_adapter("poet"),
        ValueError,
        r"no adapter 'poet'.*\['default'\]",
    ),
    "saving a missing adapter": (lambda m, f: m.save_pretrained(f, "poet"), ValueError, r"no adapter 'poet'"),
    "deleting a missing adapter": (lambda m, _: m.delete_adapter("poet"), ValueError, r"no adapter 'poet'"),
    "saving into a file": (lambda m, f: m.save_pretrained(weights(f)), ValueError, r"safetensors is a file"),
    "adding another kind": (
        lambda m, _: m.add_adapter("poet", {"r": 8}),
        TypeError,
        "expected a LoraConfig, .* got dict",
    ),
    "adding for no layer": (
        lambda m, _: m.add_adapter("poet", LoraConfig(target_modules=["query"])),
        ValueError,
        "'query' matches no linear layer",
    ),
    "a pattern for no layer": (
        lambda m, _: m.add_adapter("poet", LoraConfig(rank_pattern={"q_porj": 2})),
        ValueError,
        "the pattern 'q_porj' matches no targeted layer",
    ),
    "a pattern for a layer that is no target": (
        lambda m, _: m.add_adapter("poet", LoraConfig(alpha_pattern={"up_proj": 2})),
        ValueError,
        "'up_proj' matches no targeted layer",
    ),
    "wrapping an adapted model again": (
        lambda m, f: PeftModel.from_pretrained(m.model, f),
        ValueError,
        "has adapters already.*load_adapter",
    ),
    "loading into a PeftModel": (lambda m, f: PeftModel.from_pretrained(m, f), TypeError, "expected a Transformer"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_call_is_a_clear_error_and_changes_nothing(what, make_model, tmp_path):
    call, error, message = BAD[what]
    peft_model = saved(make_model, tmp_path)
    before = state(peft_model)
    with pytest.raises(error, match=message):
        call(peft_model, tmp_path)
    assert state(peft_model) == before
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"rank_pattern": {"q_proj": 0}}, ValueError, r"rank_pattern\['q_proj'\] = 0; the rank must be at least 1"),
        ({"rank_pattern": {"q_proj": 2.0}}, TypeError, r"rank_pattern\['q_proj'\] = 2.0; the rank is a whole number"),
        ({"alpha_pattern": {"q_proj": -1}}, ValueError, r"alpha_pattern\['q_proj'\] = -1; expected a positive"),
        ({"alpha_pattern": {"(q": 1}}, ValueError, r"'\(q' is not a valid regular expression"),
        ({"lora_alpha": float("inf")}, ValueError, "lora_alpha = inf"),
        ({"lora_alpha": "16"}, TypeError, "lora_alpha = '16'; expected a number"),
        ({"lora_alpha": True}, TypeError, "lora_alpha = True; expected a number"),
        ({"lora_dropout": "0.1"}, TypeError, r"lora_dropout = '0\.1'; expected a number"),
        ({"alpha_pattern": {"q_proj": "16"}}, TypeError, r"alpha_pattern\['q_proj'\] = '16'; expected a number"),
        ({"rank_pattern": None}, TypeError, "rank_pattern = None; expected a mapping"),
    ],
)
def test_a_pattern_out_of_range_is_a_clear_error(bad, error, message):
    with pytest.raises(error, match=message):
        LoraConfig(**bad)
