"""The grader accepts right answers and distinguishes all mistakes of the catalogue."""

from __future__ import annotations

import re

import pytest
from by_path import by_path

from lora_np.exercises import exercises
from lora_np.exercises.diagnose import diagnose
from lora_np.exercises.outcome import run_program
from lora_np.exercises.program import program
from lora_np.exercises.recognise import edited

EXERCISES = exercises()
# Of the scope of a module: the tests of one exercise run one after the other, and what its pairs of mistakes do is found once.
each = pytest.mark.parametrize("asked", EXERCISES, ids=lambda asked: asked.function, scope="module")

MISTAKES = [(asked, mistake) for asked in EXERCISES for mistake in asked.mistakes]
each_mistake = pytest.mark.parametrize(
    ("asked", "mistake"), MISTAKES, ids=[f"{asked.function}: {mistake.name}" for asked, mistake in MISTAKES]
)


def verdict_here(text, asked):
    """Return the verdict without starting a process, because the code is trusted."""
    text = program([text], asked.function)
    return diagnose(list(run_program(text, asked)), asked, text)


def wrong_answers(asked):
    return by_path(f"exercises/wrong_answers/{asked.function}.py")


@each
def test_the_reference_solution_passes(asked):
    said = verdict_here(asked.solution, asked)
    assert said.passed, said


@each
def test_the_blank_fails_with_one_readable_line(asked):
    said = verdict_here(asked.blank, asked)
    assert said.kind == "blank" and len(str(said).splitlines()) == 1 and "not written yet" in str(said)


@each_mistake
def test_every_way_to_make_a_mistake_is_named_with_its_hint_and_no_other(asked, mistake):
    texts = [known.text for known in edited(asked) if known.mistakes == (mistake,)]
    assert len(texts) == len(mistake.variants) > 0, "an edit of the catalogue does not fit the solution"
    for text in texts:
        said = verdict_here(text, asked)
        assert said.mistakes == (mistake,) and mistake.hint in str(said), f"{text}\n{said}"


@each_mistake
def test_a_student_who_makes_it_in_other_words_is_told_the_same(asked, mistake):
    text = wrong_answers(asked).ANSWERS[mistake.name]
    assert text not in [known.text for known in edited(asked)]
    said = verdict_here(text, asked)
    assert said.mistakes == (mistake,), f"{text}\n{said}"


@pytest.mark.slow
@each
def test_two_mistakes_at_once_are_both_named_where_the_cases_can_tell(asked):
    pairs = [known for known in edited(asked) if len(known.mistakes) == 2]
    told = 0
    for pair in pairs:
        said = verdict_here(pair.text, asked)
        assert said.kind in ("known", "raised", "right") or "NaN" in said.words, (
            f"{[m.name for m in pair.mistakes]}\n{pair.text}\n{said}"
        )
        told += set(said.mistakes) == set(pair.mistakes)
    assert pairs and told >= 0.7 * len(pairs), f"{asked.function}: only {told} of {len(pairs)} pairs are recognised"


@pytest.mark.slow
@each
def test_a_wrong_answer_that_is_not_catalogued_gets_an_honest_unknown_and_the_smallest_case(asked):
    for text in wrong_answers(asked).UNKNOWN:
        said = verdict_here(text, asked)
        assert said.kind == "unknown" and "not one of the" in said.words, f"{text}\n{said}"
        assert "smallest case" in said.details and "got" in said.details
        assert ("expected" in said.details) == asked.tells, "a description of the expected value would be the answer"


def test_the_catalogue_names_what_the_lesson_promises():
    assert len(EXERCISES) >= 10
    assert len({mistake.hint for _, mistake in MISTAKES}) == len(MISTAKES) >= 25, "every mistake has its own hint"


@each_mistake
def test_a_hint_is_true_beside_another_mistake(asked, mistake):
    """A hint can be shown as one of two, so it does not say that another part of the answer is right."""
    assert not re.search(r"\b(is|are) right\b|as it should be", mistake.hint), mistake.hint


@each
def test_an_exercise_has_its_text(asked):
    text = asked.text
    assert f"check({asked.function})" in text and "**Explain.**" in text and "$" in text
    assert text.count("# BEGIN SOLUTION") == text.count("# END SOLUTION") == 2, "one solution in code, one in words"
