"""A grader that is killed, stopped or without disk loses no grade, and it imports nothing from the submissions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from submissions import ASKED, RIGHT, ROOT, answer, cells, kinds, submit

from lora_np.exercises import exercises, find_answer
from lora_np.exercises import judge as judge_module
from lora_np.exercises.answers import answer_files
from lora_np.exercises.diagnose import verdict
from lora_np.exercises.grade import grade_class
from lora_np.exercises.journal import SUFFIX, Journal
from lora_np.exercises.judge import Judge

# ----------------------------------------------------------------------------------------------- the grader's own process


def command(folder, *options, python=("-P",), cwd=None, **environment):
    """Return the command line and the environment of the grader."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    line = [sys.executable, *python, "-m", "lora_np", "exercises", "grade", str(folder), *options]
    return {"args": line, "cwd": cwd, "env": os.environ | {"PYTHONPATH": paths} | environment}


def test_the_grader_imports_nothing_from_the_submissions(tmp_path):
    """The grader runs in the folder of the submissions, beside modules with the names that it imports."""
    folder = submit(tmp_path / "class", {})
    for name in ("numpy", "json", "csv", "tqdm", "_socket", "secrets", "base64"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + ' ')\n", encoding="utf-8"
        )
        (folder / "ada" / f"{name}.py").write_text("1 / 0", encoding="utf-8")
    run = command(".", "--csv", str(tmp_path / "grades.csv"), python=(), cwd=folder)
    done = subprocess.run(**run, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0 and re.search("ada +1 of 12", done.stdout), done.stdout + done.stderr
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words", [["-m", "lora_np"], ["-mlora_np"], ["-Bm", "lora_np"], ["-X", "utf8", "-sBmlora_np"]], ids=" ".join
)
def test_a_command_imports_nothing_from_the_current_folder(words, tmp_path):
    (tmp_path / "numpy.py").write_text("1 / 0", encoding="utf-8")
    run = command(".", cwd=tmp_path) | {"args": [sys.executable, *words, "params", "--help"]}
    done = subprocess.run(**run, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_grader_that_is_killed_continues_and_loses_no_grade(tmp_path):
    folder = submit(tmp_path / "class", {"bob": answer("return 1")} | {"waits": answer("time.sleep(1000)")})
    table, journal = tmp_path / "grades.csv", tmp_path / f"grades.csv{SUFFIX}"
    process = subprocess.Popen(
        **command(folder, "--csv", str(table), "--workers", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and (not journal.exists() or journal.read_text().count('"fields"') < 8):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')  # a line that was not finished
    lines = [json.loads(line) for line in journal.read_text().splitlines()[:-1] if line]
    before = {line["key"] for line in lines if "fields" in line}
    assert len(before) >= 8
    assert subprocess.run(**command(folder, "--csv", str(table)), capture_output=True, timeout=240).returncode == 0
    graded = table.read_text(encoding="utf-8-sig")
    assert graded.count("\n") == 1 + 4 * 12 and graded.count(",1,right,") == 2 and not journal.exists()
    assert graded.count("did not return within 4 seconds") == 1


def test_a_continued_grader_repeats_no_verdict_and_grades_what_has_changed(tmp_path, monkeypatch):
    from lora_np.exercises import grade

    folder, table = submit(tmp_path / "class", {"eve": answer("return 1")}), tmp_path / "grades.csv"
    asked_for, real = [], grade.Judge.verdict

    def verdict_or_end(self, path, asked):
        if path.name == "zoe" and len(asked_for) < 3:
            asked_for.append("the end")
            raise RuntimeError("the grader ends here")
        asked_for.append(path.name)
        return real(self, path, asked)

    monkeypatch.setattr(grade.Judge, "verdict", verdict_or_end)
    with pytest.raises(RuntimeError):
        grade_class(folder, [ASKED], workers=1, table=table)
    assert asked_for == ["ada", "eve", "the end"]
    (folder / "eve" / "02_lora_forward.py").write_text(RIGHT, encoding="utf-8")
    graded = kinds(grade_class(folder, [ASKED], workers=1, table=table))
    assert asked_for[3:] == ["eve", "zoe"] and set(graded.values()) == {"right"}


@pytest.mark.slow
def test_an_answer_that_ends_the_grader_again_and_again_is_graded_last_and_then_by_hand(tmp_path):
    """On a system where an answer can kill the grader, all other answers have grades."""
    folder, table = submit(tmp_path / "class", {"killer": answer("return 1")}), tmp_path / "grades.csv"
    script = f"""
import os
from lora_np.exercises import exercise, grade
real = grade.Judge.verdict
def verdict(self, path, asked):
    if path.name == "killer":
        os.kill(os.getpid(), 9)
    return real(self, path, asked)
grade.Judge.verdict = verdict
grade.grade_class({str(folder)!r}, [exercise("lora_forward")], workers=2, table={str(table)!r})
"""
    ends = [
        subprocess.run([sys.executable, "-c", script], env=command(folder)["env"], timeout=120).returncode
        for _ in range(4)
    ]
    assert ends == [-9, -9, -9, 0]
    rows = table.read_text(encoding="utf-8-sig")
    assert rows.count(",1,right,") == 2 and "killer,lora_forward,0,stopped,,the grader ended 3 times" in rows


def test_a_full_disk_is_no_reason_to_lose_grades(tmp_path, monkeypatch):
    from lora_np.exercises import grade, journal

    folder, table = submit(tmp_path / "class", {}), tmp_path / "grades.csv"
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(grade, "TABLE_SECONDS", -1.0)
    monkeypatch.setattr(journal.os, "write", lambda *arguments: (_ for _ in ()).throw(full))
    assert set(kinds(grade_class(folder, [ASKED], workers=1, table=table)).values()) == {"right"}
    assert table.read_text(encoding="utf-8-sig").count(",1,right,") == 2


def test_a_judge_that_ends_costs_the_verdict_that_it_was_working_on(tmp_path, monkeypatch):
    """Python's parser can end its process, and the system can end it when memory is full."""
    folder, judge = submit(tmp_path / "class", {}), Judge([])
    try:
        assert judge.verdict(folder / "ada", ASKED).passed
        judge._process.kill()
        judge._process.wait()
        assert judge.verdict(folder / "ada", ASKED).passed, "it was working on nothing"
        with monkeypatch.context() as patch:
            patch.setattr(judge_module, "send", lambda stream, message: judge._process.kill())
            said = judge.verdict(folder / "ada", ASKED)
        assert said.kind == "unreadable" and "ends the process that reads it" in said.words
        assert judge.verdict(folder / "zoe", ASKED).passed
    finally:
        judge.close()


def test_ctrl_c_writes_the_grades_so_far_and_blames_no_answer(tmp_path, monkeypatch):
    folder, table = submit(tmp_path / "class", {}), tmp_path / "grades.csv"
    real = Judge.verdict

    def interrupted(self, path, asked):
        if path.name == "zoe":
            raise KeyboardInterrupt
        return real(self, path, asked)

    monkeypatch.setattr(Judge, "verdict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade_class(folder, [ASKED], workers=1, table=table)
    assert "ada,lora_forward,1,right" in table.read_text(encoding="utf-8-sig")
    journal = Journal(tmp_path / f"grades.csv{SUFFIX}")
    journal.close()
    assert len(journal.verdicts) == 1 and not any(
        journal.attempts[key] > 0 for key in journal.attempts if key not in journal.verdicts
    )


# ---------------------------------------------------------------------------------------------------- clones and imports


def test_a_clone_of_the_project_is_not_graded_from_its_solutions(tmp_path):
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    files = [name for name in files if name.endswith((".py", ".ipynb")) and (ROOT / name).is_file()]
    if len(files) < 100:
        pytest.skip("this is not a clone")
    for package in ("lora_np", "mine"):  # also a fork that renamed the package
        folder = tmp_path / package
        for name in files:
            copied = folder / "clone" / name.replace("lora_np/", f"{package}/", 1)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes((ROOT / name).read_bytes())
        found = {path.relative_to(folder / "clone").parent.as_posix() for path in answer_files(folder)}
        assert found <= {"notebooks/exercises", ".", "notebooks"}, found
    found = {asked.function: find_answer(answer_files(folder), asked).kind for asked in exercises()}
    assert set(found.values()) == {"blank"}, found
    mine = folder / "clone" / "notebooks" / "exercises" / "02_lora_forward.ipynb"
    mine.write_text(cells("import numpy as np", RIGHT), encoding="utf-8")
    assert find_answer(answer_files(folder), ASKED).passed


def test_the_time_of_imports_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "slow_import.py").write_text(
        "import time\nuntil = time.process_time() + 1.2\nwhile time.process_time() < until: pass\none = 1\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for program in (
        ["import slow_import", RIGHT.replace("alpha / r", "slow_import.one * alpha / r")],
        [RIGHT.replace("    r =", "    from slow_import import one\n    alpha = one * alpha\n    r =")],
    ):
        said = verdict(program, ASKED)
        assert said.passed, said


def test_plots_in_an_answer_are_not_an_endless_loop():
    pytest.importorskip("matplotlib")
    plots = "    plt.figure(); plt.plot(x.ravel()); plt.close()\n    r ="
    said = verdict(["from matplotlib import pyplot as plt", RIGHT.replace("    r =", plots)], ASKED)
    assert said.passed, said
