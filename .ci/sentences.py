"""Draw random sentences from all texts of the project. Two people who have not seen the project then read them.

    python .ci/sentences.py --seed 1 > sentences.md        100 sentences: a fixed share from each kind of text

Two readers mark each sentence: 1 understood at the first reading, 2 needs a second reading, 3 not understood without the code.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lora_np import plots
from lora_np.__main__ import _parser
from lora_np.report import pictures
from lora_np.studies.harness.table import Table

SHARES = {"docstring": 30, "notebook": 28, "error": 14, "subtitle": 8, "help": 8, "page": 12}
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
ITEM = re.compile(r"^(\S.*)\n((?:^(?: +.*)?\n?)+)", re.MULTILINE)  # an item of a section and its indented description
SENTENCE = re.compile(r"(?<=[.!?])(?<!et al\.)(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-ZΑ-Ω`*\"“(\[])")


def sentences(text: str) -> list[str]:
    """Split prose into sentences, each with the one before it in brackets; code blocks and tables are left out."""
    blocks_left_out = r"```.*?```|\$\$.*?\$\$|^ *>>>.*?(?:\n\s*\n|\Z)|^\|[^\n]*$|^ {4,}\S[^\n]*$"
    text = re.sub(blocks_left_out, "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n?^#+ .*$", text, flags=re.MULTILINE)
    found = [s for block in blocks for s in SENTENCE.split(re.sub(r"\s+", " ", block).strip(" #-*"))]
    after = [f"{s}   [before it: {before}]" if before else s for before, s in zip(["", *found], found, strict=False)]
    return [a for a, s in zip(after, found, strict=True) if len(s.split()) >= 4 and re.search("[a-z]{3}", s)]


def docstrings() -> Iterator[tuple[str, str]]:
    """Prose of the docstrings: the parts before the first section, and the descriptions inside the sections."""
    for path in sorted(Path("lora_np").rglob("*.py")):
        if "sources" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                name = f"{path}:{getattr(node, 'name', 'module')}"
                before, *rest = SECTION.split(text)
                for sentence in sentences(before):
                    yield name, sentence
                for title, body in zip(rest[::2], rest[1::2], strict=True):
                    if title in ("Examples", "References"):
                        continue
                    for item, description in ITEM.findall(body) if title != "Notes" else [("", body)]:
                        for sentence in sentences(re.sub(r"^    ", "", description, flags=re.MULTILINE)):
                            yield f"{name}, {title} {item}".rstrip(), sentence


def errors() -> Iterator[tuple[str, str]]:
    """The text of each raised error, with its computed parts in braces."""
    for path in sorted(Path("lora_np").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = written(node.exc.args[0])
                if len(text.split()) >= 4:
                    yield f"{path}:{node.lineno}", text


def written(node: ast.expr) -> str:
    """A string expression as it reads: parts joined, computed ones as {code}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in node.values)
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp):
        return written(node.left) + written(node.right)
    return ""


def subtitles() -> Iterator[tuple[str, str]]:
    """The title and the subtitle of each picture, drawn from the committed tables."""
    tables = {path.stem: Table.load(path) for path in sorted(Path("figures/data").glob("*.json"))}
    drawn: list[tuple[str, str]] = []

    def note(figure, folder, name, dark=False):
        drawn.extend(
            (f"figures/{name}.png", text.get_text().replace("\n", " / ")) for text in figure.texts[:2] if not dark
        )

    plots.save, pictures.plots.save = note, note
    pictures.draw(tables, Path("unused"))
    for place, text in drawn:
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
            if len(sentence.split()) >= 3:
                yield place, sentence


def helps() -> Iterator[tuple[str, str]]:
    """The help of each command and option."""

    def walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
        for text in (parser.description, parser.epilog):
            for sentence in sentences(re.sub(r"^ +\S.*$", "", text or "", flags=re.MULTILINE)):  # not the examples
                yield name, sentence
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{name} {choice.dest}", choice.help or "") for choice in action._choices_actions)
                for command, child in action.choices.items():
                    yield from walk(child, f"{name} {command}")
            elif action.help and len(action.help.split()) >= 3 and action.help != argparse.SUPPRESS:
                yield f"{name} {action.option_strings or action.dest}", action.help

    yield from walk(_parser(), "lora_np")


def notebooks() -> Iterator[tuple[str, str]]:
    """The Markdown cells of the course's and the exercises' notebooks."""
    for path in [*sorted(Path("notebooks").glob("*.py")), *sorted(Path("lora_np/exercises/sources").glob("*.py"))]:
        for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if cell.lstrip().startswith("[markdown]"):
                text = re.sub(r"^# ?(?:# (?:BEGIN|END) SOLUTION)?", "", cell.split("\n", 1)[1], flags=re.MULTILINE)
                for sentence in sentences(re.sub(r"</?(details|summary|br).*?>", "\n\n", text)):
                    yield path.name, sentence


def pages() -> Iterator[tuple[str, str]]:
    """README, the documentation and the other Markdown pages."""
    listed = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True).stdout.split()
    for page in listed:
        if page not in ("CHANGELOG.md", "notebooks/TEACHERS_KEY.md"):  # the key repeats the notebooks
            for sentence in sentences(Path(page).read_text(encoding="utf-8")):
                yield page, sentence


KINDS = {
    "docstring": docstrings,
    "notebook": notebooks,
    "error": errors,
    "subtitle": subtitles,
    "help": helps,
    "page": pages,
}


def main() -> None:
    """Print the drawn sentences, each with its number; --where adds the place of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--where", action="store_true", help="print the file of each sentence too")
    parser.add_argument("--only", choices=KINDS, help="one kind of text alone")
    parser.add_argument("--all", action="store_true", help="every sentence instead of a draw")
    arguments = parser.parse_args()
    draw, number = random.Random(arguments.seed), 0
    for kind, share in SHARES.items():
        if arguments.only not in (None, kind):
            continue
        found = sorted(set(KINDS[kind]()))
        print(f"{kind}: {len(found)} sentences", file=sys.stderr)
        for place, sentence in found if arguments.all else draw.sample(found, share):
            number += 1
            print(f"{number}. ({kind}{', ' + place if arguments.where else ''}) {sentence}")


if __name__ == "__main__":
    main()
