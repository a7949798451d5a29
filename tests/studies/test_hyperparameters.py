"""The sweeps of hyperparameters run what they say, in seconds, and the claims agree with their tables."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import hyperparameter_tables as tables
import numpy as np
import pytest
from small_studies import serially

import lora_np as ln
from lora_np.studies.harness import runs, tiny_task
from lora_np.studies.hyperparameters import claims, sweep
from lora_np.studies.hyperparameters import study as hyperparameters
from lora_np.studies.hyperparameters.study import RULES, by_rule, trainable, with_batch, with_equal_parameters
from lora_np.studies.hyperparameters.sweep import (
    FULL,
    GROUPS,
    QUICK,
    HyperparameterRun,
    Tuner,
    beside_in,
    with_own_bests,
)

# ---------------------------------------------------------------------------------------------------------- the runs


def test_the_recipe_is_the_common_one():
    assert FULL.recipe().config() == ln.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    assert FULL.recipe().model().peft_config["default"].r == 16
    assert all(p.trainable for _, p in FULL.full().model().named_parameters())


@pytest.mark.parametrize("name", FULL.modules)
def test_a_run_adapts_the_modules_that_it_names(name):
    model = HyperparameterRun("lora", 1e-3, 2, 4, target_modules=name).model()
    adapted = {part for n, p in model.named_parameters() if p.trainable for part in n.split(".") if "_proj" in part}
    linear = {*sweep.ATTENTION, *sweep.MLP}
    wanted = GROUPS.get(name, (name,))
    assert adapted == (linear if wanted == "all-linear" else set(wanted))


def test_a_run_on_little_text_reads_its_beginning_alone():
    text = ln.data.corpus("code", "train")
    assert np.array_equal(HyperparameterRun("full", train_bytes=100).text(), text[:100])
    assert HyperparameterRun("full").text().size == text.size == tiny_task.Run("full", 1e-3).text().size


def test_attention_and_mlp_are_compared_at_equal_parameters_within_2_percent():
    for r in FULL.matched_r:
        found = {run.target_modules: run for run in with_equal_parameters(FULL, r)}
        assert {"attention", "MLP"} <= found.keys() and found["MLP"].r == r
        counts = [trainable(run) for run in found.values()]
        assert max(counts) <= 1.02 * min(counts)
        on_paper = 5 * found["attention"].r * (2 * (128 + 128) + 2 * (128 + 64))  # q and o; k and v, of half the heads
        assert trainable(found["attention"]) == on_paper
    left_out = with_equal_parameters(FULL, 7)
    assert "all-linear" not in {run.target_modules for run in left_out}, "r = 4 is 10 % off"


def test_the_three_rules_scale_as_they_say_and_agree_at_the_recipes_rank():
    scale = {(rule, r): by_rule(FULL, rule, r).config().scaling for rule in RULES for r in (1, 16, 64)}
    assert [scale[rule, 64] for rule in RULES] == [32 / 64, pytest.approx(8 / 64**0.5), 2]
    assert [scale[rule, 1] for rule in RULES] == [32, 8, 2]
    assert {by_rule(FULL, rule, 16) for rule in RULES} == {FULL.recipe()}


def test_another_batch_reads_as_many_tokens():
    for b in FULL.batch_sizes:
        run = with_batch(FULL.recipe(), b)
        assert run.batch_size * run.max_steps * run.seq_len == 100 * 8 * 128
    assert with_batch(FULL.recipe(), 8) == FULL.recipe()


# --------------------------------------------------------------------------------------------------------- the sweeps


@pytest.fixture
def setting(small_base, monkeypatch):
    batch = np.arange(64).reshape(2, 32), np.arange(1, 65).reshape(2, 32)
    monkeypatch.setattr(tiny_task, "_unseen", lambda: [batch, (batch[1], batch[0])])
    for module in (sweep, runs):
        monkeypatch.setattr(module, "run_all", serially)
    small = {"steps": 2, "small_steps": 2, "batch_size": 2, "seq_len": 16, "batch_sizes": (1, 2), "r": 4}
    return replace(QUICK, base=small_base, ranks=(1, 4), doubled_ranks=(1, 4), scaled_ranks=(1, 4), **small)


@pytest.mark.parametrize("study", hyperparameters.STUDIES, ids=lambda f: f.__name__)
def test_a_study_counts_each_run_once_and_starts_each_from_the_base(study, setting, monkeypatch):
    asked = []

    def recorded(measure, made, *arguments):
        asked.extend(made)
        return serially(measure, made, *arguments)

    for module in (sweep, runs):
        monkeypatch.setattr(module, "run_all", recorded)
    table = study(setting, workers=1)
    assert table.study == study.__name__ and table.command == f"python -m lora_np study {study.__name__}"
    distinct = {tuple(row[name] for name in asdict(setting.recipe())): row["seconds"] for row in table.rows}
    assert (
        table.settings["runs"] == len(set(asked)) >= len(distinct)
    )  # some find the recipe's rate first, without a row
    assert table.seconds >= sum(distinct.values()) * (1 - 1e-9)
    assert {row["seed"] for row in table.rows if row["phase"] != "sweep"} == set(setting.seeds)
    assert all(
        np.isfinite([row["final"], row["validation"], row["train"], row["grad_norm"]]).all() for row in table.rows
    )
    assert all(row["trainable"] > 0 for row in table.rows)


def test_each_study_changes_only_the_hyperparameter_that_it_is_about(setting):
    changed = {
        "learning_rates_by_rank": {"method", "r", "lora_alpha", "target_modules", "lr"},
        "equal_parameters": {"target_modules", "r"},
        "scaling": {"r", "lora_alpha", "use_rslora"},
        "alpha": {"lora_alpha"},
        "target_modules": {"target_modules"},
        "batch_size": {"method", "r", "lora_alpha", "target_modules", "lr", "batch_size", "max_steps", "eval_every"},
        "dropout": {"lora_dropout", "train_bytes", "max_steps", "eval_every"},
    }
    for study in hyperparameters.STUDIES:
        rows = study(setting, workers=1).rows
        differing = {n for n in asdict(setting.recipe()) if len({repr(row[n]) for row in rows}) > 1} - {"seed"}
        assert differing <= changed[study.__name__], study.__name__


def test_a_sweep_reaches_the_best_rate_of_each_setting_and_each_seed_has_its_own_best(setting, monkeypatch):
    def measure(run):
        best = 0.02 if run.method == "lora" else 0.004
        off = abs(np.log2(run.lr / (best * (2 if run.seed == 1 else 1))))
        return asdict(run) | {"validation": off, "final": off, "seconds": 1.0, "grad_norms": [1.0]}

    monkeypatch.setattr(sweep, "measure", measure)
    tuner = Tuner(replace(setting, bracket=True, seeds=(0, 1, 2)), 1, None)
    rows = tuner.tune(setting.full(), setting.recipe(), neighbours=True)
    for run, best in ((setting.full(), 0.004), (setting.recipe(), 0.02)):
        mine = [row for row in rows if row["method"] == run.method]
        own = {row["seed"]: row["lr"] for row in mine if row["own_best"]}
        assert own.keys() == {0, 1, 2} and own[0] == own[2] == pytest.approx(best, rel=0.5) and own[1] == 2 * own[0]
        assert {row["lr"] for row in mine if row["phase"] == "seeds"} == {own[0]}
        tried = [row["lr"] for row in mine if row["phase"] == "sweep"]
        assert min(tried) < own[0] < max(tried)
    assert len(tuner.done) == len({(row["method"], row["lr"], row["seed"]) for row in rows})


def test_the_rates_beside_the_best():
    assert beside_in([4, 1, 2], 2) == [1, 4]
    assert beside_in([4, 1, 2], 4) == [2] and beside_in([3], 3) == []


def test_a_diverged_run_is_never_the_best_and_has_no_losses(monkeypatch):
    def diverge(run):
        raise FloatingPointError("step 1: loss nan")

    monkeypatch.setattr(tiny_task, "fine_tune", diverge)
    row = sweep.measure(HyperparameterRun("full", 1.0))
    assert row["final"] is row["validation"] is row["train"] is None and row["grad_norms"] == []
    good = row | {"lr": 0.1, "validation": 1.0}
    assert [x["own_best"] for x in with_own_bests([row, good])] == [False, True]


# ---------------------------------------------------------------------------------------------- what α and Adam share


@pytest.mark.parametrize("p, q", [(4.0, 2.0), (0.5, 8.0)])
def test_under_adam_alpha_and_the_rates_of_a_and_b_are_one_hyperparameter_to_the_bit(p, q):
    """(α/(pq), A·p, lr_A·p, lr_B·q) computes what (α, A, lr_A, lr_B) does, for powers of two and a vanishing ε."""

    def trained(p, q, of_A=None):
        config = ln.LoraConfig(r=4, lora_alpha=8 / (p * q), target_modules="all-linear")
        model = ln.get_peft_model(ln.load_model("tiny"), config, seed=0)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.value *= of_A or p
        adam = ln.AdamW(lr=4e-3, weight_decay=0.0, eps=1e-30, lr_ratio={"lora_A": p, "lora_B": q})
        batches = ln.data.Batches(ln.data.corpus("code", "train"), batch_size=2, seq_len=32)
        ln.train(model, batches, adam, steps=3, progress=False)
        return model.forward(batches[9][0])[0]

    plain = trained(1.0, 1.0)
    assert np.array_equal(trained(p, q), plain)
    assert not np.array_equal(trained(p, q, of_A=1.0), plain), "A's start belongs to it"


# ---------------------------------------------------------------------------------------------------------- the claims


def every() -> dict:
    return {name: make() for name, make in tables.EVERY.items()} | {"convergence": tables.converged()}


def test_every_claim_has_a_verdict_a_short_number_and_findings_of_different_names():
    assert set(claims.NEEDED) == every().keys()
    found = claims.claims(every())
    assert len(found) == 9 and all(len(claim.number) <= 65 and claim.below for claim in found)
    assert not any("|" in text for claim in found for text in (claim.claim, claim.number)), "this breaks the table"
    names = [finding.name for claim in found for finding in claim.findings]
    assert len(names) == len(set(names)) and all(name.startswith("hyperparameters.") for name in names)


def test_the_ratio_is_reported_for_each_alpha_and_for_each_seed_that_differs():
    table = tables.by_rank(4)
    note = claims.ten_times(table, tables.alphas(1.0)).note
    assert "With α = 4, 16, 32, 64 and 256, this ratio is 32, 8, 4, 2 and 0.5." in note and "one seed" not in note
    for row in table.where(r=1, rule="α/r", seed=1):
        row["own_best"] = row["phase"] == "near" and row["lr"] == 8e-3
    assert "With r = 1, LoRA's best learning rate for one seed is 8 times" in claims.ten_times(table).note


@pytest.mark.parametrize("ratio, verdict", [(4, "no"), (10, "yes"), (30, "no")])
def test_ten_times_holds_only_near_ten(ratio, verdict):
    claim = claims.ten_times(tables.by_rank(ratio))
    assert claim.verdict == verdict and claim.number.startswith(f"{ratio} times")


def test_ten_times_is_asked_of_every_rank():
    table = tables.by_rank(10)
    for row in table.rows:
        if row["r"] == max(r for r in table.settings["ranks"]):
            row["lr"] /= 8
    assert claims.ten_times(table).verdict == "partly"


def test_the_best_rate_is_called_independent_only_if_it_stays():
    table = tables.by_rank()
    claim = claims.independent_of_rank(table, tables.converged())
    assert claim.verdict == "yes" and "0.016 at r = 1 and 0.002 at r = 64" in claim.note
    assert "0.0005 at r = 64" in claim.note
    for row in table.where(r=64, rule="α/r"):
        row["lr"] /= 4
    assert claims.independent_of_rank(table, tables.converged()).verdict == "no"


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_slope_of_the_best_rate_over_alpha_is_fitted(power):
    findings = {finding.name: finding for finding in claims.alpha_and_rate(tables.alphas(power)).findings}
    slope = findings["hyperparameters.alpha.power"]
    assert slope.value == pytest.approx(-power) and f"to the power −{power:.2f}" in slope.sentence


def test_the_share_of_the_recipe_is_of_full_fine_tunings_gain():
    share = (1.55 - (1.32 + 0.05 / 16)) / (1.55 - 1.30)
    assert claims.recovered(tables.by_rank(), 16).value == pytest.approx(share)
    claim = claims.recipe(tables.by_rank())
    assert claim.verdict == ("yes" if share >= claims.ENOUGH else "no")
    least, most = claims.share_by_seed(tables.by_rank(), 16)
    assert (
        least <= share <= most
        and f"A single seed recovers between {100 * least:.1f} % and {100 * most:.1f} %" in claim.note
    )
    assert ("Other seeds could change" in claim.note) == (least < claims.ENOUGH <= most)


def test_gradient_norms_are_compared_with_the_square_root():
    plain, stable, loss = claims.rank_stabilised(tables.scaled()).findings
    assert plain.number == "0.35" and stable.number == "1.00" and loss.name == "hyperparameters.rslora"
    assert "√(16/128) = 0.35" in claims.rank_stabilised(tables.scaled()).note


def test_two_r_is_judged_at_each_rank():
    table = tables.by_rank()
    for row in table.where(r=1, rule="α = 2r", phase="seeds"):
        row["final"] += 0.1
    claim = claims.two_r(table, tables.scaled())
    one, many, kept = claim.findings
    assert "a loss of 1.470 nats per byte with α = 2r = 2 and at 1.370 with α = 32." in one.sentence
    assert "With every seed, the loss with α = 2r = 2 is higher than the loss with α = 32, by" in one.sentence
    assert (
        many.value == pytest.approx(0)
        and "1.394 nats per byte with α = 2r = 256 and at 1.331 with α = 32" in kept.sentence
    )
    assert claim.verdict == "no"


def test_lower_higher_or_no_difference_is_decided_by_the_seeds():
    """Runs are compared seed by seed. So two settings may differ with every seed although their ranges overlap."""
    rows = {
        loss: [{"final": loss + d, "seed": i} for i, d in enumerate((-3e-3, 0, 3e-3))] for loss in (1.0, 1.004, 1.1)
    }
    for (a, one), (b, other) in itertools.permutations(rows.items(), 2):
        found = claims.compared("x", "one", one, "other", other[::-1])
        assert claims.lower(found) is (a < b)
        assert found.value == pytest.approx(a - b) and found.spread == pytest.approx((a - b, a - b))
    mixed = claims.compared("x", "one", rows[1.0], "other", [row | {"final": 1.0} for row in rows[1.0]])
    assert claims.lower(mixed) is None


@pytest.mark.parametrize("ahead, verdict", [(0.02, "yes"), (-0.02, "no")])
def test_the_mlp_must_be_lower_with_every_seed(ahead, verdict):
    assert claims.where(tables.equal(ahead), tables.targets()).verdict == verdict


@pytest.mark.parametrize("extra, verdict", [(0.02, "yes"), (-0.04, "no"), (0.0, "open")])
def test_large_batches_are_judged_against_the_seeds(extra, verdict):
    assert claims.large_batches(tables.batches(extra)).verdict == verdict


def test_dropout_is_judged_on_little_text_and_reported_for_all_of_it():
    claim = claims.dropping(tables.dropouts())
    little, own, much = claim.findings
    assert "1.520 nats per byte with a dropout of p = 0.1 and at 1.540 with p = 0." in little.sentence
    assert "the loss with a dropout of p = 0.1 is lower than the loss with p = 0, by" in little.sentence
    assert claims.lower(little) and claims.lower(own) and claims.lower(much) is False and claim.verdict == "yes"
    assert "frozen base" not in claim.note
    table = tables.dropouts()
    table.settings["base_loss"] = 1.5
    assert (
        "the losses of all runs are above the loss of the frozen base, 1.500 nats per byte."
        in claims.dropping(table).note
    )


def test_the_dropout_that_is_compared_is_chosen_on_validation_text():
    table = tables.dropouts()
    for row in table.rows:
        row["validation"] = 1 + abs(row["lora_dropout"] - 0.2)  # 0.2 is best there, whatever the held-out loss says
    assert claims.dropping(table).note.count("nats per byte with a dropout of p = 0.2 and") == 3
