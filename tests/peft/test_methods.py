"""Properties of all adapter methods; a new method needs one file and one line in the registry."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from on_device import assert_array_equal, host, xp

import lora_np as ln
import lora_np.files
from lora_np import AdamW, LoraConfig, PeftModel, PrefixTuningConfig, gradcheck_model, train
from lora_np.peft import VeraConfig, registry
from lora_np.peft.adapter import OutputAdapter, parameter_like
from lora_np.peft.config import PeftConfig
from lora_np.peft.cost import AdapterCost
from lora_np.peft.method import LayerMethod, Method

# ----------------------------------------------------------------------- a new method: all of it, but for its line below


@dataclass(frozen=True, kw_only=True)
class GainConfig(PeftConfig):
    """A small method for these tests: y = base(x) ∘ l, with l (out,) trained, at every down_proj."""

    start: float = 1.0
    base_model_name_or_path: str | None = None

    target_modules = ("down_proj",)


class GainAdapter(OutputAdapter):
    mixable = True

    def __init__(self, config, gain):
        self.config, self.gain = config, gain

    def output_forward(self, y):
        return y * self.gain.value, y

    def output_backward(self, dz, y, need_dy):
        if self.gain.trainable:
            self.gain.add_grad((dz * y).reshape(-1, y.shape[-1]).sum(axis=0))
        return dz * self.gain.value if need_dy else None


class GainMethod(LayerMethod):
    config_type = GainConfig
    peft_type = "GAIN"

    def draw(self, config, base, rng, dtype):
        return self.build(config, base, [np.full(base.out_features, config.start)], dtype)

    def shapes(self, config, out, in_):
        return {"gain": (out,)}

    def build(self, config, base, tensors, dtype):
        return GainAdapter(config, parameter_like(base, tensors[0], dtype))

    def check_mixable(self, name, config):
        """Rows of this adapter can be in a mixed batch."""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, GainMethod()))  # the line in the registry


# ------------------------------------------------------------------------------------------- what holds for each method

CONFIGS = {method.peft_type.lower().removesuffix("_tuning"): method.example for method in registry.METHODS}
CONFIGS["projected prefix"] = PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5)
CONFIGS["gain"] = GainConfig(start=1.5)
methods = pytest.mark.parametrize("setting", CONFIGS.values(), ids=CONFIGS.keys())


def content(folder):
    arrays, _ = ln.files.load_arrays(folder / "adapter_model.safetensors")
    return (folder / "adapter_config.json").read_text(), {name: x.tobytes() for name, x in arrays.items()}


def adapter(model):
    return {name: host(p.value) for name, p in model.named_parameters() if p.trainable}


def test_each_method_is_here_and_does_all_that_is_asked():
    assert {type(config) for config in CONFIGS.values()} == {method.config_type for method in registry.METHODS}, (
        "add the new method to CONFIGS"
    )
    assert len({method.peft_type for method in registry.METHODS}) == len(registry.METHODS)
    asked = {"add", "restore", "delete", "parameters", "arrays"}  # all other methods have a default
    assert asked < vars(Method).keys()
    for method in registry.METHODS:
        assert asked <= {name for kind in type(method).__mro__[:-2] for name in vars(kind)}, type(method).__name__


@methods
def test_its_gradients_agree_with_the_complex_step_to_1e_12(make_model, random_batch, setting):
    gradcheck_model(ln.get_peft_model(make_model(), setting), *random_batch(), tolerance=1e-12).raise_if_wrong()


@methods
def test_what_trains_is_what_is_added_and_the_base_stays(make_model, random_batch, setting):
    peft_model = ln.get_peft_model(make_model(np.float32), setting)
    count = ln.costs.count(peft_model)
    frozen = sum(p.value.size for p in peft_model.adapter_parameters() if not p.trainable)  # VeRA's A and B
    assert count.trainable == count.total - count.base - frozen > 0
    assert count.base == ln.costs.count(make_model()).total
    assert ln.costs.count(peft_model.model).base == count.base, "the base model alone, with the adapters in its layers"
    before = {name: p.value.copy() for name, p in peft_model.named_parameters()}
    train(peft_model, [random_batch()], AdamW(lr=1e-2), steps=2, progress=False)
    for name, p in peft_model.named_parameters():
        assert xp.array_equal(p.value, before[name]) != p.trainable, name


@methods
def test_frozen_it_trains_again_by_its_name_alone(make_model, setting):
    """`unfreeze` would make parameters trainable that never get a gradient: VeRA's A and B."""
    peft_model = ln.get_peft_model(make_model(), setting)
    trained = adapter(peft_model).keys()
    with pytest.raises(RuntimeError, match=r"set_adapter\(name\) to train an adapter.*merge_and_unload\(\) first"):
        peft_model.freeze().unfreeze()
    assert not adapter(peft_model)
    peft_model.set_adapter("default")
    assert adapter(peft_model).keys() == trained


