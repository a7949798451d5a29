"""PEFT's own calls work here as pasted: one snippet, run against both libraries."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.oracle
pytest.importorskip("peft")

from oracle_models import UNTIED, base_pair, peft  # noqa: E402

import lora_np as ln  # noqa: E402

SNIPPET = """
config = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["q_proj", "v_proj"],
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
    inference_mode=False,
    modules_to_save=None,
    fan_in_fan_out=False,
    layers_to_transform=None,
)
model = get_peft_model(model=base, peft_config=config, adapter_name="default")
model.print_trainable_parameters()
counts = model.get_nb_trainable_parameters()

model.add_adapter("other", LoraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM"))
model.set_adapter("other")
active = [model.active_adapter, *model.active_adapters]
model.print_trainable_parameters()
model.save_pretrained(save_directory=folder)
model.save_pretrained(folder + "/one", selected_adapters=["other"])
model.delete_adapter("other")

again = PeftModel.from_pretrained(model.unload(), model_id=folder, adapter_name="default")
again.load_adapter(model_id=folder + "/other", adapter_name="other")
with again.disable_adapter():
    pass
again.merge_adapter(adapter_names=["default"], safe_merge=True)
again.unmerge_adapter()
base_again = again.get_base_model()
merged = again.merge_and_unload(safe_merge=True)
layers = [name for name, _ in merged.named_modules() if name.endswith("_proj")]
"""


def run(library, base, folder):
    names = {name: getattr(library, name) for name in ("LoraConfig", "get_peft_model", "PeftModel")}
    namespace = {**names, "base": base, "folder": str(folder)}
    exec(compile(SNIPPET, f"<{library.__name__}>", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folders = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    ours, theirs = base_pair(UNTIED)
    return (run(ln, ours, folders[0]), folders[0]), (run(peft, theirs, folders[1]), folders[1])


def test_the_snippet_runs_in_both_libraries_with_the_same_results(both):
    (ours, _), (theirs, _) = both
    for name in ("counts", "active", "layers"):
        assert ours[name] == theirs[name], name
    assert type(ours["merged"]) is type(ours["base_again"]) is ln.Transformer


def test_both_write_the_same_folders(both):
    (_, ours), (_, theirs) = both
    for folder in ("", "other", "one/other"):
        mine, others = (json.loads((f / folder / "adapter_config.json").read_text()) for f in (ours, theirs))
        assert {key: others[key] for key in mine if key not in ("base_model_name_or_path", "target_modules")} == {
            key: mine[key] for key in mine if key not in ("base_model_name_or_path", "target_modules")
        }
        assert sorted(mine["target_modules"]) == sorted(others["target_modules"])
        tensors = [ln.files.load_arrays(f / folder / "adapter_model.safetensors")[0] for f in (ours, theirs)]
        assert {key: x.shape for key, x in tensors[0].items()} == {key: x.shape for key, x in tensors[1].items()}


@pytest.mark.parametrize("given", [{"bias": "all"}, {"task_type": "SEQ_CLS"}, {"fan_in_fan_out": True}], ids=str)
def test_a_value_of_peft_that_is_not_neutral_is_refused_in_words(given):
    (name,) = given
    peft.LoraConfig(**given)
    with pytest.raises(ValueError, match=rf"{name} = .* is not supported; "):
        ln.LoraConfig(**given)


def test_configurations_take_keywords_alone():
    with pytest.raises(TypeError, match="positional"):
        ln.LoraConfig(8)


def test_several_adapters_at_once_are_refused_with_what_to_do():
    model = ln.get_peft_model(base_pair(UNTIED)[0], ln.LoraConfig())
    with pytest.raises(
        ValueError, match="only one adapter can be active; add_weighted_adapter combines several into one"
    ):
        model.set_adapter(["a", "b"])
