"""Tests of training in a random subspace: P, its transpose and columns, and a task of known intrinsic dimension."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_np import SGD, AdamW, Transformer, gradcheck_model, save_model, train
from lora_np.studies.harness import runs, tiny_task
from lora_np.studies.low_rank import intrinsic
from lora_np.studies.low_rank.intrinsic import Setting, intrinsic_dimension, size, smallest
from lora_np.studies.low_rank.intrinsic_toy import ZERO, best_loss, constraints, toy
from lora_np.studies.pretraining.study import TINY
from lora_np.training.subspace import DenseProjection, SparseProjection, SubspaceModel

KINDS = (DenseProjection, SparseProjection)
SHAPES = [(1, 1), (7, 3), (1000, 37), (300, 300), (513, 128)]  # D, d: equal groups, unequal groups, and the whole space
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def model(make_model):
    return make_model(np.float64).to("numpy")


# --------------------------------------------------------------------------------------------------------------------- P


@kinds
@pytest.mark.parametrize(("D", "d"), SHAPES)
def test_the_backward_is_the_transpose_to_1e_12(kind, D, d):
    """⟨P z, θ⟩ = ⟨z, Pᵀ θ⟩ for random z and θ. Only Pᵀ has this property."""
    P, rng = kind(D, d, seed=3), np.random.default_rng(0)
    for _ in range(3):
        z, theta = rng.standard_normal(d), rng.standard_normal(D)
        error = abs(P.forward(z) @ theta - z @ P.backward(theta))
        assert error <= 1e-12 * np.linalg.norm(z) * np.linalg.norm(theta)


@kinds
@pytest.mark.parametrize(("D", "d"), SHAPES)
def test_the_columns_of_p_are_orthonormal(kind, D, d):
    """PᵀP = 1, so a step in z has the same length in θ. The sparse P is orthonormal by construction."""
    P = kind(D, d, seed=1)
    columns = np.array([P.forward(e) for e in np.eye(d)])  # (d, D)
    np.testing.assert_allclose(columns @ columns.T, np.eye(d), atol=1e-13)


def test_each_weight_is_in_one_group_and_the_groups_are_as_equal_as_they_can_be():
    P = SparseProjection(1000, 37)
    columns = np.array([P.forward(e) for e in np.eye(37)])
    assert (np.count_nonzero(columns, axis=0) == 1).all()
    assert set(np.count_nonzero(columns, axis=1)) == {1000 // 37, 1000 // 37 + 1}


@kinds
def test_another_seed_is_another_subspace_and_the_same_seed_the_same(kind):
    z = np.ones(5)
    one, same, other = (kind(40, 5, seed).forward(z) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


@kinds
def test_p_has_the_dtype_that_was_asked_for(kind):
    P = kind(30, 4, dtype=np.float32)
    assert P.forward(np.ones(4, np.float32)).dtype == P.backward(np.ones(30, np.float32)).dtype == np.float32


@kinds
@pytest.mark.parametrize("d", [0, 11])
def test_a_subspace_larger_than_the_space_is_refused(kind, d):
    with pytest.raises(ValueError, match=rf"d = {d}; expected 1 ≤ d ≤ D = 10"):
        kind(10, d)


# ----------------------------------------------------------------------------------------------- a model in a subspace


@kinds
def test_the_gradient_of_z_through_a_whole_model_agrees_with_the_complex_step_to_1e_12(kind, model, random_batch):
    subspace = SubspaceModel(model, kind(size(model), 40, seed=2))
    subspace.z.value = np.random.default_rng(1).normal(0, 0.3, 40)  # not at z = 0
    result = gradcheck_model(subspace, *random_batch()).raise_if_wrong()
    assert list(result.errors) == ["z"]


def test_at_the_start_it_is_the_model_itself(model, random_batch):
    expected = model.loss(*random_batch())[0]
    assert SubspaceModel(model, SparseProjection(size(model), 9)).loss(*random_batch())[0] == expected


def test_with_all_dimensions_it_is_full_training(make_model, random_batch):
    """At d = D, P is a permutation with signs, which does not affect AdamW, because AdamW works entry by entry."""
    one, other = (make_model(np.float64).to("numpy") for _ in range(2))
    batches = [random_batch(seed=seed) for seed in range(3)]
    train(one, batches, AdamW(lr=1e-2, weight_decay=0.0), 5, max_grad_norm=1.0, progress=False)
    subspace = SubspaceModel(other, SparseProjection(size(other), size(other)))
    train(subspace, batches, AdamW(lr=1e-2, weight_decay=0.0), 5, max_grad_norm=1.0, progress=False)
    subspace.place()
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        np.testing.assert_allclose(b.value, a.value, atol=1e-9, err_msg=name)


def test_the_change_of_the_weights_stays_in_the_subspace(model, random_batch):
    projection = SparseProjection(size(model), 25, seed=4)
    subspace = SubspaceModel(model, projection)
    train(subspace, [random_batch()], SGD(lr=0.5), 3, progress=False)
    subspace.place()
    moved = np.concatenate([p.value.ravel() for _, p in model.named_parameters()]) - subspace.theta0
    assert np.linalg.norm(moved) > 0.01
    np.testing.assert_allclose(projection.forward(projection.backward(moved)), moved, atol=1e-12)  # P Pᵀ projects


def test_only_what_was_trainable_moves(model, random_batch):
    for name, p in model.named_parameters():
        p.trainable = "q_proj" in name
    before = {name: x.copy() for name, x in model.state_dict().items()}
    D = sum(p.value.size for _, p in model.named_parameters() if p.trainable)
    subspace = SubspaceModel(model, SparseProjection(D, 12))
    train(subspace, [random_batch()], AdamW(lr=0.1), 2, progress=False)
    subspace.place()
    moved = {name for name, x in model.state_dict().items() if not np.array_equal(x, before[name])}
    assert moved and all("q_proj" in name for name in moved)


def test_a_cache_keeps_the_weights_that_it_was_made_with(model, random_batch):
    """A later loss at another point of the subspace does not change the gradient of an earlier loss."""
    subspace = SubspaceModel(model, SparseProjection(size(model), 30))
    _, cache = subspace.loss(*random_batch())
    subspace.backward(cache)
    expected, subspace.z.grad = subspace.z.grad, None
    _, cache = subspace.loss(*random_batch())
    here, subspace.z.value = subspace.z.value, np.ones(30)
    subspace.loss(*random_batch())
    subspace.z.value = here
    subspace.backward(cache)
    np.testing.assert_array_equal(subspace.z.grad, expected)


def test_two_workers_give_the_gradient_of_one(make_model, random_batch):
    model, both = make_model(np.float64).to("numpy"), []
    for workers in (1, 2):
        subspace = SubspaceModel(model, SparseProjection(size(model), 30))
        train(subspace, [random_batch(4)], SGD(lr=0.1), 2, workers=workers, progress=False)
        both.append(subspace.z.value)
        subspace.z.value = np.zeros(30)
        subspace.place()
    np.testing.assert_allclose(*both, atol=1e-12)


def test_a_projection_of_another_size_is_refused(model):
    with pytest.raises(ValueError, match=rf"P has 10 rows, but the model has {size(model)} trainable weights"):
        SubspaceModel(model, SparseProjection(10, 2))


# ---------------------------------------------------------------------------------------------- the search, and the toy


@pytest.mark.parametrize("answer", [1, 2, 3, 10, 511, 512, 999, 1000])
def test_the_search_finds_the_smallest_to_the_integer(answer):
    asked = []
    assert smallest(lambda d: not asked.append(d) and d >= answer, 1, 1000) == answer
    assert len(asked) == len(set(asked)), "each d is a training run and must be measured once"


@pytest.mark.parametrize("answer", [1, 40, 777, 100_000])
def test_with_a_resolution_the_search_comes_so_near_and_stops(answer):
    asked = []
    found = smallest(lambda d: not asked.append(d) and d >= answer, 16, 10**6, factor=4, resolution=2**0.25)
    assert answer <= found <= max(16, answer * 2**0.25) and len(asked) <= 13


def test_what_even_all_dimensions_do_not_reach_has_no_answer():
    assert smallest(lambda d: False, 4, 100) is None


@kinds
@pytest.mark.parametrize("seed", range(4))
def test_the_toys_intrinsic_dimension_is_10_exactly(kind, seed):
    """The task fixes ten sums of 1000 weights: ten dimensions reach a loss of 1e-10, nine do not."""
    table = toy(kind, seed)
    assert table.settings["intrinsic_dimension"] == 10
    losses = {row["d"]: row["loss"] for row in table.rows}
    assert losses[9] > 1e4 * ZERO and losses[10] < ZERO > losses[14]


def test_the_toys_answer_is_the_number_of_constraints():
    assert [toy(D=600, blocks=b).settings["intrinsic_dimension"] for b in (1, 3, 6)] == [1, 3, 6]


def test_the_toys_best_loss_is_what_training_reaches():
    """Gradient descent on ‖C P z − t‖² with the projection's forward and backward reaches the least-squares loss."""
    C, t = constraints(60, 3)
    projection = SparseProjection(60, 2, seed=1)
    z = np.zeros(2)
    for _ in range(4000):
        residual = C @ projection.forward(z) - t
        z -= 0.005 * projection.backward(2 * C.T @ residual)
    assert best_loss(projection, 3) == pytest.approx(float(residual @ residual) / float(t @ t), rel=1e-6)
    assert best_loss(projection, 3) > ZERO


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Run the study on a random byte-level model, with three steps per run."""
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save_model(Transformer.random(config), tmp_path / "base")
    batch = np.arange(64).reshape(2, 32), np.arange(1, 65).reshape(2, 32)
    monkeypatch.setattr(tiny_task, "_unseen", lambda: [batch, (batch[1], batch[0])])
    monkeypatch.setattr(intrinsic, "TINY", config)
    for module in (intrinsic, runs):
        monkeypatch.setattr(module, "run_all", lambda measure, runs, *rest: [measure(run) for run in runs])
    return Setting(
        bases=(str(tmp_path / "base"), "random"),
        dimensions=(4, 64),
        lrs=((str(tmp_path / "base"), (1e-2,)), ("random", (1e-2,))),
        resolution=4,
        control=4,
        bracket=False,
        seeds=(0, 1),
        steps=3,
        batch_size=2,
    )


def known(run):
    """A known gain: it grows with log d and reaches 90 % of full training at d = 1000; the best rate is 0.02 √(D/d)."""
    D = 9392
    gain = 1.0 if run.d is None else 0.9 * np.log(run.d) / np.log(1000)
    off = np.log2(run.lr / 0.02 / np.sqrt(D / (run.d or D))) ** 2
    final = 5.0 - gain + 0.01 * (run.seed - 1) + 0.1 * off
    return vars(run) | {"heldout": [5.0, final], "final": final, "validation": final, "seconds": [0, 2.0]}


def test_d90_is_found_on_a_curve_that_is_known(setting, monkeypatch):
    monkeypatch.setattr(intrinsic, "measure", known)
    setting = replace(setting, dimensions=(16, 64, 256), seeds=(0, 1, 2), resolution=1.1, bracket=True)
    table = intrinsic_dimension(setting)
    assert table.settings["D"] == 9392
    for base in setting.bases:
        assert 1000 <= table.settings["d90"][base] <= 1100
        for row in table.where(phase="seeds", base=base):
            tried = [r["lr"] for r in table.where(phase="sweep", **{k: row[k] for k in ("base", "d", "projection")})]
            assert row["lr"] * np.sqrt(row["d"] / 9392) == pytest.approx(0.02, rel=0.05)
            assert min(tried) < row["lr"] < max(tried)
        full = [row["share"] for row in table.where(phase="seeds", base=base, d=9392)]
        assert np.mean(full) == pytest.approx(1) and len(full) == 3
        alone = {row["d"] for row in table.where(phase="seeds", base=base)}
        alone -= {row["d"] for row in table.where(phase="seeds", base=base, seed=2)}
        assert bool(alone) == (base not in setting.repeated), "from random weights, every d has every seed"
    runs = len(table.where(phase="sweep")) + sum(row["seed"] > 0 for row in table.where(phase="seeds"))
    assert table.settings["runs"] == runs and table.seconds == 2 * runs


def test_a_share_that_even_the_first_d_reaches_is_searched_below_it(setting, monkeypatch):
    monkeypatch.setattr(intrinsic, "measure", known)
    table = intrinsic_dimension(replace(setting, dimensions=(2048, 4096), resolution=1, control=None, bracket=True))
    assert list(table.settings["d90"].values()) == pytest.approx([1000, 1000], abs=3)  # rates are rounded to two digits


def test_the_study_trains_and_compares_a_sparse_with_a_dense_subspace(setting):
    table = intrinsic_dimension(setting)
    for seed in setting.seeds:
        rows = table.where(phase="seeds", d=4, base=setting.bases[0], seed=seed)
        losses = {row["projection"]: row["final"] for row in rows}
        assert len({rows[0]["start"], *losses.values()}) == 3, (
            "the losses of the start, the sparse and the dense P must all differ"
        )
    starts = [row["start"] for row in table.where(phase="seeds", base="random", d=table.settings["D"])]
    assert len(set(starts)) == len(setting.seeds), "each seed must draw different weights"
