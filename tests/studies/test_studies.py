"""Tests of the studies on a model with a few thousand parameters; they take seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_np.studies.convergence import study
from lora_np.studies.convergence.study import convergence
from lora_np.studies.harness import tiny_task
from lora_np.studies.harness.runs import run_all
from lora_np.studies.harness.table import Table, groups, mean, median, rounded, show
from lora_np.studies.harness.tiny_task import Run, recovered
from lora_np.studies.low_rank import rank_reduction
from lora_np.studies.timing.step_cost import step_cost, timed_alike


def test_every_method_is_compared_at_the_best_rate_of_a_sweep_that_has_a_minimum_inside(setting, monkeypatch):
    """The optimum is far from the first rates, so the sweep must continue until the best rate is not at its edge."""
    monkeypatch.setattr(
        study,
        "measure",
        lambda run: vars(run) | {"validation": abs(np.log2(run.lr / 0.08)), "final": run.lr, "seconds": [1.0]},
    )
    table = convergence(replace(setting, bracket=True))
    for row in table.where(phase="seeds"):
        assert row["lr"] == pytest.approx(0.08, rel=0.5)
        tried = [r["lr"] for r in table.where(phase="sweep", method=row["method"], r=row["r"])]
        assert min(tried) < row["lr"] < max(tried), "the best is at the edge of what was tried"


def test_every_method_has_every_seed_and_starts_from_the_base(setting, monkeypatch):
    table = convergence(setting)
    final = table.where(phase="seeds")
    assert {(r["method"], r["r"], r["seed"]) for r in final} == {
        (method, r, seed) for method, r in [("full", None), ("lora", 1), ("lora", 4)] for seed in setting.seeds
    }
    for row in final:
        assert row["heldout"][0] == pytest.approx(table.settings["base_loss"])
        assert row["steps"] == [0, 1, 2, 3] and len(row["seconds"]) == 4


def test_the_recovered_share_is_the_gain_over_full_fine_tunings_mean():
    finals = {"full": (1.0, 1.5), "lora": (1.25, 1.5)}
    rows = [{"method": method, "final": final} for method, losses in finals.items() for final in losses]
    assert recovered(rows, base_loss=2.25) == pytest.approx([1.25, 0.75, 1.0, 0.75])


def test_the_rate_is_chosen_on_other_text_than_the_comparison_reads():
    chosen, judged = (
        np.concatenate([x for x, _ in f()]) for f in (tiny_task.validation_batches, tiny_task.heldout_batches)
    )
    assert chosen.shape == judged.shape == (128, 128)
    assert not {row.tobytes() for row in chosen} & {row.tobytes() for row in judged}


def test_the_rates_text_and_the_comparisons_text_are_each_where_they_belong(setting):
    """The two halves of the held-out text differ, so the losses on them differ too."""
    run = Run("full", 1e-3, max_steps=2, batch_size=2, eval_every=1, base=setting.base)
    row, (model, _) = tiny_task.measure(run), tiny_task.fine_tune(run)
    assert row["validation"] == tiny_task.evaluate(model, tiny_task.validation_batches())
    assert row["final"] == tiny_task.evaluate(model, tiny_task.heldout_batches()) != row["validation"]


def test_the_best_rate_is_the_one_with_the_best_validation(setting, monkeypatch):
    losses = {1e-3: (1.0, 2.0), 2e-3: (2.0, 1.0)}  # validation, final: they disagree
    monkeypatch.setattr(
        study,
        "measure",
        lambda run: vars(run) | dict(zip(("validation", "final"), losses[run.lr], strict=True)) | {"seconds": [1]},
    )
    table = convergence(replace(setting, lora_lrs=(1e-3, 2e-3), full_lrs=(1e-3, 2e-3)))
    assert {row["lr"] for row in table.where(phase="seeds")} == {1e-3}


def test_a_repeat_that_diverges_is_named(setting, monkeypatch):
    def diverge(run):
        loss = None if run.seed and run.r == 4 else 1.0
        return vars(run) | {"validation": loss, "final": loss, "seconds": [1]}

    monkeypatch.setattr(study, "measure", diverge)
    with pytest.raises(FloatingPointError, match=r"'r': 4, 'lr': 0.004, 'seed': 1\} diverged"):
        convergence(setting)


def test_a_run_that_diverges_is_a_row_without_a_loss_and_never_the_best(setting, monkeypatch):
    def diverge(run, progress=False):
        if run.lr > 1e-3:
            raise FloatingPointError("step 1: loss nan")
        return original(run)

    original = tiny_task.fine_tune
    monkeypatch.setattr(tiny_task, "fine_tune", diverge)
    table = convergence(replace(setting, lora_lrs=(1e-3, 2e-3), full_lrs=(1e-3, 2e-3)))
    assert {row["final"] is None for row in table.where(phase="sweep", lr=2e-3)} == {True}
    assert {row["lr"] for row in table.where(phase="seeds")} == {1e-3}


def test_what_keeps_lora_back_is_measured_by_training_what_it_leaves_frozen(setting, monkeypatch):
    table = study.shortfall(convergence(setting), r=4)
    assert [row["method"] for row in table.rows] == ["full", "linear", "lora+rest", "lora"] * len(setting.seeds)
    assert [row["seed"] for row in table.where(method="linear")] == list(setting.seeds)
    assert table.settings["runs"] >= 2 * (3 + len(setting.seeds) - 1), "each has three rates of its own at least"
    for method, names in {"linear": ("_proj.",), "lora+rest": ("lora_", "embed_tokens", "norm")}.items():
        model = Run(method, 1e-3, 4, "all-linear", base=setting.base).model()
        trained = [name for name, p in model.named_parameters() if p.trainable]
        assert trained and all(any(part in name for part in names) for name in trained)


def test_a_sweep_ends_where_a_smaller_rate_changes_nothing(setting, monkeypatch):
    monkeypatch.setattr(
        study, "measure", lambda run: vars(run) | {"validation": max(run.lr, 1e-4), "final": 1.0, "seconds": [1.0]}
    )
    table = convergence(replace(setting, bracket=True))
    assert min(row["lr"] for row in table.where(phase="sweep")) > 1e-5


def test_a_study_that_was_stopped_reads_what_it_has(tmp_path):
    runs = [Run("full", lr) for lr in (1.0, 2.0)]
    first = run_all(_echo, runs, 1, tmp_path, "test")
    assert run_all(_fail, runs, 1, tmp_path, "test") == first == [{"lr": 1.0}, {"lr": 2.0}]


def _echo(run):
    return {"lr": run.lr}


def _fail(run):
    raise AssertionError("a finished run was repeated")


def test_a_truncated_matrix_is_the_best_of_its_rank_and_its_error_the_tail():
    matrix = np.random.default_rng(0).standard_normal((9, 6))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    for r in range(1, 7):
        B, A = rank_reduction.truncate(matrix, r)
        assert B.shape == (9, r) and A.shape == (r, 6)
        assert np.linalg.norm(matrix - B @ A) == pytest.approx(np.sqrt((sigma[r:] ** 2).sum()), abs=1e-12)


def test_the_rank_study_runs_from_the_base_to_all_of_the_change(setting, monkeypatch):
    monkeypatch.setattr(rank_reduction, "heldout_batches", tiny_task.heldout_batches)
    run = Run("full", 1e-2, max_steps=3, batch_size=2, eval_every=3, base=setting.base)
    deltas = rank_reduction.learned_deltas(run)
    table = rank_reduction.truncated_loss(deltas, run, ranks=(1, 8, 16))
    assert table.settings["full_loss"] != table.settings["base_loss"]
    assert table.rows[-1]["heldout_loss"] == pytest.approx(table.settings["full_loss"], rel=1e-5), (
        "full rank cuts nothing"
    )
    spectra = rank_reduction.singular_values(deltas, run).rows
    assert len(spectra) == 7
    for row in spectra:  # the random matrix beside it has the same norm
        energies = [np.sum(np.square(row[key])) for key in ("singular_values", "random_singular_values")]
        assert energies == pytest.approx([row["norm"] ** 2] * 2, rel=1e-4)


def test_the_photograph_counts_the_numbers_that_are_kept():
    image = np.random.default_rng(0).random((20, 10))
    rows = rank_reduction.photograph(image, ranks=(2,)).rows
    assert rows[0]["share_of_numbers"] == 2 * 30 / 200 and rows[1]["error"] == 0
    with pytest.raises(ValueError, match="expected grey values"):
        rank_reduction.photograph(image[..., None])


def test_lora_trains_in_less_memory_than_full_fine_tuning():
    """A step on "tiny", as tracemalloc sees it: gradients, optimizer state, activations and temporaries."""
    full, everywhere, attention = step_cost(repeats=1, steps=1).rows
    assert attention["peak_bytes"] < everywhere["peak_bytes"] < full["peak_bytes"]


def test_the_clock_of_a_comparison_is_one_for_all():
    rows = [{"method": "full", "r": None, "target_modules": None, "steps": [0, 10], "seconds": [0, 99]}]
    cost = Table("", "", "", rows=[{"method": "full", "r": None, "target_modules": None, "seconds": 0.5}])
    assert timed_alike(Table("", "", "", rows=rows), cost).rows[0]["seconds"] == [0, 5]


def test_a_table_of_an_older_version_has_the_names_of_today(tmp_path):
    old = Table("toy", "?", "none", {"bits_a_symbol": 5, "r": 1}, [{"side": "ours", "seconds": 1.5}])
    loaded = Table.load(old.save(tmp_path / "old.json"))
    assert loaded.rows == [{"competitor": "ours", "seconds": 1.5}] and loaded.settings == {"bits_per_symbol": 5, "r": 1}


def test_a_table_reads_back_what_it_saved_and_refuses_what_is_none(tmp_path):
    table = Table("s", "q?", "c", {"a": [1, None]}, [{"r": 1, "x": [0.1]}, {"r": 2}], seconds=1.5)
    assert Table.load(table.save(tmp_path / "t.json")) == table
    (tmp_path / "no.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"no\.json is damaged or not JSON"):
        Table.load(tmp_path / "no.json")


def test_rows_are_grouped_by_one_column_or_several_in_the_order_of_the_values():
    rows = [{"r": 8, "seed": 0, "final": 3.0}, {"r": 1, "seed": 1, "final": 1.0}, {"r": 8, "seed": 1, "final": 5.0}]
    assert list(groups(rows, "r").items()) == [(1, [rows[1]]), (8, [rows[0], rows[2]])]
    assert list(groups(rows, "seed", "r")) == [(0, 8), (1, 1), (1, 8)]
    assert mean(rows) == median(rows, "final") == 3.0 and mean(groups(rows, "r")[8]) == 4.0
    assert [rounded(x, 3) for x in (0.0123456, 98765.0)] == [0.0123, 98800.0]


def test_rows_are_shown_in_columns_with_words_at_the_left_and_numbers_at_the_right(capsys):
    show(
        [{"method": "full", "final": 1.25}, {"method": "lora", "r": 8, "final": 12.5}],
        {"method": "", "r": "", "final": ".2f"},
    )
    assert capsys.readouterr().out == "method  r  final\nfull        1.25\nlora    8  12.50\n"
    show([{"r": 16, "who": "a"}, {"r": 2, "who": "bcd"}], ["r", "who"])
    assert capsys.readouterr().out == "r   who\n16  a\n2   bcd\n"
