"""The script that draws sentences for a reading finds the sentences of each kind of text."""

from __future__ import annotations

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("sentences", Path(__file__).parents[2] / ".ci" / "sentences.py")
assert spec and spec.loader
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_a_text_is_split_into_sentences_each_with_the_one_before_it():
    text = """The first sentence is here. The second sentence is `x` long.

    >>> code()
    1

    | a | table with some words |

    After the table comes a third sentence."""
    found = script.sentences("\n".join(line.strip() for line in text.splitlines()))
    assert found[0] == "The first sentence is here."
    assert found[1].startswith("The second sentence is `x` long.") and "[before it: The first" in found[1]
    assert found[-1].startswith("After the table comes a third sentence.") and not any(
        "code()" in each for each in found
    )


def test_every_kind_has_enough_sentences_to_draw_from():
    for kind in ("docstring", "notebook", "error", "help", "page"):
        found = list(script.KINDS[kind]())
        assert len(set(found)) > 3 * script.SHARES[kind], kind
