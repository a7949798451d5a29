"""Capacity is counted in bits: a model that knows nothing holds 0 bits, a model that recites all strings holds all bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import lora_np as ln
from lora_np.ops import IGNORE_INDEX
from lora_np.studies.capacity import claims as claims_on_capacity
from lora_np.studies.capacity import study as capacity
from lora_np.studies.capacity.study import BITS, KEY, CapacityRun, Epochs, Setting, batch, memorised, strings
from lora_np.studies.harness.table import Table

# ----------------------------------------------------------------------------------------------------- strings, in bits


def test_a_model_that_knows_only_the_alphabet_has_memorised_nothing():
    assert BITS == 6 and len(set(capacity.ALPHABET)) == 64
    assert memorised(math.log(64), 1000) == pytest.approx(0, abs=1e-9)


def test_a_model_that_is_certain_of_every_symbol_holds_all_bits_offered():
    assert memorised(0.0, 1000) == 6000


def test_half_the_loss_is_half_the_bits():
    assert memorised(math.log(8), 1000) == pytest.approx(
        3000
    )  # eight candidates left of 64: three bits known, three not


def test_a_model_worse_than_chance_holds_nothing_rather_than_less():
    assert memorised(math.log(64) + 0.5, 1000) == 0


def test_bits_are_those_of_a_real_loss():
    """Each right symbol has the probability 1/2, so it costs −log₂(1/2) = 1 bit, and 5 of its 6 bits are held."""
    rows = strings(4, 8, 0)
    _, targets = batch(rows)
    p = np.full((*targets.shape, 64), 0.5 / 63)
    np.put_along_axis(p, np.maximum(targets, 0)[..., None], 0.5, axis=-1)
    loss, _ = ln.ops.cross_entropy_forward(np.log(p), targets)
    assert memorised(float(loss), 4 * 8) == pytest.approx(4 * 8 * 5)


def test_every_string_has_a_name_of_its_own_and_uniform_symbols():
    rows = strings(4096, 16, 0)
    assert rows.shape == (4096, KEY + 16) and rows.min() == 0 and rows.max() == 63
    assert len(np.unique(rows[:, :KEY], axis=0)) == 4096, "two strings with one name could never both be recited"
    share = np.bincount(rows[:, KEY:].ravel(), minlength=64) / (4096 * 16)
    entropy = -(share * np.log2(share)).sum()
    assert 5.998 < entropy <= 6, "the symbols carry 6 bits each"
    assert not np.array_equal(rows, strings(4096, 16, 1)), "another seed, other strings"
    with pytest.raises(ValueError, match="4096"):
        strings(4097, 16, 0)


def test_a_name_is_given_and_does_not_count():
    rows = strings(3, 5, 0)
    tokens, targets = batch(rows)
    assert (targets[:, : KEY - 1] == IGNORE_INDEX).all()
    np.testing.assert_array_equal(targets[:, KEY - 1 :], rows[:, KEY:])
    np.testing.assert_array_equal(tokens, rows[:, :-1])
    assert (targets != IGNORE_INDEX).sum() == 3 * 5, "each symbol but the name's is counted once"


def test_an_epoch_shows_every_string_once():
    rows = strings(10, 4, 0)
    epochs = Epochs(rows, batch_size=4, seed=0)
    for epoch in (0, 7):
        seen = [epochs[3 * epoch + part][0][:, :KEY] for part in range(3)]
        names = np.concatenate(seen)
        assert sorted(map(tuple, names)) == sorted(map(tuple, rows[:, :KEY]))
    assert not np.array_equal(epochs[0][0], epochs[3][0]), "in another order each time"


# ------------------------------------------------------------------------------------------------------ a LoRA that recites


@pytest.fixture(scope="module")
def recited():
    run = CapacityRun("lora", 1e-2, r=4, strings=6, length=6, max_steps=150, base_steps=800)
    return run, *capacity.memorise(run)


def test_a_lora_whose_rank_suffices_recites_its_strings(recited):
    run, model, row = recited
    assert row["offered"] == 6 * 6 * 6
    assert row["memorised"] > 0.95 * row["offered"], "a base that is certain of a symbol is needed, and this one is"
    rows = strings(run.strings, run.length, run.seed)
    said = ln.generate(model, rows[:, :KEY].tolist(), run.length)
    assert said == rows[:, KEY:].tolist(), "to the symbol, from their names alone"


def test_without_the_adapter_the_base_knows_none_of_them(recited):
    run, model, row = recited
    assert row["bits"][0] < 0.1 * row["offered"], "at step 0 nothing is held yet"
    rows = strings(run.strings, run.length, run.seed)
    with model.disable_adapter():
        assert ln.generate(model, rows[:, :KEY].tolist(), run.length) != rows[:, KEY:].tolist()


def test_it_holds_its_own_strings_and_no_others(recited):
    run, model, _ = recited
    loss = ln.evaluate(model, [batch(strings(run.strings, run.length, run.seed + 1))])
    assert memorised(loss, run.strings * run.length) == 0


def test_lora_trains_what_costs_count(recited):
    _, model, row = recited
    assert row["trained"] == sum(p.value.size for name, p in model.named_parameters() if "lora_" in name)


def test_each_call_has_a_base_of_its_own():
    one, other = (capacity.base_model(2, 4) for _ in range(2))
    first = next(iter(dict(one.named_parameters()).values()))
    first.value += 1
    assert not np.array_equal(first.value, next(iter(dict(other.named_parameters()).values())).value)


# ---------------------------------------------------------------------------------------------------------- the study


def test_a_diverged_run_is_a_row_that_says_so(monkeypatch):
    def diverges(run):
        raise FloatingPointError("loss nan")

    monkeypatch.setattr(capacity, "memorise", diverges)
    row = capacity.measure(CapacityRun("lora", 1.0, r=1))
    assert row["memorised"] is None and row["validation"] is None and row["seconds"] >= 0


def test_the_study_has_every_phase_and_counts_its_runs():
    setting = Setting(
        run=CapacityRun("lora", 0.0, length=4, max_steps=4, base_steps=2),
        ranks=(1, 2),
        strings_per_rank=4,
        full_strings=8,
        lora_lrs=(1e-3, 2e-3),
        full_lrs=(1e-3,),
        bracket=False,
        seeds=(0, 1),
        knee=2,
        offered=(2,),
    )
    table = capacity.capacity(setting, workers=1)
    count = {phase: len(table.where(phase=phase)) for phase in ("sweep", "seeds", "half", "offered", "rejected")}
    assert count == {"sweep": 5, "seeds": 6, "half": 3, "offered": 2, "rejected": 11}
    runs = {tuple(row[key] for key in ("method", "r", "lr", "seed", "max_steps", "strings")): row for row in table.rows}
    assert table.settings["runs"] == len(runs) < len(table.rows), "a run in two phases was made once"
    assert table.seconds == pytest.approx(sum(row["seconds"] for row in runs.values()))
    assert {row["strings"] for row in table.where(phase="seeds", method="lora", r=2)} == {8}
    assert {row["max_steps"] for row in table.where(phase="half")} == {2}
    assert table.settings["base_bits_per_symbol"] == pytest.approx(6, abs=0.5)


def test_a_rate_at_which_another_seed_diverges_is_not_the_best(monkeypatch):
    def measured(run):
        loss = 1.0 if run.lr < 2e-3 else 4.0 if run.seed else 0.9  # better with the first seed alone
        return {"method": "lora", "r": 1, "lr": run.lr, "seed": run.seed, "validation": loss}

    monkeypatch.setattr(capacity, "measure", measured)
    kept, lost = capacity.better_of_two_rates(
        [CapacityRun("lora", 2e-3, r=1, base_steps=2)], (0, 1), workers=1, folder=None
    )
    assert {row["lr"] for row in kept} == {1e-3} and {row["lr"] for row in lost} == {2e-3}
    assert [row["seed"] for row in kept] == [0, 1]


def test_a_rank_is_offered_more_than_two_bits_per_parameter():
    """The number of strings must not limit a rank: it is offered more than the two bits per parameter of the literature."""
    for run in capacity.FULL.methods():
        small = replace(run, base_steps=2)
        trained = sum(p.value.size for _, p in small.model().named_parameters() if p.trainable)
        assert run.strings * run.length * BITS > 2 * trained, run


# --------------------------------------------------------------------------------------------------------- the claims


def table(power=1.0) -> Table:
    rows = []
    for r in (1, 4, 16):
        for phase, factor in (("seeds", 1.0), ("half", 0.8)):
            held = factor * 1000 * r**power
            rows.append({"phase": phase, "method": "lora", "r": r, "seed": 0, "trained": 1000 * r, "memorised": held})
            rows[-1] |= {"offered": 2500 * r, "strings": 32 * r, "max_steps": 2000, "batch_size": 64}
    for phase, factor in (("seeds", 1.0), ("half", 0.8)):
        rows.append({"phase": phase, "method": "full", "r": None, "seed": 0, "trained": 32_000, "offered": 80_000})
        rows[-1] |= {"memorised": factor * 20_000, "strings": 640, "max_steps": 2000, "batch_size": 64}
    rows.append({"phase": "offered", "method": "lora", "r": 4, "seed": 0, "trained": 4000, "offered": 500})
    rows[-1]["memorised"] = 500
    return Table("capacity", "?", "python", settings={"knee": 4}, rows=rows)


def test_the_exponent_is_one_where_twice_the_rank_holds_twice_as_much():
    assert claims_on_capacity.exponent(table(), 1, 16).value == pytest.approx(1)
    assert claims_on_capacity.exponent(table(0.5), 4, 16).value == pytest.approx(0.5)


def test_the_most_that_was_held_may_lie_where_more_was_offered():
    made = table()
    assert claims_on_capacity.highest(made).value == pytest.approx(1.0)
    made.rows.append(made.where(phase="offered")[0] | {"offered": 20_000, "memorised": 6000})
    assert claims_on_capacity.highest(made).value == pytest.approx(1.5)


def test_what_the_claims_say_is_read_from_the_table():
    bits, twice = claims_on_capacity.claims({"capacity": table()})
    assert bits.number == "at least 1.00 bits (LoRA), 0.62 (full fine-tuning)"
    found = {finding.name: finding for claim in (bits, twice) for finding in claim.findings}
    assert (
        found["capacity.bits.full"].number == "0.62" and "holds 25 % of the bits in its training strings" in bits.note
    )
    assert (
        "2,000 times by LoRA with r = 1, 250 times by LoRA with r = 16 and 200 times by full fine-tuning" in bits.note
    )
    assert (
        "Runs with half the steps hold fewer bits than runs with all steps: 20 % fewer for LoRA with r = 4" in bits.note
    )
    assert found["capacity.exponent.r1-r4"].number == found["capacity.exponent.r4-r16"].number == "1.00"
    assert found["capacity.held.few"].number == "100 %" and found["capacity.held.many"].number == "40 %"
    assert "80 % of the bits that full fine-tuning holds." in twice.note
    assert "trains 50 % of the parameters that full fine-tuning trains." in twice.note


@pytest.mark.parametrize("times, wanted", [(1, "open"), (4, "open"), (6, "yes")])
def test_lower_bounds_confirm_the_claimed_bits_but_do_not_refute_them(times, wanted):
    """LoRA holds at least 1 bit per parameter, full fine-tuning 0.625. The claim is 3.6 bits for both."""
    made = table()
    for row in made.rows:
        row["memorised"] *= times
    assert claims_on_capacity.claims({"capacity": made})[0].verdict == wanted


@pytest.mark.parametrize(
    "power, half, wanted", [(1.0, 1.0, "yes"), (1.0, 0.8, "yes"), (0.85, 0.5, "open"), (0.5, 0.8, "no")]
)
def test_twice_the_rank_holds_twice_the_bits_if_longer_runs_could_not_change_it(power, half, wanted):
    made = table(power)
    for row in made.where(phase="half"):
        row["memorised"] *= half / 0.8
    assert claims_on_capacity.claims({"capacity": made})[1].verdict == wanted


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_products_of_a_rank_have_as_many_dimensions_as_there_are_free_numbers(r):
    """The rank of ∂(BA)/∂(A, B) at a random point equals the number of free parameters in `free_bits`."""
    (out, in_), rng = (5, 4), np.random.default_rng(0)
    A, B = rng.standard_normal((r, in_)), rng.standard_normal((out, r))
    by_A, by_B = np.kron(B, np.eye(in_)), np.kron(np.eye(out), A.T)  # of BA read row by row
    assert np.linalg.matrix_rank(np.hstack([by_A, by_B])) == r * (out + in_ - r)
    adapted = ln.get_peft_model(ln.Transformer.empty(capacity.SMALL), ln.LoraConfig(r=r, target_modules="all-linear"))
    sizes = [layer.in_features + layer.out_features for layer in adapted.lora_layers()]
    row = {"phase": "seeds", "method": "lora", "r": r, "trained": sum(r * size for size in sizes), "memorised": 900.0}
    row["offered"] = 1000.0
    free = claims_on_capacity.free_bits(Table("c", "?", "", {}, [row]), r)
    assert free.value == pytest.approx(900 / sum(r * (size - r) for size in sizes))
