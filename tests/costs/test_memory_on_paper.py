"""The bytes of a planned model's step, compared with published numbers and with the storage of bitsandbytes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from lora_np import LoraConfig, costs
from lora_np.costs import MODELS, PRECISIONS, Precision, memory, nf4_bytes
from lora_np.studies.counting.memory import memory_bill
from lora_np.studies.harness.table import Table

ALL_16 = LoraConfig(r=16, target_modules="all-linear")


@pytest.mark.parametrize(("precision", "trained"), [("float32", 16), ("mixed", 16), ("16-bit", 12)])
def test_a_trained_parameter_takes_16_bytes_or_12(precision, trained):
    assert PRECISIONS[precision].bytes_per_trained() == trained
    llama = memory("llama-2-7b", batch=1, seq=1, precision=precision)
    static = llama.weights + llama.gradients + llama.optimizer + llama.master
    assert static == trained * MODELS["llama-2-7b"].parameters


def test_a_precision_of_your_own_is_taken():
    own = Precision("float16", "float32", "float32", "float32", "float16")
    assert own.bytes_per_trained() == 2 + 4 + 8 + 4 == own.bytes_per_trained(slots=1) + 4
    assert memory("gpt-2", batch=1, seq=8, precision=own).gradients == 4 * MODELS["gpt-2"].parameters


def nf4_by_hand(numbers, double_quant):
    """Return the bytes of the arrays that a quantiser allocates."""
    absmax = len(range(0, numbers, 64))
    arrays = [np.zeros(len(range(0, numbers, 2)), np.uint8)]
    if double_quant:
        arrays += [np.zeros(absmax, np.uint8), np.zeros(len(range(0, absmax, 256)), np.float32)]
        arrays += [np.zeros(1, np.float32)]  # the mean that was subtracted
    else:
        arrays += [np.zeros(absmax, np.float32)]
    return sum(x.nbytes for x in arrays)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("numbers", [1, 63, 64, 65, 64 * 256, 64 * 256 + 1, 12 * 20])
def test_nf4_is_counted_to_the_byte(numbers, double_quant):
    assert nf4_bytes(numbers, double_quant) == nf4_by_hand(numbers, double_quant)


def test_nf4_takes_four_and_a_half_bits_and_double_quantisation_saves_0_373_of_them():
    n = 4096 * 4096
    assert 8 * nf4_bytes(n, double_quant=False) / n == 4.5
    assert 8 * nf4_bytes(n) / n == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
    assert f"{8 * (nf4_bytes(n, False) - nf4_bytes(n)) / n:.3f}" == "0.373"


@pytest.mark.oracle
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (128, 200), (300, 257)])
def test_nf4_takes_what_bitsandbytes_takes(shape, double_quant):
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=double_quant)
    stored = [packed, state.absmax] + ([state.offset, state.state2.absmax] if double_quant else [])
    assert nf4_bytes(W.numel(), double_quant) == sum(x.numel() * x.element_size() for x in stored)


def test_16_bit_fine_tuning_of_65b_takes_more_than_780_gb():
    """Weights, gradients and AdamW's state take 12 bytes per parameter without a master copy (Dettmers et al. 2023, section 1)."""
    needed = memory("llama-65b", batch=1, seq=512, checkpointing=True)
    assert 780e9 < needed.total < 790e9
    assert needed.weights + needed.gradients + needed.optimizer == 12 * 65_285_660_672


def test_qlora_of_65b_fits_48_gb_if_activations_are_checkpointed():
    """Dettmers et al. 2023: "a 65B parameter model on a single 48GB GPU"."""
    step = {"batch": 1, "seq": 512}
    needed, without = (memory("llama-65b", ALL_16, **step, quantize="nf4", checkpointing=on) for on in (True, False))
    assert needed.fits(48) and not needed.fits(24)
    assert not without.fits(48), "the activations of all 80 blocks take 13 GB"
    assert not memory("llama-65b", ALL_16, **step, checkpointing=True).fits(80)


def test_qlora_leaves_the_embedding_the_head_and_the_norms_in_16_bits():
    model, one = MODELS["llama-2-7b"], memory("llama-2-7b", ALL_16, batch=1, seq=8, quantize="nf4")
    outside = model.parameters - model.block_linear_parameters
    matrices = 32 * (4 * nf4_bytes(4096 * 4096) + 3 * nf4_bytes(4096 * 11_008))
    assert one.weights == 2 * outside + matrices
    assert 8 * matrices / model.block_linear_parameters == pytest.approx(4.127, abs=5e-4)


def test_lora_on_gpt3_takes_the_papers_350_gb():
    """Nearly all memory is the frozen weights in 16 bits (Hu et al. 2021, section 4.2, q and v with r = 4)."""
    needed = memory("gpt-3-175b", LoraConfig(r=4), batch=1, seq=512, checkpointing=True)
    assert needed.total == pytest.approx(350e9, rel=0.01)


def test_checkpointing_keeps_of_a_block_its_input_alone():
    """Each additional layer adds one saved input, N·d numbers in 16 bits."""
    small, large = (costs.llama("", n, 64, 4, 4, 128, 100) for n in (10, 20))
    kept = [memory(model, batch=2, seq=8, checkpointing=True).activations for model in (small, large)]
    assert kept[1] - kept[0] == 10 * 2 * (2 * 8) * 64


def test_the_table_has_every_part_and_their_sum():
    needed = memory("llama-2-7b", ALL_16, batch=1, seq=512, quantize="nf4", checkpointing=True)
    rows = {line.split()[0]: float(line.split()[1].replace(",", "")) for line in str(needed).splitlines()[1:]}
    assert [*rows] == [field.name for field in fields(needed)] + ["sum"]
    assert sum(rows.values()) - rows["sum"] == pytest.approx(rows["sum"], abs=0.005)
    assert rows["sum"] == pytest.approx(needed.total / 1e9, abs=5e-4)


def test_the_committed_memory_bill_is_what_the_study_says():
    committed = Path(__file__).parents[2] / "figures" / "data" / "memory_bill.json"
    assert Table.load(committed).rows == memory_bill().rows, "compute it again: python -m lora_np reproduce --full"


# ------------------------------------------------------------------------------------------------------------- bad input

WRONG = {
    "unknown model 'llama-9'": ("llama-9", {}),
    "unknown quant_type 'nf5'; expected one of nf4, fp4, int4": ("gpt-2", {"config": ALL_16, "quantize": "nf5"}),
    "unknown precision '8-bit'; costs.PRECISIONS has float32, mixed, 16-bit": ("gpt-2", {"precision": "8-bit"}),
    "quantize='nf4' freezes the weights.*give the configuration": ("gpt-2", {"quantize": "nf4"}),
    "'q_proj' matches no linear layer": ("gpt-2", {"config": LoraConfig(target_modules=["q_proj"])}),
    "double_quant=False needs a quantised base": ("gpt-2", {"config": ALL_16, "double_quant": False}),
    "batch 0": ("gpt-2", {"batch": 0}),
    "seq -1": ("gpt-2", {"seq": -1}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_setting_that_is_none_is_named(message):
    model, settings = WRONG[message]
    with pytest.raises(ValueError, match=message):
        memory(model, **{"batch": 1, "seq": 8} | settings)


def test_what_is_no_model_and_no_format_is_an_error():
    with pytest.raises(TypeError, match="got int"):
        memory(7, batch=1, seq=8)
    with pytest.raises(ValueError, match="gradients = 'int8'; expected one of float64, float32"):
        Precision(gradients="int8")
