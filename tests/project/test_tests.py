"""The tests are a house too: what they share is in support/ or in a conftest.py, and no test imports from a test."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """Each module that a file imports, and each name that it imports from one, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return found


def test_no_test_imports_from_a_test():
    files = [path for path in TESTS.rglob("*.py") if path.parent.name != "wrong_answers"]
    not_to_import = {path.stem for path in FILES} | {"conftest"}
    wrong = {str(path.relative_to(TESTS)): imported(path) & not_to_import for path in files}
    assert not {name: found for name, found in wrong.items() if found}, "what tests share belongs into tests/support/"


def test_this_file_sees_the_imports_that_are_there():
    assert {"mutants", "by_path", "lora_np", "peft"} <= imported(TESTS / "proofs" / "test_mutants.py")
    assert len(FILES) > 70


def test_no_two_files_of_tests_have_one_name():
    """The files of support are found by their names alone, and so are the tests that mutants load."""
    stems = [path.stem for path in [*FILES, *(TESTS / "support").glob("*.py")]]
    assert len(set(stems)) == len(stems), sorted(name for name in set(stems) if stems.count(name) > 1)
