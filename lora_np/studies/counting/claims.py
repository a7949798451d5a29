"""The claims that are checked by counting, without training: parameters, operations and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import costs
from ...peft import LoraConfig
from ...peft.cost import linear_products
from ..harness.findings import Claim, Finding, agrees
from ..harness.table import Table
from ..harness.words import percent

NEEDED = ("one_matrix", "whole_models")
COUNTED, ON_PAPER = "`tests/costs/test_counting.py`", "`tests/costs/test_memory_on_paper.py`"


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims about parameters, operations and bytes."""
    return [small_share(tables["one_matrix"], tables["whole_models"]), gpt3_parameters(), operations(), *memory()]


def small_share(one_matrix: Table, whole_models: Table) -> Claim:
    """Return the claim about the share of parameters that LoRA trains, for one matrix and for Llama-2-7B."""
    row, llama = one_matrix.where(r=8)[0], whole_models.where(model="llama-2-7b", targets="all-linear")[0]
    matrix = Finding(
        "counting.one_matrix.r8",
        row["share"],
        f"For one 4096 × 4096 matrix, LoRA with r = 8 trains {row['lora']:,} parameters. The matrix has "
        f"{row['full']:,} parameters, {row['factor']:g} times as many as LoRA trains.",
        form=".2%",
    )
    model = Finding(
        "counting.llama-2-7b.all-linear.r16",
        llama["share"],
        f"On all linear layers of Llama-2-7B, LoRA with r = {llama['r']} trains {llama['trainable']:,} parameters, "
        f"{percent(llama['share'])} of the model's parameters.",
        form=".2%",
    )
    return Claim(
        "LoRA trains a small share of the parameters",
        "Hu et al. 2021",
        agrees(matrix.value < 0.01, model.value < 0.01),
        f"one matrix: {matrix.number}; Llama-2-7B: {model.number}",
        f"{COUNTED}, and PEFT in `tests/oracles/test_ops_oracles.py`",
        (matrix, model),
    )


def gpt3_parameters() -> Claim:
    """Return the claim about the number of LoRA's parameters on all attention matrices of GPT-3, in millions."""
    attention, found = ["q_proj", "k_proj", "v_proj", "o_proj"], {}
    for r in (2, 4):
        count = costs.count("gpt-3-175b", LoraConfig(r=r, target_modules=attention)).trainable / 1e6
        sentence = f"On the attention matrices q, k, v and o of GPT-3, LoRA with r = {r} has {count:.1f} M parameters."
        found[r] = Finding(f"counting.gpt-3.attention.r{r}", count, sentence, "M parameters", form=".1f")
    return Claim(
        "LoRA with r = 2 on q, k, v and o of GPT-3 has 37.7 M parameters",
        "Hu et al. 2021, §D.4",
        agrees(found[2].number == "37.7"),
        f"r = 2: {found[2].number} M; r = 4: {found[4].number} M",
        COUNTED,
        tuple(found.values()),
    )


