"""README says what the code and the committed tables say."""

from __future__ import annotations

import re
from pathlib import Path

from lora_np.report.claims import BEGIN, END, NEEDED, markdown
from lora_np.studies.harness.table import Table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_claims_are_those_of_the_committed_tables():
    tables = {name: Table.load(ROOT / "figures" / "data" / f"{name}.json") for name in NEEDED}
    stands = README[README.index(BEGIN) : README.index(END) + len(END)]
    assert stands == markdown(tables), "the tables changed: write README's block again with claims.write_into"


def test_every_link_and_picture_is_there():
    targets = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    missing = sorted(target for target in targets if not (ROOT / target).exists())
    assert targets and not missing, f"README points to {missing}, which are not there"


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`(tests/[\w/]+\.py|lora_np/[\w/]+\.py)`", README))
    missing = sorted(name for name in names if not (ROOT / name).exists())
    assert names and not missing, f"README names {missing}, which are not there"


def test_every_test_that_is_named_is_there():
    names = set(re.findall(r"`(test_\w+)`", README))
    suite = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = sorted(name for name in names if f"def {name}(" not in suite)
    assert names and not missing, f"README names {missing}, which are not there"


def test_the_first_look_runs_line_by_line(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1).replace("steps=100", "steps=2")
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "trainable params:" in out and "2 steps in" in out