DORA = LoraConfig(r=3, init_lora_weights=False, use_dora=True, dora_norm="true")


@pytest.mark.parametrize("setting", [*CONFIGS.values(), DORA], ids=[*CONFIGS, "dora"])
def test_after_a_forward_that_ran_frozen_there_is_the_whole_gradient_or_an_error(make_model, random_batch, setting):
    """While frozen, VeRA saves enough for its gradient. The other methods do not, so their backward pass must raise an error."""
    peft_model, gradients = ln.get_peft_model(make_model(), setting), []
    whole = isinstance(setting, VeraConfig | GainConfig)
    for frozen in (False, True):
        peft_model.zero_grad()
        peft_model.set_adapter("default", inference_mode=frozen)
        _, cache = peft_model.loss(*random_batch())
        peft_model.set_adapter("default")
        refused = pytest.raises(
            RuntimeError, match=r"the forward pass ran while this parameter was frozen.*run the forward pass again"
        )
        with refused if frozen and not whole else nullcontext():
            peft_model.backward(cache)
        gradients.append({name: host(p.grad) for name, p in peft_model.named_parameters() if p.trainable and whole})
    for name, gradient in gradients[0].items():
        assert_array_equal(gradients[1][name], gradient, err_msg=name)


@methods
def test_a_step_is_counted_with_the_active_adapter_alone_and_refused_for_a_method_that_does_not_say_its_cost(
    make_model, setting
):
    """Inactive adapters in the same layers are not counted."""

    def step(model):
        return ln.costs.flops(model, batch=2, seq=6), ln.costs.memory(model, batch=2, seq=6).activations

    peft_model = ln.get_peft_model(make_model(), CONFIGS["lora"], "lora")
    alone = step(peft_model)
    peft_model.add_adapter("other", setting)
    assert step(peft_model) == alone
    peft_model.set_adapter("other")
    if isinstance(setting, GainConfig):
        with pytest.raises(ValueError, match="GainMethod does not define the cost of a training step for a GainConfig"):
            step(peft_model)
    else:
        assert step(peft_model) == step(ln.get_peft_model(make_model(), setting))


class GainCost(AdapterCost):
    """The cost of l (out,): no product; y is saved for dl."""

    def trained_sizes(self, out, in_):
        return [out]

    def saved_for_backward(self, N, out, in_):
        return N * out

    def forward_temporaries(self, N, out, in_):
        return N * out

    def backward_temporaries(self, N, out, in_, need_dx, frozen):
        return N * out + frozen


