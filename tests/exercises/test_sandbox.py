"""Values go to the process of a student's program and back unchanged, and a file or a reply that lies is refused."""

from __future__ import annotations

import json
import random
import sys
from copy import deepcopy

import numpy as np
import pytest

from lora_np.exercises import exercise, exercises
from lora_np.exercises.contain import Contained, Failed, Stopped, checked
from lora_np.exercises.outcome import run_program
from lora_np.exercises.reading import MOST_CODE, MOST_LINE, cells_of, read_bytes
from lora_np.exercises.sandbox.wire import Odd, decode, encode, mutable_parts, update

VALUES = [
    None, True, 3, -2.5, "text", float("inf"), 2 + 1j, (), [1, (2.0, "b")], {"a": {"m": np.zeros((2, 0))}},
    np.arange(6.0).reshape(2, 3), np.array(5), np.float64(0.1), np.bool_(True), np.array([[True], [False]]),
    np.arange(3, dtype=np.int8), np.array([1j]), np.float32([1, np.nan]),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_with_its_type_and_its_bits(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert type(back) is type(value)
    if isinstance(value, np.ndarray | np.generic):
        assert back.dtype == value.dtype and back.shape == value.shape and back.tobytes() == value.tobytes()
    else:
        assert repr(back) == repr(value)


def test_a_random_generator_comes_back_with_its_state():
    rng = np.random.default_rng(3)
    rng.integers(5, dtype=np.int32)  # PCG64 keeps the other half of the number
    back = decode(json.loads(json.dumps(encode(rng))))
    assert back.random() == rng.random() and back.integers(9, dtype=np.int32) == rng.integers(9, dtype=np.int32)


def test_a_value_of_an_unexpected_type_is_described():
    for value, words in (
        (object(), "a object"),
        (np.array([None]), "an array of object and shape (1,)"),
        (1 << 70, None),
    ):
        back = decode(json.loads(json.dumps(encode(value))))
        assert back == float("inf") if words is None else isinstance(back, Odd) and back.words == words
    assert Odd("a", "b") != Odd("a", "b")


def test_changes_of_arguments_arrive_in_the_same_objects():
    """The optimizer holds the array: an array changed in place stays the same array, a new array is another one."""
    text = """
def f(layer, rows, rng):
    layer["W"] += 1
    layer["A"] = layer["A"] + 1
    layer["view"] = layer["W"][:]
    del layer["gone"]
    rows.append(layer["W"])
    rng.random()
    return layer
"""
    W, A, rng = np.ones((2, 2)), np.ones(3), np.random.default_rng(0)
    layer, rows, twin = {"W": W, "A": A, "gone": 1}, [7], deepcopy(rng)
    with Contained(text, "f") as function:
        function.start()
        value = function(layer, rows, rng)
    twin.random()
    assert value is layer and layer["W"] is W and (W == 2).all() and rows[1] is W and layer["view"] is W
    assert layer["A"] is not A and (A == 1).all() and (layer["A"] == 2).all() and "gone" not in layer
    assert rng.random() == twin.random()


def test_an_exception_arrives_with_its_line_and_shapes():
    with Contained("\ndef f(x):\n    return x @ x\n", "f") as function:
        function.start()
        with pytest.raises(Failed) as failed:
            function(np.ones((2, 3)))
    assert failed.value.failure.line == 3 and failed.value.failure.shapes == {"x": "(2, 3)"}


@pytest.mark.parametrize("asked", exercises(), ids=lambda asked: asked.function)
def test_a_solution_gives_the_same_outcomes_in_its_own_process(asked):
    """Also for each exercise that changes its arguments or draws random numbers."""
    from lora_np.exercises.outcome import alike, run_cases

    with Contained(asked.solution, asked.function) as function:
        function.start()
        outcomes = list(run_cases(function, function.passed_over, asked, asked.cases()))
    expected = list(run_program(asked.solution, asked))
    assert all(map(alike, outcomes, expected)) and not any(outcome.changed for outcome in outcomes)


def broken(fields, rnd):
    """Return JSON with one random change."""
    text = json.dumps(fields)
    i = rnd.randrange(len(text))
    return (
        text[:i]
        + rnd.choice(['"', "[", "]", "{", "}", "-", "9" * rnd.randrange(30), "null", ""])
        + text[i + rnd.randrange(4) :]
    )


def test_no_reply_ends_the_grader_with_another_error():
    rnd = random.Random(0)
    values = [encode(value) for value in [*VALUES, np.random.default_rng(1)]] + [{"part": 0}, {"odd": ["a", "b"]}]
    given = (np.ones((2, 3)), {"a": np.ones(2)}, [1.0], np.random.default_rng(2))
    count = 0
    for _ in range(3000):
        try:
            changed = json.loads(broken(rnd.choice(values), rnd))
        except (ValueError, RecursionError):
            continue
        count += 1
        arguments = deepcopy(given)
        parts = mutable_parts(arguments)
        for part in parts:
            try:
                with checked():
                    update(part, changed, parts)
            except Stopped:
                pass
    assert count > 300


LIES = {
    "a negative size": {"array": ["<f8", [-1, -1], "AAAAAAAAAAA="]},
    "huge sizes": {"array": ["<f8", [10**4299] * 900, "AAAAAAAAAAA="]},
    "many sizes": {"array": ["<f8", [1] * 65, "AAAAAAAAAAA="]},
    "a wrong size": {"array": ["<f8", [2], "AAAAAAAAAAA="]},
    "objects": {"array": ["|O8", [1], "AAAAAAAAAAA="]},
    "a structure": {"array": ["<f8,<f8", [1], "AAAAAAAAAAA="]},
    "no base64": {"array": ["<f8", [1], "!!"]},
    "an unknown part": {"part": 5},
    "a part from the end": {"part": -9},
    "two kinds": {"part": 0, "odd": ["a", "b"]},
    "another generator": {"rng": {"bit_generator": "MT19937", "state": {"state": 1, "inc": 1}, "has_uint32": 0, "uinteger": 0}},
    "a huge state": {"rng": {"bit_generator": "PCG64", "state": {"state": 1 << 200, "inc": 1}, "has_uint32": 0, "uinteger": 0}},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_reply_that_lies_is_refused(lie):
    with pytest.raises(Stopped, match="garbled"), checked():
        decode(LIES[lie], [np.ones(1)])


def test_files_are_read_with_limits(tmp_path):
    file = tmp_path / "a.py"
    for text, words in (
        ("x = 1\n" * 200_000, r"a\.py is larger than 1 MB"),
        ("x = 1\n" * (MOST_CODE // 6 + 1), r"a\.py has .* characters of code, expected at most 200,000"),
        ("x = '" + "x" * MOST_LINE, r"a\.py has a line of 10,005 characters"),
        ("# coding: punycode\nx = 1", r"cannot read a\.py as a Python file"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            cells_of(file)
    file.write_bytes("# coding: latin-1\nname = 'é'".encode("latin-1"))
    assert "é" in cells_of(file)[0]
    if sys.platform != "win32":
        (tmp_path / "link.py").symlink_to(file)
        with pytest.raises(ValueError, match=r"link\.py is a link"):
            read_bytes(tmp_path / "link.py")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no names there")
def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.py")
    with pytest.raises(ValueError, match="not a regular file"):
        cells_of(tmp_path / "a.py")


def test_an_answer_in_an_exercise_with_its_own_state_is_kept_between_calls():
    """A function's global variables live as long as its process, as in a notebook."""
    with Contained("n = 0\ndef f():\n    global n\n    n += 1\n    return n\n", "f") as function:
        function.start()
        assert [function() for _ in range(3)] == [1, 2, 3]


def test_a_wrong_type_is_named_in_the_message():
    from lora_np.exercises.diagnose import verdict

    said = verdict(["def init_lora(out_features, in_features, r, rng):\n    return object(), 1"], exercise("init_lora"))
    assert "one of the two returned objects is of type object; expected an array of numbers" in said.words
