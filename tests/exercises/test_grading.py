"""The program of an answer is found and runs within limits, a class is graded, and the student edition has no answers."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_np.__main__ import main
from lora_np.exercises import check, exercise, exercises, find_answer
from lora_np.exercises.answers import next_step
from lora_np.exercises.diagnose import verdict
from lora_np.exercises.editions import HEADER, student_edition, teacher_text, teachers_page
from lora_np.exercises.grade import grade_class, write_csv
from lora_np.exercises.program import program
from lora_np.exercises.reading import cells_of

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "notebooks" / "exercises"
ASKED = exercise("lora_forward")
RIGHT = ASKED.solution
HEAD = "def lora_forward(x, W, A, B, alpha):\n    "


def notebook(path, *cells):
    code = [{"cell_type": "code", "source": cell, "outputs": [], "metadata": {}} for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------- the program of an answer


def test_only_what_the_function_needs_is_run():
    cells = [
        "import numpy as np\nimport matplotlib.pyplot as plt",
        "%matplotlib inline\n!pip list\nrank = 2\nunused = np.loadtxt('nowhere.csv')",
        "def helper(x):\n    return np.exp(x) * rank",
        "def f(x):\n    return helper(x)",
        "plt.plot(f(1))\nraise SystemExit",
    ]
    text = program(cells, "f")
    assert "import numpy as np" in text and "rank = 2" in text and "def helper" in text
    assert "plt" not in text and "unused" not in text and "SystemExit" not in text and "%" not in text


def test_the_last_definition_counts_and_a_broken_cell_elsewhere_does_no_harm():
    cells = ["def f():\n    return 1", "this is no Python", "def f():\n    return 2", "%%timeit\ndef f(): return 3"]
    namespace = {}
    exec(program(cells, "f"), namespace)
    assert namespace["f"]() == 2


def test_what_a_student_tried_beside_the_function_does_not_count():
    """Other cells assign the names of its arguments, fail, or loop for ever."""
    cells = [
        "import numpy as np\nx = np.ones(3)",
        "y = lora_forward(x)  # still blank",
        "for alpha in (1, 2):\n    print(lora_forward(alpha))",
        "while True: W = 1",
        RIGHT,
        "result = lora_forward(int(input()))",
    ]
    text = program(cells, "lora_forward")
    assert "while" not in text and "print" not in text and "input" not in text and "still blank" not in text


def test_a_statement_beside_it_that_fails_is_passed_over_unless_it_is_missed():
    right = RIGHT.replace("    r = A.shape[0]", "    r = A.shape[0] + 0 * unused")
    assert verdict(["unused = 1 / 0", "unused = 3", right], ASKED).passed
    said = verdict(["unused = 1 / 0", right], ASKED)
    assert said.kind == "raised" and "ZeroDivisionError" in said.words and "unused = 1 / 0" in said.words


OTHER_WAYS = {
    "a cell magic above": ["%%time\n" + RIGHT],
    "a line magic inside": ["%matplotlib inline\nfiles = !ls\nnp.mean?\n" + RIGHT],
    "a lambda": ["lora_forward = lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ A.T) @ B.T"],
    "another name": [RIGHT.replace("lora_forward", "mine"), "lora_forward = mine"],
    "in an if": ["if True:\n    " + RIGHT.replace("\n", "\n    ")],
    "settings changed from inside": ["cfg = {}", "cfg['k'] = 1.0", RIGHT.replace("alpha / r", "cfg['k'] * alpha / r")],
    "a list that grows": ["fs = []", "fs.append(1.0)", RIGHT.replace("alpha / r", "fs[0] * alpha / r")],
    "helpers and classes": ["class S:\n    one = 1.0", "def h():\n    return S.one", RIGHT.replace("alpha", "h() * alpha", 1)
                            .replace("def lora_forward(x, W, A, B, h() * alpha)", "def lora_forward(x, W, A, B, alpha)")],
    "Windows line ends": [RIGHT.replace("\n", "\r\n")],
}  # fmt: skip


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_a_right_answer_is_right_however_it_is_written_down(way):
    said = verdict(OTHER_WAYS[way], ASKED)
    assert said.passed, said


def test_a_missing_and_an_unreadable_function_are_told_apart():
    with pytest.raises(KeyError, match="no cell defines the function f"):
        program(["def g(): pass"], "f")
    with pytest.raises(SyntaxError):
        program(["def f(:\n    pass"], "f")
    said = verdict(["def lora_forward(x, W, A, B, alpha):\n    return x @ W.T +"], ASKED)
    assert said.kind == "unreadable" and "return x @ W.T +" in said.words


def test_percent_files_notebooks_and_plain_files_are_read(tmp_path):
    percent = tmp_path / "a.py"
    percent.write_text("# %% [markdown]\n# def no\n\n# %%\nx = 1\n\n# %%\ny = 2\n", encoding="utf-8")
    assert [cell.strip() for cell in cells_of(percent)] == ["x = 1", "y = 2"]
    assert cells_of(notebook(tmp_path / "a.ipynb", "x = 1", ["y = ", "2"])) == ["x = 1", "y = 2"]
    for text in ("no json", "[1]", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}'):
        (tmp_path / "b.ipynb").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"cannot read b\.ipynb as a notebook"):
            cells_of(tmp_path / "b.ipynb")


# -------------------------------------------------------------------------------------------------------------- containment


MISDEEDS = {
    "while True: pass": ("stopped", "a loop that never stops"),
    "import time; time.sleep(60)": ("stopped", "did not return within 4 seconds"),
    "while True: print('x' * 1000)": ("stopped", "printed more than 1 MB"),
    "import os; os._exit(0)": ("stopped", "ended its whole process"),
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": ("stopped", "ended its whole process"),
    "import sys; sys.exit()": ("raised", "it ends the program"),
    "raise KeyboardInterrupt": ("raised", "KeyboardInterrupt"),
    "return input()": ("raised", "EOFError"),
    "return 1 / 0": ("raised", "ZeroDivisionError: division by zero at `return 1 / 0`"),
    "import numpy as np; return np.zeros(10**12)": ("raised", "far more memory"),
    "return lora_forward(x, W, A, B, alpha)": ("raised", "RecursionError"),
    "pass": ("unknown", "it returns None"),
    "return (x @ W.T).astype(object)": ("unknown", "not one of the"),
    "x *= 2": ("changed", "changes x"),
    "raise NotImplementedError": ("blank", "not written yet"),
    "import os; os.chdir('/'); return 1": ("unknown", "not one of the"),
    "import os, shutil; shutil.rmtree(os.getcwd()); return 1": ("raised", "FileNotFoundError"),
    "import threading, time; threading.Thread(target=time.sleep, args=[60]).start(); return 1": ("unknown", "not one"),
    "return '' * 0 or 'x' * 10**7": ("unknown", "not one of the"),
    "import numpy as np; return np.full((*x.shape[:-1], len(W)), np.nan)": ("unknown", "every result is NaN"),
}


@pytest.mark.parametrize("body", MISDEEDS)
def test_whatever_a_program_does_is_reported_as_what_it_is(body):
    kind, words = MISDEEDS[body]
    said = verdict([HEAD + body], ASKED)
    assert said.kind == kind and words in said.words, said
    assert len(said.words.splitlines()) == 1


def test_a_right_answer_that_changes_its_input_is_told_so():
    said = verdict(
        [RIGHT.replace("    r = A.shape[0]", "    r = A.shape[0]\n    x = x.copy(); W *= 1.5; W = W / 1.5")], ASKED
    )
    assert said.kind == "changed" and "changes W" in said.words


def test_a_program_cannot_change_the_checks_it_is_judged_by():
    """It can overwrite everything in its own process; the comparison runs here, with the installed package."""
    hostile = (
        "import lora_np.exercises.outcome as o\no.same = lambda a, b: True\no.run_case = None\n"
        + HEAD
        + "return o and 0"
    )
    assert not verdict([hostile], ASKED).passed


def test_what_it_writes_stays_in_a_folder_that_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verdict([HEAD + "open('mess.txt', 'w').write('x')\n    return 1"], ASKED).kind == "unknown"
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------ check


def test_check_reads_the_cells_that_a_notebook_has_run(capsys):
    cells = ["import numpy as np\nscale = 1.0", HEAD + "return x @ W.T + scale * (x @ A.T) @ B.T", "raise SystemExit"]
    namespace = {"__name__": "__main__", "In": ["", *cells]}
    exec(compile("\n".join(cells[:2]), "<ipython-input-1>", "exec"), namespace)
    check(namespace["lora_forward"])
    assert capsys.readouterr().out.startswith("✗ lora_forward: the factor alpha/r is missing in the bypass. ")


def test_after_a_right_answer_check_gives_the_question_and_the_next_exercise(tmp_path, capsys):
    file = tmp_path / "02_lora_forward.py"
    file.write_text(RIGHT, encoding="utf-8")
    namespace = {"In": ["", RIGHT]}
    exec(compile(RIGHT, str(file), "exec"), namespace)
    check(namespace["lora_forward"])
    said = capsys.readouterr().out
    assert said.startswith("✓ lora_forward: right on all ") and "\n  Now explain: " in said
    assert said.endswith(f"  Next exercise: 03_lora_backward.ipynb ({exercise('lora_backward').title})\n")
    del namespace["In"]
    check(namespace["lora_forward"])
    assert "  Next exercise: 03_lora_backward.py (" in capsys.readouterr().out


@pytest.mark.parametrize("asked", exercises(), ids=lambda asked: asked.function)
def test_the_question_is_readable_in_a_terminal(asked):
    said = next_step(asked, ".ipynb")
    assert "?" in said and not re.search(r"[\\$*`{}_^]", said.replace(".ipynb", "").partition("Next exercise")[0]), said
    assert all(len(line) <= 95 for line in said.splitlines())
    assert ("Next exercise" in said) == (asked.function != exercises()[-1].function)


def test_after_a_syntax_error_check_does_not_judge_the_previous_definition(capsys):
    """In IPython the old function stays if the new cell fails. Its verdict must not hide the error."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("import numpy as np\nfrom lora_np.exercises import check", store_history=True)
    for before in (RIGHT, ASKED.blank):
        shell.run_cell(before, store_history=True)
        shell.run_cell(HEAD + "return x @ W.T +", store_history=True)
        capsys.readouterr()
        shell.run_cell("check(lora_forward)", store_history=True)
        said = capsys.readouterr().out
        assert "✗ lora_forward: Python cannot read the cell that defines it" in said and "return x @ W.T +" in said
        assert "The previous definition was not judged" in said and "right" not in said
    shell.run_cell(RIGHT, store_history=True)
    shell.run_cell("this is no Python", store_history=True)
    shell.run_cell("%%time\ncheck(lora_forward)", store_history=True)
    assert "✓ lora_forward" in capsys.readouterr().out


