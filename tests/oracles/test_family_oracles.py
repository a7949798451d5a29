"""LoRA's relatives against PEFT: the same gradients, the same logits from one folder, both ways, and the same first step.

"measured" beside a bound is the worst seen when this was written (torch 2.13, transformers 5.23, peft 0.21.2);
`pytest tests/oracles/test_family_oracles.py -rP` shows it again.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from oracle_adapters import (
    ALL_LINEAR,
    BOUNDS,
    DEEP,
    assert_same_logits,
    dtypes,
    logits_of,
    peft_config,
    written_by_peft,
    written_here,
)
from oracle_models import (
    UNTIED,
    DoubleTorch,
    adapted_pair,
    assert_close,
    base_pair,
    gradients,
    modeling_llama,
    peft,
    random_batch,
    their_loss,
    torch,
)

import lora_np as ln
from lora_np.peft import vera
from lora_np.peft.lora.dora import DoraAdapter

optimizers = pytest.importorskip("peft.optimizers")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Already unmerged"),
    pytest.mark.filterwarnings("ignore:PiSSA changes the base weights"),
]

DORA = ALL_LINEAR | {"use_dora": True}
BOTH_WAYS = {
    "DoRA": DORA,
    "DoRA on some layers, with patterns": DORA
    | {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    "DoRA with rsLoRA": DORA | {"use_rslora": True},
    "rsLoRA": ALL_LINEAR | {"use_rslora": True},
}
cases = pytest.mark.parametrize("settings", BOTH_WAYS.values(), ids=BOTH_WAYS.keys())


@pytest.fixture
def precise(request, monkeypatch):
    """In float64, transformers' Llama without its three detours through float32: see oracle_models."""
    if "dtype" not in request.fixturenames or request.getfixturevalue("dtype") == np.float64:
        monkeypatch.setattr(modeling_llama, "torch", DoubleTorch("torch"))


def compare_gradients(ours, theirs, bound, seed=2):
    tokens, targets = random_batch(seed)
    loss, cache = ours.loss(tokens, targets)
    ours.backward(cache)
    their = their_loss(theirs, tokens, targets)
    their.backward()
    assert abs(float(loss) - their.item()) <= bound
    assert_close(gradients(ours), gradients(theirs), bound, "a gradient is not the one that torch finds")


# ----------------------------------------------------------------------------------------------------------------- DoRA


