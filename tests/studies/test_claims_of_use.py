"""The verdicts on four bits, merging, serving and methods follow the tables: another number gives another verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_np.studies.four_bits import claims as four_bits
from lora_np.studies.harness.table import Table
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
    (serving, "A batch costs", "serving_step", {}, "to_one", 0.95, "no", "partly"),
    (serving, "Thousands", "serving", {}, "bytes", 20, "yes", "partly"),
    (methods, "DoRA is better", "comparison", {"method": "dora", "phase": "seeds"}, "final", 0.99, "no", "yes"),
    (methods, "LoRA-FA saves", "method_costs", {"method": "lora-fa"}, "peak_bytes", 2, "partly", "no"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[1])
def test_a_verdict_follows_its_table(change):
    module, start, name, rows, column, factor, before, after = change
    found = tables(module)
    assert verdict(module, found, start) == before
    for row in found[name].where(**rows):
        row[column] *= factor
    assert verdict(module, found, start) == after


@pytest.mark.parametrize("module", [four_bits, serving, methods], ids=lambda module: module.__name__.split(".")[-2])
def test_each_claim_has_a_short_number_a_sentence_and_findings_of_its_own(module):
    claims = module.claims(tables(module))
    names = [finding.name for claim in claims for finding in claim.findings]
    assert len(set(names)) == len(names)
    for claim in claims:
        assert len(claim.number) <= 65 and claim.below.endswith("."), claim.claim
        assert all(finding.sentence.endswith(".") for finding in claim.findings)
