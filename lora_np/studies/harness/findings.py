"""Findings: the results of the studies, each with a name, a value, a unit, a spread and a sentence.

A question's `claims.py` returns `Claim`s, and each claim carries the findings that decide it. docs/results.md shows the claims;
README and the notebooks ask for a finding by its name (`lora_np.report.results.Findings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "partly"]


@dataclass(frozen=True)
class Finding:
    """One measured result.

    Parameters
    ----------
    name : str
        The name by which texts ask for it: question, quantity, setting, for example "convergence.recovered.r8".
    value : float
        The measured number.
    sentence : str
        One full sentence that states the result with its number and its conditions.
    unit : str
        The unit, for example "nats per byte"; "" for a ratio or a share.
    spread : (float, float), optional
        The lowest and the highest value over the seeds.
    form : str
        The format of the number: ".3f", ".0%", ",", "g".

    Examples
    --------
    >>> gap = Finding("qlora.tiny.loss", 1.3159, "QLoRA ends at 1.316.", "nats per byte", spread=(1.31, 1.3225))
    >>> str(gap)
    '1.316 nats per byte (1.310 to 1.323)'
    """

    name: str
    value: float
    sentence: str
    unit: str = ""
    spread: tuple[float, float] | None = None
    form: str = ".3f"

    @property
    def number(self) -> str:
        """The value in its format, without unit and spread."""
        return _written(self.value, self.form)

    def __str__(self) -> str:
        spread = (
            f"({_written(self.spread[0], self.form)} to {_written(self.spread[1], self.form)})" if self.spread else ""
        )
        return " ".join(filter(None, (self.number, self.unit, spread)))


@dataclass(frozen=True)
class Claim:
    """A claim about LoRA and what was found: one row of docs/results.md.

    Parameters
    ----------
    claim : str
        The claim, in a few words.
    source : str
        Who made it: authors, year and section, "the lesson", or "this project".
    verdict : "yes", "no" or "partly"
        Whether the measurements here agree with the claim.
    number : str
        The deciding number or numbers with their unit, short enough for a cell of a table.
    check : str
        The test, the study or the notebook that measured it.
    findings : tuple of Finding
        The results behind the verdict.
    note : str
        The qualification below the table. Without it, the sentences of the findings stand there.

    Examples
    --------
    >>> claim = Claim("r = 2 has 37.7 M parameters", "Hu et al. 2021", "no", "18.9 M", "`tests/costs/test_counting.py`")
    >>> claim.below
    ''
    """

    claim: str
    source: str
    verdict: Verdict
    number: str
    check: str
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def below(self) -> str:
        """The qualification below the table: the note, or else the sentences of the findings."""
        return self.note or " ".join(finding.sentence for finding in self.findings)


def agrees(*checks: bool) -> Verdict:
    """Return "yes" if all checks hold, "no" if none does, else "partly": a verdict is computed, never typed.

    Examples
    --------
    >>> agrees(True, False)
    'partly'
    """
    return "yes" if all(checks) else "partly" if any(checks) else "no"


def _written(value: float, form: str) -> str:
    """A number in its format, with a space before the percent sign and a minus sign in place of the hyphen."""
    return format(value, form).replace("%", " %").replace("-", "−").replace("e−", "e-")