def test_a_method_that_says_its_cost_is_counted(make_model, monkeypatch):
    peft_model = ln.get_peft_model(make_model(np.float32), CONFIGS["gain"])
    monkeypatch.setattr(GainMethod, "cost", lambda self, config, *live: GainCost(*live))
    config, trained = peft_model.model.config, ln.costs.count(peft_model).trainable
    assert trained == config.num_hidden_layers * config.hidden_size
    memory = ln.costs.memory(peft_model, batch=2, seq=6)
    assert (memory.adapter, memory.gradients, memory.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    base = ln.costs.memory(make_model(np.float32).freeze(), batch=2, seq=6)
    assert memory.activations - base.activations == config.num_hidden_layers * 4 * 2 * 6 * config.hidden_size
    assert ln.costs.flops(peft_model, batch=2, seq=6).adapter.total == 0
    paper = ln.costs.llama("paper", config.num_hidden_layers, config.hidden_size, 4, 2, config.intermediate_size, 11)
    assert ln.costs.count(paper, CONFIGS["gain"]).trainable == trained
    assert f"{trained:,}" in ln.costs.report(paper, CONFIGS["gain"]), "the cost class needs no name of its own"


@methods
def test_it_comes_back_from_its_folder_to_the_bit(make_model, random_batch, tmp_path, setting):
    before = ln.get_peft_model(make_model(np.float32), setting)
    before.save_pretrained(tmp_path)
    after = PeftModel.from_pretrained(make_model(np.float32), tmp_path)
    tokens, _ = random_batch()
    assert_array_equal(after.forward(tokens)[0], before.forward(tokens)[0])
    assert type(after.peft_config["default"]) is type(setting) and not after.trainable


NUMBERED = {name: c for name, c in CONFIGS.items() if any(type(x) in (int, float) for x in asdict(c).values())}


@pytest.mark.parametrize("setting", NUMBERED.values(), ids=NUMBERED.keys())
def test_numbers_of_numpy_are_saved_as_numbers(make_model, tmp_path, setting):
    """A sweep gives NumPy numbers, so every number of a configuration can be one."""
    kinds = {int: np.int64, float: np.float32}
    numbers = {key: kinds[type(x)](x) for key, x in asdict(setting).items() if type(x) in kinds}
    assert numbers
    for config, folder in ((setting, "python"), (replace(setting, **numbers), "numpy")):
        ln.get_peft_model(make_model(np.float32), config).save_pretrained(tmp_path / folder)
    assert content(tmp_path / "numpy") == content(tmp_path / "python")


@methods
def test_disabled_is_the_base_and_so_is_a_model_it_was_taken_out_of(make_model, random_batch, setting):
    tokens, _ = random_batch()
    base, _ = make_model().forward(tokens)
    peft_model = ln.get_peft_model(make_model(), setting)
    with_it, _ = peft_model.forward(tokens)
    assert not np.allclose(host(with_it), host(base))
    with peft_model.disable_adapter():
        assert_array_equal(peft_model.forward(tokens)[0], base)
    assert_array_equal(peft_model.forward(tokens)[0], with_it)
    peft_model.delete_adapter("default")
    assert [n for n, _ in peft_model.model.named_modules()] == [n for n, _ in make_model().named_modules()]
    assert_array_equal(peft_model.forward(tokens)[0], base)
    assert ln.costs.count(peft_model).base == ln.costs.count(peft_model).total


@methods
def test_a_replica_has_its_own_gradients_and_the_same_arrays(make_model, random_batch, setting):
    peft_model = ln.get_peft_model(make_model(), setting)
    twin = peft_model.replica()
    twin.backward(twin.loss(*random_batch())[1])
    pairs = zip(peft_model.named_parameters(), twin.named_parameters(), strict=True)
    assert all(
        p.value is q.value and p.grad is None and (q.grad is not None) == q.trainable for (_, p), (_, q) in pairs
    )


def test_adapters_of_all_methods_in_one_model_answer_as_each_does_alone(make_model, random_batch, tmp_path):
    """Adapters of all methods are added, selected, trained, saved and deleted independently of each other."""
    tokens, _ = batch = random_batch()
    expected = {}
    for name, config in CONFIGS.items():
        peft_model = ln.get_peft_model(make_model(), config, name)
        train(peft_model, [batch], AdamW(lr=1e-2), steps=2, progress=False)
        expected[name] = peft_model.forward(tokens)[0], adapter(peft_model)
        peft_model.save_pretrained(tmp_path / name, name)
    together = None
    for name, config in CONFIGS.items():
        if together is None:
            together = ln.get_peft_model(make_model(), config, name)
        else:
            together.add_adapter(name, config)
    for name in reversed(CONFIGS):
        together.set_adapter(name)
        train(together, [batch], AdamW(lr=1e-2), steps=2, progress=False)
    for name, (logits, values) in expected.items():
        together.set_adapter(name)
        assert_array_equal(together.forward(tokens)[0], logits, err_msg=name)
        assert [x.tobytes() for x in adapter(together).values()] == [x.tobytes() for x in values.values()]
        together.save_pretrained(tmp_path / "again" / name, name)
        assert content(tmp_path / "again" / name) == content(tmp_path / name)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path / "gain", "gain")
    for name in list(CONFIGS)[:-1]:
        loaded.load_adapter(tmp_path / name, name)
    for name, (logits, _) in expected.items():
        loaded.set_adapter(name)
        assert_array_equal(loaded.forward(tokens)[0], logits, err_msg=name)
    base, _ = make_model().forward(tokens)
    with loaded.disable_adapter():
        assert_array_equal(loaded.forward(tokens)[0], base)
    loaded.set_adapter("lora")
    for name in [name for name in CONFIGS if name != "lora"]:
        loaded.delete_adapter(name)
        assert_array_equal(loaded.forward(tokens)[0], expected["lora"][0], err_msg=f"without {name}")


def test_merging_needs_a_change_of_weights(make_model, random_batch):
    tokens, _ = random_batch()
    peft_model = ln.get_peft_model(make_model(), CONFIGS["lora"], "lora")
    for name in [name for name, config in CONFIGS.items() if not registry.method_of(config).mergeable]:
        peft_model.add_adapter(name, CONFIGS[name])
        with pytest.raises(ValueError, match=f"'{name}' has a .*Config; this method does not change weights"):
            peft_model.merge_adapter([name])
        with pytest.raises(ValueError, match="does not change weights"):
            peft_model.add_weighted_adapter(["lora", name], [1.0, 1.0], "both")
    expected, _ = peft_model.forward(tokens)
    plain = peft_model.merge_and_unload()
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in make_model().named_modules()]
    np.testing.assert_allclose(host(plain.forward(tokens)[0]), host(expected), rtol=1e-10, atol=1e-12)


