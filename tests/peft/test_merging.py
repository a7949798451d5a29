"""Merging adapters into the weights, and combining adapters into one: the properties of each type, and the report.

test_merging_oracles.py compares the types with PEFT.
"""

from __future__ import annotations

import numpy as np
import pytest
from adapted import adapted, state
from on_device import assert_allclose, assert_array_equal, host, xp

import lora_np as ln
from lora_np import LoraConfig, PeftModel
from lora_np.peft import COMBINATION_TYPES
from lora_np.peft.combination import (
    Combination,
    WeightedFactors,
    combine,
    product_norm,
    prune,
    svd_of_product,
    weighted_sum,
)

RNG = np.random.default_rng
X = np.array([3.0, -1.0, 0.5, -4.0, 2.0, 0.0])


def options(kind, density=0.6):
    pruned = kind.startswith(("ties", "dare", "magnitude"))
    return {"combination_type": kind} | ({"density": density} if pruned else {})


def parts(ranks=(3, 3), out=7, into=9, seed=0):
    rng = RNG(seed)
    draw = [(rng.standard_normal((r, into)), rng.standard_normal((out, r))) for r in ranks]
    return [WeightedFactors(w, s, *pair) for w, s, pair in zip((0.7, -1.3, 0.4), (2.0, 0.5, 3.0), draw, strict=False)]


def target(some):
    """Return Σ wᵢsᵢBᵢAᵢ."""
    return sum(part.weight * part.scaling * part.B @ part.A for part in some)


def combined(some, kind, r=3, seed=0, **more):
    A, B = combine(some, Combination(**options(kind) | more), r, RNG(seed))
    return B @ A


def relative(x, expected):
    return np.linalg.norm(x - expected) / np.linalg.norm(expected)


@pytest.fixture
def three(make_model):
    return three_adapters(make_model)


def three_adapters(make_model, dtype=np.float64, adapter_dtype=None):
    """Return a model with the adapters x, y and z of different ranks, scalings and layers; x is active."""
    peft_model = PeftModel(make_model(dtype), adapter_dtype)
    for i, (name, settings) in enumerate(
        {
            "x": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
            "y": {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "down_proj"], "use_rslora": True},
            "z": {"r": 3, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
        }.items()
    ):
        peft_model.add_adapter(name, LoraConfig(**settings, init_lora_weights=False), seed=i)
    peft_model.model.freeze()
    peft_model.set_adapter("x")
    return peft_model


def deltas(peft_model, name):
    layers = {n: m for n, m in peft_model.model.named_modules() if name in getattr(m, "adapters", {})}
    return {n: host(m.delta_weight(name)) for n, m in layers.items()}


def wanted(peft_model, weights):
    each = {name: deltas(peft_model, name) for name in weights}
    layers = dict.fromkeys(layer for found in each.values() for layer in found)
    return {layer: sum(w * each[n][layer] for n, w in weights.items() if layer in each[n]) for layer in layers}


# ------------------------------------------------------------------------------------------------------------ the types


def test_cat_is_the_weighted_sum_exactly():
    some = parts((3, 2, 4))
    A, B = combine(some, Combination("cat"), 3, RNG(0))
    assert (A.shape, B.shape) == ((9, 9), (7, 9))
    assert relative(B @ A, target(some)) <= 1e-14


@pytest.mark.parametrize("r", [1, 2, 4])
def test_the_error_of_svd_is_the_discarded_singular_tail(r):
    some = parts((3, 2))
    tail = np.linalg.svd(target(some), compute_uv=False)[r:]
    assert_allclose(np.linalg.norm(combined(some, "svd", r) - target(some)), np.linalg.norm(tail), rtol=1e-12)
    assert np.linalg.matrix_rank(combined(some, "svd", r)) == r


