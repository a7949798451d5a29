"""The classroom: exercises, and a grader that names the mistake that was made.

    from lora_np.exercises import check

    check(lora_forward)        # in a notebook, below the function that you wrote

exercise.py   what an exercise is            program.py    from cells to the one function and what it needs
sources/      its text and its solution      child.py      the process that a student's function runs in
catalogue/    its cases, its known mistakes  contain.py    … from outside: whatever happens in it, an answer comes back
outcome.py    what a function did, compared  diagnose.py   from outcomes to the mistake's name
grade.py      check, a file, a class         editions.py   the student's notebooks, the teacher's, the teachers' page
"""

from .diagnose import Verdict
from .exercise import Case, Exercise, Mistake, exercise, exercises
from .grade import answer_files, check, find_answer

__all__ = ["Case", "Exercise", "Mistake", "Verdict", "answer_files", "check", "exercise", "exercises", "find_answer"]
