"""The classroom: exercises, and a grader that names the mistake that was made.

    from lora_np.exercises import check

    check(lora_forward)        # in a notebook, below the function that you wrote

exercise.py   what an exercise is            program.py    from cells to the one function and what it needs
sources/      its text and its solution      child.py      the process that a student's function runs in
catalogue/    its cases, its known mistakes  contain.py    … from outside: whatever happens in it, an answer comes back
outcome.py    what a function did, compared  recognise.py  from outcomes to the known mistake
diagnose.py   … to a verdict in words        answers.py    check, and the answer among a student's files
grade.py      a class, and its table         editions.py   the student's notebooks, the teacher's, the teachers' page
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
