"""The claims about LoRA beside full fine-tuning: what share of the gain each rank recovers, and what the rest is due to."""

from __future__ import annotations

from collections.abc import Mapping

from ..harness.paired import verdict
from ..harness.table import Claim, Table, groups, mean

NEEDED = ("convergence", "convergence_short", "shortfall")
STUDY = "`lora_np/studies/convergence/study.py`, notebook 05"


def on_convergence(tables: Mapping[str, Table]) -> list[Claim]:
    """For README's table."""
    measured, early = tables["convergence"], tables["convergence_short"]
    means, attention, early_means = recovered(measured), recovered(measured, "attention"), recovered(early)
    parts = groups(tables["shortfall"].rows, "method")
    share = {method: mean(rows, "recovered") for method, rows in parts.items()}
    return [
        (
            "LoRA reaches what full fine-tuning reaches",
            "Hu et al. 2021, §5; Schulman et al. 2025",
            f"of full fine-tuning's held-out gain after {measured.settings['steps']} steps, with all linear layers: "
            f"{said(means)}; at least 95 % {reached(means)}. After {early.settings['steps']} steps "
            f"{said({r: early_means[r] for r in (1, 8, 16)})}; at least 95 % {reached(early_means)}",
            STUDY,
        ),
        (
            "What it falls short by is the rank, and what stays frozen",
            "Hu et al. 2021, §7; Biderman et al. 2024",
            f"r = {parts['lora'][0]['r']} recovers {share['lora']:.1%}; training the embedding and norms beside it "
            f"{share['lora+rest']:.1%} (its loss {verdict(parts['lora+rest'], parts['lora'])}); full fine-tuning of the linear "
            f"layers alone, without a low rank, {share['linear']:.1%} (its loss {verdict(parts['linear'], parts['lora'])})",
            "`shortfall` in `lora_np/studies/convergence/study.py`, each at its own best rate",
        ),
        (
            "A rank of 1 or 2 already suffices",
            "Hu et al. 2021, table 6",
            f"r = 1 recovers {means[1]:.0%} here, r = 2 {means[2]:.0%}",
            STUDY,
        ),
        (
            "Adapting the attention is enough",
            "Hu et al. 2021, §5; against it Schulman et al. 2025",
            "attention alone against all linear layers: "
            + ", ".join(f"r = {r} {attention[r]:.0%} against {means[r]:.0%}" for r in (1, 8, 64)),
            STUDY,
        ),
    ]


def recovered(table: Table, target_modules: str = "all-linear") -> dict[int, float]:
    """rank → the share of full fine-tuning's gain that LoRA recovers, the mean over seeds."""
    runs = groups(table.where(phase="seeds", method="lora", target_modules=target_modules), "r")
    return {r: mean(runs[r], "recovered") for r in table.settings["ranks"]}


def said(shares: Mapping[int, float]) -> str:
    """Each rank's share."""
    return ", ".join(f"r = {r} {share:.1%}" for r, share in shares.items())


def reached(means: Mapping[int, float], wanted: float = 0.95) -> str:
    """Where along the ranks the mean gain reaches `wanted` and stays there, in words."""
    highest_missing = max((r for r, mean in means.items() if mean < wanted), default=0)
    enough = [r for r in means if r > highest_missing]
    if not enough:
        return "nowhere"
    return "only at the highest rank tried" if enough == [max(means)] else f"from r = {min(enough)} on"
