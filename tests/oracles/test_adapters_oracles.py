"""An adapter goes from PEFT to here and from here to PEFT, and the model answers the same.

"measured" beside a bound is the worst seen when this was written (torch 2.13, transformers 5.23, peft 0.21.2);
`pytest tests/oracles/test_adapters_oracles.py -rP` shows it again.
"""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from oracle_adapters import (
    ALL_LINEAR,
    BOUNDS,
    DEEP,
    assert_same_logits,
    dtypes,
    fill,
    logits_of,
    peft_config,
    written_by_peft,
    written_here,
)
from oracle_models import (
    SHAPES,
    UNTIED,
    DoubleTorch,
    base_pair,
    largest_difference,
    modeling_llama,
    peft,
    torch,
    trainable_values,
)

import lora_np as ln
from lora_np.peft.files import peft_modules
from lora_np.peft.lora.method import LoraMethod

safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Already unmerged"),
]

RANKS = {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5, r"0\..*\.up_proj": 1}
ALPHAS = {"v_proj": 3, r"1\.mlp\.(gate|up)_proj": 20, r"model\.layers\.0\.self_attn\.o_proj": 0.5}
BOTH_WAYS = {
    "q and v": {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all-linear": ALL_LINEAR,
    "rsLoRA": ALL_LINEAR | {"use_rslora": True},
    "rank_pattern": ALL_LINEAR | {"rank_pattern": RANKS},
    "alpha_pattern": ALL_LINEAR | {"alpha_pattern": ALPHAS},
    "rsLoRA, rank_pattern and alpha_pattern": ALL_LINEAR
    | {"use_rslora": True, "rank_pattern": RANKS, "alpha_pattern": ALPHAS},
    "a regular expression": {"r": 2, "lora_alpha": 5, "target_modules": r".*\.(gate|down)_proj"},
    "a regular expression for one layer": {"r": 2, "target_modules": r".*layers\.1\..*_proj", "lora_alpha": 3},
    "one layer by its full name": {"r": 2, "lora_alpha": 5, "target_modules": ["model.layers.0.self_attn.k_proj"]},
    "the head too": {"r": 2, "lora_alpha": 5, "target_modules": ["lm_head", "o_proj"]},
    "without some modules": ALL_LINEAR
    | {"exclude_modules": ["0.mlp.up_proj", "k_proj"], "target_modules": ["q_proj", "k_proj", "up_proj"]},
    "upper layers": {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 2]},
    "one layer by its index": {
        "r": 2,
        "target_modules": ["q_proj"],
        "layers_to_transform": [2],
        "layers_pattern": ["layers"],
        "lora_alpha": 5,
    },
    "the head and the embedding in full": ALL_LINEAR | {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms and projections in full": ALL_LINEAR | {"modules_to_save": ["norm", "1.self_attn.o_proj"]},
    "gaussian init, with dropout": ALL_LINEAR | {"init_lora_weights": "gaussian", "lora_dropout": 0.25},
}
# What has another meaning in PEFT, or loses it in a file with sorted keys, and is written so that it does not.
FROM_HERE_ONLY = {
    "a suffix as a string": {"r": 2, "lora_alpha": 5, "target_modules": "q_proj"},
    "one full name but its beginning": {"r": 2, "lora_alpha": 5, "target_modules": "0.self_attn.q_proj"},
    "an expression that matches more than layers": {"r": 2, "lora_alpha": 5, "target_modules": r"model\..*[pm].*"},
    "upper layers of all-linear": ALL_LINEAR | {"layers_to_transform": 2},
    "upper layers of a suffix": {"r": 2, "lora_alpha": 5, "target_modules": "q_proj", "layers_to_transform": [1, 2]},
    "all-linear but some": ALL_LINEAR | {"exclude_modules": "mlp.up_proj"},
    "all-linear but an expression": ALL_LINEAR
    | {"exclude_modules": r".*\.(0|1)\..*", "modules_to_save": ["model.norm"]},
    "patterns of which the first counts": ALL_LINEAR
    | {"rank_pattern": {"q_proj": 2, ".*attn.*": 5}, "alpha_pattern": {"up_proj": 2, "mlp.*": 30}},
}


FIRST_DORA = {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": True}


def cases(settings):
    return pytest.mark.parametrize("settings", settings.values(), ids=settings.keys())


@pytest.fixture
def precise(request, monkeypatch):
    """In float64, transformers' Llama without its three detours through float32: see oracle_models."""
    if request.getfixturevalue("dtype") == np.float64:
        monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))


