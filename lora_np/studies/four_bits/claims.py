"""The claims about QLoRA: what four bits cost in the weights, in the gradients, in training, and in merging."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.table import Claim, Table, median, model_name
from .qlora import means
from .quantization import ANOTHER_BATCH, NORMAL

NEEDED = (
    *("quantization_error", "quantization_gradients", "qlora_tiny", "qlora_smollm2"),
    *("merge_routes_tiny", "merge_routes_smollm2", "quantized_speed"),
)
MODELS = ("tiny", "smollm2")


def on_quantization(tables: Mapping[str, Table]) -> list[Claim]:
    """For README's table."""
    error, turned = tables["quantization_error"], tables["quantization_gradients"]
    there = [name for name in (NORMAL, "tiny", "smollm2-135m") if error.where(weights=name)]
    grows = (
        f"{error.settings['double_quant'][name] / _mean(error, name) - 1:.2%} on {model_name(name)}" for name in there
    )
    nf4, fp4, other = (median(turned.where(base=base), "cosine") for base in ("nf4", "fp4", ANOTHER_BATCH))
    side = {row["competitor"]: row for row in tables["quantized_speed"].where(case="smollm2-135m")}
    unrounded = tables["merge_routes_smollm2"].where(route="original")[0]["heldout"]
    ends = means(tables["qlora_smollm2"])
    share = (ends["nf4"] - unrounded) / (ends["nf4"] - ends[None])
    machine = tables["quantized_speed"].settings
    study = "`lora_np/studies/four_bits/quantization.py`, notebook 07"
    return [
        (
            "NF4 is nearest to the weights, then FP4, then int4",
            "Dettmers et al. 2023, §4 (by perplexity)",
            "NF4 is; which of the others follows depends on the block. Mean error in units of the weights' rms, NF4, FP4, int4, in "
            f"blocks of 64: {'; '.join(f'{model_name(name)} {_three(error, name, 64)}' for name in there)}. In blocks of 1024: "
            f"{_three(error, 'tiny', 1024)} on tiny",
            study,
        ),
        (
            "Double quantisation saves 0.373 bits a weight, without a loss",
            "Dettmers et al. 2023, §3",
            f"32/64 − 8/64 − 32/(64·256) = {32 / 64 - 8 / 64 - 32 / (64 * 256):.3f} bits; the mean error grows by "
            + ", ".join(grows),
            study,
        ),
        (
            "Gradients through a quantised base serve as well",
            "Dettmers et al. 2023, §3",
            f"dA and dB of tiny have a median cosine of {nf4:.3f} with those through float32 (FP4 {fp4:.3f}); those of another "
            f"batch {other:.2f}",
            study,
        ),
        (
            "QLoRA matches LoRA",
            "Dettmers et al. 2023, §4",
            "; ".join(_matched(tables[f"qlora_{name}"]) for name in MODELS)
            + f"; over SmolLM2's unrounded weights the adapter of QLoRA reaches {unrounded:.3f}, so {share:.0%} of the gap is the "
            "base's rounding",
            "`lora_np/studies/four_bits/qlora.py`, notebook 07",
        ),
        (
            "… and its adapter can be merged",
            "this project",
            "held-out loss as trained; merged into the dequantised weights in 16 bits; into the original ones; quantised again: "
            + "; ".join(_merged(tables[f"merge_routes_{name}"]) for name in MODELS),
            "`lora_np/studies/four_bits/merge_routes.py`, notebook 07",
        ),
        (
            "… and dequantising costs little time",
            "this project: at most 25 % of a LoRA step",
            f"a step of 2 × 256 tokens on SmolLM2-135M takes {side['ours, NF4 base']['ratio']:.2f}× one over float32; decoding "
            f"each matrix twice, alone, {side['dequantising']['ratio']:.2f}×",
            f"`python -m lora_np bench --only quantized`; {machine['threads']} threads of {machine['processor']}",
        ),
    ]


def _mean(error: Table, weights: str, quant_type: str = "nf4", block_size: int = 64) -> float:
    return error.where(weights=weights, quant_type=quant_type, block_size=block_size)[0]["mean"]


def _three(error: Table, weights: str, block_size: int) -> str:
    return ", ".join(f"{_mean(error, weights, quant_type, block_size):.4f}" for quant_type in ("nf4", "fp4", "int4"))


def _matched(table: Table) -> str:
    found, settings = means(table), table.settings
    seeds = len({row["seed"] for row in table.where(quant_type="nf4")})
    return (
        f"{model_name(settings['base'])}, {seeds} seed{'s' if seeds > 1 else ''}: {found['nf4']:.3f} against LoRA's "
        f"{found[None]:.3f} ({found['nf4'] / found[None] - 1:+.1%}), from bases of {settings['quantized_loss']['nf4']:.3f} and "
        f"{settings['base_loss']:.3f}"
    )


def _merged(table: Table) -> str:
    row = {row["route"]: row for row in table.rows}
    losses = ", ".join(f"{row[r]['heldout']:.4f}" for r in ("as trained", "bfloat16", "original", "requantised"))
    return (
        f"{model_name(table.settings['model'])} {losses} (ΔW is {row['as trained']['size']:.1%} of the weights' norm, and "
        f"{row['requantised']['kept']:.0%} of it arrives)"
    )
