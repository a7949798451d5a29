"""Every combination type gives PEFT's ΔW; where PEFT's is not what was asked for, the test says how.

"measured" beside a bound is the worst seen when this was written (torch 2.13, peft 0.21.2); `-rP` shows it again.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle_models import (
    UNTIED,
    base_pair,
    largest_difference,
    peft,
    random_batch,
    relative_error,
    share_random_numbers,
    torch,
)

import lora_np as ln
from lora_np.peft import COMBINATION_TYPES
from lora_np.peft.combination import Combination, prune

merge_utils = pytest.importorskip("peft.utils.merge_utils")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

ONE = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "down_proj"]}
TWO = {"r": 3, "lora_alpha": 2, "target_modules": ["v_proj", "down_proj", "o_proj"], "alpha_pattern": {"o_proj": 5}}
WIDE = {"r": 5, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"]}
Q_V = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
NEEDS_DENSITY = ("ties", "dare", "magnitude")
WEIGHTS = [0.7, 1.3, 0.4]


def options(kind, density=0.6):
    return {"combination_type": kind} | ({"density": density} if kind.startswith(NEEDS_DENSITY) else {})


def pair(*settings, dtype=np.float64):
    """(ours, theirs) with the adapters x, y and z of the same numbers, B ≠ 0."""
    ours, theirs = base_pair(UNTIED, dtype)
    ours = ln.get_peft_model(ours, ln.LoraConfig(**settings[0]), "x")
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**settings[0]), "x")
    for name, more in zip("yz", settings[1:], strict=False):
        ours.add_adapter(name, ln.LoraConfig(**more))
        theirs.add_adapter(name, peft.LoraConfig(**more))
    return share_random_numbers(ours, theirs, seed=1)


def our_deltas(model, name):
    layers = {n: m for n, m in model.model.named_modules() if isinstance(m, ln.AdaptedLinear) and name in m.adapters}
    return {n: m.delta_weight(name) for n, m in layers.items()}


def their_deltas(model, name):
    layers = {n: m for n, m in model.base_model.model.named_modules() if name in getattr(m, "lora_A", {})}
    return {n: m.get_delta_weight(name).detach().numpy() for n, m in layers.items()}


def target(deltas, weights):
    """Σ wᵢΔWᵢ, in each layer over those that it has."""
    names = dict.fromkeys(name for each in deltas for name in each)
    return {n: sum(w * each[n] for w, each in zip(weights, deltas, strict=True) if n in each) for n in names}


def worst(mine, others):
    assert mine.keys() == others.keys() and mine
    error = max(relative_error(mine[name], others[name]) for name in mine)
    print(f"measured {error:.1e}")
    return error


@pytest.fixture
def same_masks(monkeypatch):
    """PEFT drops what we drop: both ask for masks layer by layer, first A's then B's, adapter by adapter."""
    rng, how = np.random.default_rng(0), Combination("dare_linear", density=0.6)

    def drop(x, density, rescale):
        return torch.from_numpy(prune(x.detach().numpy(), how, rng))

    monkeypatch.setattr(merge_utils, "random_pruning", drop)


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_every_type_gives_pefts_change_of_the_weights(kind, majority, same_masks):
    """To 1e-5; measured 1e-7, for PEFT holds the weights in float32. Layers that lack an adapter are among them."""
    ours, theirs = pair(ONE, TWO, ONE | {"lora_alpha": 11})
    for model in (ours, theirs):
        model.add_weighted_adapter(["x", "y", "z"], WEIGHTS, "new", **options(kind), majority_sign_method=majority)
    assert worst(our_deltas(ours, "new"), their_deltas(theirs, "new")) <= 1e-5


def combined(model, adapters, weights, kind, **more):
    """The ΔW of a new adapter."""
    name = f"new{len(model.peft_config)}"
    model.add_weighted_adapter(list(adapters), weights, name, **options(kind) | more)
    return our_deltas(model, name) if isinstance(model, ln.PeftModel) else their_deltas(model, name)


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_negative_weights_subtract_in_both(kind):
    ours, theirs = pair(ONE, TWO)
    assert worst(*(combined(model, "xy", [0.7, -1.3], kind) for model in (ours, theirs))) <= 1e-5


@pytest.mark.parametrize("kind", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_adapters_of_different_ranks_combine_alike(kind):
    ours, theirs = pair(ONE, WIDE)
    assert worst(*(combined(model, "xy", [0.7, 1.3], kind) for model in (ours, theirs))) <= 1e-5


def test_a_smaller_svd_rank_cuts_alike():
    ours, theirs = pair(ONE, WIDE)
    assert worst(*(combined(model, "xy", [0.7, 1.3], "svd", svd_rank=2) for model in (ours, theirs))) <= 1e-5


def test_several_adapters_merge_into_the_weights_alike():
    ours, theirs = pair(ONE, WIDE)
    tokens = random_batch(seed=3)[0]
    for model in (ours, theirs.eval()):
        model.merge_adapter(adapter_names=["x", "y"], safe_merge=True)
    weights = {n: m.get_base_layer().weight for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    for name, layer in ours.model.named_modules():
        if isinstance(layer, ln.AdaptedLinear):
            expected = weights[f"base_model.model.{name}"].detach().numpy()
            assert largest_difference(layer.base_layer.weight.value, expected) <= 1e-12
    assert largest_difference(ours.forward(tokens)[0], theirs(torch.from_numpy(tokens)).logits.detach().numpy()) <= 1e-5


@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_peft_loads_a_combination_and_has_the_same_change_of_the_weights(kind, tmp_path):
    """Layers of different ranks among them, and a source with rsLoRA: s = 1 in PEFT too."""
    same = ONE | {"rank_pattern": {"v_proj": 2}, "use_rslora": True}
    ours, _ = pair(same, same if kind in ("linear", "ties", "dare_ties", "dare_linear", "magnitude_prune") else WIDE)
    ours.add_weighted_adapter(["x", "y"], [0.7, 1.3], "new", **options(kind))
    ours.save_pretrained(tmp_path, "new")
    loaded = peft.PeftModel.from_pretrained(base_pair(UNTIED)[1], str(tmp_path), adapter_name="new")
    assert worst(our_deltas(ours, "new"), their_deltas(loaded, "new")) <= 1e-6


# ---------------------------------------------------------------------------------------------------- where PEFT is wrong


def test_peft_takes_rslora_over_and_is_off_by_the_root_of_the_new_rank():
    """It sets α = r so that s = 1, and keeps the first adapter's use_rslora, with which s = α/√r = √r."""
    ours, theirs = pair(Q_V | {"use_rslora": True}, Q_V)
    expected = target([our_deltas(ours, name) for name in "xy"], [1, 1])
    assert worst(combined(ours, "xy", [1, 1], "cat"), expected) <= 1e-12
    for name, delta in combined(theirs, "xy", [1, 1], "cat").items():
        assert relative_error(delta, np.sqrt(8) * expected[name]) <= 1e-6