def operations() -> Claim:
    """Return the claim about the operations of a LoRA step and a full step, for one matrix and for SmolLM2-135M."""
    n, r = 576, 8
    weight, a, b = (linear_products(1, out, in_, True, True) for out, in_ in ((n, n), (r, n), (n, r)))
    lora = (
        weight.forward + weight.dx + a.total + b.total
    ) // 2  # two operations are one multiplication and one addition
    config = LoraConfig(r=r, target_modules="all-linear")
    steps = [costs.flops("smollm2-135m", c, batch=2, seq=256).total for c in (config, None)]
    whole = Finding(
        "counting.flops.smollm2-135m.r8",
        steps[0] / steps[1],
        f"On SmolLM2-135M, a LoRA step with r = {r} takes {steps[0] / steps[1]:.2f} times the operations of a full "
        "fine-tuning step. The operations of the attention scores and of the head are included.",
        "of a full step's operations",
        form=".2f",
    )
    return Claim(
        "For an N × N matrix and one token, a LoRA step takes 2N² + 6Nr multiplications, and a full fine-tuning step takes "
        "3N²",
        "Schulman et al. 2025",
        agrees(lora == 2 * n**2 + 6 * n * r, weight.total // 2 == 3 * n**2),
        f"exact; SmolLM2-135M, r = {r}: {whole.number} {whole.unit}",
        "`tests/costs/test_flops.py`, which counts each product of real steps",
        (whole,),
    )


def memory() -> list[Claim]:
    """Return the claims about memory: Llama-65B in 16 bits, QLoRA on Llama-65B, NF4, and LoRA on GPT-3."""
    step: dict[str, Any] = {"batch": 1, "seq": 512}
    r16, r4 = LoraConfig(r=16, target_modules="all-linear"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    full = costs.memory("llama-65b", **step, checkpointing=True).total / 1e9
    saved, kept = (
        costs.memory("llama-65b", r16, **step, quantize="nf4", checkpointing=on).total / 1e9 for on in (True, False)
    )
    gpt3, gpt3_full = (costs.memory("gpt-3-175b", c, **step, checkpointing=True) for c in (r4, None))
    size = 4096 * 4096
    double, single = (8 * costs.nf4_bytes(size, double_quant=on) / size for on in (True, False))
    of_65b = Finding(
        "memory.llama-65b.full",
        full,
        f"Full fine-tuning of Llama-65B takes {full:.0f} GB of memory. The weights, the gradients and AdamW's state take "
        "12 bytes per parameter, and the checkpointed activations take the rest.",
        "GB",
        form=".0f",
    )
    qlora = Finding(
        "memory.llama-65b.qlora",
        saved,
        f"A QLoRA step on Llama-65B, with r = 16 and 512 tokens, takes {saved:.1f} GB of memory with checkpointed activations. "
        f"Without checkpointing, the QLoRA step takes {kept:.1f} GB.",
        "GB",
        form=".1f",
    )
    bits = Finding(
        "memory.nf4.bits",
        double,
        f"NF4 takes {double:.3f} bits per weight with double quantisation, and {single:g} bits per weight "
        "without double quantisation.",
        "bits per weight",
    )
    lora_gpt3 = Finding(
        "memory.gpt-3.lora",
        gpt3.total / 1e9,
        f"LoRA on the queries and values of GPT-3 (r = 4) takes {gpt3.total / 1e9:.0f} GB of memory. The frozen weights in 16 bits "
        f"take {gpt3.weights / 1e9:.0f} GB of this memory.",
        "GB",
        form=".0f",
    )
    full_gpt3 = Finding(
        "memory.gpt-3.full",
        gpt3_full.total / 1e12,
        f"Full fine-tuning of GPT-3 with AdamW takes {gpt3_full.total / 1e12:.1f} TB of memory, with 12 bytes per parameter. "
        "The 1.2 TB that Hu et al. 2021 report are 7 bytes per parameter of GPT-3.",
        "TB",
        form=".1f",
    )
    paper, lora_paper = "Dettmers et al. 2023", "Hu et al. 2021, §4.2"
    shrinks = agrees(full_gpt3.number == "1.2", abs(lora_gpt3.value / 350 - 1) < 0.01)
    more, fits = agrees(full > 780), agrees(saved < 48)
    nf4, with_bitsandbytes = f"NF4 with double quantisation takes 4.127 {bits.unit}", f"{ON_PAPER}, with bitsandbytes"
    return [
        Claim(
            "Full fine-tuning of Llama-65B in 16 bits takes more than 780 GB",
            paper,
            more,
            str(of_65b),
            ON_PAPER,
            (of_65b,),
        ),
        Claim(
            "QLoRA trains Llama-65B on one GPU with 48 GB",
            paper,
            fits,
            f"{qlora} with checkpointing",
            ON_PAPER,
            (qlora,),
        ),
        Claim(nf4, f"{paper}, §3", agrees(bits.number == "4.127"), str(bits), with_bitsandbytes, (bits,)),
        Claim(
            "LoRA reduces the memory for training GPT-3 from 1.2 TB to 350 GB",
            lora_paper,
            shrinks,
            f"from {full_gpt3} to {lora_gpt3}",
            ON_PAPER,
            (lora_gpt3, full_gpt3),
        ),
    ]