@pytest.mark.parametrize("ranks", [(3, 2), (6, 8)], ids=["thin", "more directions than numbers"])
def test_the_svd_of_a_product_needs_no_product(ranks):
    rng = RNG(1)
    A, B = rng.standard_normal((sum(ranks), 9)), rng.standard_normal((7, sum(ranks)))
    U, s, Vt = svd_of_product(A, B)
    assert_allclose((U * s) @ Vt, B @ A, rtol=1e-12, atol=1e-12)
    assert_allclose(s, np.linalg.svd(B @ A, compute_uv=False)[: len(s)], rtol=1e-12, atol=1e-12)
    assert_allclose(product_norm(A, B), np.linalg.norm(B @ A), rtol=1e-12)


def test_linear_adds_factors_and_so_adds_the_cross_terms():
    """(√c₁B₁ + √c₂B₂)(√c₁A₁ ± √c₂A₂) contains B₁A₂ and B₂A₁; for random adapters the relative error is about 1."""
    one, two = some = parts()
    cross = np.sqrt(0.7 * 2 * 1.3 * 0.5) * (two.B @ one.A - one.B @ two.A)
    assert_allclose(combined(some, "linear"), target(some) + cross, rtol=1e-12, atol=1e-13)
    assert 0.7 < relative(combined(some, "linear"), target(some)) < 1.5


@pytest.mark.parametrize("kind", [kind for kind in COMBINATION_TYPES if kind == "cat" or kind.endswith("svd")])
def test_what_is_computed_on_the_change_does_not_depend_on_how_it_is_written(kind):
    """The pairs (B, A) and (B M, M⁻¹A) have the same product."""
    some = parts()
    M = RNG(5).standard_normal((3, 3))
    other = [some[0]._replace(B=some[0].B @ M, A=np.linalg.solve(M, some[0].A)), some[1]]
    assert relative(combined(other, kind), combined(some, kind)) <= 1e-10


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_what_is_computed_on_the_factors_depends_on_how_they_are_written(kind):
    """The pair (−B, −A) is the same adapter as (B, A)."""
    one, two = some = parts()
    other = [one._replace(B=-one.B, A=-one.A), two]
    assert relative(combined(other, kind), combined(some, kind)) > 0.5


@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_a_weight_of_minus_one_is_the_negative_adapter(kind):
    one, two = some = parts()
    turned = [one, two._replace(A=-two.A, weight=-two.weight)]
    assert relative(combined(turned, kind), combined(some, kind)) <= 1e-12


@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_one_adapter_alone_and_whole_is_itself_times_its_weight(kind):
    some = parts()[1:]
    how = {"density": 1} if "density" in options(kind) else {}
    assert relative(combined(some, kind, **how), target(some)) <= 1e-12


def test_magnitude_pruning_keeps_the_largest():
    how = Combination("magnitude_prune", density=0.5)
    assert_array_equal(prune(X, how, RNG(0)), [3, 0, 0, -4, 2, 0])
    assert_array_equal(prune(X.reshape(2, 3), how, RNG(0)), [[3, 0, 0], [-4, 2, 0]])
    assert_array_equal(prune(X, Combination("ties", density=0.34), RNG(0)), [3, 0, 0, -4, 0, 0])


def test_dare_keeps_the_expectation_and_draws_for_each_number():
    how, x = Combination("dare_linear", density=0.25), np.full((300, 200), 2.0)
    dropped = prune(x, how, RNG(0))
    assert set(np.unique(dropped)) == {0.0, 8.0}
    assert abs(dropped.mean() - 2) < 4 * 2 * np.sqrt(3 / x.size), (
        "the sample mean must be within four standard deviations"
    )
    assert not np.array_equal(dropped[0], dropped[1])


def test_dare_linear_svd_is_right_on_average():
    some = parts()
    mean = sum(combined(some, "dare_linear_svd", 7, seed) for seed in range(3000)) / 3000
    assert relative(mean, target(some)) < 0.05
    assert relative(combined(some, "dare_linear_svd", 7), target(some)) > 0.3


