"""The sweeps of knobs run what they say, in seconds, and the claims read from their tables what is there."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import knob_tables as tables
import numpy as np
import pytest
from small_studies import serially

import lora_np as ln
from lora_np.studies.harness import runs, tiny_task
from lora_np.studies.hyperparameters import claims
from lora_np.studies.hyperparameters import study as hyperparameters
from lora_np.studies.hyperparameters import sweep as knobs
from lora_np.studies.hyperparameters.study import RULES, alike, by_rule, trainable, with_batch
from lora_np.studies.hyperparameters.sweep import FULL, GROUPS, QUICK, Bench, KnobRun, beside_in, with_own_bests

# ---------------------------------------------------------------------------------------------------------- the runs


def test_the_recipe_is_the_common_one():
    assert FULL.recipe().config() == ln.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    assert FULL.recipe().model().peft_config["default"].r == 16
    assert all(p.trainable for _, p in FULL.full().model().named_parameters())


@pytest.mark.parametrize("name", FULL.modules)
def test_a_run_adapts_the_modules_that_it_names(name):
    model = KnobRun("lora", 1e-3, 2, 4, target_modules=name).model()
    adapted = {part for n, p in model.named_parameters() if p.trainable for part in n.split(".") if "_proj" in part}
    linear = {*knobs.ATTENTION, *knobs.MLP}
    wanted = GROUPS.get(name, (name,))
    assert adapted == (linear if wanted == "all-linear" else set(wanted))


def test_a_run_on_little_text_reads_its_beginning_alone():
    text = ln.data.corpus("code", "train")
    assert np.array_equal(KnobRun("full", train_bytes=100).text(), text[:100])
    assert KnobRun("full").text().size == text.size == tiny_task.Run("full", 1e-3).text().size


def test_attention_and_mlp_are_compared_at_equal_parameters_within_2_percent():
    for r in FULL.matched_r:
        found = {run.target_modules: run for run in alike(FULL, r)}
        assert {"attention", "MLP"} <= found.keys() and found["MLP"].r == r
        counts = [trainable(run) for run in found.values()]
        assert max(counts) <= 1.02 * min(counts)
        on_paper = 5 * found["attention"].r * (2 * (128 + 128) + 2 * (128 + 64))  # q and o; k and v, of half the heads
        assert trainable(found["attention"]) == on_paper
    left_out = alike(FULL, 7)
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
    for module in (knobs, runs):
        monkeypatch.setattr(module, "run_all", serially)
    small = {"steps": 2, "small_steps": 2, "batch_size": 2, "seq_len": 16, "batch_sizes": (1, 2), "r": 4}
    return replace(QUICK, base=small_base, ranks=(1, 4), doubled_ranks=(1, 4), scaled_ranks=(1, 4), **small)


@pytest.mark.parametrize("study", hyperparameters.STUDIES, ids=lambda f: f.__name__)
def test_a_study_counts_each_run_once_and_starts_each_from_the_base(study, setting, monkeypatch):
    asked = []

    def recorded(measure, made, *arguments):
        asked.extend(made)
        return serially(measure, made, *arguments)

    for module in (knobs, runs):
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


def test_each_study_turns_the_knob_that_it_is_about(setting):
    turned = {
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
        assert differing <= turned[study.__name__], study.__name__


def test_a_sweep_goes_on_to_each_settings_best_and_gives_every_seed_a_best_of_its_own(setting, monkeypatch):
    def measure(run):
        best = 0.02 if run.method == "lora" else 0.004
        off = abs(np.log2(run.lr / (best * (2 if run.seed == 1 else 1))))
        return asdict(run) | {"validation": off, "final": off, "seconds": 1.0, "grad_norms": [1.0]}

    monkeypatch.setattr(knobs, "measure", measure)
    bench = Bench(replace(setting, bracket=True, seeds=(0, 1, 2)), 1, None)
    rows = bench.tune(setting.full(), setting.recipe(), neighbours=True)
    for run, best in ((setting.full(), 0.004), (setting.recipe(), 0.02)):
        mine = [row for row in rows if row["method"] == run.method]
        own = {row["seed"]: row["lr"] for row in mine if row["own_best"]}
        assert own.keys() == {0, 1, 2} and own[0] == own[2] == pytest.approx(best, rel=0.5) and own[1] == 2 * own[0]
        assert {row["lr"] for row in mine if row["phase"] == "seeds"} == {own[0]}
        tried = [row["lr"] for row in mine if row["phase"] == "sweep"]
        assert min(tried) < own[0] < max(tried)
    assert len(bench.done) == len({(row["method"], row["lr"], row["seed"]) for row in rows})


def test_the_rates_beside_the_best():
    assert beside_in([4, 1, 2], 2) == [1, 4]
    assert beside_in([4, 1, 2], 4) == [2] and beside_in([3], 3) == []


def test_a_run_that_diverged_is_nobodys_best_and_has_no_losses(monkeypatch):
    def diverge(run):
        raise FloatingPointError("step 1: loss nan")

    monkeypatch.setattr(tiny_task, "fine_tune", diverge)
    row = knobs.measure(KnobRun("full", 1.0))
    assert row["final"] is row["validation"] is row["train"] is None and row["grad_norms"] == []
    good = row | {"lr": 0.1, "validation": 1.0}
    assert [x["own_best"] for x in with_own_bests([row, good])] == [False, True]


# ---------------------------------------------------------------------------------------------- what α and Adam share


@pytest.mark.parametrize("p, q", [(4.0, 2.0), (0.5, 8.0)])
def test_under_adam_alpha_and_the_rates_of_a_and_b_are_one_knob_to_the_bit(p, q):
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


def test_every_claim_is_said_from_the_tables():
    assert set(claims.NEEDED) == every().keys()
    rows = claims.on_hyperparameters(every())
    assert len(rows) == 9
    for row in rows:
        assert len(row) == 4 and all(row) and not any("|" in cell for cell in row), "README's table would break"


def test_the_ratio_is_told_for_each_alpha_and_a_seed_that_strays_is_named():
    table = tables.by_rank(4)
    said = claims.ten_times(table, tables.alphas(1.0))[2]
    assert "32, 8, 4, 2 and 0.5 times at α = 4, 16, 32, 64 and 256" in said and "one seed" not in said
    for row in table.where(r=1, rule="α/r", seed=1):
        row["own_best"] = row["phase"] == "near" and row["lr"] == 8e-3
    assert "100 steps, one seed of r = 1 8;" in claims.ten_times(table)[2]


@pytest.mark.parametrize("ratio, said", [(4, "no, less: 4 times"), (10, "yes: 10 times"), (30, "no, more: 30 times")])
def test_ten_times_is_said_where_it_is_near_ten(ratio, said):
    assert claims.ten_times(tables.by_rank(ratio))[2].startswith(said)


def test_ten_times_is_asked_of_every_rank():
    table = tables.by_rank(10)
    for row in table.rows:
        if row["r"] == max(r for r in table.settings["ranks"]):
            row["lr"] /= 8
    assert claims.ten_times(table)[2].startswith("at some ranks: ")


def test_the_best_rate_is_called_independent_only_where_it_stays():
    table = tables.by_rank()
    found = claims.independent_of_rank(table, tables.converged())[2]
    assert found.startswith("yes") and "α = 2r 0.016 at r = 1, 0.002 at r = 64" in found and "0.0005 at r = 64" in found
    for row in table.where(r=64, rule="α/r"):
        row["lr"] /= 4
    assert claims.independent_of_rank(table, tables.converged())[2].startswith("no")


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_how_the_best_rate_goes_with_alpha_is_fitted(power):
    assert f"to the power −{power:.2f}" in claims.alpha_and_rate(tables.alphas(power))[2]


def test_the_share_of_the_recipe_is_of_full_fine_tunings_gain():
    share = (1.55 - (1.32 + 0.05 / 16)) / (1.55 - 1.30)
    assert claims.recipe(tables.by_rank())[2].startswith(f"{share:.0%} of full fine-tuning's gain")


def test_gradient_norms_are_told_against_the_square_root():
    said = claims.rank_stabilised(tables.scaled())[2]
    assert "is 0.35× that at r = 16 under α/r (√(16/128) = 0.35), 1.00× under α/√r" in said


def test_two_r_is_told_for_each_rank_apart():
    table = tables.by_rank()
    for row in table.where(r=1, rule="α = 2r", phase="seeds"):
        row["final"] += 0.1
    said = claims.two_r(table, tables.scaled())[2]
    assert (
        "r = 1 1.470 against 1.370 (higher with every seed, by 0.1000 to 0.1000), r = 64 1.321 against 1.321 (" in said
    )
    assert "r = 128: 1.394 against 1.331" in said


def test_lower_higher_or_no_difference_is_told_by_the_seeds():
    """Seed against the same seed: two settings whose ranges overlap may still differ with every one."""
    rows = {
        loss: [{"final": loss + d, "seed": i} for i, d in enumerate((-3e-3, 0, 3e-3))] for loss in (1.0, 1.004, 1.1)
    }
    for (a, one), (b, other) in itertools.permutations(rows.items(), 2):
        wanted = f"{'lower' if a < b else 'higher'} with every seed, by {abs(a - b):.4f} to {abs(a - b):.4f}"
        assert claims.verdict(one, other) == wanted == claims.verdict(one[::-1], other)
    mixed = [row | {"final": 1.0} for row in rows[1.0]]
    assert claims.verdict(rows[1.0], mixed) == "not clearly different (−0.0030 to +0.0030 over the seeds)"
    assert "(MLP lower with every seed" in claims.where(tables.equal(0.02), tables.targets())[2]
    assert "(MLP higher with every seed" in claims.where(tables.equal(-0.02), tables.targets())[2]


@pytest.mark.parametrize(
    "extra, said",
    [(0.02, "yes:"), (-0.04, "not seen here, in batches of up to 32"), (0.0, "not seen here")],
)
def test_large_batches_are_judged_against_the_seeds(extra, said):
    assert claims.large_batches(tables.batches(extra))[2].startswith(said)


def test_dropout_is_told_for_little_and_for_much():
    little, own, much = claims.dropping(tables.dropouts())[2].split("; ")
    assert "p = 0.1 ends at 1.520, none at 1.540 (lower with every seed, by 0.0200" in little and "(lower" in own
    assert "p = 0.1 ends at 1.350, none at 1.340 (higher with every seed" in much and "base" not in little
    table = tables.dropouts()
    table.settings["base_loss"] = 1.5
    assert "all worse than the frozen base's 1.500)" in claims.dropping(table)[2].split("; ")[0]


def test_which_dropout_stands_for_all_is_chosen_on_other_text_than_judges():
    table = tables.dropouts()
    for row in table.rows:
        row["validation"] = 1 + abs(row["lora_dropout"] - 0.2)  # 0.2 is best there, whatever it is where it is judged
    assert claims.dropping(table)[2].count("p = 0.2 ends at") == 3
