"""The claims about QLoRA: what four bits cost in the weights, in the gradients, in training and in merging."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.findings import Claim, Finding, agrees, paragraph
from ..harness.table import Table, median, model_in_text, model_name
from ..harness.words import listed
from .qlora import means
from .quantization import ANOTHER_BATCH

NEEDED = (
    *("quantization_error", "quantization_gradients", "qlora_tiny", "qlora_smollm2"),
    *("merge_routes_tiny", "merge_routes_smollm2", "quantized_speed"),
)
UNITS = {"tiny": "nats per byte", "smollm2": "nats per token"}
TASKS = {"tiny": "Python code", "smollm2": "to answer like a lighthouse keeper"}
STUDY = "`lora_np/studies/four_bits/{}.py`, notebook 07"
# If the cosine is above √½, more than half of a gradient's squared norm lies along the other gradient.
MAINLY = 0.5**0.5
SAME, SAME_MODEL, DEAR = 0.01, 0.001, 1.25  # limits: relative differences of losses and of errors; a ratio of times


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that the studies of four bits check."""
    cosine = {
        base: median(tables["quantization_gradients"].where(base=base), "cosine")
        for base in ("nf4", "fp4", ANOTHER_BATCH)
    }
    speed = tables["quantized_speed"]
    step, decoding = (
        speed.where(case="smollm2-135m", competitor=name)[0]["ratio"] for name in ("ours, NF4 base", "dequantising")
    )
    ends = {f.name: f for name in UNITS for f in losses(name, tables[f"qlora_{name}"])}
    gaps, rounding = [ends[f"qlora.{name}.gap"] for name in UNITS], rounding_share(tables)
    return [
        *codes(tables["quantization_error"]),
        Claim(
            "A gradient with a 4-bit base points mainly in the direction of the gradient with a float32 base (cosine above √½)",
            "this project; Dettmers et al. 2023, §3, train through such a base",
            agrees(cosine["nf4"] > MAINLY, cosine["fp4"] > MAINLY),
            f"median cosine {cosine['nf4']:.3f} (NF4), {cosine['fp4']:.3f} (FP4)",
            STUDY.format("quantization"),
            note="The gradients dA and dB of each layer of the model tiny are computed twice: with a base in 4 bits, and with a "
            "base in float32. The cosine compares the two results. "
            f"If the cosine is above √½ = {MAINLY:.2f}, more than half of the squared norm of one gradient lies along the "
            "other gradient. "
            f"For comparison, the gradients of two different batches have a median cosine of {cosine[ANOTHER_BATCH]:.2f}.",
        ),
        Claim(
            "QLoRA matches LoRA",
            "Dettmers et al. 2023, §4",
            agrees(*(abs(gap.value) < SAME for gap in gaps)),
            f"loss {gaps[0].number} (tiny), {gaps[1].number} (SmolLM2-135M)",
            STUDY.format("qlora"),
            (*ends.values(), rounding),
            paragraph(*(f.sentence for f in (*gaps, rounding))),
        ),
        merged({name: tables[f"merge_routes_{name}"] for name in UNITS}),
        Claim(
            "Dequantising adds at most 25 % to the time of a LoRA step",
            "this project",
            agrees(step <= DEAR),
            f"{step:.2f}× the time of a LoRA step",
            "`python -m lora_np bench --only quantized`",
            note="The time is measured with steps of 2 × 256 tokens on SmolLM2-135M. The computer has "
            f"{speed.settings['threads']} threads of this processor: {speed.settings['processor']}. Decoding each "
            "4-bit matrix twice takes "
            f"{decoding:.2f} times the time of a LoRA step with a float32 base.",
        ),
    ]


def codes(table: Table) -> list[Claim]:
    """Return the claims about codes: which code has the smallest error, and how much error double quantisation adds."""
    found = {(r["weights"], r["block_size"], r["quant_type"]): r["mean"] for r in table.rows}
    kinds, bits = list(table.settings["double_quant"]), 32 / 64 - 8 / 64 - 32 / (64 * 256)
    grown = {kind: mean / found[kind, 64, "nf4"] - 1 for kind, mean in table.settings["double_quant"].items()}

    def three(kind: str, size: int) -> str:
        return ", ".join(f"{name} {found[kind, size, name.lower()]:.4f}" for name in ("NF4", "FP4", "int4"))

    def each(kind: str, size: int) -> str:
        return listed([f"{found[kind, size, name.lower()]:.4f} for {name}" for name in ("NF4", "FP4", "int4")])

    nearest = [found[w, b, "nf4"] < min(found[w, b, "fp4"], found[w, b, "int4"]) for w, b, _ in found]
    nearest_at_64 = [found[kind, 64, "nf4"] < min(found[kind, 64, "fp4"], found[kind, 64, "int4"]) for kind in kinds]
    sizes = sorted({b for w, b, _ in found if w == "tiny"})
    second = [b for b in sizes if found["tiny", b, "fp4"] < found["tiny", b, "int4"]]
    blocks = f"in blocks of {listed([f'{b:,}' for b in second])} weights" if second else "at no block size"
    return [
        Claim(
            "NF4 is nearest to the weights in blocks of 64, FP4 is second and int4 is third",
            "Dettmers et al. 2023, §4, by perplexity",
            agrees(all(nearest_at_64), all(found[kind, 64, "fp4"] < found[kind, 64, "int4"] for kind in kinds)),
            f"tiny, blocks of 64: {three('tiny', 64)}",
            STUDY.format("quantization"),
            note=f"At each block size, NF4 {'has' if all(nearest) else 'does not always have'} a smaller error than FP4 and int4. "
            f"On the model tiny, blocks of {sizes[0]} to {sizes[-1]:,} weights are measured. FP4 has a smaller error than int4 "
            f"{blocks}. An error is the mean absolute error of the weights, divided by the root mean square of the weights. "
            + " ".join(f"In blocks of 64, the errors on {in_words(k)} are {each(k, 64)}." for k in kinds)
            + f" In blocks of 1,024, the errors on the model tiny are {each('tiny', 1024)}.",
        ),
        Claim(
            "Double quantisation saves 0.373 bits per weight, without a loss of quality",
            "Dettmers et al. 2023, §3",
            agrees(f"{bits:.3f}" == "0.373", max(grown.values()) < SAME),
            f"{bits:.3f} bits; mean error at most {max(grown.values()):.2%} larger".replace("%", " %"),
            STUDY.format("quantization"),
            note=f"The saving is 32/64 − 8/64 − 32/(64 · 256) = {bits:.3f} bits per weight. Double quantisation raises "
            "the mean error of NF4 by "
            + listed([f"{grown[kind]:.2%} on {in_words(kind)}" for kind in kinds]).replace("%", " %")
            + ".",
        ),
    ]