def test_peft_makes_any_combination_of_one_adapter_a_copy():
    ours, theirs = pair(Q_V)
    assert worst(combined(theirs, "x", [1], "svd", svd_rank=1), their_deltas(theirs, "x")) <= 1e-6
    assert {np.linalg.matrix_rank(delta) for delta in combined(ours, "x", [1], "svd", svd_rank=1).values()} == {1}


@pytest.mark.parametrize("kind", ["ties", "ties_svd", "dare_ties", "dare_ties_svd"])
def test_pefts_ties_lets_a_negative_weight_vote_for_what_it_is_against(kind):
    """−1 of ΔW and 1 of −ΔW are the same request. PEFT counts signs before it applies weights, and answers them apart."""
    ours, theirs = pair(Q_V, Q_V)
    against = [combined(model, "xy", [1, -1], kind, density=1) for model in (ours, theirs)]
    for model in (ours, theirs):
        for name, p in model.named_parameters():
            if ".lora_A.y." in name and model is ours:
                p.value = -p.value
            elif ".lora_A.y." in name:
                p.data.neg_()
    turned = [combined(model, "xy", [1, 1], kind, density=1) for model in (ours, theirs)]
    assert worst(against[0], turned[0]) <= 1e-12
    assert worst(turned[0], turned[1]) <= 1e-5, "with positive weights both libraries agree"
    assert worst(against[1], turned[1]) > 0.5