# ------------------------------------------------------------------------------------------------------- both directions


@dtypes
@cases(BOTH_WAYS)
def test_what_peft_wrote_answers_here_as_it_does_there(settings, dtype, precise, tmp_path):
    ours, theirs = base_pair(DEEP, dtype)
    base = logits_of(ours)
    theirs = written_by_peft(theirs, settings, tmp_path)
    ours = ln.PeftModel.from_pretrained(ours, tmp_path)
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    assert np.abs(logits_of(ours) - base).max() > 0.1, "the adapter does nothing, so this proves nothing"


@dtypes
@cases(BOTH_WAYS | FROM_HERE_ONLY)
def test_what_is_written_here_answers_in_peft_as_it_does_here(settings, dtype, precise, tmp_path):
    ours, theirs = base_pair(DEEP, dtype)
    base = logits_of(ours)
    ours = written_here(ours, settings, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of what it does not find
        theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    assert np.abs(logits_of(ours) - base).max() > 0.1, "the adapter does nothing, so this proves nothing"


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_of_every_shape_go_both_ways(shape, tmp_path):
    ours, theirs = base_pair(SHAPES[shape], np.float32)
    ours = written_here(ours, ALL_LINEAR, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours"))
    assert_same_logits(ours, theirs, 1e-4)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = ln.PeftModel.from_pretrained(base_pair(SHAPES[shape], np.float32)[0], tmp_path / "theirs")
    assert_same_logits(ours, theirs, 1e-4)


@cases(BOTH_WAYS | FROM_HERE_ONLY)
def test_through_peft_and_back_no_bit_changes(settings, tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    ours = written_here(ours, settings, tmp_path / "ours")
    peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours")).save_pretrained(str(tmp_path / "theirs"))
    back = ln.PeftModel.from_pretrained(base_pair(DEEP, np.float32)[0], tmp_path / "theirs")
    mine, others = (dict(model.named_parameters()) for model in (ours, back))
    assert mine.keys() == others.keys()
    for name in mine:
        assert mine[name].value.tobytes() == others[name].value.tobytes(), name


@cases(BOTH_WAYS)
def test_what_trains_after_loading_is_what_trains_in_peft(settings, tmp_path, capsys):
    ours, theirs = base_pair(DEEP, np.float32)
    written_by_peft(theirs, settings, tmp_path)
    for is_trainable in (False, True):
        ours, theirs = base_pair(DEEP, np.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path), is_trainable=is_trainable)
        ours = ln.PeftModel.from_pretrained(ours, tmp_path, is_trainable=is_trainable)
        assert trainable_values(ours).keys() == trainable_values(theirs).keys()
        assert bool(trainable_values(ours)) == is_trainable
        capsys.readouterr()
        theirs.print_trainable_parameters()
        expected = capsys.readouterr().out
        ours.print_trainable_parameters()
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_file_in_16_bits_is_widened_as_peft_widens_it(half, tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    written_by_peft(theirs, ALL_LINEAR, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: x.to(half) for name, x in safetensors_torch.load_file(path).items()}
    safetensors_torch.save_file(tensors, path, {"format": "pt"})
    theirs = peft.PeftModel.from_pretrained(base_pair(DEEP, np.float32)[1], str(tmp_path))
    ours = ln.PeftModel.from_pretrained(ours, tmp_path)
    assert_same_logits(ours, theirs, 1e-4)
    for name, p in ours.named_parameters():
        if ".lora_" in name:
            wide = tensors[re.sub(r"\.default\.weight$", ".weight", name)].to(torch.float32).numpy()
            assert p.value.dtype == np.float32 and p.value.tobytes() == wide.tobytes(), name


TIED = {
    "a LoRA of the head": {"r": 2, "lora_alpha": 5, "target_modules": ["lm_head", "o_proj"]},
    "the head in full": ALL_LINEAR | {"modules_to_save": ["lm_head"]},
    "the embedding in full": ALL_LINEAR | {"modules_to_save": ["embed_tokens"]},
    "the head and the embedding in full": ALL_LINEAR | {"modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("dtype", [np.float64])
@cases(TIED)
def test_adapters_of_a_tied_head_or_embedding_go_both_ways(settings, dtype, precise, tmp_path):
    ours, theirs = base_pair(SHAPES["tied"], dtype)
    base = logits_of(ours)
    ours = written_here(ours, settings, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours"))
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    assert np.abs(logits_of(ours) - base).max() > 0.1
    ours, theirs = base_pair(SHAPES["tied"], dtype)
    theirs = written_by_peft(theirs, settings, tmp_path / "theirs", seed=2)
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path / "theirs"), theirs, BOUNDS[dtype])


@cases({"LoRA": ALL_LINEAR, "DoRA": FIRST_DORA, "whole modules": ALL_LINEAR | {"modules_to_save": ["lm_head", "norm"]}})
def test_a_state_dict_with_the_adapters_name_in_its_keys_is_read(settings, tmp_path):
    """A trainer that saves model.state_dict() writes such keys. PEFT does not find them; here each tensor has its place."""
    ours, theirs = base_pair(DEEP, np.float32)
    theirs = fill(peft.get_peft_model(theirs, peft_config(settings), adapter_name="poet"))
    theirs.save_pretrained(str(tmp_path), selected_adapters=["poet"])
    parts = (".lora_", ".modules_to_save.", ".original_module.")
    tensors = {name: x.clone() for name, x in theirs.state_dict().items() if any(part in name for part in parts)}
    assert any(".poet" in name for name in tensors)
    safetensors_torch.save_file(tensors, tmp_path / "poet" / "adapter_model.safetensors", {"format": "pt"})
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path / "poet"), theirs, 1e-4)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["untied", "tied"])
def test_an_adapter_of_the_head_is_read_over_a_base_in_another_dtype(shape, stored, tmp_path):
    """PEFT saves the frozen head in the dtype of its base; a base that is loaded in float32 has more digits."""
    ours, theirs = base_pair(SHAPES[shape], np.float32)
    settings = {"r": 2, "lora_alpha": 5, "target_modules": ["lm_head", "o_proj"]}
    written_by_peft(theirs.to(stored), settings, tmp_path)
    tensors = safetensors_torch.load_file(tmp_path / "adapter_model.safetensors")
    saved = [name for name in tensors if ".lora_" not in name]
    assert saved and all(tensors[name].dtype == stored for name in saved)
    theirs = peft.PeftModel.from_pretrained(base_pair(SHAPES[shape], np.float32)[1], str(tmp_path))
    with torch.no_grad():  # PEFT replaces the head by the rounded copy; here the head of the base stays as it is
        head = theirs.base_model.model.lm_head.base_layer.weight
        head.copy_(torch.from_numpy(ours.output_head.weight.value))
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path), theirs, 1e-4)
    with pytest.raises(ValueError, match="differs from the weight of this base"):
        ln.PeftModel.from_pretrained(base_pair(SHAPES[shape], np.float32, seed=5)[0], tmp_path)


