"""`pytest 01_count_lora.py` checks the answer in this file or notebook as `check` does."""

import re

import pytest

from lora_np.exercises import exercise, find_answer


def pytest_collect_file(file_path, parent):
    """Collect a notebook that is named on the command line."""
    if is_answer(file_path, ".ipynb") and parent.session.isinitpath(file_path):
        return Answer.from_parent(parent, path=file_path)


def pytest_pycollect_makemodule(module_path, parent):
    """Check a .py file with an answer instead of importing it."""
    if is_answer(module_path, ".py"):
        return Answer.from_parent(parent, path=module_path)


def is_answer(path, suffix):
    """Return whether the file is named after an exercise, for example 01_count_lora.py."""
    return path.suffix == suffix and re.match(r"\d\d_", path.name) is not None


class Answer(pytest.File):
    """A file with the answer to one exercise."""

    def collect(self):
        """Yield one test for the exercise that the file is named after."""
        yield Check.from_parent(self, name=self.path.stem[3:])


class Check(pytest.Item):
    """The check of one answer."""

    def runtest(self):
        """Fail with the words of `check` if the answer is not right."""
        said = find_answer([self.path], exercise(self.name))
        if not said.passed:
            pytest.fail(str(said), pytrace=False)

    def repr_failure(self, excinfo, style=None):
        """Return the words of `check` without a traceback."""
        return str(excinfo.value)