@pytest.mark.parametrize("before", [RIGHT, ASKED.blank], ids=["right", "blank"])
def test_after_a_cell_that_stopped_check_does_not_judge_the_previous_definition(before, capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    for cell in ("import numpy as np\nfrom lora_np.exercises import check", before, "1 / 0\n" + HEAD + "return 2"):
        shell.run_cell(cell, store_history=True)
    capsys.readouterr()
    shell.run_cell("check(lora_forward)", store_history=True)
    said = capsys.readouterr().out
    assert "stopped with an error before the definition" in said and "was not judged" in said and "✓" not in said
    shell.run_cell(HEAD + "return 2\n1 / 0", store_history=True)  # this one stops after the definition
    shell.run_cell("check(lora_forward)", store_history=True)
    assert "not one of the" in capsys.readouterr().out


CELLS = {
    "a cell magic": "%%time\n" + RIGHT,
    "magics and a shell command": "%matplotlib --list\nfiles = !ls\n" + RIGHT,
    "another name": RIGHT.replace("lora_forward", "mine") + "\nlora_forward = mine",
    "a lambda": "lora_forward = lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ A.T) @ B.T",
    "in an if": "if True:\n    " + RIGHT.replace("\n", "\n    "),
    "a decorator": "def same(f):\n    return lambda *a: f(*a)\n\n@same\n" + RIGHT[RIGHT.index("def ") :],
    "indentation": "    " + RIGHT.replace("\n", "\n    "),
    "prompts": ">>> " + RIGHT.replace("\n", "\n... "),
    "prompts of IPython": "In [1]: " + RIGHT.replace("\n", "\n   ...: "),
    "a magic inside": RIGHT.replace("    r =", "    %time s = 1\n    r ="),
    "a magic's value": RIGHT.replace("r = A.shape[0]", "r = %time A.shape[0]"),
    "%time before a lambda": "%time lora_forward = lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * (x @ A.T) @ B.T",
    "two cell magics": "%%capture\n%%time\n" + RIGHT,
    "a text that ends with a question mark": RIGHT.replace(
        "    r =", "    %time 1\n    '''\n    why?\n%\n    '''\n    r ="
    ),
    "in a try": "try:\n    import nothing\nexcept ImportError:\n    " + RIGHT.replace("\n", "\n    "),
    "a decorator with wraps": "import functools\ndef same(f):\n    @functools.wraps(f)\n    def g(*a):\n        return f(*a)\n"
    "    return g\n\n@same\n" + RIGHT[RIGHT.index("def ") :],
}


WRONG = HEAD + "return 2"
LAMBDA = "lora_forward = lambda *a: 2"
LATER = {  # cells that do not define the function again
    "a method": "class Layer:\n    def lora_forward(self):\n        return 2",
    "a text": "text = '''\ndef lora_forward(x):\n    return 2\nlora_forward = 2\n'''",
    "a nested function": "def outer():\n    def lora_forward():\n        return 2",
    "a nested function after an error": "1 / 0\ndef outer():\n    def lora_forward():\n        return 2",
    "a broken class": "class Layer:\n    def lora_forward(self):\n        return 2 +",
    "another language": "%%html\ndef lora_forward(x):\n    return 2",
    "a comparison": "'lora_forward' == 3",
    "a decorator that returns the function": "def same(f):\n    return f\nlora_forward = same(lora_forward)",
}
FAILED = {  # cells that stop before the definition
    "a lambda": f"1 / 0\n{LAMBDA}",
    "a decorated function": f"def same(f):\n    return lambda *a: f(*a)\n1 / 0\n@same\n{WRONG}",
    "an async function": f"1 / 0\nasync {WRONG}",
    "in an if": "1 / 0\nif True:\n    " + WRONG.replace("\n", "\n    "),
    "below %%time": f"%%time\n1 / 0\n{WRONG}",
    "another name": f"{WRONG.replace('lora_forward', 'mine')}\n1 / 0\nlora_forward = mine",
    "a magic inside": f"1 / 0\n{WRONG.replace('return', '%time 1' + chr(10) + '    return')}",
    "indentation": "    1 / 0\n    " + WRONG.replace("\n", "\n    "),
    "prompts": ">>> 1 / 0\n>>> " + WRONG.replace("\n", "\n... "),
}


def said_by_check(capsys, *cells):
    """Return what `check` prints after the cells."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    for cell in ("import numpy as np\nfrom lora_np.exercises import check", *cells):
        shell.run_cell(cell, store_history=True)
    capsys.readouterr()
    shell.run_cell("check(lora_forward)", store_history=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("way", CELLS)
def test_check_reads_a_right_answer_in_a_notebook_however_it_is_written(way, capsys):
    assert "✓ lora_forward" in said_by_check(capsys, CELLS[way])
    said = said_by_check(capsys, WRONG, CELLS[way])  # written after a wrong answer
    assert "✓ lora_forward" in said, said


@pytest.mark.parametrize("way", LATER)
def test_check_does_not_take_a_later_cell_for_the_definition(way, capsys):
    said = said_by_check(capsys, RIGHT, LATER[way])
    assert "✓ lora_forward" in said, said


@pytest.mark.parametrize("way", FAILED)
@pytest.mark.parametrize("before", ["an indentation", "a decorator", "a lambda", "a magic inside", "two cell magics"])
def test_check_sees_that_the_newest_definition_did_not_run(before, way, capsys):
    before = "    " + RIGHT.replace("\n", "\n    ") if before == "an indentation" else CELLS[before]
    if "@same" in before and FAILED[way].count("@same"):
        pytest.skip("both functions are the wrapper of one decorator")
    said = said_by_check(capsys, before, FAILED[way])
    if "@same" in before and "mine" in FAILED[way]:
        assert "not one of the" in said  # the decorator's wrapper could be the new function
    else:
        assert "stopped with an error before the definition" in said and "was not judged" in said, said


def test_check_judges_a_cell_that_was_changed_and_run_again(capsys):
    assert "✓" in said_by_check(capsys, RIGHT, WRONG, f"1 / 0\n{WRONG}", RIGHT)
    assert "not one of the" in said_by_check(capsys, RIGHT, f"1 / 0\n{WRONG}", WRONG)
    assert "✓" in said_by_check(capsys, RIGHT, f"1 / 0\n{RIGHT}  # the same function")
    assert "before the definition" in said_by_check(capsys, f"{RIGHT}\n1 / 0\n{WRONG}")


def test_check_says_that_it_cannot_read_a_function_that_exec_defines(capsys):
    said = said_by_check(capsys, ASKED.blank, f"exec({RIGHT!r}, globals())")
    assert "a function that exec defines" in said and "not written yet" not in said


def test_check_says_what_it_takes(capsys):
    with pytest.raises(TypeError, match="the function that you wrote"):
        check(3)

    def lora_foward():
        pass

    check(lora_foward)
    said = capsys.readouterr().out
    assert said.startswith("✗ lora_foward: no exercise has the function 'lora_foward'; expected one of count_lora, ")


# ---------------------------------------------------------------------------------------------------------------- a class


@pytest.fixture
def submissions(tmp_path):
    folder = tmp_path / "submissions"
    notebook(folder / "ada" / "week 2" / "02_lora_forward.ipynb", RIGHT)
    notebook(folder / "bob" / "homework.ipynb", "import numpy as np", HEAD + "return x @ (W + B @ A).T")
    notebook(folder / "carl" / "02_lora_forward.ipynb", HEAD + "while True: pass")
    notebook(folder / "dora" / "02_lora_forward.ipynb", HEAD + "import sys; sys.exit(0)")
    (folder / "eve").mkdir()  # handed in nothing, but her own checks
    (folder / "eve" / "lora_np" / "exercises").mkdir(parents=True)
    (folder / "eve" / "lora_np" / "__init__.py").write_text("raise SystemExit('mine')", encoding="utf-8")
    (folder / "eve" / "lora_np" / "exercises" / "__init__.py").write_text("check = print", encoding="utf-8")
    notebook(folder / "eve" / "02_lora_forward.ipynb", "import lora_np", HEAD + "return 0 * (lora_np is None)")
    (folder / "=frank()").mkdir()
    (folder / "=frank()" / "02_lora_forward.ipynb").write_bytes(b"\xff\xfe no notebook")
    notebook(folder / "gina" / "02_lora_forward.ipynb", RIGHT)
    notebook(folder / "gina" / "old" / "02_lora_forward.ipynb", HEAD + "return 1")
    notebook(folder / "jo" / "homework.ipynb", RIGHT)  # beside the untouched blank, a copy, and the course's own folder
    notebook(folder / "jo" / "02_lora_forward.ipynb", ASKED.blank)
    notebook(folder / "jo" / "copy" / "homework.ipynb", RIGHT)
    notebook(folder / "jo" / "solutions" / "02_lora_forward.ipynb", HEAD + "return 2")
    (folder / "kim.zip").write_bytes(b"PK")
    notebook(folder / "lee.ipynb", RIGHT)
    (folder / "lee").mkdir()
    (folder / "hans.py").write_text(RIGHT, encoding="utf-8")
    (folder / "ina").mkdir()
    (folder / ".DS_Store").write_text("", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_class_is_graded_to_its_end(submissions, tmp_path):
    graded = grade_class(submissions, [ASKED])
    results = {row.student: row.verdict.kind for row in graded}
    assert results == {
        "=frank()": "unreadable",
        "ada": "right",
        "bob": "known",
        "carl": "stopped",
        "dora": "raised",
        "eve": "raised",
        "gina": "unreadable",
        "hans": "right",
        "ina": "missing",
        "jo": "right",
        "kim": "unreadable",
        "lee": "missing",
        "lee.ipynb": "right",
    }
    (eve,) = [row.verdict for row in graded if row.student == "eve"]
    assert "an answer cannot import lora_np" in eve.words
    write_csv(graded, tmp_path / "grades.csv")
    with (tmp_path / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert rows["ada"]["passed"] == "1" and rows["bob"]["passed"] == "0"
    assert rows["bob"]["mistakes"] == "the factor alpha/r is missing in the bypass"
    assert "'=frank()" in rows, "a spreadsheet must not compute a student's name"
    assert "several files" in rows["gina"]["words"] and "unpack it" in rows["kim"]["words"]


def test_the_command_grades_prints_and_writes(submissions, tmp_path, capsys):
    for path in submissions.iterdir():
        if path.name not in ("ada", "bob"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["exercises", "grade", str(submissions), "--csv", str(tmp_path / "new" / "out.csv")]) == 0
    out = capsys.readouterr().out
    assert (
        re.search(rf"ada +1 of {len(exercises())}", out)
        and "1 × lora_forward: the factor alpha/r is missing in the bypass" in out
    )
    assert (tmp_path / "new" / "out.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grade", "nowhere", "--csv", "out.csv"], "no folder 'nowhere'"),
        (["grade", ".", "--csv", "out.csv"], "no submissions: '.' contains no folders"),
        (["grade", ".", "--csv", "."], "is a folder; expected the name of a file"),
        (["grade", ".", "--csv", "out.csv", "--workers", "0"], "expected at least 1"),
        (["check", "nothing.py"], "no file 'nothing.py'"),
        (["check", "empty.txt"], "defines no function of an exercise; expected one of count"),
        (["write", "x", "--py", "--solutions"], "leave out --py"),
    ],
)
def test_the_command_says_what_was_wrong(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("", encoding="utf-8")
    assert main(["exercises", *arguments]) == 1
    assert words in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- the editions


def solution_lines(asked):
    """Return the lines of the solutions, in code and in words, that are long enough to be recognised."""
    between = re.findall(r"# BEGIN SOLUTION\n(.*?)# END SOLUTION", asked.text, re.DOTALL)
    lines = [line.strip().removeprefix("# ") for part in between for line in part.splitlines()]
    return [line for line in lines if len(line) > 8]


@pytest.mark.parametrize("as_py", [False, True], ids=["notebooks", "files"])
def test_the_student_edition_holds_no_solution_and_no_output(tmp_path, as_py):
    student_edition(tmp_path, as_py)
    for asked in exercises():
        path = tmp_path / f"{asked.source.stem}{'.py' if as_py else '.ipynb'}"
        text = path.read_text(encoding="utf-8")
        cells = [] if as_py else json.loads(text)["cells"]
        read = text if as_py else "\n".join("".join(cell["source"]) for cell in cells)
        lines = solution_lines(asked)
        assert len(lines) > 3 and [line for line in lines if line in read] == []
        assert "SOLUTION" not in text and "Your answer" in read and "raise NotImplementedError" in read
        assert not any(cell.get("outputs") for cell in cells)


def test_what_is_committed_is_what_is_generated(tmp_path):
    student_edition(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        committed, generated = (
            re.sub(r'"version": "[\d.]+"', "", p.read_text("utf-8")) for p in (COMMITTED / path.name, path)
        )
        assert committed == generated, f"{path.name}: run `make notebooks`"
    assert (COMMITTED / "TEACHERS.md").read_text(encoding="utf-8") == teachers_page(), (
        "TEACHERS.md: run `make notebooks`"
    )


@pytest.mark.parametrize("asked", exercises(), ids=lambda asked: asked.function)
def test_the_teachers_notebook_is_the_solution_executed(asked):
    jupytext = pytest.importorskip("jupytext")
    expected = jupytext.reads(HEADER + teacher_text(asked), fmt="py:percent").cells
    cells = json.loads((COMMITTED / "solutions" / f"{asked.source.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert ["".join(cell["source"]) for cell in cells] == [cell["source"] for cell in expected], "run `make notebooks`"
    printed = [line for cell in cells for output in cell.get("outputs", []) for line in output["text"]]
    assert any(line.startswith(f"✓ {asked.function}: right on all") for line in printed)


def test_writing_again_keeps_a_students_work(tmp_path):
    student_edition(tmp_path)
    mine = tmp_path / "02_lora_forward.ipynb"
    mine.write_text("my work", encoding="utf-8")
    assert student_edition(tmp_path) == [] and mine.read_text(encoding="utf-8") == "my work"


def test_pytest_in_a_students_folder_says_what_check_says(tmp_path):
    student_edition(tmp_path, as_py=True)
    (tmp_path / "02_lora_forward.py").write_text(RIGHT, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "lora_forward or count_lora"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8").stdout
    assert "1 failed, 1 passed" in out and "✗ count_lora: not written yet" in out, out


@pytest.mark.parametrize("as_py", [False, True], ids=["notebooks", "files"])
def test_pytest_of_one_file_checks_this_file(tmp_path, as_py):
    student_edition(tmp_path, as_py)
    name = f"01_count_lora{'.py' if as_py else '.ipynb'}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8").stdout
    assert "1 failed" in out and "✗ count_lora: not written yet" in out, out


RIGHT_COUNT = "sum(r * (out + in_) for out, in_ in shapes)"
SHAPE_ERRORS = {
    "return W @ x": ("`@` needs as many columns on its left as rows on its right, got", "W is (2, 4)", "transpose"),
    "return np.dot(W, x)": ("got the shapes (2, 4) and (3, 4)", "x is (3, 4)", "transpose"),
    "return x @ W.T + 3.0 @ A": ("one of them is a single number", "at `3.0 @ A`", "with *"),
    "return x @ W.T + 0 * x": ("+, −, * and / need two arrays of the same shape", "(3, 2) and (3, 4)", "x is (3, 4)"),
    "d = {'A': A}; return W @ d['A']": ("`@` needs as many columns", "W is (2, 4)", 'd["A"] is (1, 4)'),
    "x = x.copy(); x += x[:, None]; return x": ("cannot hold a result of shape", "x is (", "at `x += x[:, None]`"),
}


@pytest.mark.parametrize("body", SHAPE_ERRORS)
def test_an_error_about_shapes_is_explained_with_the_shapes(body):
    said = verdict(["import numpy as np", HEAD + body], ASKED)
    assert said.kind == "raised" and all(words in said.words for words in SHAPE_ERRORS[body]), said
    assert "gufunc" not in said.words and "broadcast" not in said.words


def test_check_in_a_script_does_not_judge_a_definition_below_the_call(tmp_path):
    script = tmp_path / "mine.py"
    wrong, right = (
        f"def count_lora(shapes, r):\n    return {body}\ncheck(count_lora)\n" for body in ("5", RIGHT_COUNT)
    )
    script.write_text("from lora_np.exercises import check\n" + wrong + right, encoding="utf-8")
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, encoding="utf-8").stdout
    first, second = (out.index(mark) for mark in ("✗ count_lora: the file defines the function again", "✓ count_lora"))
    assert first < second, out


def test_two_files_of_one_name_are_not_guessed_between(tmp_path):
    paths = [notebook(tmp_path / n / "02_lora_forward.ipynb", HEAD + f"return {n}") for n in "12"]
    assert find_answer(paths, ASKED).kind == "unreadable"
    same = [notebook(tmp_path / n / "02_lora_forward.ipynb", RIGHT) for n in "34"]
    assert find_answer(same, ASKED).passed
