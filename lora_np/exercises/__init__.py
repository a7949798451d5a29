"""The course's exercises, and a grader that names the mistake in an answer.

    from lora_np.exercises import check

    check(lora_forward)        # in a notebook, below the function that you wrote

exercise.py   defines an exercise            program.py    extracts one function and what it needs from cells
sources/      texts and solutions            child.py      runs a student's function in a process of its own
catalogue/    cases and known mistakes       contain.py    starts that process and reads its results
outcome.py    records and compares results   recognise.py  finds the known mistake that gives the same results
diagnose.py   puts the verdict into words    answers.py    check, and the search for an answer in a student's files
grade.py      grades a class                 editions.py   writes the notebooks and the page for teachers
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
