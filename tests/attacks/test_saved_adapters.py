"""What `save_pretrained` writes is the adapter: loaded over the same base, it gives the logits that the model gave.

A random walk of fixed seed does to a model what its public functions can do: quantise, dequantise, merge, unmerge, round to
half precision, move to another device, train, and add, load, combine, select, disable and delete adapters. A second model
without adapters gets the same changes of its base. After each step, each adapter is saved and loaded over a copy of this
second model. The logits are then those of the walk's model, or saving was refused, which only PiSSA may do.

LORA_NP_ATTACK_SECONDS=3600 pytest tests/attacks/test_saved_adapters.py walks for an hour.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

import lora_np as ln
from lora_np import LoraConfig, PeftModel
from lora_np.backend import move, to_host
from lora_np.peft import PrefixTuningConfig, registry

SECONDS = float(os.environ.get("LORA_NP_ATTACK_SECONDS", 0))
SETTINGS = {
    f"{method.peft_type} {name}": replace(method.example, **choice.fixed_fields)
    for method in registry.METHODS
    for name, choice in method.choices.items()
} | {
    "patterns": LoraConfig(
        r=3,
        target_modules="all-linear",
        init_lora_weights=False,
        rank_pattern={"down_proj": 2},
        alpha_pattern={"q_proj": 3},
    ),
    "the head": LoraConfig(r=2, target_modules=["lm_head", "o_proj"], init_lora_weights=False),
    "PiSSA of the head": LoraConfig(r=2, target_modules=["lm_head", "o_proj"], init_lora_weights="pissa"),
    "PiSSA and DoRA": LoraConfig(r=2, init_lora_weights="pissa", use_dora=True, use_rslora=True),
    "projected prefix": PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5),
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7))


class Walk:
    """A model with adapters, and a base that gets the same changes but no adapters."""

    def __init__(self, make_model, seed: int, setting: str) -> None:
        self.rng, self.steps, self.names = np.random.default_rng(seed), [setting], 0
        self.base = make_model(np.float32).to("numpy")
        stored = [None, "float16", "bfloat16"][self.rng.integers(3)]
        self.model = ln.get_peft_model(make_model(np.float32).to("numpy"), SETTINGS[setting], adapter_dtype=stored)
        self.learn("default")

    def new_name(self) -> str:
        self.names += 1
        return f"a{self.names}"

    def some(self) -> str:
        return str(self.rng.choice(list(self.model.peft_config)))

    def learn(self, name: str) -> None:
        """Change what trains, as training does. Training is refused while an adapter is merged."""
        if self.model.merged:
            raise RuntimeError("an adapter is merged")
        self.model.set_adapter(name)
        for p in self.model.adapter_parameters(name):
            if p.trainable:
                x = to_host(p.value)
                p.value = move((x.astype("d") + self.rng.normal(0, 0.1, x.shape)).astype(x.dtype), p.value)

    def both(self, change) -> None:
        change(self.model)
        change(self.base)

    def half(self) -> None:
        self.both(lambda m: m.astype("float16").astype("float32"))

    def quantize(self) -> None:
        settings = {"block_size": 16, "quant_type": self.rng.choice(["nf4", "int4"]), "double_quant": False}
        self.both(lambda m: ln.quantize_model(m, **settings))

    def add(self) -> None:
        setting, name = str(self.rng.choice(list(SETTINGS))), self.new_name()
        self.steps.append(setting)
        self.model.add_adapter(name, SETTINGS[setting], seed=self.names)
        if not self.model.merged:
            self.learn(name)

    def load(self, folder) -> None:
        self.model.save_pretrained(folder, self.some())
        self.model.load_adapter(folder, self.new_name())

    def combine(self) -> None:
        names = list(self.model.peft_config)[:2]
        how = str(self.rng.choice(["cat", "svd", "ties_svd"]))
        density = {"density": 0.5} if how == "ties_svd" else {}
        self.model.add_weighted_adapter(names, [0.5] * len(names), self.new_name(), how, **density)

    def disable(self) -> None:
        with self.model.disable_adapter():
            pass

    def step(self, folder) -> None:
        do = {
            "quantise": self.quantize,
            "dequantise": lambda: self.both(ln.dequantize_model),
            "merge": self.model.merge_adapter,
            "merge two": lambda: self.model.merge_adapter([self.some(), self.some()]),
            "unmerge": self.model.unmerge_adapter,
            "half": self.half,
            "double": lambda: self.both(lambda m: m.astype("float64")),
            "single": lambda: self.both(lambda m: m.astype("float32")),
            "to cupy": lambda: self.both(lambda m: m.to("cupy")),
            "to numpy": lambda: self.both(lambda m: m.to("numpy")),
            "learn": lambda: self.learn(self.some()),
            "add": self.add,
            "load under another name": lambda: self.load(folder),
            "combine": self.combine,
            "select": lambda: self.model.set_adapter(self.some()),
            "disable": self.disable,
            "delete": lambda: self.model.delete_adapter(self.some()),
        }
        self.steps.append(what := str(self.rng.choice(list(do))))
        try:
            do[what]()
        except (
            RuntimeError,
            ValueError,
        ) as refused:  # the documented errors: merged, quantised, PiSSA, not mergeable, …
            self.steps.append(f"(refused: {refused!s:.60})")

    def logits(self, model: PeftModel, name: str) -> np.ndarray:
        model.set_adapter(name)
        return to_host(model.forward(move(TOKENS, model.model.model.norm.weight.value))[0]).astype("float64")

    def check(self, folder) -> list[str]:
        """Save and load each adapter, and return what was compared and what was refused."""
        found = []
        for name, config in self.model.peft_config.items():
            twin = deepcopy(self.model)
            twin.unmerge_adapter()
            expected = self.logits(twin, name)
            pissa = getattr(config, "init_lora_weights", None) == "pissa"
            try:
                self.model.save_pretrained(folder, name)
            except RuntimeError as refused:
                assert pissa and "Save the whole model: save_model(" in str(refused), (self.steps, refused)
                whole = ln.dequantize_model(twin).merge_and_unload()  # what the error says to do
                logits = to_host(whole.forward(move(TOKENS, whole.model.norm.weight.value))[0])
                assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max(), (self.steps, name)
                found.append("refused")
                continue
            again = PeftModel.from_pretrained(deepcopy(self.base), folder)
            off = np.abs(self.logits(again, "default") - expected).max() / np.abs(expected).max()
            tolerance = 1e-3 if "half" in self.steps else 1e-4
            assert off < tolerance, f"{name} differs by {off:.1e} of the largest logit after {self.steps}"
            found.append("PiSSA" if pissa else method_name(config))
        return found


def method_name(config) -> str:
    return registry.method_of(config).peft_type


@pytest.mark.filterwarnings("ignore:.*was active and is deleted")
def test_what_is_saved_is_the_model_or_saving_is_refused(make_model, double, tmp_path):
    counted, seed, end = Counter(), 0, time.monotonic() + SECONDS
    while seed < 2 * len(SETTINGS) or time.monotonic() < end:
        setting = list(SETTINGS)[seed % len(SETTINGS)]
        walk = Walk(make_model, seed, setting)
        counted.update(walk.check(tmp_path / "saved"))
        for _ in range(6):
            walk.step(tmp_path / "loaded")
            if not walk.model.peft_config:
                break
            counted.update(walk.check(tmp_path / "saved"))
        seed += 1
    assert counted.keys() == {"PiSSA", "refused", *(method.peft_type for method in registry.METHODS)}
    assert min(counted.values()) >= 5, counted
    print(f"{seed} walks: {dict(counted)}")


PISSA = LoraConfig(r=2, init_lora_weights="pissa")
CHANGES = {  # what changes the base for good; the first is the fault that was found
    "quantise and dequantise": lambda m: ln.dequantize_model(ln.quantize_model(m, block_size=16)),
    "half precision and back": lambda m: m.astype("float16").astype("float32"),
    "train the base": lambda m: setattr(
        w := m.model.model.layers[1].self_attn.v_proj.base_layer.weight, "value", w.value * 1.001
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_base_that_changed_after_pissa_is_noticed(what, make_model, tmp_path):
    peft_model = ln.get_peft_model(make_model(np.float32), PISSA)
    CHANGES[what](peft_model)
    before = {name: to_host(p.value).copy() for name, p in peft_model.named_parameters()}
    for undo in (
        lambda: peft_model.save_pretrained(tmp_path / "adapter"),
        lambda: peft_model.delete_adapter("default"),
        peft_model.unload,
    ):
        with pytest.raises(RuntimeError, match=r"_proj: the base changed after PiSSA.*Save the whole model"):
            undo()
    assert not (tmp_path / "adapter").exists()
    assert all(np.array_equal(to_host(p.value), before[name]) for name, p in peft_model.named_parameters())


def test_a_thousand_merges_do_not_change_pissas_base(make_model, tmp_path):
    peft_model = ln.get_peft_model(make_model(np.float32), PISSA)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        for p in peft_model.adapter_parameters():  # another ΔW each time, or the errors of rounding cancel
            p.value += move(rng.normal(0, 0.01, p.value.shape).astype(np.float32), p.value)
        peft_model.merge_adapter()
        peft_model.unmerge_adapter()
    peft_model.save_pretrained(tmp_path)
    peft_model.merge_adapter()
    peft_model.save_pretrained(tmp_path)


@pytest.mark.parametrize("setting", ["LORA dora", "IA3 ia3"])
def test_the_copy_of_w_goes_to_the_device_where_w_is(setting, make_model, double):
    peft_model = ln.get_peft_model(make_model(np.float32).to("numpy"), SETTINGS[setting])
    before = {name: p.value.copy() for name, p in peft_model.model.named_parameters()}
    peft_model.merge_adapter()
    peft_model.to("cupy").unmerge_adapter()
    after = dict(peft_model.to("numpy").model.named_parameters())
    assert all(np.array_equal(after[name].value, value) for name, value in before.items())


def test_a_merged_model_is_not_rounded(make_model):
    peft_model = ln.get_peft_model(make_model(np.float32), LoraConfig(r=2, init_lora_weights=False))
    peft_model.merge_adapter()
    with pytest.raises(
        RuntimeError, match=r"an adapter is merged into the weights; call unmerge_adapter\(\) before astype"
    ):
        peft_model.astype("float16")


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the prefix of an infinite E
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1j])
def test_what_cannot_be_loaded_is_not_saved(setting, wrong, make_model, tmp_path):
    peft_model = ln.get_peft_model(make_model(np.float32), SETTINGS[setting])
    peft_model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if isinstance(wrong, complex):
        peft_model.astype("complex128")
    else:
        next(p for p in peft_model.adapter_parameters() if p.trainable).value[0] = wrong
    with pytest.raises(ValueError, match=r"'default': .* (is complex; call astype|contains NaN or infinity)"):
        peft_model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_of_several_adapters_all_are_saved_or_none(make_model, tmp_path):
    peft_model = ln.get_peft_model(make_model(np.float32), LoraConfig(r=2))
    peft_model.add_adapter("b", LoraConfig(r=2))
    next(peft_model.adapter_parameters("b")).value[...] = np.nan
    with pytest.raises(ValueError, match="'b': "):
        peft_model.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 1j])
def test_a_model_that_cannot_be_loaded_is_not_saved(wrong, make_model, tmp_path):
    model = make_model(np.float32)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if isinstance(wrong, complex):
        model.astype("complex128")
    else:
        model.model.layers[1].mlp.up_proj.weight.value[0, 0] = wrong
    with pytest.raises((TypeError, ValueError), match=r"\.weight (has dtype complex128|contains NaN or infinity)"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_the_prefix_of_an_mlp_is_not_rounded(stored, make_model, tmp_path):
    peft_model = ln.get_peft_model(make_model(np.float32), SETTINGS["projected prefix"], adapter_dtype=stored)
    expected = to_host(peft_model.forward(TOKENS)[0])
    peft_model.save_pretrained(tmp_path)
    logits = to_host(PeftModel.from_pretrained(make_model(np.float32), tmp_path).forward(TOKENS)[0])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
