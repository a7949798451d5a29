"""The verdicts on low rank, four bits, merging, serving and methods follow the tables: another number gives another verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_np.studies.four_bits import claims as four_bits
from lora_np.studies.harness.table import Table
from lora_np.studies.low_rank import claims as low_rank
from lora_np.studies.methods import claims as methods
from lora_np.studies.serving import claims as serving

DATA = Path(__file__).parents[2] / "figures" / "data"


def tables(module) -> dict[str, Table]:
    return {name: Table.load(DATA / f"{name}.json") for name in module.NEEDED}


def verdict(module, found: dict[str, Table], start: str) -> str:
    (claim,) = (claim for claim in module.claims(found) if claim.claim.startswith(start))
    return claim.verdict


CHANGES = [  # module, claim, table, rows to change, column, factor, verdict before and after
    (four_bits, "QLoRA matches", "qlora_smollm2", {"quant_type": "nf4"}, "final", 0.97, "partly", "yes"),
    (four_bits, "A QLoRA adapter", "merge_routes_tiny", {"route": "bfloat16"}, "heldout", 1.01, "yes", "partly"),
    (four_bits, "NF4 is nearest", "quantization_error", {"quant_type": "nf4"}, "mean", 2, "partly", "no"),
    (four_bits, "Dequantising", "quantized_speed", {"case": "smollm2-135m"}, "ratio", 1.2, "yes", "no"),
    (
        serving,
        "A merged model",
        "merge_latency",
        {"model": "tiny", "state": "merged"},
        "token_ratio",
        1.2,
        "yes",
        "partly",
    ),
    (serving, "`linear` makes", "combinations", {"kind": "linear"}, "error", 1e-6, "no", "yes"),
    (serving, "A batch whose rows", "serving_step", {}, "to_one", 0.95, "no", "partly"),
    (serving, "1,000 adapters", "serving", {}, "bytes", 20, "yes", "no"),
    (serving, "1,000 adapters", "serving", {}, "adapters", 0.5, "yes", "open"),
    (four_bits, "NF4 is nearest", "quantization_error", {"quant_type": "int4"}, "mean", 2, "partly", "yes"),
    (four_bits, "Double", "quantization_error", {"quant_type": "nf4"}, "mean", 0.5, "yes", "partly"),
    (four_bits, "A gradient", "quantization_gradients", {"base": "fp4"}, "cosine", 0.7, "yes", "partly"),
    (four_bits, "A gradient", "quantization_gradients", {}, "cosine", 0.7, "yes", "no"),
    (methods, "DoRA is better", "comparison", {"method": "dora", "phase": "seeds"}, "final", 0.99, "no", "open"),
    (methods, "LoRA+ is", "comparison", {"method": "lora+", "phase": "seeds"}, "final", 0.98, "no", "partly"),
    (methods, "VeRA trains", "comparison", {"method": "vera", "phase": "seeds"}, "final", 0.96, "no", "partly"),
    (methods, "LoRA forgets", "comparison", {"method": "full", "phase": "seeds"}, "heldout", None, "no", "open"),
    (methods, "LoRA-FA needs", "method_costs", {"method": "lora-fa"}, "peak_bytes", 2, "partly", "no"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[1])
def test_a_verdict_follows_its_table(change):
    module, start, name, rows, column, factor, before, after = change
    found = tables(module)
    assert verdict(module, found, start) == before
    for row in found[name].where(**rows):
        row[column] = (
            [10.0] * len(row[column]) if factor is None else factor * row[column]
        )  # None: a curve that learns nothing
    assert verdict(module, found, start) == after


@pytest.mark.parametrize("method, start", [("pissa", "PiSSA converges"), ("lora+", "LoRA+ is better")])
def test_faster_means_fewer_steps_to_loras_final_loss_with_every_seed(method, start):
    """A lead on the way is not enough, and one seed of three decides nothing."""
    found = tables(methods)
    lora = {row["seed"]: row["final"] for row in found["comparison"].where(method="lora", phase="seeds")}
    runs = found["comparison"].where(method=method, phase="seeds")
    for row in runs:
        row["final"] = row["heldout"][-1] = lora[row["seed"]] - 0.01  # better at the end, as soon as LoRA
        row["heldout"][1:-1] = [lora[row["seed"]] + 1e-4] * (len(row["heldout"]) - 2)
    both = method == "lora+"  # this claim is also about the loss at the end, on both models
    if both:
        real = found["comparison_smollm2"]
        ends = {row["seed"]: row["final"] for row in real.where(method="lora", phase="seeds")}
        for row in real.where(method=method, phase="seeds"):
            row["final"] = ends[row["seed"]] - 0.01
    assert verdict(methods, found, start) == ("partly" if both else "no")
    runs[0]["heldout"][4] -= 1e-3
    assert verdict(methods, found, start) == "open"
    for row in runs[1:]:
        row["heldout"][4] -= 1e-3
    assert verdict(methods, found, start) == "yes"


@pytest.mark.parametrize(
    "sizes, gain, wanted", [((1.0, 0.01), 0.99, "yes"), ((1.0, 0.01), 0.5, "partly"), ((1.0, 1.0), 0.5, "no")]
)
def test_a_low_rank_is_judged_by_energy_and_gain_at_one_rank(sizes, gain, wanted):
    """The singular values of ΔW are `sizes[0]` eight times, then `sizes[1]`. Only the cut to rank 8 keeps the share `gain`."""
    found = tables(low_rank)
    for row in found["singular_values"].rows:
        row["singular_values"] = [sizes[0]] * 8 + [sizes[1]] * 120
    cut = found["truncated_loss"]
    base, full = cut.settings["base_loss"], cut.settings["full_loss"]
    for row in cut.rows:
        row["heldout_loss"] = base - (gain if row["r"] == 8 else 1 - gain) * (base - full)
    assert verdict(low_rank, found, "The change ΔW of fine-tuning") == wanted


@pytest.mark.parametrize("times, wanted", [(3, "yes"), (1, "partly"), (0.1, "no"), (40, "no")])
def test_the_rank_of_full_fine_tuning_must_be_within_the_claimed_range(times, wanted):
    found = tables(low_rank)
    for row in found["spectra"].where(method="full"):
        row["rank90"] *= times
    assert verdict(low_rank, found, "Full fine-tuning's ΔW") == wanted


@pytest.mark.parametrize("module", [four_bits, serving, methods], ids=lambda module: module.__name__.split(".")[-2])
def test_each_claim_has_a_short_number_a_sentence_and_findings_of_its_own(module):
    claims = module.claims(tables(module))
    names = [finding.name for claim in claims for finding in claim.findings]
    assert len(set(names)) == len(names)
    for claim in claims:
        assert len(claim.number) <= 65 and claim.below.endswith("."), claim.claim
        assert all(finding.sentence.endswith(".") for finding in claim.findings)
