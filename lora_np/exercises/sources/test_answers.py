"""`pytest` in this folder checks each exercise as `check` does in a notebook."""

from pathlib import Path

import pytest

from lora_np.exercises import answer_files, exercises, find_answer

ANSWERS = answer_files(Path(__file__).parent)


@pytest.mark.parametrize("asked", exercises(), ids=lambda asked: asked.function)
def test_answer(asked):
    said = find_answer(ANSWERS, asked)
    if not said.passed:
        pytest.fail(str(said), pytrace=False)