def test_a_mixed_batch_and_the_server_take_a_method_that_says_so(make_model, random_batch, tmp_path):
    """Each row of a mixed batch equals a batch with its adapter alone."""
    tokens, _ = random_batch(rows=3)
    peft_model = ln.get_peft_model(make_model(), CONFIGS["lora"], "lora")
    peft_model.add_adapter("gain", CONFIGS["gain"])
    peft_model.set_adapter("gain")
    mixed, _ = peft_model.forward(tokens, adapter_names=["lora", "gain", "__base__"])
    alone, _ = peft_model.forward(tokens)
    np.testing.assert_allclose(host(mixed[1]), host(alone[1]), rtol=1e-12)
    base, _ = make_model().forward(tokens)
    np.testing.assert_allclose(host(mixed[2]), host(base[2]), rtol=1e-12)
    assert not np.allclose(host(mixed[1]), host(base[1]))
    peft_model.save_pretrained(tmp_path / "gain", "gain")
    server = ln.AdapterServer(ln.get_peft_model(make_model(), CONFIGS["lora"], "lora"), folders=[tmp_path])
    server.adapters.load("gain", tmp_path / "gain")
    assert server.adapters.names() == ["lora", "gain"]


def test_a_mixed_batch_and_the_server_refuse_a_method_that_does_not(make_model, random_batch, tmp_path):
    """Without an error, a mixed batch would ignore a prefix or a bottleneck adapter."""
    tokens, _ = random_batch()
    peft_model = ln.get_peft_model(make_model(), CONFIGS["lora"], "lora")
    server = ln.AdapterServer(ln.get_peft_model(make_model(), CONFIGS["lora"], "lora"), folders=[tmp_path])
    expected, _ = peft_model.forward(tokens, adapter_names=["lora", "__base__"])
    for name in [name for name in CONFIGS if name not in ("lora", "gain", "vera")]:
        ln.get_peft_model(make_model(), CONFIGS[name]).save_pretrained(tmp_path / name)
        peft_model.add_adapter(name, CONFIGS[name])
        for call in (
            lambda name=name: peft_model.forward(tokens, adapter_names=["lora", name]),
            lambda name=name: ln.generate(peft_model, [[1], [2, 3]], adapter_names=["lora", name]),
            lambda: ln.AdapterServer(peft_model),
            lambda name=name: server.adapters.load(name, tmp_path / name),
        ):
            with pytest.raises(
                ValueError, match=f"'{name}' has a .*Config; rows with this adapter cannot be in a mixed batch"
            ):
                call()
        assert server.adapters.names() == ["lora"] and list(server.adapters.model.peft_config) == ["lora"]
        peft_model.delete_adapter(name)
    peft_model.add_adapter("prefix", CONFIGS["prefix"])
    peft_model.set_adapter("prefix")
    mixed, _ = peft_model.forward(tokens, adapter_names=["lora", "__base__"])
    assert_array_equal(mixed, expected, err_msg="the active prefix has no part in it")


def test_while_lora_is_merged_no_other_method_answers(make_model, random_batch):
    """A merged adapter is part of the weights, so a call with another adapter would use both."""
    peft_model = ln.get_peft_model(make_model(), CONFIGS["lora"], "lora")
    peft_model.add_adapter("prefix", CONFIGS["prefix"])
    peft_model.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge"):
        peft_model.set_adapter("prefix")


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_config_of_no_method_is_refused_by_name(make_model):
    with pytest.raises(TypeError, match=r"expected a LoraConfig, .* or GainConfig, got dict"):
        ln.get_peft_model(make_model(), {"r": 8})


def test_an_unknown_peft_type_is_refused_by_name(make_model, tmp_path):
    ln.get_peft_model(make_model(), CONFIGS["lora"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "LOHA"}))
    with pytest.raises(ValueError, match=r"adapter_config.json: peft_type is 'LOHA'; expected 'LORA', .* or 'GAIN'"):
        PeftModel.from_pretrained(make_model(), tmp_path)


@methods
def test_a_base_that_carries_an_adapter_is_not_adapted_again(make_model, setting):
    """A prefix is the exception: it is not in the layers of the base."""
    model = ln.get_peft_model(make_model(), setting).model
    if isinstance(setting, PrefixTuningConfig):
        assert ln.get_peft_model(model, setting).model is model
    else:
        with pytest.raises(ValueError, match="has adapters already"):
            ln.get_peft_model(model, setting)