@pytest.mark.parametrize("eight", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_file_in_float8_is_widened_as_peft_widens_it(eight, tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    written_by_peft(theirs, ALL_LINEAR, tmp_path)
    rewrite(tmp_path, lambda tensors: {name: x.to(eight) for name, x in tensors.items()})
    theirs = peft.PeftModel.from_pretrained(base_pair(DEEP, np.float32)[1], str(tmp_path))
    ours = ln.PeftModel.from_pretrained(ours, tmp_path)
    assert_same_logits(ours, theirs, 1e-4)


# ------------------------------------------------------------------------------------------------------- the folder


def as_sets(settings):
    """PEFT keeps target_modules and exclude_modules as sets, and writes them in any order."""
    return {
        key: set(value) if key in ("target_modules", "exclude_modules") and isinstance(value, list) else value
        for key, value in settings.items()
    }


@cases({name: s for name, s in BOTH_WAYS.items() if s["target_modules"] != "all-linear"})
def test_every_key_of_the_configuration_has_the_value_that_peft_writes(settings, tmp_path):
    """What PEFT writes besides are features that are off; FACTS: the keys here are those that older versions know too."""
    ours, theirs = base_pair(DEEP, np.float32)
    written_here(ours, settings, tmp_path / "ours")
    written_by_peft(theirs, settings, tmp_path / "theirs")
    mine, others = (
        json.loads((tmp_path / side / "adapter_config.json").read_text(encoding="utf-8")) for side in ("ours", "theirs")
    )
    common = {key: others[key] for key in mine if key in others}
    assert as_sets(mine) == as_sets(common) | {"peft_version": mine["peft_version"]}
    ordered = {key: mine[key] for key in ("target_modules", "exclude_modules")}
    assert LoraMethod().config(others | ordered) == LoraMethod().config(mine)
    text = (tmp_path / "ours" / "adapter_config.json").read_text(encoding="utf-8")
    assert text == json.dumps(mine, indent=2, sort_keys=True) + "\n"


def test_all_linear_is_written_as_the_layers_that_peft_writes_for_it(tmp_path):
    for shape in (UNTIED, DEEP):
        ours, theirs = base_pair(shape, np.float32)
        written_here(ours, ALL_LINEAR, tmp_path / "ours")
        written_by_peft(theirs, ALL_LINEAR, tmp_path / "theirs")
        layers = []
        for side in ("ours", "theirs"):
            model = ln.PeftModel.from_pretrained(base_pair(shape, np.float32)[0], tmp_path / side)
            layers.append([name for name, _ in model.named_parameters() if ".lora_A." in name])
        assert layers[0] == layers[1]


def test_tensor_names_shapes_dtypes_and_the_format_are_pefts(tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    written_here(ours, BOTH_WAYS["rank_pattern"], tmp_path / "ours")
    written_by_peft(theirs, BOTH_WAYS["rank_pattern"], tmp_path / "theirs")
    found = []
    for side in ("ours", "theirs"):
        with ln_open(tmp_path / side / "adapter_model.safetensors") as file:
            assert file.metadata()["format"] == "pt"
            found.append({name: (x.shape, x.dtype) for name in file.keys() for x in [file.get_tensor(name)]})  # noqa: SIM118
    assert found[0] == found[1]


def ln_open(path):
    return pytest.importorskip("safetensors").safe_open(path, framework="pt")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_modules_that_peft_holds_an_expression_against_are_known(shape):
    ours, theirs = base_pair(SHAPES[shape])
    expected = {name for name, _ in theirs.named_modules()}
    for model in (ours, ln.get_peft_model(base_pair(SHAPES[shape])[0], ln.LoraConfig()).model):
        assert set(peft_modules(model)) == expected


# ----------------------------------------------------------------------------------------------------- several adapters

FIRST = {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
SECOND = {
    "r": 5,
    "lora_alpha": 2,
    "target_modules": ["v_proj", "down_proj"],
    "use_rslora": True,
    "rank_pattern": {"v_proj": 1},
}
THIRD = {"r": 2, "lora_alpha": 9, "target_modules": r".*\.0\..*\.(o|up)_proj", "alpha_pattern": {"o_proj": 4}}


@pytest.fixture
def both(tmp_path):
    """The same base in both libraries, and three adapters on disk."""
    for seed, (name, settings) in enumerate({"first": FIRST, "second": SECOND, "third": THIRD}.items()):
        written_by_peft(base_pair(UNTIED, np.float32)[1], settings, tmp_path / name, seed)
    return base_pair(UNTIED, np.float32)


def script(side, model, folder):
    """(step, model) after each call, the calls being the same words in both libraries."""
    model = side.from_pretrained(model, str(folder / "first"), adapter_name="first")
    yield "from_pretrained first", model
    model.load_adapter(str(folder / "second"), "second")
    yield "load_adapter second", model
    model.load_adapter(str(folder / "third"), "third", is_trainable=True)
    yield "load_adapter third, trainable", model
    model.set_adapter("second")
    yield "set_adapter second", model
    model.set_adapter("third", inference_mode=True)
    yield "set_adapter third, inference_mode", model
    model.merge_adapter()
    yield "merge_adapter", model
    model.unmerge_adapter()
    model.set_adapter("third")  # after disable_adapter PEFT has forgotten the inference_mode; here all is as before
    yield "unmerge_adapter", model
    with model.disable_adapter():
        yield "disable_adapter", model
    yield "after disable_adapter", model
    model.set_adapter("second")
    model.delete_adapter("third")
    model.delete_adapter("first")
    yield "delete_adapter", model
    model.load_adapter(str(folder / "third"), "again")
    model.set_adapter("again")
    yield "loaded again under another name", model


def test_the_same_calls_leave_the_same_model_as_in_peft(both, tmp_path, capsys):
    """Logits, what trains, and the printed counts, after each call."""
    steps = zip(script(ln.PeftModel, both[0], tmp_path), script(peft.PeftModel, both[1], tmp_path), strict=True)
    for (step, ours), (_, theirs) in steps:
        error = largest_difference(logits_of(ours), logits_of(theirs))
        print(f"{step}: measured {error:.1e}; bound 1e-04")
        assert error <= 1e-4, f"after {step} the logits differ by {error:.1e}"
        if step == "disable_adapter":
            continue  # PEFT says that nothing trains for as long as it lasts; here the call says what it uses
        assert trainable_values(ours).keys() == trainable_values(theirs).keys(), f"after {step}"
        capsys.readouterr()
        theirs.print_trainable_parameters()
        expected = capsys.readouterr().out
        ours.print_trainable_parameters()
        assert capsys.readouterr().out == expected, f"after {step}"


def test_after_the_active_adapter_is_deleted_the_first_by_name_is_active_as_in_peft():
    """Where all adapters have the same layers. Where they have not, PEFT chooses for each layer, and mixes adapters."""
    ours, theirs = base_pair(UNTIED, np.float32)
    ours = ln.get_peft_model(ours, ln.LoraConfig(**FIRST), adapter_name="poet")
    theirs = peft.get_peft_model(theirs, peft_config(FIRST), adapter_name="poet")
    for name in ("sage", "pirate"):
        ours.add_adapter(name, ln.LoraConfig(**FIRST))
        theirs.add_adapter(name, peft_config(FIRST))
    for model in (ours, theirs):
        fill(model)
        with pytest.warns(UserWarning, match="'?poet'? was .*active.* '?pirate'?"):
            model.delete_adapter("poet")
    assert_same_logits(ours, theirs, 1e-4)
    assert ours.active_adapter == theirs.active_adapter == "pirate"
    assert trainable_values(ours).keys() == trainable_values(theirs).keys()


def test_add_adapter_leaves_what_peft_leaves():
    ours, theirs = base_pair(UNTIED, np.float32)
    ours = ln.get_peft_model(ours, ln.LoraConfig(**FIRST), adapter_name="first")
    theirs = peft.get_peft_model(theirs, peft_config(FIRST), adapter_name="first")
    ours.add_adapter("second", ln.LoraConfig(**SECOND))
    theirs.add_adapter("second", peft_config(SECOND))
    for name in ("first", "second"):
        assert trainable_values(ours).keys() == trainable_values(theirs).keys()
        assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
        ours.set_adapter(name)
        theirs.set_adapter(name)


# ------------------------------------------------------------------------------------------------------------- refusals


def rewrite(folder, edit):
    """Put `edit(tensors)` in the place of an adapter's tensors."""
    path = folder / "adapter_model.safetensors"
    safetensors_torch.save_file(edit(safetensors_torch.load_file(path)), path, {"format": "pt"})


def test_peft_loads_misplaced_tensors_as_the_base_and_here_they_are_refused(tmp_path):
    """Why loading raises: one prefix too many, as another trainer may write it, and PEFT's model is the base, as if nothing
    had been trained. It warns of what it misses, and says nothing of what it found."""
    ours, theirs = base_pair(UNTIED, np.float32)
    base = logits_of(ours)
    written_by_peft(theirs, FIRST, tmp_path)
    rewrite(tmp_path, lambda tensors: {name.replace(".model.", ".model.model.", 1): x for name, x in tensors.items()})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        theirs = peft.PeftModel.from_pretrained(base_pair(UNTIED, np.float32)[1], str(tmp_path))
    assert np.abs(logits_of(theirs) - base).max() <= 1e-5 * np.abs(base).max()
    with pytest.raises(
        ValueError, match=r"unexpected tensor base_model\.model\.model\.model\.layers\.0.*PEFT ignores it"
    ):
        ln.PeftModel.from_pretrained(ours, tmp_path)


def test_peft_does_not_mention_a_tensor_too_many_and_here_it_is_refused(tmp_path):
    """Here k_proj was trained, but target_modules was edited afterwards: PEFT drops half of the adapter without a word."""
    ours, theirs = base_pair(UNTIED, np.float32)
    written_by_peft(theirs, FIRST, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        peft.PeftModel.from_pretrained(base_pair(UNTIED, np.float32)[1], str(tmp_path))
    with pytest.raises(ValueError, match=r"unexpected tensor .*v_proj\.lora_A\.weight.* and 1 more for this model"):
        ln.PeftModel.from_pretrained(ours, tmp_path)


def test_an_adapter_for_the_head_of_another_base_is_refused(tmp_path):
    """PEFT saves the frozen head beside an adapter for it, and on loading puts it in the place of the model's own."""
    _, theirs = base_pair(UNTIED, np.float32)
    written_by_peft(theirs, BOTH_WAYS["the head too"], tmp_path)
    another, _ = base_pair(UNTIED, np.float32, seed=5)
    with pytest.raises(
        ValueError, match=r"lm_head\.base_layer\.weight differs from the weight .* made for another base"
    ):
        ln.PeftModel.from_pretrained(another, tmp_path)


def test_another_kind_of_adapter_is_refused_by_its_name(tmp_path):
    ours, theirs = base_pair(UNTIED, np.float32)
    config = peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["k_proj"])
    peft.get_peft_model(theirs, config).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"adapter_config\.json: peft_type is 'LOHA'; expected 'LORA', .*"):
        ln.PeftModel.from_pretrained(ours, tmp_path)


def test_an_entry_of_target_modules_that_peft_passed_over_is_passed_over_when_loading_too(tmp_path):
    """A list for many architectures at once is common; every tensor has its place, and that is what counts here."""
    ours, theirs = base_pair(UNTIED, np.float32)
    theirs = written_by_peft(theirs, FIRST | {"target_modules": ["q_proj", "v_proj", "query_key_value"]}, tmp_path)
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path), theirs, 1e-4)
