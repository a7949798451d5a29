"""`pytest tests/proofs` ends with the claims that it has proven, one per line, each with the worst error that was measured."""

from __future__ import annotations

import ast
import re
from collections.abc import Generator
from itertools import groupby
from pathlib import Path

import on_device
import pytest

from lora_np import GradcheckResult

FOLDER = Path(__file__).parent


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gradcheck and assert_allclose measure in a test is kept; the worst of it goes into the report of the test."""
    judged, seen = GradcheckResult.raise_if_wrong, on_device.errors
    seen.clear()

    def raise_if_wrong(result: GradcheckResult) -> GradcheckResult:
        seen.extend(map(float, result.errors.values()))
        return judged(result)

    monkeypatch.setattr(GradcheckResult, "raise_if_wrong", raise_if_wrong)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and "measured" in item.fixturenames and on_device.errors:
        report.user_properties.append(("error", max(on_device.errors)))
    return report


def sentence(test: str) -> str:
    """ "test_dW_agrees_to_1e_12" → "dW agrees to 1e-12"."""
    return re.sub(r"\b1e (?=\d)", "1e-", test.removeprefix("test_").replace("_", " "))


def line(test: str, reports: list[pytest.TestReport]) -> str:
    wrong = sum(report.failed for report in reports)
    errors = [value for report in reports for name, value in report.user_properties if name == "error"]
    said = [f"{len(reports)} cases"] if len(reports) > 1 else []
    said += [f"worst error {max(errors):.0e}" if max(errors) else "exact"] if errors else []
    said += [f"{wrong} FAILED"] if wrong else []
    return f"  {'✗' if wrong else '✓'} {sentence(test)}" + (f" ({', '.join(said)})" if said else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    reports = [report for report in reports if report.when == "call"]
    root = terminalreporter.config.rootpath
    if not reports or any((root / report.location[0]).parent != FOLDER for report in reports):
        return  # the whole suite has more to say than fits here
    reports.sort(key=lambda report: report.location[:2])  # file, line
    terminalreporter.section("what was proven")
    for file, of_file in groupby(reports, key=lambda report: report.location[0]):
        doc = ast.get_docstring(ast.parse((root / file).read_text(encoding="utf-8"))) or file
        terminalreporter.write_line("\n" + doc.split("\n\n")[0].replace("\n", " "), bold=True)
        for test, of_test in groupby(of_file, key=lambda report: report.location[2].split("[")[0]):
            terminalreporter.write_line(line(test, list(of_test)))
