"""The claims that are answered by adding up, without a run: parameters, operations, and bytes."""

from __future__ import annotations

from ...costs import flops, memory, nf4_bytes
from ...peft import LoraConfig
from ..harness.table import Claim, Table

NEEDED = ("one_matrix", "whole_models")


def on_a_small_share(one_matrix: Table, whole_models: Table) -> Claim:
    """Of one matrix, and of a whole model."""
    eight, llama = one_matrix.where(r=8)[0], whole_models.where(model="llama-2-7b", targets="all-linear")[0]
    return (
        "LoRA trains a small share of the numbers",
        "Hu et al. 2021",
        f"{eight['lora']:,} of {eight['full']:,} for one 4096 × 4096 matrix at r = 8 ({eight['factor']:g}× fewer); "
        f"{llama['trainable']:,} ({llama['share']:.2%}) for Llama-2-7B, r = {llama['r']}, all linear layers",
        "`tests/costs/test_counting.py`, and PEFT itself in `tests/oracles/test_ops_oracles.py`",
    )


def on_paper() -> list[Claim]:
    """For the table of docs/results.md."""
    r8, r16 = (LoraConfig(r=r, target_modules="all-linear") for r in (8, 16))
    queries_values = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    full = memory("llama-65b", batch=1, seq=512, checkpointing=True).total / 1e9
    kept, all_kept = (
        memory("llama-65b", r16, batch=1, seq=512, quantize="nf4", checkpointing=on).total / 1e9 for on in (True, False)
    )
    gpt3, gpt3_full = (
        memory("gpt-3-175b", config, batch=1, seq=512, checkpointing=True) for config in (queries_values, None)
    )
    lora, whole = (flops("smollm2-135m", config, batch=2, seq=256).total for config in (r8, None))
    matrix, test = 4096 * 4096, "`tests/costs/test_memory_on_paper.py`"
    return [
        (
            "GPT-3 with r = 2 on q, k, v, o has 37.7 M parameters",
            "Hu et al. 2021, §D.4",
            "no: r = 2 has 18.9 M, and r = 4 has 37.7 M",
            "`tests/costs/test_counting.py`",
        ),
        (
            "A LoRA step costs 2N² + 6Nr for a matrix and a token, a full one 3N²",
            "Schulman et al. 2025",
            f"exactly; SmolLM2-135M whole, with attention and head, r = 8: {lora / whole:.2f}× the operations of a full step",
            "`tests/costs/test_flops.py`, which counts each product of live steps",
        ),
        (
            "Fine-tuning 65B in 16 bits takes more than 780 GB",
            "Dettmers et al. 2023",
            f"{full:.0f} GB: weights, gradients and AdamW's state at 12 bytes a parameter, and checkpointed activations",
            test,
        ),
        (
            "QLoRA trains 65B on one card of 48 GB",
            "Dettmers et al. 2023",
            f"{kept:.1f} GB with r = 16 and 512 tokens, if activations are checkpointed; {all_kept:.1f} GB if they are not",
            test,
        ),
        (
            "NF4 with double quantisation takes 4.127 bits a weight",
            "Dettmers et al. 2023, §3",
            f"{8 * nf4_bytes(matrix) / matrix:.3f}, and {8 * nf4_bytes(matrix, double_quant=False) / matrix:g} without it",
            f"{test}, with bitsandbytes",
        ),
        (
            "LoRA brings GPT-3 from 1.2 TB to 350 GB",
            "Hu et al. 2021, §4.2",
            f"{gpt3.total / 1e9:.0f} GB, of which {gpt3.weights / 1e9:.0f} are the frozen weights in 16 bits; 1.2 TB would be "
            f"7 bytes a parameter, and full fine-tuning with AdamW takes 12: {gpt3_full.total / 1e12:.1f} TB",
            test,
        ),
    ]
