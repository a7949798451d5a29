"""The claims about LoRA and full fine-tuning: the share of the gain that each rank recovers, and the causes of the shortfall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..harness.findings import Claim, Finding, agrees
from ..harness.paired import verdict
from ..harness.table import Table, groups
from ..harness.words import percent

NEEDED = ("convergence", "convergence_short", "shortfall")
STUDY = "`lora_np/studies/convergence/study.py`, notebook 05"
GAIN = "of full fine-tuning's gain"
OWN = "Each method is trained at its own best learning rate."
ENOUGH = 0.95  # the share of the gain that counts as reaching full fine-tuning


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims that are checked by the studies "convergence" and "shortfall"."""
    long, short, parts = tables["convergence"], tables["convergence_short"], groups(tables["shortfall"].rows, "method")
    whole = {r: recovered(long, r) for r in long.settings["ranks"]}
    attention = {r: recovered(long, r, "attention") for r in (1, 8, 64)}
    early = {r: recovered(short, r) for r in (1, 8, 16)}
    lora, rest, linear = (shortfall(parts, method) for method in ("lora", "lora+rest", "linear"))
    return [
        Claim(
            "LoRA reaches the loss of full fine-tuning",
            "Hu et al. 2021, §5; Schulman et al. 2025",
            agrees(*(finding.value >= ENOUGH for finding in whole.values())),
            f"r = 8: {whole[8]}",
            STUDY,
            (*whole.values(), *early.values()),
            f"The model tiny learns Python code with LoRA on all linear layers. After {long.settings['steps']} steps, LoRA "
            f"recovers these shares {GAIN}: {at_each_rank(whole)}. After {long.settings['steps']} steps, LoRA recovers at least "
            f"{percent(ENOUGH)} {GAIN} {reached(whole)}. After {short.settings['steps']} steps, LoRA recovers these shares "
            f"{GAIN}: {at_each_rank(early)}.",
        ),
        Claim(
            "LoRA's shortfall from full fine-tuning has two causes: the low rank, and the frozen embedding and norms",
            "Hu et al. 2021, §7; Biderman et al. 2024",
            agrees(max(rest.value, linear.value) < 1, min(rest.value, linear.value) > lora.value),
            f"LoRA, embedding and norms: {rest.number}; linear layers without a low rank: {linear.number} {GAIN}",
            "`shortfall` in `lora_np/studies/convergence/study.py`, each at its own best rate",
            (lora, rest, linear),
        ),
        Claim(
            "A rank of 1 or 2 is enough to reach the loss of full fine-tuning",
            "Hu et al. 2021, table 6",
            agrees(whole[1].value >= ENOUGH, whole[2].value >= ENOUGH),
            f"r = 1: {whole[1].number}, r = 2: {whole[2].number} {GAIN}",
            STUDY,
        ),
        Claim(
            "It is enough to adapt only the attention layers",
            "Hu et al. 2021, §5; Schulman et al. 2025 disagree",
            agrees(*(attention[r].value >= whole[r].value for r in attention)),
            f"r = 8: {attention[8].number} with the attention layers, {whole[8].number} with all linear layers",
            STUDY,
            tuple(attention.values()),
            f"The model tiny learns Python code. LoRA on only the attention layers recovers these shares {GAIN}: "
            f"{at_each_rank(attention)}. LoRA on all linear layers recovers these shares {GAIN}: "
            f"{at_each_rank({r: whole[r] for r in attention})}.",
        ),
    ]


def recovered(table: Table, r: int, target_modules: str = "all-linear") -> Finding:
    """Return the share of full fine-tuning's gain that LoRA recovers at one rank: mean and range over the seeds."""
    shares = [row["recovered"] for row in table.where(phase="seeds", method="lora", target_modules=target_modules, r=r)]
    share, steps = sum(shares) / len(shares), table.settings["steps"]
    layers = "all linear layers" if target_modules == "all-linear" else "only the attention layers"
    name = f"convergence.recovered.{target_modules}.r{r}.steps{steps}"
    sentence = (
        f"The model tiny learns Python code for {steps} steps. LoRA with r = {r} on {layers} recovers {percent(share)} "
    )
    sentence += f"{GAIN}."
    return Finding(name, share, sentence, GAIN, (min(shares), max(shares)), ".0%")


def at_each_rank(findings: Mapping[int, Finding]) -> str:
    """Write the share at each rank:  "72 % (r = 1), 79 % (r = 2)"."""
    return ", ".join(f"{finding.number} (r = {r})" for r, finding in findings.items())


def shortfall(parts: Mapping[str, list[dict[str, Any]]], method: str) -> Finding:
    """Return the share of full fine-tuning's gain that one method of `shortfall` recovers at the best learning rate."""
    r = parts["lora"][0]["r"]
    subject = {
        "lora": f"LoRA with r = {r} on all linear layers",
        "lora+rest": f"LoRA (r = {r}) with trained embedding and norms",
        "linear": "full fine-tuning of only the linear layers",
    }[method]
    shares = [row["recovered"] for row in parts[method]]
    share = sum(shares) / len(shares)
    compared = (
        ""
        if method == "lora"
        else " " + verdict(f"the final loss of {subject}", "the final loss of LoRA alone", parts[method], parts["lora"])
    )
    sentence = f"{OWN} On the model tiny, which learns Python code, {subject} recovers {share:.1%} {GAIN}.".replace(
        "%", " %"
    )
    sentence += compared
    return Finding(f"convergence.shortfall.{method}", share, sentence, GAIN, (min(shares), max(shares)), ".1%")


def reached(findings: Mapping[int, Finding], wanted: float = ENOUGH) -> str:
    """Write in words the lowest rank from which on LoRA recovers at least the share `wanted`."""
    highest_missing = max((r for r, finding in findings.items() if finding.value < wanted), default=0)
    enough = [r for r in findings if r > highest_missing]
    return f"from r = {min(enough)} on" if enough else "at no rank that was tried"
