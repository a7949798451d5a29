"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import matplotlib.pyplot as plt
import pytest

import lora_np
from lora_np.optional import MissingExtra

SCRIPTS = ("__main__", ".job.with_")  # run as programs
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lora_np.__path__, "lora_np.")
    if not any(script in module.name for script in SCRIPTS)
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    try:
        module = importlib.import_module(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    report = doctest.testmod(module, optionflags=options)
    plt.close("all")  # the figures of the examples
    assert report.failed == 0, f"run `python -m doctest` on {name}: an example prints something else than it says"
