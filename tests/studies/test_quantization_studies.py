"""The studies of four bits measure what they say, in seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_studies import serially

import lora_np as ln
from lora_np.quantization import QUANT_TYPES, dequantize_4bit, quantize_4bit
from lora_np.studies.convergence.study import convergence
from lora_np.studies.four_bits import merge_routes, qlora, quantization
from lora_np.studies.four_bits.merge_routes import kept_share
from lora_np.studies.four_bits.qlora import QuantizedFineTuning, QuantizedRun, means, on_tiny, over_four_bits
from lora_np.studies.harness import tiny_task, voice_task
from lora_np.studies.harness.tiny_task import Run
from lora_np.studies.timing import competitors


def test_the_error_is_in_units_of_the_weights_and_each_matrix_counts_by_its_size(monkeypatch):
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((64, 64), dtype=np.float32), 7 * rng.standard_normal((64, 128), dtype=np.float32)]
    monkeypatch.setattr(quantization, "matrices", lambda *_: iter(W))
    (row,) = quantization.error((), ["nf4"], [64]).rows
    parts = [np.abs(dequantize_4bit(quantize_4bit(w)) - w) / np.sqrt(np.square(w).mean()) for w in W]
    assert row["mean"] == pytest.approx(np.concatenate([p.ravel() for p in parts]).mean(), rel=1e-5)
    assert row["rms"] == pytest.approx(np.sqrt(np.square(np.concatenate([p.ravel() for p in parts])).mean()), rel=1e-5)


def test_nf4_is_nearest_at_every_block_size_and_fp4_passes_int4_only_in_large_blocks():
    """Expected was NF4 < FP4 < int4. It holds from blocks of 512 on; in the usual 64 int4 is before FP4."""
    table = quantization.error(["tiny"], block_sizes=[32, 64, 128, 512, 4096], normals=2**18)
    for weights in (quantization.NORMAL, "tiny"):
        for size in (32, 64, 128, 512, 4096):
            nf4, fp4, int4 = (
                table.where(weights=weights, quant_type=t, block_size=size)[0]["mean"] for t in ("nf4", "fp4", "int4")
            )
            assert nf4 < min(fp4, int4)
            assert (int4 < fp4) == (size < 512), (weights, size)
    assert table.settings["double_quant"]["tiny"] == pytest.approx(
        table.where(weights="tiny", quant_type="nf4", block_size=64)[0]["mean"], rel=0.005
    )


def test_the_parts_of_an_error_add_up_to_it():
    error = quantization.error([], block_sizes=[64], normals=2**16)
    for row in quantization.error_by_magnitude([quantization.NORMAL], normals=2**16).rows:
        (whole,) = error.where(quant_type=row["quant_type"])
        assert sum(row["contribution"]) == pytest.approx(whole["mean"], rel=1e-4)
        assert sum(row["share"]) == pytest.approx(1)


def test_a_quantised_base_turns_the_gradients_less_than_another_batch_does():
    # 512 tokens a batch: the text is of the Python that runs, and on 64 tokens the medians depend on which
    table = quantization.gradients(steps=3, batch_size=8, seq_len=64)
    assert len(table.rows) == 4 * 2 * 35
    median = {b: np.median([row["cosine"] for row in table.where(base=b)]) for b in (*QUANT_TYPES, "another batch")}
    assert median["another batch"] < 0.7 < 0.9 < median["fp4"] < median["nf4"] < 1


@pytest.fixture
def lora(setting, monkeypatch):
    """The convergence table of a small model, and LoRA's rows at r = 4 in it."""
    monkeypatch.setattr(qlora, "run_all", serially)
    table = convergence(replace(setting, lora_lrs=(4e-3,)))
    return table, table.where(phase="seeds", method="lora", r=4)


def test_qlora_repeats_loras_runs_and_differs_in_the_base_alone(lora):
    measured, rows = lora
    table = on_tiny(measured, r=4, quant_types=("nf4", "int4"))
    assert [(row["quant_type"], row["seed"]) for row in table.rows] == [
        *((None, row["seed"]) for row in rows),
        *(("nf4", row["seed"]) for row in rows),
        ("int4", rows[0]["seed"]),
    ]
    for row in table.where(quant_type="nf4"):
        assert row["heldout"][0] == pytest.approx(table.settings["quantized_loss"]["nf4"])
        assert row["heldout"][0] != table.settings["base_loss"]
    found = means(table)
    assert found[None] == np.mean([row["final"] for row in rows])
    run = over_four_bits(QuantizedRun, rows[0])
    assert {k: v for k, v in vars(run).items() if k != "quant_type"} == {k: rows[0][k] for k in vars(Run("lora", 0.0))}
    layers = [m for _, m in run.model().named_modules() if isinstance(m, ln.QuantizedLinear)]
    assert len(layers) == 7 and isinstance(run.model().lora_layers()[0].base_layer, ln.QuantizedLinear)


def test_the_routes_are_what_they_are_called(lora, monkeypatch):
    run = over_four_bits(QuantizedRun, lora[1][0] | {"lr": 0.05})
    table = merge_routes.merge_routes(run)
    route = {row["route"]: row for row in table.rows}
    assert set(route) == {"original base", "quantised base", "as trained", *merge_routes.ROUTES}
    assert route["dequantised"]["logits"] < 1e-5 < route["bfloat16"]["logits"] < 0.02
    assert route["dequantised"]["heldout"] == pytest.approx(route["as trained"]["heldout"], abs=1e-5)
    assert route["original"]["logits"] > 1e-3 and route["requantised"]["logits"] > 1e-3
    for name in ("dequantised", "original"):
        assert route[name]["kept"] == pytest.approx(1, abs=1e-3)
    judging = tiny_task.heldout_batches()
    assert route["quantised base"]["heldout"] == ln.evaluate(run.base_model(), judging)
    assert route["original base"]["heldout"] == ln.evaluate(run.original_model(), judging)


def test_what_arrives_is_the_part_along_delta():
    rng = np.random.default_rng(0)
    W, d = rng.standard_normal((2, 5, 7))
    assert kept_share({"x": W + d}, {"x": W}, {"x": d}) == pytest.approx(1)
    assert kept_share({"x": W}, {"x": W}, {"x": d}) == 0
    assert kept_share({"x": W + d, "y": W}, {"x": W, "y": W}, {"x": d, "y": d}) == pytest.approx(0.5)


def test_a_fine_tuning_of_smollm2_is_repeated_over_four_bits(monkeypatch):
    monkeypatch.setattr(voice_task, "load_model", lambda name: ln.load_model("tiny"))
    run = QuantizedFineTuning("lora", 1e-3, 2)
    model, original = run.load(), run.original_model()
    assert all(isinstance(layer.base_layer, ln.QuantizedLinear) for layer in model.lora_layers())
    assert not any(isinstance(m, ln.QuantizedLinear) for _, m in original.named_modules())


@pytest.mark.parametrize("competitor", ["ours, NF4 base", "dequantising"])
def test_the_competitors_of_a_quantised_step_run(competitor, monkeypatch):
    decoded = []
    for module in ("lora_np.quantization.linear", "lora_np.studies.timing.competitors"):
        monkeypatch.setattr(
            f"{module}.dequantize_4bit", lambda q, *a: decoded.append(q.shape) or dequantize_4bit(q, *a)
        )
    monkeypatch.setattr(competitors, "threads", lambda: 1)
    competitors.COMPETITORS[competitor](competitors.Case("tiny", 1, 8, "tiny"))()
    assert len(decoded) == 2 * 35 - 3, "each matrix for y, and for dx but below the first block's q, k and v"