def in_words(kind: str) -> str:
    """Return the name of a set of weights: the name of a model, or "weights from N(0, 1)"."""
    return "weights from N(0, 1)" if kind == "N(0, 1)" else model_in_text(kind)


def losses(name: str, table: Table) -> list[Finding]:
    """Return the losses of one model in float32 and in NF4, before and after training, and their relative difference."""
    settings, end, unit = table.settings, means(table), UNITS[name]
    start = {None: settings["base_loss"], "nf4": settings["quantized_loss"]["nf4"]}
    seeds = len({row["seed"] for row in table.where(quant_type="nf4")})
    label, over = model_in_text(settings["base"]), f"{seeds} seed{'s' if seeds > 1 else ''}"
    found = []
    for method, t, what in (("lora", None, "float32"), ("qlora", "nf4", "NF4")):
        ours = [row["final"] for row in table.where(quant_type=t)]
        before = f"Before training, the held-out loss of {label} in {what} is {start[t]:.3f} {unit}."
        after = f"With {label} in {what} as the base, the adapter ends at a held-out loss of {end[t]:.3f} {unit} (mean of {over})."
        found.append(Finding(f"qlora.{name}.{method}.start", start[t], before, unit))
        found.append(Finding(f"qlora.{name}.{method}.end", end[t], after, unit, (min(ours), max(ours))))
    sentence = (
        f"On {label}, which learns {TASKS[name]}, QLoRA ends at a held-out loss of {end['nf4']:.3f} {unit} and LoRA at "
        f"{end[None]:.3f} (mean of {over}). Before training, the held-out loss of {label} is {start['nf4']:.3f} {unit} in NF4 and "
        f"{start[None]:.3f} in float32."
    )
    return [*found, Finding(f"qlora.{name}.gap", end["nf4"] / end[None] - 1, sentence, form="+.1%")]


def rounding_share(tables: Mapping[str, Table]) -> Finding:
    """Return the share of the difference between QLoRA's and LoRA's loss on SmolLM2 that the rounded base causes."""
    end, unrounded = (
        means(tables["qlora_smollm2"]),
        tables["merge_routes_smollm2"].where(route="original")[0]["heldout"],
    )
    share = (end["nf4"] - unrounded) / (end["nf4"] - end[None])
    sentence = (
        f"QLoRA's adapter on the original weights of SmolLM2-135M has a held-out loss of {unrounded:.3f} nats per token. On "
        f"SmolLM2-135M, the rounded base causes {share:.0%} of the difference in loss between QLoRA and LoRA."
    )
    return Finding("qlora.smollm2.rounding", share, sentence.replace("%", " %"), "of the difference", form=".0%")


def merged(tables: Mapping[str, Table]) -> Claim:
    """Return the claim about merging.

    The findings of the claim are the shares of ΔW that remain if the merged weights are quantised again.
    """
    findings, lines, changes = [], [], {}
    for name, table in tables.items():
        row, model = {row["route"]: row for row in table.rows}, table.settings["model"]
        label = model_in_text(model)
        size, kept = row["as trained"]["size"], row["requantised"]["kept"]
        trained, bfloat16, original, again = (
            row[r]["heldout"] for r in ("as trained", "bfloat16", "original", "requantised")
        )
        sentence = f"On {label}, the norm of ΔW is {size:.1%} of the weights' norm. If the merged weights of {label} are quantised "
        sentence += f"again, {kept:.0%} of ΔW remains."
        findings.append(Finding(f"merge_routes.{name}.kept", kept, sentence.replace("%", " %"), "of ΔW", form=".0%"))
        lines.append(
            f"On {label}, the held-out loss before the merge is {trained:.4f} {UNITS[name]}. After a merge into the dequantised "
            f"weights in 16 bits, the loss of {label} is {bfloat16:.4f} {UNITS[name]}. After a merge into the "
            f"original weights, the loss of {label} is {original:.4f} {UNITS[name]}. If the merged weights are quantised again, "
            f"the loss of {label} is {again:.4f} {UNITS[name]}."
        )
        changes[model_name(model)] = bfloat16 / trained - 1
    return Claim(
        "A QLoRA adapter can be merged into the dequantised weights",
        "this project",
        agrees(*(abs(change) < SAME_MODEL for change in changes.values())),
        f"loss {', '.join(f'{change:+.2%} ({label})' for label, change in changes.items())}".replace("%", " %"),
        STUDY.format("merge_routes"),
        tuple(findings),
        " ".join([*lines, *(f.sentence for f in findings)]),
    )
