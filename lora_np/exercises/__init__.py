"""The course's exercises, and a grader that names the mistake in an answer.

    from lora_np.exercises import check

    check(lora_forward)        # in a notebook, below the function that you wrote

The files and folders of this package:

    exercise.py   defines an exercise            program.py    extracts one function and what it needs from cells
    sources/      texts and solutions            reading.py    reads a student's files with limits
    catalogue/    cases and known mistakes       sandbox/      runs a student's function in a process without solutions
    outcome.py    compares results               contain.py    starts that process and calls the function in it
    diagnose.py   puts the verdict into words    recognise.py  finds the known mistake that gives the same results
    grade.py      grades a class                 answers.py    check, and the search for an answer in a student's files
    judge.py      reads submissions for grade    editions.py   writes the notebooks and the page for teachers
    journal.py    keeps the grades on disk       executed.py   compares a notebook's function with its newest cell
    course.py     copies the course to work in, and collects the teachers' key
    shapes.py     explains NumPy's errors about shapes
"""

from .answers import answer_files, check, find_answer
from .diagnose import Verdict
from .exercise import Case, Exercise, Mistake, NoAnswer, exercise, exercises

__all__ = [
    "Case",
    "Exercise",
    "Mistake",
    "NoAnswer",
    "Verdict",
    "answer_files",
    "check",
    "exercise",
    "exercises",
    "find_answer",
]
