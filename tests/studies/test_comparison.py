"""The comparison of methods: each is what its name says, counts are the formulae's, and the lesson's rule is one for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_np import Transformer, save_model
from lora_np.peft import LoraConfig
from lora_np.studies.harness import tiny_task
from lora_np.studies.harness.paired import differs, forgotten_when, paired_differences, verdict
from lora_np.studies.harness.table import Table
from lora_np.studies.methods import claims as claims_on_methods
from lora_np.studies.methods import comparison as study
from lora_np.studies.methods import lesson, method_costs
from lora_np.studies.methods import settings as methods
from lora_np.studies.methods.comparison import Run, Setting, comparison, state_bytes, trained
from lora_np.studies.methods.settings import METHODS, VIRTUAL_TOKENS, R, bottleneck_size
from lora_np.studies.pretraining.study import TINY
from lora_np.studies.timing import step_cost
from lora_np.training import evaluate, train

CONFIG = replace(TINY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
CONFIG = replace(CONFIG, num_key_value_heads=2, head_dim=4)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A small random model in a folder, two batches to look at, and LoRA's rank of its own size."""
    save_model(Transformer.random(CONFIG), tmp_path / "base")
    batch = np.arange(64).reshape(2, 32), np.arange(1, 65).reshape(2, 32)
    monkeypatch.setattr(tiny_task, "_unseen", lambda: [batch, (batch[1], batch[0])])
    monkeypatch.setattr(study, "prose_batches", lambda: [(batch[0][:, ::-1].copy(), batch[1])])
    return str(tmp_path / "base")


BATCH = (np.arange(16).reshape(2, 8), np.arange(1, 17).reshape(2, 8))


def counts(config=CONFIG) -> dict[str, int]:
    """method → the parameters that it trains, by the formulae."""
    d, f, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = [(q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)]
    lora = L * R * sum(out + in_ for out, in_ in linears)
    outs = L * sum(out for out, _ in linears)
    m = bottleneck_size(Transformer.random(config))
    bottleneck = 2 * m * d + d + m
    return {
        **dict.fromkeys(("lora", "qlora", "rslora", "pissa", "lora+"), lora),
        **{"dora": lora + outs, "lora-fa": R * outs, "vera": 256 * 7 * L + outs},
        "prefix": VIRTUAL_TOKENS * 2 * L * kv,
        "prefix-mlp": VIRTUAL_TOKENS * kv + (kv * kv + kv) + (2 * L * kv * kv + 2 * L * kv),
        **{"houlsby": 2 * L * bottleneck, "pfeiffer": L * bottleneck},
    }


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_as_many_numbers_as_its_formula_says(name):
    base = Transformer.random(CONFIG)
    size = sum(p.value.size for _, p in base.named_parameters())
    model, optimizer = METHODS[name].model(base, seed=0), METHODS[name].optimizer(1e-3)
    expected = size if name == "full" else counts()[name]
    assert trained(model) == {"trainable": expected, "share": pytest.approx(expected / size)}
    train(model, [BATCH], optimizer, 1, progress=False)
    assert state_bytes(model, optimizer, BATCH) == 4 * 4 * expected, "value, gradient, m and v, in float32"


def test_the_methods_differ_in_what_their_names_say():
    base, tokens = Transformer.random(CONFIG), BATCH[0]
    started, _ = base.forward(tokens)
    for name in ("lora", "rslora", "dora", "pissa", "lora-fa", "lora+", "vera", "houlsby", "pfeiffer"):
        logits, _ = METHODS[name].model(Transformer.random(CONFIG), seed=0).forward(tokens)
        np.testing.assert_allclose(logits, started, atol=1e-4, err_msg=f"{name} does not start at the base")
    for name in ("qlora", "prefix", "prefix-mlp"):
        logits, _ = METHODS[name].model(Transformer.random(CONFIG), seed=0).forward(tokens)
        assert np.abs(logits - started).max() > 1e-4, f"{name} starts elsewhere"
    assert METHODS["lora+"].optimizer(1.0).lr_of("q_proj.lora_B.default", 1.0) == 16
    assert METHODS["rslora"].config.scaling == pytest.approx(METHODS["lora"].config.scaling * R**0.5)


