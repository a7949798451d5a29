"""The claims about all questions. docs/results.md is written from these claims. README and the notebooks read findings
by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from ..files import write_text
from ..studies.capacity import claims as capacity
from ..studies.convergence import claims as convergence
from ..studies.counting import claims as counting
from ..studies.finetuning import claims as finetuning
from ..studies.four_bits import claims as four_bits
from ..studies.harness.findings import Claim, Finding, paragraph
from ..studies.harness.table import Table
from ..studies.hyperparameters import claims as hyperparameters
from ..studies.low_rank import claims as low_rank
from ..studies.methods import claims as methods
from ..studies.serving import claims as serving
from ..studies.timing import claims as timing
from . import proofs

BEGIN, END = "<!-- results: written by `python -m lora_np reproduce --full` -->", "<!-- end of results -->"
SECTIONS: dict[str, tuple[ModuleType, ...]] = {
    "Parameters, memory and time": (counting, timing),
    "Gradients": (proofs,),
    "Why low rank works": (low_rank,),
    "Convergence": (convergence, finetuning),
    "Hyperparameters and capacity": (hyperparameters, capacity),
    "QLoRA": (four_bits,),
    "Merging and serving": (serving,),
    "Other methods": (methods,),
}
README = (  # the names of the findings that README shows
    "counting.llama-2-7b.all-linear.r16",
    "memory.llama-65b.qlora",
    "low_rank.gain_kept.r8",
    "convergence.recovered.all-linear.r8.steps200",
    "convergence.recovered.attention.r8.steps200",
    "finetuning.answers",
    "hyperparameters.ratio.r16",
    "qlora.smollm2.gap",
    "serving.smollm2.each",
    "methods.dora.loss",
)
README_BEGIN, README_END = "<!-- ten results: written with docs/results.md -->", "<!-- end of the ten results -->"
NEEDED = tuple(dict.fromkeys(name for modules in SECTIONS.values() for module in modules for name in module.NEEDED))


def committed(figures: str | os.PathLike[str] = "figures") -> dict[str, Table]:
    """Load the committed tables that the claims need from `figures`/data."""
    return {name: Table.load(Path(figures) / "data" / f"{name}.json") for name in NEEDED}


def claims(tables: Mapping[str, Table]) -> dict[str, list[Claim]]:
    """Return the claims of each section of docs/results.md."""
    return {title: [c for module in modules for c in module.claims(tables)] for title, modules in SECTIONS.items()}


class Findings(Mapping[str, Finding]):
    """A mapping from the name of each finding to the finding.

    Parameters
    ----------
    figures : str or path
        The folder of figures; its subfolder data has the committed tables.

    Examples
    --------
    >>> findings = Findings("figures")
    >>> findings["convergence.recovered.all-linear.r8.steps200"].unit
    "of full fine-tuning's gain"
    """

    def __init__(self, figures: str | os.PathLike[str] = "figures"):
        found = [f for section in claims(committed(figures)).values() for claim in section for f in claim.findings]
        self._findings = {finding.name: finding for finding in found}
        if len(self._findings) < len(found):
            names = [finding.name for finding in found]
            raise ValueError(f"two findings have the same name: {sorted({n for n in names if names.count(n) > 1})}")

    def __getitem__(self, name: str) -> Finding:
        if name not in self._findings:
            close = difflib.get_close_matches(name, self._findings, n=4, cutoff=0.3)
            raise KeyError(f"no finding has the name {name!r}; similar names: {', '.join(close) or 'none'}")
        return self._findings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._findings)

    def __len__(self) -> int:
        return len(self._findings)

    def say(self, *names: str) -> str:
        """Return the sentences of the named findings as one paragraph.

        Parameters
        ----------
        *names : str
            Names of findings.

        Returns
        -------
        str
            The sentences in the order of the names, ready for `IPython.display.Markdown`.
        """
        return paragraph(*(self[name].sentence for name in names))


def markdown(tables: Mapping[str, Table]) -> str:
    """Return the generated part of docs/results.md.

    Each section has a table of claims. Below the table is one paragraph for each claim that has a note or findings.
    """
    parts = [BEGIN]
    for number, (title, section) in enumerate(claims(tables).items(), start=1):
        parts += [f"\n## {number}. {title}\n", "| claim | holds here | number | check |", "|---|---|---|---|"]
        parts += [f"| {c.claim} ({c.source}) | {c.verdict} | {c.number} | {c.check} |" for c in section]
        parts += [f"\n**Claim: {c.claim}. Verdict: {c.verdict}.**\n\n{c.below}" for c in section if c.below]
    return "\n".join([*parts, "", END])


def readme(tables: Mapping[str, Table]) -> str:
    """Return the generated part of README: the findings in `README`, each with a link to its section of docs/results.md."""
    lines = [README_BEGIN]
    for number, (title, section) in enumerate(claims(tables).items(), start=1):
        anchor = f"docs/results.md#{number}-{title.lower().replace(',', '').replace(' ', '-')}"
        found = [finding for claim in section for finding in claim.findings if finding.name in README]
        lines += [f"- {finding.sentence} ([more]({anchor}))" for finding in found]
    return "\n".join([*lines, README_END])


def write_into(page: Path, part: str) -> None:
    """Replace the generated part of a page by `part`; the first and the last line mark this part in the page.

    Raises ValueError if the page does not contain each of these two lines exactly once.
    """
    text, (begin, *_, end) = page.read_text(encoding="utf-8"), part.splitlines()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs the lines {begin!r} and {end!r}, once each, around the generated part")
    write_text(page, text.split(begin)[0] + part + text.split(end)[1])


def write_pages(root: str | os.PathLike[str], tables: Mapping[str, Table]) -> None:
    """Write the results into docs/results.md and README.md below `root`."""
    write_into(Path(root) / "docs" / "results.md", markdown(tables))
    write_into(Path(root) / "README.md", readme(tables))