@cases
def test_the_gradients_are_pefts_to_1e_10(settings, precise):
    """DoRA's as PEFT detaches them. Measured 2e-14."""
    ours, theirs = adapted_pair(UNTIED, settings)
    compare_gradients(ours, theirs, 1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_a_dora_layer_is_its_transcription_in_torch_to_1e_10(detached, bias):
    """W' = m ∘ V/‖V‖ as the paper writes it, V built whole and torch's autograd through all of it, or with ‖V‖ held."""
    rng = np.random.default_rng(0)
    x, W, b, dy = (rng.standard_normal(shape) for shape in ((2, 3, 5), (4, 5), (4,), (2, 3, 4)))
    layer = ln.AdaptedLinear(ln.Linear(W.copy(), b.copy() if bias else None).freeze())
    config = ln.LoraConfig(r=2, lora_alpha=7, use_dora=True, dora_norm="detached" if detached else "true")
    A, B, m = (rng.standard_normal(shape) for shape in ((2, 5), (4, 2), (4,)))
    layer.adapters["default"] = DoraAdapter.build(config, layer.base_layer, (A, B, m))
    y, cache = layer.forward(x, ln.Context(adapter="default"))
    dx = layer.backward(dy, cache)
    tx, tA, tB, tm = (torch.tensor(value, requires_grad=True) for value in (x, A, B, m))
    V = torch.tensor(W) + config.scaling * tB @ tA
    norm = V.norm(dim=1, keepdim=True)
    ty = tx @ (tm[:, None] * V / (norm.detach() if detached else norm)).T + (torch.tensor(b) if bias else 0)
    ty.backward(torch.tensor(dy))
    mine = {"y": y, "dx": dx, "dA": layer.adapters["default"].lora_A.grad, "dB": layer.adapters["default"].lora_B.grad}
    mine["dm"] = layer.adapters["default"].lora_magnitude_vector.grad
    others = {"y": ty.detach(), "dx": tx.grad, "dA": tA.grad, "dB": tB.grad, "dm": tm.grad}
    assert_close(mine, {name: np.asarray(value) for name, value in others.items()}, 1e-10, "another derivative")


@pytest.mark.parametrize("bias", [False, True])
def test_dropout_in_a_dora_layer_is_where_peft_has_it(bias, monkeypatch):
    """The same mask in both: PEFT drops the input of all that DoRA adds, the frozen product in it too."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((6, 5)), rng.standard_normal((6, 4))
    linear = torch.nn.Linear(5, 4, bias=bias).double()
    theirs = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["0"], use_dora=True, lora_dropout=0.3)
    theirs = peft.get_peft_model(torch.nn.Sequential(linear), theirs).double().train()
    inner = theirs.base_model.model[0]
    weight, b = (None if p is None else p.detach().numpy().copy() for p in (linear.weight, linear.bias))
    layer = ln.AdaptedLinear(ln.Linear(weight, b).freeze())
    numbers = {"lora_A": rng.standard_normal((2, 5)), "lora_B": rng.standard_normal((4, 2))}
    numbers["lora_magnitude_vector"] = rng.standard_normal(4)
    config = ln.LoraConfig(r=2, lora_alpha=7, use_dora=True, lora_dropout=0.3)
    layer.adapters["default"] = DoraAdapter.build(config, layer.base_layer, numbers.values())
    for kept, value in numbers.items():
        getattr(inner, kept)["default"].weight.data = torch.tensor(value)
    y, cache = layer.forward(x, ln.Context(rng=np.random.default_rng(5), adapter="default"))
    _, (_, mask, *_) = cache
    mask = torch.tensor(mask)
    monkeypatch.setattr(inner.lora_dropout["default"], "forward", lambda x: x * mask)
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    ty.backward(torch.tensor(dy))
    mine = {"y": y, "dx": layer.backward(dy, cache)} | {
        kept: getattr(layer.adapters["default"], kept).grad for kept in numbers
    }
    others = {"y": ty.detach(), "dx": tx.grad} | {kept: getattr(inner, kept)["default"].weight.grad for kept in numbers}
    assert_close(mine, {name: np.asarray(value) for name, value in others.items()}, 1e-10, "dropout is elsewhere")


@dtypes
@cases
def test_what_peft_wrote_answers_here_as_it_does_there(settings, dtype, precise, tmp_path):
    ours, theirs = base_pair(DEEP, dtype)
    base = logits_of(ours)
    theirs = written_by_peft(theirs, settings, tmp_path)
    ours = ln.PeftModel.from_pretrained(ours, tmp_path)
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    assert np.abs(logits_of(ours) - base).max() > 0.1, "the adapter does nothing, so this proves nothing"


@dtypes
@cases
def test_what_is_written_here_answers_in_peft_as_it_does_here(settings, dtype, precise, tmp_path):
    ours, theirs = base_pair(DEEP, dtype)
    base = logits_of(ours)
    ours = written_here(ours, settings, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of what it does not find
        theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    assert np.abs(logits_of(ours) - base).max() > 0.1, "the adapter does nothing, so this proves nothing"
    merged = ours.merge_and_unload()
    assert_same_logits(merged, theirs, BOUNDS[dtype])


@cases
def test_names_and_configuration_are_pefts(settings, tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    ours = written_here(ours, settings, tmp_path / "ours")
    theirs = written_by_peft(theirs, settings, tmp_path / "theirs")
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    names = [ln.files.load_arrays(tmp_path / side / "adapter_model.safetensors")[0] for side in ("ours", "theirs")]
    assert {n: x.shape for n, x in names[0].items()} == {n: x.shape for n, x in names[1].items()}
    for key in ("use_dora", "use_rslora", "r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        mine, other = (
            json.loads((tmp_path / side / "adapter_config.json").read_text())[key] for side in ("ours", "theirs")
        )
        assert mine == other, key


def test_over_a_frozen_a_the_gradient_of_b_is_what_torch_finds(precise):
    """LoRA-FA. PEFT has it as an optimizer, which freezes A and then does more; what is compared is the frozen A."""
    ours, theirs = adapted_pair(UNTIED, ALL_LINEAR)
    for layer in ours.lora_layers():
        layer.adapters["default"].config = replace(layer.adapters["default"].config, freeze_A=True)
    ours.set_adapter("default")
    for name, p in theirs.named_parameters():
        p.requires_grad_(".lora_B." in name)
    compare_gradients(ours, theirs, 1e-10)


# ---------------------------------------------------------------------------------------------------------------- PiSSA


def test_pissa_starts_where_pefts_does(tmp_path):
    """A's and B's signs are an SVD's own affair; what both took out of the base, s·B A, is the same, to what is
    left of float32 where two singular values are close."""
    ours, theirs = base_pair(UNTIED, np.float32)
    settings = ALL_LINEAR | {"init_lora_weights": "pissa"}
    ours = ln.get_peft_model(ours, ln.LoraConfig(**settings))
    theirs = peft.get_peft_model(theirs, peft_config(settings))
    others = {name: module for name, module in theirs.base_model.model.named_modules() if hasattr(module, "lora_A")}
    for name, layer in ours.model.named_modules():
        if isinstance(layer, ln.AdaptedLinear):
            other = others[name]
            mine = {"s·BA": layer.adapters["default"].scaled_product(np.float64), "left": layer.base_layer.weight.value}
            mine["|A|"] = np.abs(layer.adapters["default"].lora_A.value)
            theirs_ = {"s·BA": other.get_delta_weight("default"), "left": other.base_layer.weight}
            theirs_["|A|"] = other.lora_A["default"].weight.abs()
            assert_close(mine, {n: x.detach().numpy() for n, x in theirs_.items()}, 1e-3, name)


def test_a_pissa_saved_here_answers_in_peft_on_the_base_as_it_was(tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    ours = ln.get_peft_model(ours, ln.LoraConfig(**ALL_LINEAR, init_lora_weights="pissa"))
    rng = np.random.default_rng(0)
    for name, p in ours.named_parameters():
        if ".lora_" in name:
            p.value += rng.normal(0, 0.1, p.value.shape).astype(np.float32)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    assert_same_logits(ours, theirs, 1e-4)


def test_a_pissa_of_peft_answers_here_as_it_does_there_converted_or_not(tmp_path):
    ours, theirs = base_pair(DEEP, np.float32)
    settings = {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"}
    theirs = peft.get_peft_model(theirs, peft_config(settings))
    theirs.peft_config["default"].init_lora_weights = True  # as PEFT's own recipe has it, before saving the start
    theirs.save_pretrained(str(tmp_path / "start"))
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if ".lora_" in name:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(
        str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path / "converted"), theirs, 1e-4)
    theirs.save_pretrained(str(tmp_path / "residual"))
    assert json.loads((tmp_path / "residual" / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
    ours, _ = base_pair(DEEP, np.float32)
    assert_same_logits(ln.PeftModel.from_pretrained(ours, tmp_path / "residual"), theirs, 1e-4)


# ---------------------------------------------------------------------------------------------------------------- LoRA+


@pytest.mark.parametrize("settings", [ALL_LINEAR, DORA], ids=["LoRA", "DoRA"])
def test_steps_with_lora_plus_are_those_of_pefts_optimizer(settings, precise):
    """PEFT's group of the fast rate holds B, and every vector, DoRA's magnitude among them."""
    ours, theirs = adapted_pair(UNTIED, settings)
    optimizer = ln.AdamW(lr=0.01, weight_decay=0.1, lr_ratio={"lora_B": 16, "lora_magnitude_vector": 16})
    other = optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    for step in range(3):
        ours.zero_grad()
        other.zero_grad()
        compare_gradients(ours, theirs, 1e-9, seed=step)
        optimizer.step(ours.named_parameters(), t=step + 1)
        other.step()
        mine = {name: p.value for name, p in ours.named_parameters() if p.trainable}
        others = {name: p.detach().numpy() for name, p in theirs.named_parameters() if p.requires_grad}
        assert_close(mine, others, 1e-10, f"step {step + 1}: another learning rate")


# ----------------------------------------------------------------------------------------------------------------- VeRA

VERA = {"r": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def vera_pair(dtype=np.float64, folder=None):
    """(ours, theirs) with the VeRA that PEFT drew, and vectors that are not at their start; their folder is read here."""
    ours, theirs = base_pair(UNTIED, dtype)
    theirs = peft.get_peft_model(theirs, peft.VeraConfig(task_type="CAUSAL_LM", **VERA))
    theirs = theirs.to(torch.float64 if dtype == np.float64 else torch.float32)
    rng = np.random.default_rng(1)
    for name, p in theirs.named_parameters():
        if "vera_lambda_" in name:
            p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape))))
    theirs.save_pretrained(str(folder))
    return ln.PeftModel.from_pretrained(ours, folder, is_trainable=True), theirs


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_vera_that_peft_wrote_answers_here_and_has_the_same_gradients(dtype, precise, tmp_path):
    ours, theirs = vera_pair(dtype, tmp_path)
    tokens, targets = random_batch(2)
    assert_same_logits(ours, theirs, BOUNDS[dtype])
    if dtype == np.float64:
        ours.backward(ours.loss(tokens, targets)[1])
        their_loss(theirs, tokens, targets).backward()
        assert_close(gradients(ours), gradients(theirs), 1e-10, "a gradient is not the one that torch finds")
    merged = theirs.merge_and_unload()
    assert_same_logits(ours.merge_and_unload(), merged, BOUNDS[dtype])


def test_a_vera_written_here_answers_in_peft(tmp_path):
    ours, theirs = base_pair(UNTIED, np.float32)
    config = vera.VeraConfig(r=7, target_modules="all-linear", init_weights=False, d_initial=0.2)
    before = logits_of(ours)
    ours = ln.get_peft_model(ours, config, seed=3)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    assert np.abs(logits_of(ours) - before).max() > 0.1, "the adapter does nothing"
    assert_same_logits(ours, theirs, 1e-4)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    known = theirs.peft_config["default"].to_dict()
    assert settings.keys() <= known.keys()
    assert {k: settings[k] for k in ("r", "d_initial", "vera_dropout")} == {
        k: known[k] for k in ("r", "d_initial", "vera_dropout")
    }


def test_peft_counts_what_is_counted_here_but_for_veras_frozen_factors():
    ours, theirs = base_pair(UNTIED)
    ours = ln.get_peft_model(ours, ln.VeraConfig(**VERA))
    theirs = peft.get_peft_model(theirs, peft.VeraConfig(task_type="CAUSAL_LM", **VERA))
    count = ln.costs.count(ours)
    frozen = sum(p.value.size for p in ours.adapter_parameters() if not p.trainable)
    assert (count.trainable, count.total - frozen) == theirs.get_nb_trainable_parameters() and frozen > 0
