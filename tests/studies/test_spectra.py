"""The measures of ranks and directions give known values for known matrices, and the studies run on small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_np import LoraConfig, Transformer, get_peft_model, save_model
from lora_np.studies.harness import tiny_task, voice_task
from lora_np.studies.harness.table import Table
from lora_np.studies.harness.tiny_task import Run
from lora_np.studies.low_rank import claims as claims_on_low_rank
from lora_np.studies.low_rank import spectra, subspaces
from lora_np.studies.low_rank.spectra import deltas, effective_rank, rank_for_energy
from lora_np.studies.low_rank.subspaces import amplification, chance, directions, similarity
from lora_np.studies.pretraining.study import TINY

DATA = Path(__file__).parents[2] / "figures" / "data"


def orthonormal(d: int, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, n)))[0]


# ----------------------------------------------------------------------------------------------------------------- ranks


def test_the_effective_rank_counts_equal_singular_values_and_discounts_smaller_ones():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert 1 < effective_rank(np.array([1.0, 0.1])) < 2
    assert effective_rank(np.array([5.0, 2.0, 1.0])) == pytest.approx(effective_rank(np.array([50.0, 20.0, 10.0])))
    p = np.array([0.5, 0.25, 0.25])
    assert effective_rank(p) == pytest.approx(2**1.5)  # H = 1.5 bits


def test_the_rank_for_90_percent_of_the_energy_counts_squares():
    assert rank_for_energy(np.ones(10)) == 9
    assert rank_for_energy(np.array([3.0, 1.0])) == 1  # 9 of 10
    assert rank_for_energy(np.array([1.0, 2.9])) == 2  # 8.41 of 9.41, in whatever order they come
    assert rank_for_energy(np.ones(10), 1.0) == 10 and rank_for_energy(np.ones(10), 0.05) == 1


def test_the_svds_best_rank_r_error_is_the_tail_and_no_other_product_of_rank_r_comes_nearer():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((30, 20))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    for r in (1, 4, 19):
        U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
        error = np.linalg.norm(matrix - (U[:, :r] * s[:r]) @ Vt[:r])
        assert error == pytest.approx(np.sqrt((sigma[r:] ** 2).sum()), rel=1e-12)
        for _ in range(20):  # the best for a random row space: project on it
            V = orthonormal(20, r, rng)
            assert np.linalg.norm(matrix - matrix @ V @ V.T) > error


@pytest.fixture
def base():
    config = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return lambda: Transformer.random(config)


def test_the_delta_of_an_adapter_has_its_rank_and_that_of_full_fine_tuning_is_the_difference(base):
    adapted = get_peft_model(
        base(), LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False)
    )
    found = deltas(adapted, base())
    assert len(found) == 14 and {np.linalg.matrix_rank(x, tol=1e-6) for x in found.values()} == {3}
    trained = base()
    layer = trained.model.layers[1].mlp.up_proj
    layer.weight.value = layer.weight.value + 1
    found = deltas(trained, base())
    changed = {name for name, x in found.items() if x.any()}
    assert changed == {"model.layers.1.mlp.up_proj"} and np.allclose(found[changed.pop()], 1)


# ------------------------------------------------------------------------------------------------------------ directions


def test_phi_is_1_for_the_same_span_and_0_for_orthogonal_ones():
    rng = np.random.default_rng(0)
    V = orthonormal(24, 8, rng)
    phi = similarity(V[:, :4], V[:, :4] @ orthonormal(4, 4, rng))  # the same span in another basis
    assert phi[-1, -1] == pytest.approx(1) and phi[0, 0] < 1
    np.testing.assert_allclose(similarity(V, V), np.ones((8, 8)))  # span of the first i in that of the first j
    np.testing.assert_allclose(similarity(V[:, :4], V[:, 4:]), np.zeros((4, 4)), atol=1e-28)


def test_phi_is_the_papers_formula_for_every_i_and_j():
    rng = np.random.default_rng(1)
    V1, V2 = orthonormal(20, 3, rng), orthonormal(20, 7, rng)
    phi = similarity(V1, V2)
    assert phi.shape == (3, 7)
    for i, j in [(1, 1), (2, 5), (3, 7)]:
        assert phi[i - 1, j - 1] == pytest.approx(np.linalg.norm(V1[:, :i].T @ V2[:, :j]) ** 2 / min(i, j))


def test_phi_of_random_subspaces_has_the_mean_max_i_j_over_d():
    """Over 400 pairs in R³², for every i and j up to 6 and 10: within five standard errors, which are under 0.007."""
    rng = np.random.default_rng(2)
    drawn = np.array([similarity(orthonormal(32, 6, rng), orthonormal(32, 10, rng)) for _ in range(400)])
    standard_error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert standard_error.max() < 0.007
    assert (np.abs(drawn.mean(axis=0) - chance(6, 10, 32)) < 5 * standard_error).all()


def test_the_directions_of_a_are_the_rows_space_largest_first():
    rng = np.random.default_rng(3)
    U, V = orthonormal(5, 5, rng), orthonormal(9, 5, rng)
    found = directions((U * [5, 4, 3, 2, 1]) @ V.T)
    np.testing.assert_allclose(np.abs(np.diag(found.T @ V)), np.ones(5))


def test_the_amplification_of_known_matrices():
    """W has 10, 2 and 1 along its axes. A change along the third axis amplifies W there; a change along the first axis does not."""
    W, e = np.diag([10.0, 2.0, 1.0]), np.eye(3)
    row = amplification(W, 4 * np.outer(e[2], e[2]), r=1)
    assert (
        row["in_delta"] == pytest.approx(1) and row["factor"] == pytest.approx(4) and row["in_W"] == pytest.approx(10)
    )
    assert row["norm_W"] == pytest.approx(np.sqrt(105)) and row["norm_delta"] == pytest.approx(4)
    assert amplification(W, 4 * np.outer(e[0], e[0]), r=1)["factor"] == pytest.approx(0.4)


def test_the_size_of_w_in_random_directions_is_r_times_its_norm_over_the_root_of_its_size():
    """The mean of ‖Uᵀ W V‖²_F over 2000 random U and V: within five standard errors of the closed form."""
    rng = np.random.default_rng(4)
    W = rng.standard_normal((12, 20)) * np.linspace(0.1, 2, 20)
    drawn = [np.linalg.norm(orthonormal(12, 3, rng).T @ W @ orthonormal(20, 3, rng)) ** 2 for _ in range(2000)]
    expected = amplification(W, W, r=3)["in_random"] ** 2
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert error < 0.03 * expected and abs(np.mean(drawn) - expected) < 5 * error


# ------------------------------------------------------------------------------------------------------------ the studies


@pytest.fixture
def small(base, tmp_path, monkeypatch):
    """The path of a small base. Runs are not started in processes."""
    save_model(base(), tmp_path / "base")
    batch = np.arange(64).reshape(2, 32), np.arange(1, 65).reshape(2, 32)
    monkeypatch.setattr(tiny_task, "_unseen", lambda: [batch, batch])
    for module in (spectra, subspaces):
        monkeypatch.setattr(module, "run_all", lambda measure, runs, *rest: [measure(run) for run in runs])
    return str(tmp_path / "base")


def test_the_spectra_study_has_one_row_per_matrix_and_lora_has_its_rank(small):
    same = {"max_steps": 2, "batch_size": 2, "eval_every": 2, "base": small}
    runs = (Run("full", 1e-2, **same), Run("lora", 1e-2, 3, "all-linear", **same))
    table = spectra.spectra(spectra.Setting(tiny=runs, smollm2=(), seeds=(0, 1)))
    assert len(table.rows) == 2 * 2 * 14
    for row in table.rows:
        least = min(row["shape"])
        assert 1 <= row["effective_rank"] <= least and 1 <= row["rank90"] <= least
        assert row["rank90"] <= 3 if row["method"] == "lora" else row["effective_rank"] > 3
        assert len(row["sigma"]) == least.bit_length()
    by_seed = [table.where(method="full", seed=seed, layer=1, module="o_proj")[0]["norm"] for seed in (0, 1)]
    assert by_seed[0] != by_seed[1]


def test_the_subspaces_study_compares_runs_of_two_seeds(small):
    setting = subspaces.Setting(rates=((2, 1e-2), (6, 1e-2)), low=2, high=6, steps=2, base=small)
    table = subspaces.subspaces(setting)
    rows = table.where(kind="similarity")
    assert len(rows) == 2 * 3 * 2 * 2 * 3  # ranks, seeds, layers, modules, of what
    assert all(row["seeds"][0] != row["seeds"][1] for row in rows)
    assert {tuple(row["i"]) for row in rows if row["r"] == [2, 6]} == {(1, 2)}
    whole = table.where(kind="similarity", of="A", r=[6, 6])[0]
    assert whole["d"] == 16 and np.shape(whole["phi"]) == (3, 3)
    assert len(table.where(kind="amplification")) == 2 * 3 * 14
    before = [row["phi"] for row in table.where(kind="similarity", of="A at the start")]
    assert before != [row["phi"] for row in table.where(kind="similarity", of="A")]


def test_the_rates_are_those_that_the_other_studies_found_best():
    measured = Table.load(DATA / "convergence.json")
    for run in spectra.FULL.tiny:
        best = measured.where(phase="seeds", method=run.method, r=run.r, target_modules=run.target_modules)
        assert run.lr == best[0]["lr"]
    for r, lr in subspaces.FULL.rates:
        assert lr == measured.where(phase="seeds", method="lora", r=r, target_modules="all-linear")[0]["lr"]
    tuned = Table.load(DATA / "finetuning.json")
    assert {run.method: run.lr for run in spectra.FULL.smollm2} == {
        row["method"]: row["lr"] for row in tuned.where(phase="seeds")
    }
    assert isinstance(spectra.FULL.smollm2[0], voice_task.FineTuning)


# -------------------------------------------------------------------------------------------------------------- claims


def test_the_claims_say_what_the_committed_tables_say():
    tables = {name: Table.load(DATA / f"{name}.json") for name in claims_on_low_rank.NEEDED}
    found = claims_on_low_rank.claims(tables)
    findings = {finding.name: finding for claim in found for finding in claim.findings}
    assert len(findings) == sum(len(claim.findings) for claim in found), "two findings have one name"
    ranks = [row["rank90"] for row in tables["spectra"].where(model="tiny", method="full")]
    assert findings["low_rank.times_r.tiny"].value == np.median(ranks) / 8
    assert f"On the model tiny, {np.median(ranks):g} directions" in findings["low_rank.times_r.tiny"].sentence
    of_q = tables["subspaces"].where(kind="amplification", r=4, module="q_proj")
    assert findings["low_rank.amplification.q_proj.r4"].value == np.median([row["factor"] for row in of_q])
    inside = np.median([row["in_delta"] / row["in_random"] for row in of_q])
    assert findings["low_rank.inside.q_proj.r4"].value == pytest.approx(inside)
    for base, d90 in tables["intrinsic_dimension"].settings["d90"].items():
        assert findings[f"low_rank.d90.{base}"].value == (np.inf if d90 is None else d90)
    high = tables["subspaces"].where(kind="similarity", of="B", r=[64, 64], module="q_proj")
    assert findings["low_rank.phi.B.r64-r64.top8"].value == np.median([row["phi"][3][3] for row in high])


def dimensions(fine, scratch, D=10_000, dip=0.0):
    """A table of `intrinsic_dimension` with these d90. From scratch, d = 20 gains `dip` less than d = 10."""
    rows = [{"base": base, "d": D, "start": 5.0, "final": 2.0, "share": 1.0} for base in ("tiny", "random")]
    rows += [
        {"base": "random", "d": d, "share": 0.8 - x, "start": 5.0, "final": 3.0} for d, x in ((10, 0.0), (20, dip))
    ]
    settings = {
        "D": D,
        "d90": {"tiny": fine, "random": scratch},
        "resolution": 1.4,
        "steps": 9,
        "unigram": 3.0,
        "share": 0.9,
    }
    rows = [row | {"phase": "seeds", "projection": "sparse", "seed": 0} for row in rows]
    return Table("i", "?", "", settings | {"lora": {"1": 100, "2": 200}}, rows)


@pytest.mark.parametrize(
    "fine, scratch, few, fewer, said",
    [
        (200, 900, "yes", "yes", "200 (2.0 %) against 900 (9.0 %)"),
        (5000, 900, "no", "no", "5,000 (50 %) against 900"),
        (None, 900, "no", "no", "not reached against 900"),
        (200, None, "yes", "yes", "200 (2.0 %) against not reached"),
        (None, None, "no", "open", "not reached against not reached"),
        (1000, 999, "yes", "open", "1,000 (10 %) against 999 (10.0 %)"),
    ],
)
def test_the_verdicts_on_d90_agree_with_the_table(fine, scratch, few, fewer, said):
    _, one, two = claims_on_low_rank.on_dimension(dimensions(fine, scratch))
    assert one.verdict == few and two.verdict == fewer and said in two.number and "rough" not in two.note
    assert claims_on_low_rank.on_dimension(dimensions(fine, scratch, dip=0.1))[2].note.endswith(
        "From random weights, training in 20 dimensions gains less than training in fewer dimensions, with the one seed. Therefore "
        "the number of dimensions that training from random weights needs is a rough estimate."
    )


def test_a_curve_falls_only_if_every_seed_falls():
    table = dimensions(200, 900, dip=0.1)
    assert claims_on_low_rank.falls(table, "random") == [20]
    more = [row | {"seed": 1} for row in table.rows]
    table.rows += [row | {"share": 0.81} if row["d"] == 20 else row for row in more]
    assert claims_on_low_rank.falls(table, "random") == []


@pytest.mark.parametrize("dense, wanted", [(0.055, "yes"), (0.09, "partly"), (0.2, "no")])
def test_a_dense_subspace_is_compared_with_the_sparse_one_seed_by_seed(dense, wanted):
    table = dimensions(200, 900)
    assert not claims_on_low_rank.same_with_dense(table)
    table.settings["control"] = 16
    for seed, sparse in enumerate((0.05, 0.075)):
        row = {"phase": "seeds", "base": "tiny", "d": 16, "seed": seed, "start": 5.0, "final": 4.9}
        table.rows += [row | {"projection": "sparse", "share": sparse}]
        table.rows += [row | {"projection": "dense", "share": dense + (sparse - 0.05) * (wanted == "yes")}]
    (claim,) = claims_on_low_rank.same_with_dense(table)
    assert claim.verdict == wanted and "d = 16" in claim.number


def test_an_amplification_is_as_the_papers_within_a_factor_of_two_where_w_has_more_than_chance():
    """In GPT-3 the amplification at r = 4 is 22, and W is 16 times as large there as in random directions."""
    assert claims_on_low_rank.as_in_the_paper(4, 15.0, 10.0)
    assert not claims_on_low_rank.as_in_the_paper(4, 5.6, 10.0), "a quarter of it"
    assert not claims_on_low_rank.as_in_the_paper(4, 15.0, 1.5), "no more of W than in random directions"
