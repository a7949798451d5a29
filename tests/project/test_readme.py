"""README and the pages of docs/ say what the code and the committed tables say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_np.report import methods, results

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
README, RESULTS = PAGES["README.md"], PAGES["docs/results.md"]


def found(pattern: str) -> list[tuple[str, str]]:
    """(page, what the pattern's group matched in it), each once."""
    return sorted({(page, match) for page, text in PAGES.items() for match in re.findall(pattern, text)})


def test_the_pages_are_all_here():
    expected = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"}
    expected |= {f"docs/{name}.md" for name in ("README", "gpu", "qlora", "results", "serving", "studies")}
    assert expected <= PAGES.keys()
    for page in sorted(page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"):
        assert f"]({page.removeprefix('docs/')})" in PAGES["docs/README.md"], f"docs/README.md does not list {page}"


def test_the_results_are_those_of_the_committed_tables():
    tables = results.committed(ROOT / "figures")
    for page, part in ((RESULTS, results.markdown(tables)), (README, results.readme(tables))):
        assert part in page, (
            "the tables or the claims changed: write the pages again with lora_np.report.results.write_pages"
        )
    assert len(results.README) == results.readme(tables).count("\n- ") == 10


def test_the_page_of_the_methods_is_what_the_registry_says():
    assert PAGES["docs/methods.md"] == methods.page(), "run python -m lora_np.report.methods"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINK = r"\]\(([^)\s]+)\)"
FILE = r"`((?:tests|lora_np|figures|notebooks|docs)/[\w/.]+)`"
TEST = r"`(test_\w+)`"


def test_every_link_and_picture_is_there():
    missing = []
    for page, target in found(LINK):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if "://" not in target and not path.exists():
            missing.append(f"{page} points to {name}")
        elif "://" not in target and anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            missing.append(f"{page} points to the heading #{anchor} of {name}")
    assert not missing, "\n".join(["not there:", *missing])


def test_every_file_that_is_named_is_there():
    made_by_commands = {"figures/quick/"}
    missing = [each for each in found(FILE) if not (ROOT / each[1]).exists() and each[1] not in made_by_commands]
    assert not missing, f"(page, the file that it names and that does not exist): {missing}"


def test_every_test_that_is_named_is_there():
    suite = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [each for each in found(TEST) if f"def {each[1]}(" not in suite]
    assert not missing, f"(page, the test that it names and that does not exist): {missing}"


def test_the_searches_find_something():
    assert ("README.md", "docs/qlora.md") in found(LINK)
    assert ("docs/code.md", "lora_np/ops/lora.py") in found(FILE)
    assert any(page == "docs/results.md" for page, _ in found(TEST))


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


def test_the_first_look_runs_line_by_line(capsys):
    code = snippets("README.md")[0].replace("steps=100", "steps=2")
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "trainable params:" in out and "2 steps in" in out


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and snippets(page)])
def test_the_python_of_a_page_runs(page):
    names: dict = {}
    for code in snippets(page):
        exec(compile(code, page, "exec"), names)
    if page == "docs/serving.md":
        assert len(names["tokens"]) == 3 and names["report"] is not None
