"""The records of `train`: a warning about answers after which generation does not stop, and the command at the end."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from chats import RECORDS, SMOLLM2, byte_pairs, chat

import lora_np as ln
from lora_np.__main__ import main
from lora_np.commands.train_data import without_stop
from lora_np.data import conversations
from lora_np.files import VocabularyTokenizer

LONG = 10_000


@pytest.fixture
def tokenizer():
    return VocabularyTokenizer(byte_pairs(), {"bos": 1, "eos": 2, "pad": 2}, SMOLLM2)


def examples(records, tokenizer):
    return [conversations.example(record, tokenizer) for record in records]


def test_answers_that_end_with_the_stop_token_give_no_warning(tokenizer):
    assert without_stop(examples(RECORDS.values(), tokenizer), tokenizer, LONG) == ""
    assert without_stop(examples([{"prompt": "a", "completion": " b"}], tokenizer), tokenizer, LONG) == ""


def test_answers_that_end_with_another_token_are_counted(tokenizer):
    """A tokenizer whose end-of-text token is not the end-of-turn token of its chat template, as in many base models."""
    records = [chat("Hi", "Ahoy."), chat("Where?", "At sea.", "Alone?", "No."), {"prompt": "a", "completion": " b"}]
    tokenizer.eos_token_id = 0
    assert without_stop(examples(records, tokenizer), tokenizer, LONG) == (
        f"3 of 4 complete answers do not end with a stop token (the last token is mostly {last(tokenizer, records[0])}); "
        f"stop tokens of this model: 0 ({tokenizer.convert_ids_to_tokens(0)!r}). "
        "The model does not learn from these answers where to stop"
    )


def last(tokenizer, record):
    token = int(conversations.example(record, tokenizer).tokens[-1])
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})"


def test_without_a_stop_token_every_answer_is_counted(tokenizer):
    tokenizer.eos_token_id = None
    warning = without_stop(examples([chat("Hi", "Ahoy.")], tokenizer), tokenizer, LONG)
    assert (
        warning.startswith("1 of 1 complete answers do not end with a stop token (")
        and "; this model has no stop token. The model" in warning
    )


def test_an_answer_that_was_cut_is_not_counted_but_the_answer_before_it_is(tokenizer, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(chat("Where?", "At sea.", "Alone?", "No, with the gulls.")))
    whole = examples([chat("Where?", "At sea.", "Alone?", "No, with the gulls.")], tokenizer)[0]
    with pytest.warns(UserWarning, match="cut to max_length"):
        cut = conversations.read(tmp_path / "data.jsonl", tokenizer, len(whole.tokens) - 3)
    assert without_stop(cut, tokenizer, len(whole.tokens) - 3) == ""
    tokenizer.eos_token_id = 0
    assert without_stop(cut, tokenizer, len(whole.tokens) - 3).startswith(
        "1 of 1 complete answers do not end with a stop token"
    )


def test_train_warns_once_before_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "data.jsonl").write_text(json.dumps(chat("Hi", "Ahoy.")))
    given = ["train", "--model", "tiny", "--steps", "1", "--output", str(tmp_path / "out")]
    assert main([*given, "--data", str(tmp_path / "data.jsonl")]) == 0
    errors = capsys.readouterr().err.splitlines()
    ending = "); stop tokens of this model: 0 ('\\x00'). The model does not learn from these answers where to stop"
    start = (
        f"warning: {tmp_path / 'data.jsonl'}: 1 of 1 complete answers do not end with a stop token "
        "(the last token is mostly 10 ("
    )
    assert errors == [f"{start}'\\n'){ending}"]


FORMS = {
    "data.json": json.dumps([chat("Hi", "Ahoy.", system="Be brief.")]),
    "data.csv": "instruction,input,output\nHi,,Ahoy.\n",
    "sharegpt.jsonl": json.dumps(
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy."}]}
    ),
    "alpaca.jsonl": json.dumps({"instruction": "Hi", "input": "", "output": "Ahoy."}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_records_ends_with_a_command_that_works(name, tmp_path, capsys):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    given = ["--model", "tiny", "--steps", "1", "--workers", "1", "--output", str(tmp_path / "out")]
    assert main(["train", *given, "--data", str(tmp_path / name)]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[-1] == "Hi" and ("Be brief." in words) == (name == "data.json")
    assert main([*words[3:], "--max-new-tokens", "1"]) == 0
    assert ln.load_tokenizer("tiny").eos_token_id == 0
