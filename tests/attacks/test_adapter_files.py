"""Adapter folders from strangers: each file is loaded, or refused at once by a ValueError that names the problem."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from adapted import adapted, state

import lora_np as ln
from lora_np.files import load_arrays, save_arrays
from lora_np.peft.registry import METHODS

EXAMPLES = {method.peft_type: method.example for method in METHODS if method.example is not None}


def edited(folder, settings=None, arrays=None):
    """Change the two files of a folder, without the record of the settings in the weights file."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | (settings or {})))
    save_arrays(weights, load_arrays(weights)[0] | (arrays or {}), {"format": "pt"})


def refused(model, folder, message):
    """Loading raises ValueError with this message in a few seconds, and the model is unchanged."""
    before, start = state(model), time.monotonic()
    with pytest.raises(ValueError, match=message):
        ln.PeftModel.from_pretrained(model, folder)
    assert state(model) == before and time.monotonic() - start < 10


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor_in_every_method(kind, make_model, tmp_path):
    ln.get_peft_model(make_model(np.float32), EXAMPLES[kind]).save_pretrained(tmp_path)
    arrays, _ = load_arrays(tmp_path / "adapter_model.safetensors")
    for key in list(arrays)[::3]:
        for bad in (np.nan, np.inf, -np.inf, 1e300):  # 1e300 is infinity in float32
            x = arrays[key].astype(np.float64)
            x[..., -1] = bad
            edited(tmp_path, arrays={key: x})
            problem = "contains numbers that are too large for float32" if bad == 1e300 else "contains NaN or infinity"
            refused(make_model(np.float32), tmp_path, f"{key} {problem}")
        edited(tmp_path, arrays={key: arrays[key]})


def test_a_number_that_is_too_large_for_16_bits_is_refused(make_model, tmp_path):
    peft_model = adapted(make_model(np.float32))
    peft_model.save_pretrained(tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edited(tmp_path, arrays={key: np.full((3, 12), 7e4, np.float32)})
    with pytest.raises(ValueError, match=f"{key} contains numbers that are too large for float16"):
        ln.PeftModel.from_pretrained(make_model(np.float32), tmp_path, adapter_dtype="float16")
    ln.PeftModel.from_pretrained(make_model(np.float32), tmp_path, adapter_dtype="bfloat16")


SLOW = [
    "(.+)+!",
    "(.*)*" * 50 + "!",
    "(?!.*(?!.*(?!.*(?!.*(?!.*!)))))",
    "(?=(?=(?=.*).*).*)" * 100 + "!",
    "(.|.|)" * 400 + "!",
]
HOSTILE = {
    **{
        f"target_modules {p[:12]}": ({"target_modules": p}, "too many steps|matches no linear|unexpected") for p in SLOW
    },
    **{
        f"rank_pattern {p[:12]}": ({"rank_pattern": {p: 3}}, "too many steps|has shape") for p in SLOW if "(?!" not in p
    },
    "many expressions": ({"rank_pattern": {f"(.+)+!{i}": 3 for i in range(3000)}}, "more than 3,000 characters"),
    "many patterns of blocks": (
        {
            "layers_to_transform": [0],
            "layers_pattern": [f"(.+)+!{i}" for i in range(3000)],
            "target_modules": ["q_proj"],
        },
        "more than 3,000 characters",
    ),
    "many targets": ({"target_modules": [f"proj{i}" for i in range(50_000)]}, "target_modules has 50,000 entries"),
    "many exclusions": ({"exclude_modules": [f"proj{i}" for i in range(50_000)]}, "exclude_modules has 50,000 entries"),
    "every module": ({"modules_to_save": [""]}, "leave no layer to adapt"),
    "many keys": ({"alpha_pattern": {f"proj{i}": 3 for i in range(5000)}}, "have 5,000 keys; expected at most"),
    "a long expression": ({"target_modules": ".*" * 5000}, "10,000 characters; expected at most 3,000"),
    "a backreference": ({"target_modules": r"(.*)\1"}, "backreference"),
    "a deep expression": ({"target_modules": "(" * 1400 + ")" * 1400}, "not a valid regular expression"),
    "a deep expression of lookaheads": (
        {"target_modules": "(?=" * 300 + "m" + ")" * 300},
        "nested too deeply|not a valid",
    ),
    "a large file": ({"revision": "x" * 2_000_000}, "bytes; expected at most 1,000,000"),
    "an α that is no float": ({"lora_alpha": 10**400}, "lora_alpha = 1000.*expected a positive number"),
    "an α that is NaN": ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
    "a rank of a million": ({"r": 10**18}, "has shape"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_configuration_is_refused_at_once(what, make_model, tmp_path):
    adapted(make_model()).save_pretrained(tmp_path)
    settings, message = HOSTILE[what]
    edited(tmp_path, settings)
    if what.startswith("rank_pattern"):  # such an expression matches nothing, or is refused: the ranks stay as they are
        try:
            ln.PeftModel.from_pretrained(make_model(), tmp_path)
        except ValueError as error:
            assert "too many steps" in str(error)
    else:
        refused(make_model(), tmp_path, message)


def test_a_configuration_that_is_nested_too_deeply_is_refused(make_model, tmp_path):
    adapted(make_model()).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    refused(make_model(), tmp_path, "adapter_config.json: the JSON is nested too deeply")


def test_many_tensors_and_long_names_are_refused_at_once(make_model, tmp_path):
    adapted(make_model()).save_pretrained(tmp_path)
    one = np.zeros((1, 1), np.float32)
    edited(tmp_path, arrays={f"base_model.model.x{i}.lora_A.weight": one for i in range(20_000)})
    refused(make_model(), tmp_path, "unexpected tensor base_model.model.x0.lora_A.weight, .* and 19997 more")
    adapted(make_model()).save_pretrained(tmp_path)
    edited(tmp_path, arrays={".lora_A.lora_B." * 20_000 + "weight!": one})
    refused(make_model(), tmp_path, "unexpected tensor .lora_A.lora_B")