def test_pefts_clamp_depends_on_the_signs_that_an_svd_happens_to_choose(monkeypatch):
    """U and V with a column of each turned over are the same SVD; the quantile of their signed numbers is another."""
    results = {}
    for turn in (1, -1):
        ours, theirs = pair(Q_V, Q_V)

        def turned(svd, turn):
            def call(x, **options):
                U, s, Vt = svd(x, **options)
                U[:, ::2] *= turn
                Vt[: len(s) : 2] *= turn
                return U, s, Vt

            return call

        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "svd", turned(torch.linalg.svd, turn))
            patch.setattr(np.linalg, "svd", turned(np.linalg.svd, turn))
            results[turn] = [combined(model, "xy", [1, 1], "svd", svd_clamp=0.9) for model in (ours, theirs)]
    assert worst(results[1][0], results[-1][0]) <= 1e-12
    assert worst(results[1][1], results[-1][1]) > 0.1


def test_pefts_svd_rank_above_the_matrixs_makes_an_adapter_that_cannot_be_multiplied():
    ours, theirs = pair(Q_V, Q_V)
    theirs.add_weighted_adapter(["x", "y"], [1, 1], "new", svd_rank=20)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        their_deltas(theirs, "new")
    expected = target([our_deltas(ours, name) for name in "xy"], [1, 1])
    assert worst(combined(ours, "xy", [1, 1], "svd", svd_rank=20), expected) <= 1e-12


def test_a_combination_that_fails_in_peft_leaves_an_adapter_that_does_nothing_behind():
    """And the next call with its name does nothing, without a word."""
    ours, theirs = pair(Q_V | {"rank_pattern": {"q_proj": 2}}, Q_V | {"rank_pattern": {"v_proj": 2}})
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        theirs.add_weighted_adapter(["x", "y"], [1, 1], "new", "linear")
    theirs.add_weighted_adapter(["x", "y"], [1, 1], "new", "cat")
    first = next(iter(their_deltas(theirs, "new").values()))
    assert not first.any()
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.q_proj: combination_type='linear' needs adapters of equal rank"
    ):
        ours.add_weighted_adapter(["x", "y"], [1, 1], "new", "linear")
    ours.add_weighted_adapter(["x", "y"], [1, 1], "new", "cat")


def test_pefts_linear_of_layers_with_ranks_of_their_own_does_not_load_again(tmp_path):
    """The new configuration forgets rank_pattern; ours has one."""
    settings = Q_V | {"rank_pattern": {"q_proj": 2}}
    ours, theirs = pair(settings, settings)
    assert worst(*(combined(model, "xy", [1, 1], "linear") for model in (ours, theirs))) <= 1e-5
    theirs.save_pretrained(str(tmp_path), selected_adapters=["new2"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(base_pair(UNTIED)[1], str(tmp_path / "new2"))


def test_peft_takes_fewer_weights_than_adapters_and_a_density_of_nothing():
    ours, theirs = pair(Q_V, Q_V)
    assert worst(combined(theirs, "xy", [1], "cat"), their_deltas(theirs, "x")) <= 1e-6
    assert all(np.isnan(x).any() for x in combined(theirs, "xy", [1, 1], "dare_linear", density=0.0).values())
    with pytest.raises(ValueError, match="two lists of equal length"):
        combined(ours, "xy", [1], "cat")
    with pytest.raises(ValueError, match="elements to keep, 0 < density"):
        combined(ours, "xy", [1, 1], "dare_linear", density=0.0)
