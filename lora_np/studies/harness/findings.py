"""Findings: the results of the studies, each with a name, a value, a unit, a spread and a sentence.

The `claims.py` of each study returns `Claim` objects, and each claim contains the findings that decide its verdict. The
page docs/results.md shows the claims. README and the notebooks look up findings by name
(`lora_np.report.results.Findings`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "partly", "open"]
NOISE = 1.05  # two equal computations can differ in time by this factor, so a smaller ratio is not a difference


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
        Who made the claim: authors, year and section, "a table in many tutorials", or "this project".
    verdict : "yes", "no", "partly" or "open"
        Whether the results of this project agree with the claim; "open" if the results cannot decide the claim.
    number : str
        The numbers that decide the verdict, with their units, short enough for a table cell.
    check : str
        The test, the study or the notebook that measured the number.
    findings : tuple of Finding
        The results that decide the verdict.
    note : str
        The text that qualifies the verdict, printed below the table. If `note` is empty, the sentences of the findings
        are used instead.

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
        return self.note or paragraph(*(finding.sentence for finding in self.findings))


def paragraph(*texts: str) -> str:
    """Join texts with spaces. If texts begin with the same sentence, only the first of these texts keeps the sentence.

    Examples
    --------
    >>> paragraph("Each α has its own rate. A wins.", "Each α has its own rate. B wins.")
    'Each α has its own rate. A wins. B wins.'
    """
    seen, parts = set(), []
    for text in filter(None, texts):
        first, dot, rest = text.partition(". ")
        parts.append(rest if dot and first in seen else text)
        seen.add(first)
    return " ".join(parts)


def agrees(*checks: bool | None) -> Verdict:
    """Return the verdict on a claim from its checks. A check is None if the measurements cannot decide it.

    The verdict is "yes" if all checks are true, "partly" if some are true and some are false, and "no" if some are
    false and none is true. The verdict is "open" if no check is false and some checks are None.

    Raises ValueError if there are no checks.

    Examples
    --------
    >>> agrees(True, False), agrees(True, None), agrees(False, None)
    ('partly', 'open', 'no')
    """
    if not checks:
        raise ValueError("a verdict needs at least one check, got none; pass the conditions that the claim states")
    if any(check is not None and not check for check in checks):  # a check can be a bool of NumPy
        return "partly" if any(checks) else "no"
    return "yes" if all(checks) else "open"


def is_lower(differences: Iterable[float]) -> bool | None:
    """Return True if all differences are below 0, False if all are above 0, and None if the seeds do not agree.

    Examples
    --------
    >>> is_lower([-0.2, -0.1]), is_lower([-0.2, 0.1])
    (True, None)
    """
    found = list(differences)
    return True if max(found) < 0 else False if min(found) > 0 else None


def _written(value: float, form: str) -> str:
    """Write a number in the format `form`, with a space before a percent sign and a minus sign instead of a hyphen."""
    return format(value, form).replace("%", " %").replace("-", "−").replace("e−", "e-")
