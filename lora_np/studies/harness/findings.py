"""Findings: the results of the studies, each with a name, a value, a unit, a spread and a sentence.

The `claims.py` of each study returns `Claim` objects, and each claim contains the findings that decide its verdict. The
page docs/results.md shows the claims. README and the notebooks look up findings by name
(`lora_np.report.results.Findings`).
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
        The name by which README and the notebooks find the result: question, quantity and setting, for example
        "convergence.recovered.r8".
    value : float
        The measured number.
    sentence : str
        Full sentences that state the result with the number and the conditions.
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
        """The value as text in the format `form`, without unit and spread."""
        return _written(self.value, self.form)

    def __str__(self) -> str:
        spread = (
            f"({_written(self.spread[0], self.form)} to {_written(self.spread[1], self.form)})" if self.spread else ""
        )
        return " ".join(filter(None, (self.number, self.unit, spread)))


@dataclass(frozen=True)
class Claim:
    """A claim about LoRA and the result of checking it: one row of a table in docs/results.md.

    Parameters
    ----------
    claim : str
        The claim, in a few words.
    source : str
        Who made the claim: authors, year and section, "the lesson", or "this project".
    verdict : "yes", "no" or "partly"
        Whether the results of this project agree with the claim.
    number : str
        The numbers that decide the verdict, with their units, short enough for a table cell.
    check : str
        The test, the study or the notebook that measured the number.
    findings : tuple of Finding
        The results behind the verdict.
    note : str
        The text below the table that qualifies the verdict. If it is empty, the sentences of the findings are used
        instead.

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
        """The text below the table: the note, or the sentences of the findings if the note is empty."""
        return self.note or " ".join(finding.sentence for finding in self.findings)


def agrees(*checks: bool) -> Verdict:
    """Return the verdict of some checks: "yes" if all are true, "no" if none is true, else "partly".

    Examples
    --------
    >>> agrees(True, False)
    'partly'
    """
    return "yes" if all(checks) else "partly" if any(checks) else "no"


def _written(value: float, form: str) -> str:
    """Write a number in the format `form`, with a space before a percent sign and a minus sign instead of a hyphen."""
    return format(value, form).replace("%", " %").replace("-", "−").replace("e−", "e-")