TENSORS = [np.array([1.0, 5, -1, 0, 2]), np.array([1.0, -1, -1, 0, -1]), np.array([1.0, -1, -1, 0, 0])]


def test_ties_takes_the_mean_of_those_that_agree_with_the_elected_sign():
    """By "total" one 5 outweighs two −1; by "frequency" the two −1 win. A 0 has no vote, and a tie counts as plus."""
    elect = lambda method: Combination("ties", density=1, majority_sign_method=method)  # noqa: E731
    w = [1, 1, 5]  # the sign does not depend on the weight: 5 − 1 − 5 would be negative
    assert_allclose(weighted_sum(TENSORS, w, elect("total"), RNG(0)), [7 / 3, 5, -7 / 3, 0, 2])
    assert_allclose(weighted_sum(TENSORS, w, elect("frequency"), RNG(0)), [7 / 3, -3, -7 / 3, 0, 2])


def test_in_ties_a_negative_weight_votes_against():
    how = Combination("ties", density=1)
    assert_allclose(weighted_sum([np.array([2.0]), np.array([3.0])], [1, -1], how, RNG(0)), [-3])


def test_ties_prunes_before_it_elects():
    """Of three elements, the largest one is kept; the others have no vote."""
    how = Combination("ties", density=0.34)
    x = [np.array([5.0, 0, 9.0]), np.array([-4.0, 0, 0])]
    assert_allclose(weighted_sum(x, [1, 1], how, RNG(0)), [-4, 0, 9])


def test_the_clamp_cuts_both_factors_off():
    some = parts()
    A, B = combine(some, Combination("svd", svd_clamp=0.8), 3, RNG(0))
    free_A, free_B = combine(some, Combination("svd"), 3, RNG(0))
    sizes = np.abs(np.concatenate([free_A.ravel(), free_B.ravel()]))
    bound = np.abs(B).max()
    assert abs((sizes > bound).mean() - 2 * 0.2) < 0.05, "a fifth of the elements is clipped at each end"
    assert_array_equal(A, free_A.clip(-bound, bound))
    assert_array_equal(B, free_B.clip(-bound, bound))


# ------------------------------------------------------------------------------------------------------- on a whole model


@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_the_report_is_the_error_of_the_change_that_the_layers_have(kind, make_model):
    three = three_adapters(make_model)
    names, weights = (["x", "z"], [0.7, -1.3]) if "svd" not in kind and kind != "cat" else ("xyz", [0.7, -1.3, 0.4])
    report = three.add_weighted_adapter(list(names), weights, "new", **options(kind))
    expected, found = wanted(three, dict(zip(names, weights, strict=True))), deltas(three, "new")
    assert found.keys() == expected.keys() == report.errors.keys()
    for name, error in report.errors.items():
        assert error == pytest.approx(relative(found[name], expected[name]), rel=1e-6, abs=1e-12)
    stacked = [np.concatenate([x[name].ravel() for name in expected]) for x in (found, expected)]
    assert report.error == pytest.approx(relative(*stacked), rel=1e-6, abs=1e-12)
    assert all(layer.adapters["new"].config.scaling == 1 for layer in three.lora_layers() if "new" in layer.adapters)


def test_cat_answers_as_the_weighted_sum_does(three, random_batch):
    """Compare merging each adapter with its weight to merging the combined adapter."""
    report = three.add_weighted_adapter(["x", "y", "z"], [0.7, -1.3, 0.4], "new", "cat")
    assert report.error <= 1e-12 and report.ranks["model.layers.0.self_attn.v_proj"] == 8
    sums = wanted(three, {"x": 0.7, "y": -1.3, "z": 0.4})
    three.set_adapter("new")
    tokens, _ = random_batch()
    answer, _ = three.forward(tokens)
    for name, layer in three.model.named_modules():
        if name in sums:
            layer.base_layer.weight.value += xp.asarray(sums[name])
    with three.disable_adapter():
        assert_allclose(three.forward(tokens)[0], answer, rtol=1e-10, atol=1e-11)


