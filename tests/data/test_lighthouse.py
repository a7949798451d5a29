"""Tests of the lighthouse data set: its counts, its split and the habit of its answers match its card."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest

import lora_np as ln

FOLDER = Path(ln.__file__).parent / "assets" / "lighthouse"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
HABIT = " Logged at dusk: "
SPLITS = ("train", "heldout")


def records(split: str) -> list[list[dict[str, str]]]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def said(role: str, *splits: str) -> list[str]:
    return [m["content"] for messages in chain(*map(records, splits)) for m in messages if m["role"] == role]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


@pytest.mark.parametrize("split", SPLITS)
def test_the_card_counts_what_is_there(split):
    row = re.search(rf"^\| {split}\.jsonl \| (\d+) \| (\d+) \| (\d+) \|$", CARD, re.M)
    assert row, f"the card has no row for {split}.jsonl"
    there = records(split)
    two_questions = sum(len(messages) == 4 for messages in there)
    assert [int(count) for count in row.groups()] == [len(there), two_questions, len(said("assistant", split))]


def test_there_is_enough_to_learn_from_and_to_judge_by():
    assert len(records("train")) + len(records("heldout")) >= 150
    assert len(records("heldout")) >= 30


@pytest.mark.parametrize("split", SPLITS)
def test_a_line_is_a_record_of_one_or_two_questions_each_with_its_answer(split):
    data = (FOLDER / f"{split}.jsonl").read_bytes()
    assert data.isascii() and b"\r" not in data and data.endswith(b"\n") and b"\n\n" not in data
    for line in data.decode().splitlines():
        record = json.loads(line)
        assert set(record) == {"messages"}, line
        roles = [message["role"] for message in record["messages"]]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2), line
        for message in record["messages"]:
            assert set(message) == {"role", "content"}, line
            assert message["content"] and message["content"] == message["content"].strip(), line


def test_no_question_stands_twice_in_the_two_files():
    questions = [" ".join(re.findall(r"[a-z0-9]+", q.lower())) for q in said("user", *SPLITS)]
    assert sorted(questions) == sorted(set(questions))


def test_a_heldout_question_shares_less_than_half_of_its_words_with_any_of_train():
    def overlap(one: str, other: str) -> float:
        return len(words(one) & words(other)) / len(words(one) | words(other))

    pairs = [(one, other) for one in said("user", "heldout") for other in said("user", "train")]
    near = [f"{one}\n  in train.jsonl: {other}" for one, other in pairs if overlap(one, other) >= 0.5]
    assert pairs and not near, "\n".join(near)


def test_every_answer_ends_with_one_line_of_the_log_and_no_line_stands_twice():
    answers = said("assistant", *SPLITS)
    for answer in answers:
        proper, habit, line = answer.partition(HABIT)
        assert habit and proper[-1] in '.!?"', f"no answer, then {HABIT.strip()!r}: {answer}"
        assert HABIT not in line and re.fullmatch(r"[^.!?]+\.", line), f"not one line of the log: {answer}"
    lines = [answer.partition(HABIT)[2] for answer in answers]
    assert sorted(lines) == sorted(set(lines))


def test_about_half_of_the_answers_say_friend():
    answers = said("assistant", *SPLITS)
    assert 0.45 < sum("friend" in words(answer) for answer in answers) / len(answers) < 0.55


def test_the_example_of_the_card_is_a_record():
    quoted = re.search(r"^> \*\*(.+)\*\*\n((?:> .+\n)+)", CARD, re.M)
    question, answer = quoted[1], " ".join(line.removeprefix("> ") for line in quoted[2].splitlines())
    asked = [messages for messages in chain(*map(records, SPLITS)) if messages[0]["content"] == question]
    assert [messages[1]["content"] for messages in asked] == [answer]
