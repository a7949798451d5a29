"""The claims that the ledger answers by adding up, without a run: operations, and bytes."""

from __future__ import annotations

from ...costs import flops, memory, nf4_bytes


def on_paper() -> list[tuple[str, str, str, str]]:
    """(claim, its source, what came out here, what checked it), for README's table."""
    step = {"model": "llama-65b", "batch": 1, "seq": 512}
    qlora = step | {"method": "qlora", "r": 16, "target_modules": "all-linear"}
    full, kept = (memory(**settings, checkpointing=True).total / 1e9 for settings in (step, qlora))
    all_kept = memory(**qlora).total / 1e9
    gpt3 = memory("gpt-3-175b", 1, 512, "lora", 4, ["q_proj", "v_proj"], checkpointing=True)
    gpt3_full = memory("gpt-3-175b", 1, 512, checkpointing=True)
    smol = {"model": "smollm2-135m", "tokens": 512, "seq": 256}
    lora = flops(**smol, r=8, target_modules="all-linear").total / flops(**smol).total
    matrix, test = 4096 * 4096, "`tests/costs/test_memory_on_paper.py`"
    return [
        (
            "A LoRA step costs 2N² + 6Nr for a matrix and a token, a full one 3N²",
            "Schulman et al. 2025",
            f"exactly; SmolLM2-135M whole, with attention and head, r = 8: {lora:.2f}× the operations of a full step",
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