def test_a_combination_comes_back_from_its_file(three, make_model, random_batch, tmp_path):
    three.add_weighted_adapter(["x", "y"], [0.7, 1.3], "new", "cat")
    three.save_pretrained(tmp_path, "new")
    three.set_adapter("new")
    tokens, _ = random_batch()
    again = PeftModel.from_pretrained(make_model(), tmp_path)
    assert_array_equal(again.forward(tokens)[0], three.forward(tokens)[0])
    assert again.peft_config["default"] == three.peft_config["new"]


def test_a_combination_waits_frozen_and_its_sources_stay(three):
    before = state(three)
    three.add_weighted_adapter(["x", "z"], [1, 1], "new", "linear")
    assert three.active_adapter == "x"
    assert {name.split(".")[-2] for name, p in three.named_parameters() if p.trainable} == {"x"}
    three.delete_adapter("new")
    assert state(three) == before


def test_sources_that_mean_layers_in_different_ways_combine(make_model):
    peft_model = PeftModel(make_model())
    for name, targets in {"x": r".*layers\.1\..*q_proj", "y": ["v_proj"], "z": "all-linear"}.items():
        peft_model.add_adapter(name, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    for names, layers in {"xy": 3, "yz": 14}.items():
        assert peft_model.add_weighted_adapter(list(names), [1, 1], names, "cat").error <= 1e-12
        assert len(deltas(peft_model, names)) == layers


def test_the_same_seed_drops_the_same(three):
    for name, seed in {"first": 3, "again": 3, "other": 4}.items():
        three.add_weighted_adapter(["x", "z"], [1, 1], name, "dare_linear", density=0.5, seed=seed)
    first, again, other = (deltas(three, name) for name in ("first", "again", "other"))
    for name in first:
        assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_the_report_on_an_adapter_in_16_bits_counts_their_rounding(kind, make_model):
    three, weights = three_adapters(make_model, np.float32, "float16"), {"x": 0.7, "y": 0.3}
    svd_rank = {"svd_rank": 5} if kind == "svd" else {}
    report = three.add_weighted_adapter([*weights], [*weights.values()], "new", kind, **svd_rank)
    expected, found = wanted(three, weights), deltas(three, "new")
    stacked = [np.concatenate([x[name].ravel() for name in expected]) for x in (found, expected)]
    assert 1e-5 < relative(*stacked) == pytest.approx(report.error, rel=1e-2)


def test_a_report_says_what_was_made_and_how_good_it_is(three):
    report = three.add_weighted_adapter(["x", "y"], [1, 1], "new", svd_rank=2)
    assert str(report).startswith("svd: 6 layers of rank 2, relative error of ΔW 0.")
    assert str(report).endswith(f"in {max(report.errors, key=report.errors.get)})")
    three.add_adapter("fresh", LoraConfig())
    assert three.add_weighted_adapter(["fresh"], [1], "nothing", "cat").error == 0, (
        "the target is 0, and so is the result"
    )


def test_the_base_is_one_array_however_many_adapters_share_it(three, tmp_path):
    before = {name: p.value for name, p in three.named_parameters() if "lora_" not in name}
    three.add_weighted_adapter(["x", "y"], [1, 1], "new", "cat")
    three.save_pretrained(tmp_path, "new")
    three.load_adapter(tmp_path, "loaded")
    three.set_adapter("loaded")
    three.delete_adapter("y")
    after = {name.replace(".base_layer", ""): p.value for name, p in three.named_parameters() if "lora_" not in name}
    assert all(after[name.replace(".base_layer", "")] is value for name, value in before.items())


BAD = {
    "no such adapter": ((["x", "w"], [1, 1]), {}, "no adapter 'w'"),
    "a name that is taken": ((["x", "y"], [1, 1], "z"), {}, "the adapter 'z' exists already"),
    "too few weights": ((["x", "y"], [1]), {}, "two lists of equal length"),
    "no adapter": (([], []), {}, "at least 1"),
    "a string": (("xy", [1, 1]), {}, "expected two lists"),
    "a weight that is no number": ((["x", "y"], [1, np.nan]), {}, "weight of 'y' is nan"),
    "no such type": ((["x", "y"], [1, 1]), {"combination_type": "mean"}, "expected one of cat, svd, linear"),
    "no density": ((["x", "z"], [1, 1]), {"combination_type": "ties"}, "ties needs the fraction of elements to keep"),
    "density 0": ((["x", "z"], [1, 1]), options("dare_linear", 0.0), "elements to keep, 0 < density"),
    "density above 1": ((["x", "z"], [1, 1]), options("ties", 1.5), "elements to keep, 0 < density"),
    "a density for nothing": ((["x", "y"], [1, 1]), {"density": 0.5}, "density = 0.5 has no effect with"),
    "a rank for nothing": (
        (["x", "y"], [1, 1]),
        {"combination_type": "cat", "svd_rank": 2},
        "svd_rank = 2 has no effect",
    ),
    "rank 0": ((["x", "y"], [1, 1]), {"svd_rank": 0}, "svd_rank = 0"),
    "a clamp of nothing": ((["x", "y"], [1, 1]), {"svd_clamp": 0.4}, "0.5 < svd_clamp"),
    "no such majority": ((["x", "y"], [1, 1]), {"majority_sign_method": "loudest"}, "'total' or 'frequency'"),
    "ranks that differ": (
        (["x", "y"], [1, 1]),
        {"combination_type": "linear"},
        r"v_proj: combination_type=.linear. needs .* \[3, 2\]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_a_clear_error_and_changes_nothing(what, three):
    (adapters, weights, *name), settings, message = BAD[what]
    before = state(three)
    with pytest.raises(ValueError, match=message):
        three.add_weighted_adapter(adapters, weights, *name or ["new"], **settings)
    assert state(three) == before


def test_nothing_is_combined_while_one_is_merged(three):
    three.merge_adapter()
    with pytest.raises(RuntimeError, match="unmerge_adapter"):
        three.add_weighted_adapter(["x", "y"], [1, 1], "new")


# ---------------------------------------------------------------------------------------------------- into the weights


def test_several_adapters_merge_at_once_and_come_out_again(make_model):
    three = three_adapters(make_model)
    before = {name: host(p.value).copy() for name, p in three.named_parameters()}
    sums = wanted(three, {"x": 1, "y": 1})
    three.merge_adapter(["x", "y", "x"])
    assert three.merged_adapters == ("x", "y")
    for name, p in three.named_parameters():
        layer = name.removeprefix("base_model.model.").removesuffix(".base_layer.weight")
        assert_allclose(p.value, before[name] + sums.get(layer, 0), rtol=1e-12, atol=1e-13, err_msg=name)
    three.unmerge_adapter()
    assert three.merged_adapters == () and not three.merged
    for name, p in three.named_parameters():
        assert_allclose(p.value, before[name], rtol=1e-12, atol=1e-13)


def test_what_is_merged_stays_when_all_are_disabled_for_a_while(three, make_model, random_batch):
    tokens, _ = random_batch()
    three.merge_adapter(["y", "z"])
    merged, _ = three.model.forward(tokens)
    with three.disable_adapter():
        assert_allclose(three.forward(tokens)[0], make_model().forward(tokens)[0], rtol=1e-10, atol=1e-11)
    assert three.merged_adapters == ("y", "z")
    assert_allclose(three.model.forward(tokens)[0], merged, rtol=1e-10, atol=1e-11)
    three.merge_adapter()
    assert three.merged_adapters == ("y", "z")
    with pytest.raises(RuntimeError, match="the weights contain the merged adapters 'y' and 'z'"):
        three.merge_adapter(["x"])


def test_merge_and_unload_takes_the_adapters_that_are_named(three, random_batch):
    tokens, _ = random_batch()
    three.add_weighted_adapter(["x", "z"], [1, 1], "both", "cat")
    three.set_adapter("both")
    expected, _ = three.forward(tokens)
    plain = three.merge_and_unload(adapter_names=["x", "z"])
    assert type(plain) is ln.Transformer
    assert_allclose(plain.forward(tokens)[0], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_safe_merge_refuses_what_is_not_finite_before_anything_has_changed(bad, make_model):
    three = three_adapters(make_model)
    last = [layer for layer in three.lora_layers() if "x" in layer.adapters][-1]
    last.adapters["x"].lora_B.value[0, 0] = bad
    before = state(three)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.v_proj: the weight merged with x is not finite"):
        three.merge_adapter(safe_merge=True)
    assert state(three) == before and not three.merged
    three.merge_adapter(["y"], safe_merge=True)


def test_merging_a_name_that_is_not_there_changes_nothing(three):
    before = state(three)
    with pytest.raises(ValueError, match="no adapter 'w'"):
        three.merge_adapter(["x", "w"])
    assert state(three) == before


@pytest.mark.smollm2
def test_merged_logits_equal_unmerged_on_a_real_model():
    """In float64 the logits differ by at most 1e-13 of the largest. In float32 both have rounding errors.

    The merged model's error must not exceed the bypass's error. On some processors, single logits near 0 differ by more than
    1e-4, and the bypass has the larger error."""
    peft_model = adapted(ln.load_model("smollm2-135m", device="numpy"), r=8, lora_alpha=0.25)
    tokens = RNG(0).integers(0, peft_model.config.vocab_size, (1, 32))
    with peft_model.disable_adapter():
        base, _ = peft_model.forward(tokens)
    bypass, _ = peft_model.forward(tokens)
    peft_model.merge_adapter(safe_merge=True)
    merged, _ = peft_model.forward(tokens)
    peft_model.unmerge_adapter()
    for _, p in peft_model.named_parameters():
        p.value = p.value.astype(np.float64)
    exact, _ = peft_model.forward(tokens)
    peft_model.merge_adapter()
    largest, moved = np.abs(base).max(), np.abs(bypass - base).max()
    assert np.abs(peft_model.forward(tokens)[0] - exact).max() <= 1e-13 * largest
    off = {name: np.abs(logits - exact).max() for name, logits in (("bypass", bypass), ("merged", merged))}
    print(f"measured {off} on logits up to {largest:.3g}, which the adapter moved by up to {moved:.2g}")
    assert off["merged"] <= 2 * off["bypass"] <= 2e-5 * largest < 1e-3 * moved


# -------------------------------------------------------------------------------------------------- which layers, which names


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
def test_an_empty_list_of_names_merges_nothing(three, call):
    with pytest.raises(RuntimeError, match="no adapter is active"):
        getattr(three, call)(adapter_names=[])
    with pytest.raises(ValueError, match="there is no adapter ''"):
        getattr(three, call)(adapter_names="")
    assert list(three.peft_config) == ["x", "y", "z"] and not three.merged


def test_a_layer_that_has_a_bottleneck_alone_takes_no_part_in_a_merge(make_model):
    """A merge does not use the weight of such a layer, so the weight can be quantised or not finite."""
    peft_model = ln.get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "l")
    peft_model.add_adapter("b", ln.BottleneckConfig(bottleneck_size=4))
    ln.quantize_model(peft_model, block_size=8, skip_modules=["lm_head", "q_proj"])
    peft_model.merge_adapter(["l"], safe_merge=True)
    assert peft_model.merged_adapters == ("l",)
    peft_model.unmerge_adapter()
    assert not peft_model.merged