def test_an_adapters_width_comes_nearest_to_the_share_that_is_asked_for():
    base, sizes = Transformer.random(TINY), {}
    for m in (bottleneck_size(base) + k for k in (-1, 0, 1)):
        sizes[m] = 2 * TINY.num_hidden_layers * (2 * m * TINY.hidden_size + TINY.hidden_size + m)
    wanted = methods.HOULSBY_SHARE * sum(p.value.size for _, p in base.named_parameters())
    assert min(sizes, key=lambda m: abs(sizes[m] - wanted)) == bottleneck_size(base)


def test_another_entry_of_the_table_of_methods_is_another_run(monkeypatch):
    before = Run("lora", 1e-3)
    monkeypatch.setitem(
        METHODS, "lora", replace(METHODS["lora"], config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    )
    assert Run("lora", 1e-3).how != before.how
    assert replace(before, lr=2.0).how == Run("lora", 1e-3).how, "what a run is, is asked when it is made"
    assert len({method.how() for method in METHODS.values()}) == len(METHODS)


def test_the_study_trains_and_resumes_to_the_same_table(base, tmp_path, monkeypatch):
    rates = {"full": (1e-3,), "lora": (1e-3, 2e-3), "prefix": (1e-2,)}
    setting = Setting(rates, bracket=False, seeds=(0, 1), steps=2, batch_size=2, eval_every=1, base=base)
    table = comparison(setting, workers=1, folder=tmp_path / "runs")
    assert table.settings["runs"] == 4 + 3 == len(list((tmp_path / "runs").iterdir()))
    for row in table.where(phase="seeds"):
        assert row["steps"] == [0, 1, 2] == list(range(len(row["prose"])))
        assert row["forgotten"] == row["prose"][-1] - table.settings["base_prose"]
        assert row["final"] == row["heldout"][-1] != row["validation"]
    starts = {row["method"]: row["heldout"][0] for row in table.where(phase="seeds", seed=0)}
    assert starts["full"] == starts["lora"] == table.settings["base_loss"] != starts["prefix"]
    model, _, _ = study.fine_tune(Run("prefix", 1e-2, max_steps=2, batch_size=2, eval_every=1, base=base))
    (row,) = table.where(phase="seeds", method="prefix", seed=0)
    assert row["prose"][-1] == evaluate(model, study.prose_batches()), "the prose is evaluated with what was trained"

    monkeypatch.setattr(study, "measure", lambda run: pytest.fail("a finished run was repeated"))
    again = comparison(setting, workers=1, folder=tmp_path / "runs")
    assert again.rows == table.rows


def test_a_run_that_diverges_is_a_row_without_a_loss(base, monkeypatch):
    def diverge(run):
        raise FloatingPointError("step 1: loss nan")

    monkeypatch.setattr(study, "fine_tune", diverge)
    row = study.measure(Run("lora", 1.0, base=base))
    assert row["final"] is None and row["validation"] is None and row["method"] == "lora"


def test_every_sweep_begins_with_three_rates_and_knows_its_method():
    assert study.RATES.keys() == METHODS.keys()
    assert all(len(lrs) == 3 and lrs[1] == 2 * lrs[0] and lrs[2] == 2 * lrs[1] for lrs in study.RATES.values())


# ----------------------------------------------------------------------------------------------------------------- costs


def test_costs_are_beside_the_base_and_full_and_merged_where_that_is_possible(base):
    names = ("full", "lora", "qlora", "vera", "prefix")
    table = method_costs.method_costs(names, base, 2, 8, prompt=4, new_tokens=2, rounds=1, steps=1)
    rows = {row["method"]: row for row in table.rows}
    assert list(rows) == list(names) and rows["full"]["step_ratio"] == rows["full"]["token_ratio"] == 1
    assert {name for name, row in rows.items() if row["merged_token_ratio"] is None} == {"prefix"}
    assert all(row["step_ratio"] > 0 and row["prompt_ratio"] > 0 for row in rows.values())


@pytest.mark.parametrize("name", ["lora", "prefix", "houlsby", "vera"])
def test_a_steps_peak_counts_the_adapter_whatever_it_is_called(name, monkeypatch):
    monkeypatch.setattr(step_cost, "train", lambda *arguments, **settings: None)
    model = METHODS[name].model(Transformer.random(CONFIG), seed=0)
    adapter = sum(p.value.nbytes for p in model.adapter_parameters())
    assert adapter <= step_cost.training_peak(model, []) < adapter + 4096


# ---------------------------------------------------------------------------------------------------------- the lesson


def test_the_rule_of_agreement():
    small, about, good = lesson.SMALL, lesson.about(0.03), lesson.quality(0.97)
    assert [small.verdict(x) for x in (0.0059, 0.0956)] == ["agrees", "more"]
    assert [about.verdict(x) for x in (0.014, 0.016, 0.059, 0.061)] == ["less", "agrees", "agrees", "more"]
    assert [good.verdict(x) for x in (0.94, 0.955, 0.985, 1.0)] == ["less", "agrees", "agrees", "more"]
    latency = {name: said["latency"] for name, said in lesson.LESSON.items()}
    assert [latency["lora"].verdict(x) for x in (1.01, 1.2)] == ["agrees", "more"]
    assert [latency["houlsby"].verdict(x) for x in (1.01, 1.2)] == ["less", "agrees"]
    assert [latency["prefix"].verdict(x) for x in (1.01, 1.2)] == ["agrees", "more"]


def small_tables() -> tuple[Table, Table]:
    shares = {"full": 1.0, "lora": 0.5, "qlora": 0.4, "prefix": 0.1, "houlsby": 0.03}
    rows = [
        {"method": m, "phase": "seeds", "seed": seed, "share": s, "recovered": s - 0.1 * seed, "forgotten": s}
        | {"lr": 1e-3, "trainable": int(1000 * s), "state_bytes": int(16000 * s), "final": 1.0}
        for m, s in shares.items()
        for seed in (0, 1)
    ]
    compared = Table("c", "?", "", {"labels": {m: METHODS[m].label for m in shares}}, rows)
    costs = [
        {
            "method": m,
            "step_ratio": 1.5,
            "peak_bytes": 1e6,
            "prompt_ratio": 1.2,
            "token_ratio": 1.3,
            "merged_prompt_ratio": None,
        }
        | {"merged_token_ratio": 1.01 if m == "lora" else None}
        for m in shares
    ]
    return compared, Table("m", "?", "", {}, costs)


def test_the_lessons_numbers_stand_beside_ours():
    compared, costs = small_tables()
    rows = {(row["method"], row["quantity"]): row for row in lesson.lesson_rows(compared, costs)}
    assert len(rows) == 4 * 3 - 1
    assert rows["lora", "quality"]["ours"] == pytest.approx(0.45) and rows["lora", "quality"]["verdict"] == "less"
    assert rows["lora", "latency"] | {"verdict": "agrees"} == rows["lora", "latency"], "merged"
    assert ("qlora", "latency") not in rows, "what was not merged is no answer to what merging costs"
    assert rows["houlsby", "share"]["verdict"] == "chosen so" and rows["houlsby", "latency"]["verdict"] == "agrees"
    text = lesson.lesson_markdown(lesson.lesson_rows(compared))
    assert "latency" not in text and "| LoRA | parameters trained | < 1 % | 50 % | more |" in text


def test_the_comparison_reads_as_two_tables():
    compared, costs = small_tables()
    for row in compared.where(method="prefix"):
        row["how"] = '{"lr_ratio": {"lora_B": 16.0}}'
    paid, reached = (
        text.splitlines() for text in (lesson.costs_markdown(compared, costs), lesson.results_markdown(compared))
    )
    assert len(paid) == len(reached) == 2 + 5
    assert "token, merged" in paid[0] and "gain" not in paid[0] and "token" not in reached[0]
    assert "| LoRA | 500 |" in paid[3] and "1.01×" in paid[3] and "45 % (40 % to 50 %)" in reached[3]
    assert "–" in paid[4], "what was not measured"
    assert "| 0.001 |" in reached[3] and "| A 0.001, B 0.016 |" in reached[5]
    without = costs.where()
    for row in without:
        del row["step_ratio"]
    assert "step" not in lesson.costs_markdown(compared, costs).splitlines()[0]


def test_the_rule_in_words_has_the_rules_own_numbers():
    assert "± 2 points" in lesson.RULE and "1/2 of it to 2 times" in lesson.RULE and "LESSON" not in lesson.RULE
    assert all(f"{bound:.2f}" in lesson.RULE for bound in (lesson.NOISE, lesson.SLIGHT))


def path(method: str, heldout: list[float], prose: list[float], seed: int = 0) -> dict:
    row = {"method": method, "phase": "seeds", "seed": seed, "heldout": heldout, "prose": prose}
    return row | {"steps": [0, 50, 100], "final": heldout[-1], "lr": 0.4}


def test_forgetting_is_compared_where_as_much_was_learned():
    """Full passes 0.25, LoRA's end, halfway between its points, and has forgotten (0.1 + 0.3)/2 there."""
    rows = [path("full", [2.0, 1.9, 1.6], [1.0, 1.1, 1.3]), path("lora", [2.0, 1.8, 1.75], [1.0, 1.02, 1.05])]
    labels = {name: METHODS[name].label for name in ("full", "lora")}
    table = Table("c", "?", "", {"base_loss": 2.0, "base_prose": 1.0, "labels": labels}, rows)
    claim = claims_on_methods.forgetting(table)
    assert claim.verdict == "yes" and claim.number.startswith("0.050 against 0.200")
    assert "learns 0.250 nats per byte and forgets 0.050" in claim.below
    assert claim.below.endswith("full fine-tuning has forgotten 0.200 nats per byte."), "no smaller rate was tried"
    table.rows += [
        rows[1] | {"phase": "sweep", "lr": lr, "final": 2.0 - lr, "prose": [1.0, 1.0 + lr]} for lr in (0.1, 0.2)
    ]
    rows[1]["prose"][-1] = 1.25
    claim = claims_on_methods.forgetting(table)
    assert claim.verdict == "no" and claim.below.endswith("full fine-tuning has forgotten 0.200 nats per byte."), (
        "of full fine-tuning none was tried: not of one alone"
    )
    table.rows.append(rows[0] | {"phase": "sweep", "lr": 0.1, "final": 1.7, "prose": [1.0, 1.15]})
    assert claims_on_methods.forgetting(table).below.endswith(
        "On the model tiny, full fine-tuning was run with one seed at 0.25 times the best learning rate. At this rate, "
        "full fine-tuning learns 0.300 nats per byte of code and forgets 0.150 nats per byte of prose."
    )


ENDS = {  # method → a curve a seed; on the way LoRA is at 1.5 with both
    "lora": ([2.0, 1.5, 1.0], [2.0, 1.5, 1.02]),
    "dora": ([2.0, 1.4, 0.9], [2.0, 1.45, 0.95]),
    "vera": ([2.0, 1.6, 1.8], [2.0, 1.4, 1.9]),
    "pissa": ([2.0, 1.4, 1.01], [1.9, 1.4, 1.01]),
    "lora+": ([2.0, 1.4, 1.1], [2.0, 1.4, 1.0]),
    "lora-fa": ([1.9, 1.5, 1.2], [1.9, 1.4, 1.2]),
}


def test_a_paper_is_answered_seed_by_seed():
    rows = [path(m, curve, [1, 1, 1], seed) for m, curves in ENDS.items() for seed, curve in enumerate(curves)]
    for row in rows:
        row["trainable"] = 10 if row["method"] == "vera" else 110
    table = Table("c", "?", "", {"labels": {m: m for m in ENDS}}, rows)
    costs = Table("m", "?", "", {}, [{"method": m, "peak_bytes": size} for m, size in (("lora", 4), ("lora-fa", 3))])
    none_real = Table("r", "?", "", {"labels": {}}, [])
    found = {
        claim.findings[0].name.split(".")[1]: claim for claim in claims_on_methods.promises(table, costs, none_real)
    }
    assert {method: claim.verdict for method, claim in found.items()} == {
        "lora+": "no", "dora": "yes", "pissa": "no", "vera": "partly", "lora-fa": "partly",
    }  # fmt: skip
    said = {method: claim.below for method, claim in found.items()}
    assert said["dora"] == (
        "On the model tiny, which learns Python code, dora ends at a held-out loss of 0.925 nats per byte and LoRA at 1.010. "
        "With every seed, the final loss of dora is lower than the final loss of LoRA, by 0.0700 to 0.1000. With every seed, "
        "dora has a lower loss than LoRA after 50 and 100 of 100 steps."
    )
    none = "At each evaluation during training, at least one seed of {} has a loss as high as LoRA's loss or higher."
    assert "the final loss of vera is higher than the final loss of LoRA, by 0.8000 to 0.8800." in said["vera"]
    assert said["vera"].startswith(
        "On the model tiny, VeRA trains 10 parameters, and LoRA trains 110, 11.0 times as many."
    )
    assert said["vera"].endswith(none.format("vera"))
    assert "is −0.0100 to +0.0100, so neither is clearly lower." in said["pissa"]
    assert said["pissa"].endswith("50 of 100 steps.")
    assert said["lora-fa"].endswith(none.format("lora-fa")), "a lead before the first step is none"
    assert "0.75 times the peak memory of a LoRA step" in said["lora-fa"]


@pytest.mark.parametrize("seeds, real_end, wanted", [(2, 0.9, "yes"), (2, 3.5, "partly"), (1, 0.9, "open")])
def test_a_promise_is_checked_on_both_models_and_one_seed_decides_nothing(seeds, real_end, wanted):
    rows = [path(m, curve, [1, 1, 1], seed) for m, curves in ENDS.items() for seed, curve in enumerate(curves)]
    table = Table("c", "?", "", {"labels": {m: m for m in ENDS}}, [row | {"trainable": 10} for row in rows])
    costs = Table("m", "?", "", {}, [{"method": m, "peak_bytes": 1} for m in ("lora", "lora-fa")])
    ours = [path("dora", [2.0, real_end], [1, 1], seed) for seed in range(seeds)]
    lora = [path("lora", [2.0, end], [1, 1], seed) for seed, end in enumerate((1.0, 3.0))]
    real = Table(
        "r", "?", "", {"labels": {"lora": "LoRA", "dora": "DoRA"}}, [row | {"steps": [0, 40]} for row in ours + lora]
    )
    (claim,) = (c for c in claims_on_methods.promises(table, costs, real) if c.claim.startswith("DoRA"))
    assert [finding.name for finding in claim.findings] == ["methods.dora.loss", "methods.smollm2.dora.loss"]
    assert f"nats per token and LoRA at {1.0 if seeds == 1 else 2.0:.3f}." in claim.findings[1].sentence, (
        "the same seeds"
    )
    assert ("With the one seed, DoRA has" in claim.findings[1].sentence) == (seeds == 1)
    assert claim.verdict == wanted


def test_runs_are_compared_with_those_of_their_own_seed():
    """Whatever their order, and where one group has a seed more."""
    ours = [{"seed": 1, "final": 3.0}, {"seed": 0, "final": 1.0}]
    others = [{"seed": 0, "final": 1.5}, {"seed": 1, "final": 3.25}, {"seed": 2, "final": 0.0}]
    assert paired_differences(ours, others) == [-0.5, -0.25]
    assert verdict("A", "B", ours, others) == "With every seed, A is lower than B, by 0.2500 to 0.5000."
    assert verdict("B", "A", others, ours, more="wider") == "With every seed, B is wider than A, by 0.2500 to 0.5000."
    unclear = "Over the seeds, A minus B is +0.0000 to +0.1000, so neither is clearly lower."
    assert differs("A", "B", [0.0, 0.1]) == unclear, "a zero among the differences is not a sign"
    assert differs("A", "B", [0.0, 0.0]) == "With every seed, A equals B."
    assert differs("A", "B", [-0.25]) == "With the one seed, A is lower than B, by 0.2500."
    tiny = differs("A", "B", [1e-5, 3e-5])
    assert tiny == "With every seed, A is higher than B, by 1.0e-05 to 3.0e-05.", "a size is never 0.0000"


def test_what_a_path_had_forgotten_is_asked_where_it_had_learned_as_much():
    learned, forgotten = np.array([0.0, 0.3, 0.2, 0.4]), np.array([0.0, 0.6, 0.5, 0.7])
    assert forgotten_when(learned, forgotten, 0.15) == pytest.approx(0.3)
    assert forgotten_when(learned, forgotten, 0.35) == pytest.approx(0.6), "after it had fallen back, on its way again"
    assert forgotten_when(learned, forgotten, 0.41) is None, "it never learned as much"


def test_lora_at_every_rank_stands_beside_the_methods_where_both_trained_alike():
    rows = [
        {"method": m, "phase": "seeds", "seed": 0, "final": last, "trainable": 800}
        for m, last in (("full", 1.0), ("lora", 1.1))
    ]
    ranks = [{"method": "full", "phase": "seeds", "seed": 0, "final": 1.0}]
    ranks += [
        {
            "method": "lora",
            "phase": "seeds",
            "seed": 0,
            "r": r,
            "final": 1.1,
            "recovered": 0.8,
            "target_modules": modules,
        }
        for r in (R, 2)
        for modules in ("all-linear", "attention")
    ]
    compared, other = Table("c", "?", "", {}, rows), Table("r", "?", "", {}, ranks)
    found = study.lora_by_rank(compared, other)
    assert [(row["r"], row["trainable"]) for row in found.rows] == [(2, 200), (R, 800)]
    assert found.settings["r"] == R
    ranks[0]["final"] = 1.01
    assert study.lora_by_rank(compared, other) is None, (
        "full fine-tuning ended elsewhere: another task or another length"
    )
