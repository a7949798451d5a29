"""Tests of conversations: exactly the answers and their end tokens count, and a batch depends only on its index and seed."""

from __future__ import annotations

import json
import re
from itertools import chain

import numpy as np
import pytest
from chats import RECORDS, SMOLLM2, byte_pairs, chat
from on_device import host

import lora_np as ln
from lora_np import ops
from lora_np.data import conversations
from lora_np.data.conversations import ConversationBatches, Example, example, heldout_batches, read
from lora_np.files import ByteTokenizer, VocabularyTokenizer

WITH_MASK = (  # the same template with the tags that mark answers for transformers
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}"
    "{% endfor %}"
)
FORGETFUL = SMOLLM2.replace(  # like templates that drop the reasoning of earlier turns
    "message['content'] + '<|im_end|>'",
    "(message['content'] if loop.last or message['role'] != 'assistant' else '…') + '<|im_end|>'",
)


records = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


@pytest.fixture(scope="module")
def smol():
    return VocabularyTokenizer(byte_pairs(), {"bos": 1, "eos": 2, "pad": 2}, SMOLLM2)


@pytest.fixture(scope="module", params=["bytes", "a vocabulary"])
def tokenizer(request, smol):
    return ByteTokenizer() if request.param == "bytes" else smol


def counted_runs(e, tokenizer):
    """Return the text of each run of counted tokens."""
    edges = np.flatnonzero(np.diff(e.counts.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [tokenizer.decode(e.tokens[first:end]) for first, end in edges]


@pytest.fixture
def jsonl(tmp_path):
    """Return a function that writes records to a JSONL file and returns its path. A string is written unchanged."""

    def write(*records):
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        path = tmp_path / "data.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write


# ---------------------------------------------------------------------------------------------------------- what counts


@records
def test_what_counts_is_the_answers_and_what_ends_them(record, tokenizer):
    answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    end = (
        "<|im_end|>" if tokenizer.eos_token_id == 2 else "<|im_end|>\n"
    )  # the byte tokenizer has no token that ends a turn
    assert counted_runs(example(record, tokenizer), tokenizer) == [answer + end for answer in answers]


@records
def test_what_is_read_is_the_whole_conversation_up_to_the_last_answers_end(record, tokenizer):
    e = example(record, tokenizer)
    whole = tokenizer.apply_chat_template(record["messages"], add_generation_prompt=False, tokenize=False)
    assert tokenizer.decode(e.tokens) == (whole.removesuffix("\n") if tokenizer.eos_token_id == 2 else whole)
    assert e.counts[-1], "tokens after the last counted token must be left out"
    assert e.tokens.dtype == np.int64 and e.counts.dtype == bool and e.tokens.shape == e.counts.shape


@records
def test_before_an_answer_stands_the_very_prompt_that_generating_begins_with(record, tokenizer):
    """Also if one token of the whole text spans the boundary, as between "assistant\\n" and "\\n\\nHere."."""
    e = example(record, tokenizer)
    first = next(i for i, message in enumerate(record["messages"]) if message["role"] == "assistant")
    prompt = tokenizer.apply_chat_template(record["messages"][:first])
    assert e.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert not e.counts[: len(prompt)].any() and e.counts[len(prompt)]


def test_a_seam_inside_a_token_is_there_to_be_met(smol):
    """The test above needs such a case: here the tokens of the whole text do not begin with those of the prompt."""
    messages = RECORDS["an answer that begins with newlines"]["messages"][:2]
    prompt, whole = smol.apply_chat_template(messages[:1]), smol.apply_chat_template(messages, False)
    assert whole[: len(prompt)].tolist() != prompt.tolist()


NO_SEAM = ("one turn", "with a system message", "three turns", "an answer that is not English")


@pytest.mark.oracle
@pytest.mark.parametrize("name", NO_SEAM)
def test_the_tokens_and_the_mask_are_transformers(name, smol):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_pairs(), chat_template=WITH_MASK)
    expected = theirs.apply_chat_template(
        RECORDS[name]["messages"], return_assistant_tokens_mask=True, return_dict=True
    )
    e = example(RECORDS[name], smol)
    n = len(e.tokens)
    assert e.tokens.tolist() == expected["input_ids"][:n]
    assert e.counts.tolist() == [bool(m) for m in expected["assistant_masks"][:n]]
    assert not any(expected["assistant_masks"][n:]), "a counted token was left out"


@pytest.mark.smollm2
@records
def test_with_smollm2_the_answers_count_and_their_im_end(record):
    tokenizer = ln.load_tokenizer("smollm2-135m")
    answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    e = example(record, tokenizer)
    assert counted_runs(e, tokenizer) == [answer + "<|im_end|>" for answer in answers]
    assert e.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(e.tokens).startswith("<|im_start|>system\n"), "the template adds a system message first"


def test_of_a_prompt_and_completion_the_completion_counts_and_the_end_of_text(tokenizer):
    e = example({"prompt": "one plus one is", "completion": " two, or\n 2"}, tokenizer)
    end = tokenizer.decode([tokenizer.eos_token_id])
    assert counted_runs(e, tokenizer) == [" two, or\n 2" + end]
    assert tokenizer.decode(e.tokens) == "one plus one is two, or\n 2" + end, "plain text, without a template"
    spelt_out = example({"prompt": "one plus one is", "completion": " two, or\n 2" + end}, tokenizer)
    assert spelt_out.tokens.tolist() == e.tokens.tolist(), "the end is not written twice"


@pytest.fixture
def gemma_like(smol):
    """A tokenizer whose texts end with token 0 and whose turns end with token 2, as in Gemma and Llama 3."""
    tokenizer = VocabularyTokenizer(smol.backend, {"bos": 1, "eos": 0}, SMOLLM2)
    tokenizer.more_stop_token_ids = (2,)
    return tokenizer


@records
def test_an_answer_counts_up_to_the_token_that_ends_a_turn_which_need_not_be_eos(record, gemma_like):
    answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    assert counted_runs(example(record, gemma_like), gemma_like) == [answer + "<|im_end|>" for answer in answers]


def test_a_completion_that_ends_with_a_stop_token_gets_no_eos(gemma_like):
    for completion, counted in ((" 2", " 2<|endoftext|>"), (" 2<|im_end|>", " 2<|im_end|>")):
        e = example({"prompt": "1 + 1 =", "completion": completion}, gemma_like)
        assert counted_runs(e, gemma_like) == [counted]


@records
def test_the_marks_of_a_template_are_the_answers(record, smol):
    """The template marks the answer and its end; `WITH_MASK` has no generation prompt, which marks do not need."""
    marked = VocabularyTokenizer(smol.backend, {"bos": 1, "eos": 2, "pad": 2}, WITH_MASK)
    e, expected = example(record, marked), example(record, smol)
    assert e.tokens.tolist() == expected.tokens.tolist() and e.counts.tolist() == expected.counts.tolist()


def test_marks_decide_also_if_they_leave_out_the_end_of_a_turn_or_earlier_answers(smol):
    short = WITH_MASK.replace("message['content'] + '<|im_end|>' }}{% endg", "message['content'] }}{% endg").replace(
        "{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    )
    last = WITH_MASK.replace("{% if message['role'] == 'assistant' %}", "{% if loop.last %}")
    forgetful = WITH_MASK.replace("{{ message['content'] +", "{{ (message['content'] if loop.last else '…') +")
    three = RECORDS["three turns"]
    for template, expected in (
        (short, ["1.", "That is 2.\nOr II.", "3"]),
        (last, ["3<|im_end|>"]),
        (forgetful, ["…<|im_end|>", "…<|im_end|>", "3<|im_end|>"]),  # without marks, such a template is refused
    ):
        tokenizer = VocabularyTokenizer(smol.backend, {"eos": 2}, template)
        assert counted_runs(example(three, tokenizer), tokenizer) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("name", NO_SEAM)
def test_the_marked_tokens_are_those_of_transformers(name, smol):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_pairs(), chat_template=WITH_MASK)
    expected = theirs.apply_chat_template(
        RECORDS[name]["messages"], return_assistant_tokens_mask=True, return_dict=True
    )
    e = example(RECORDS[name], VocabularyTokenizer(smol.backend, {"eos": 0}, WITH_MASK))
    n = len(e.tokens)
    assert e.tokens.tolist() == expected["input_ids"][:n]
    assert e.counts.tolist() == [bool(m) for m in expected["assistant_masks"][:n]]
    assert not any(expected["assistant_masks"][n:]), "a counted token was left out"


def test_plain_text_begins_with_the_token_that_this_models_texts_begin_with():
    tokenizer = VocabularyTokenizer(byte_pairs(add_bos=True), {"bos": 0}, None)
    e = example({"prompt": "1 + 1 =", "completion": " 2"}, tokenizer)
    assert e.tokens[0] == 0 and tokenizer.decode(e.tokens) == "<|endoftext|>1 + 1 = 2", (
        "and without an eos ends as it ends"
    )
    assert counted_runs(e, tokenizer) == [" 2"]


def test_a_completion_is_cut_as_the_text_that_it_continues():
    """The vocabulary of Llama 2 adds a space before a text. It must not add a space before a completion."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<s>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "▁b": 6}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("▁", "a"), ("▁", "b")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = VocabularyTokenizer(backend, {"bos": 0, "eos": 1}, None)
    assert tokenizer.encode("b", add_special_tokens=False).tolist() == [6], "alone, the text gets a space"
    assert example({"prompt": "a", "completion": "b"}, tokenizer).tokens.tolist() == [0, 5, 4, 1]
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="the answer has no tokens"):
        example({"prompt": "a", "completion": "é"}, tokenizer)


# ------------------------------------------------------------------------------------------------------- what is no record

WRONG = {
    "not JSON": ('{"messages": [', r"not JSON \(Expecting value, column 15\)"),
    "a list": ([1], r"a list; expected \{\"messages\""),
    "a number": ("3", "a int; expected"),
    "no keys": ({}, r"the keys are \[\]; expected"),
    "two forms at once": (chat("a", "b") | {"prompt": "a", "completion": "b"}, r"the keys are .*; expected one of \{"),
    "tools": (
        chat("a", "b") | {"tools": [{"type": "function"}]},
        r"the record has the key 'tools' .*changes what must be",
    ),
    "a weight": (chat("a", "b") | {"weight": 0.5}, "the record has the key 'weight' with the value 0.5"),
    "a preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "the keys are .*; expected one of"),
    "a message without weight": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        r"messages\[1\] has the key 'weight' with the value 0; this key changes what must be learned",
    ),
    "a tool call": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]},
        r"messages\[1\] has the key 'tool_calls'",
    ),
    "an earlier turn of Alpaca": ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "the key 'history'"),
    "a speaker of ShareGPT that is unknown": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]},
        r"messages\[1\]: the role is 'observation'; expected system, user, assistant",
    ),
    "a ShareGPT turn without value": (
        {"conversations": [{"from": "human"}]},
        r"conversations\[0\] is .*expected \{\"from\"",
    ),
    "a prompt alone": ({"prompt": "a"}, r"the keys are \['prompt'\]"),
    "no messages": ({"messages": []}, r"messages is \[\]; expected a list"),
    "messages as text": ({"messages": "Hi"}, r"messages is 'Hi'; expected a list"),
    "a message of text": ({"messages": ["Hi"]}, r"messages\[0\] is 'Hi'; expected \{\"role\": \"user\""),
    "a role that is misspelt": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]},
        r"messages\[1\]: the role is 'asistant'; expected system, user, assistant",
    ),
    "content that is no text": (chat("a", ["b"]), r"messages\[1\]: the content is \['b'\]; expected a string"),
    "an empty answer": (chat("a", "b", "c", " \n"), r"messages\[3\]: the answer is empty"),
    "an answer to nothing": ({"messages": chat("a", "b")["messages"][1:]}, r"messages\[0\] has the role 'assistant\'"),
    "no answer": (chat("a"), "the last message has the role 'user'; expected an answer"),
    "no last answer": (chat("a", "b", "c"), "the last message has the role 'user'; expected an answer"),
    "an empty prompt": ({"prompt": "", "completion": "b"}, "the prompt is empty"),
    "an empty completion": ({"prompt": "a", "completion": "\n"}, "the completion is empty"),
    "a prompt of messages": (
        {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
        r"the prompt is \[\{.*\}\]; expected a string, .*\. A chat has the form \{\"messages\"",
    ),
    "half a surrogate pair": (r'{"prompt": "\ud800", "completion": "b"}', "surrogates not allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_record_is_an_error_that_names_file_and_line(case, jsonl, tokenizer):
    record, message = WRONG[case]
    path = jsonl(RECORDS["one turn"], "", record)  # a blank line is not a record, but it counts as a line
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 3: .*{message}") as error:
        read(path, tokenizer)
    assert "\n" not in str(error.value)


READ_AS_CHAT = {  # other people's records of the same conversation
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
        ],
    },
    "ShareGPT with a system column": {
        "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
        "system": "s",
    },
    "Alpaca": {"instruction": "a", "input": "", "output": "b", "system": "s"},
    "OpenAI with neutral keys": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 1, "tool_calls": None},
        ],
        "tools": [],
    },
}


@pytest.mark.filterwarnings("ignore:.*(read as|ignored keys)")
@pytest.mark.parametrize("form", READ_AS_CHAT)
def test_records_of_other_tools_are_the_same_conversation(form, tokenizer, jsonl):
    messages = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "a"), ("assistant", "b"))]
    expected = example({"messages": messages}, tokenizer)
    for found in (example(READ_AS_CHAT[form], tokenizer), *read(jsonl(READ_AS_CHAT[form]), tokenizer)):
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.counts.tolist() == expected.counts.tolist()


def test_an_alpaca_input_follows_the_instruction_in_the_users_message(tokenizer):
    record = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
    expected = example(chat("Add.\n\n1 + 1", "2"), tokenizer)
    assert example(record, tokenizer).tokens.tolist() == expected.tokens.tolist()


def test_a_file_says_once_what_its_records_were_read_as_and_which_keys_are_ignored(jsonl):
    alpaca = {"instruction": "a", "output": "b", "id": 7}
    path = jsonl(alpaca, alpaca, chat("a", "b") | {"source": "web"})
    with pytest.warns(UserWarning) as caught:
        read(path, ByteTokenizer())
    (message,) = (str(warning.message) for warning in caught)
    assert "data.jsonl: 2 of 3 records read as Alpaca records: instruction and input are" in message
    assert message.endswith("; ignored keys: id, source")


def test_the_name_of_a_message_reaches_the_template(smol):
    named = VocabularyTokenizer(
        smol.backend, {"eos": 2}, SMOLLM2.replace("message['role']", "(message.name or message['role'])")
    )
    record = chat("a", "b")
    record["messages"][0]["name"] = "Ada"
    assert "Ada\na" in named.decode(example(record, named).tokens)


def test_one_json_array_is_a_file_of_records(tmp_path, tokenizer):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(list(RECORDS.values()), indent=1), encoding="utf-8")
    expected = [example(record, tokenizer).tokens.tolist() for record in RECORDS.values()]
    assert [e.tokens.tolist() for e in read(path, tokenizer)] == expected
    path.write_text(json.dumps([chat("a", "b"), chat("a")]))
    with pytest.raises(ValueError, match=r"data\.json, record 2: the last message has the role 'user'"):
        read(path, tokenizer)
    path.write_text('[\n{"messages": }]')
    with pytest.raises(ValueError, match=r"data\.json: not JSON \(Expecting value, line 2, column 14\)"):
        read(path, tokenizer)


def test_a_csv_file_has_one_record_per_row(tmp_path, tokenizer):
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"1, 2,",3\n"a ""b""\nc","d"\n', encoding="utf-8-sig")
    expected = [{"prompt": "1, 2,", "completion": "3"}, {"prompt": 'a "b"\nc', "completion": "d"}]
    assert [e.tokens.tolist() for e in read(path, tokenizer)] == [
        example(r, tokenizer).tokens.tolist() for r in expected
    ]
    for row, message in (
        ("1,2,3", "row 1: 3 values; expected 2"),
        ("1", "row 1: 1 values; expected 2"),
        ('"1', "not CSV"),
    ):
        path.write_text(f"prompt,completion\n{row}\n")
        with pytest.raises(ValueError, match=rf"data\.csv.*{message}"):
            read(path, tokenizer)


def test_a_json_number_with_too_many_digits_is_an_error_with_its_line(jsonl, tokenizer):
    with pytest.raises(ValueError, match=r"data\.jsonl, line 1: not JSON \(Exceeds the limit"):
        read(jsonl('{"a": ' + "9" * 5000 + "}"), tokenizer)


def test_json_that_is_nested_too_deeply_is_an_error_with_its_line(jsonl, tokenizer):
    with pytest.raises(ValueError, match=r"data\.jsonl, line 1: the JSON text is nested too deeply"):
        read(jsonl('{"a": ' * 100_000), tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(jsonl, smol):
    forgetful = VocabularyTokenizer(smol.backend, {"eos": 2}, FORGETFUL)
    assert counted_runs(example(chat("a", "b"), forgetful), forgetful) == ["b<|im_end|>"]
    with pytest.raises(
        ValueError, match=r"data\.jsonl, line 1: messages\[3\]: the chat template changes the text before"
    ) as error:
        read(jsonl(chat("a", "b", "c", "d")), forgetful)
    assert re.search(r"assistant\\nb<.* becomes .*assistant\\n…<", str(error.value)), (
        "the message shows where the texts differ"
    )


def test_a_tokenizer_without_a_template_says_so(jsonl, smol):
    with pytest.raises(ValueError, match=r"line 1: this tokenizer has no chat template"):
        read(jsonl(chat("a", "b")), VocabularyTokenizer(smol.backend, {"eos": 2}, None))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(text, tmp_path, tokenizer):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"data\.jsonl is empty; expected one record per line"):
        read(tmp_path / "data.jsonl", tokenizer)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path, tokenizer):
    with pytest.raises(
        FileNotFoundError, match=r"no data set '.*none\.jsonl': there is no such file, and the package contains \["
    ):
        read(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "data.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"data\.jsonl is not UTF-8"):
        read(tmp_path / "data.jsonl", tokenizer)


def test_a_byte_order_mark_and_windows_newlines_are_no_part_of_a_record(tmp_path, tokenizer):
    lines = [json.dumps(record) for record in RECORDS.values()]
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read(tmp_path / "data.jsonl", tokenizer)
    assert [e.tokens.tolist() for e in found] == [example(r, tokenizer).tokens.tolist() for r in RECORDS.values()]


# ----------------------------------------------------------------------------------------------------- records too long


def test_long_records_are_cut_with_one_warning_that_says_how_many(jsonl):
    records = [chat("a", "b"), chat("a", "b" * 90), chat("a" * 90, "b"), chat("a", "b", "a" * 90, "b")]
    whole = [example(record, ByteTokenizer()) for record in records]
    n = len(whole[0].tokens)
    with pytest.warns(
        UserWarning, match=r"data\.jsonl: 3 of 4 records cut to max_length = (\d+) tokens, 1 of them left out"
    ):
        cut = read(jsonl(*records), ByteTokenizer(), max_length=n + 2)
    assert [len(e.tokens) for e in cut] == [n, n + 2, n], "cut to max_length, or to the last counted token before that"
    assert all(e.counts[-1] for e in cut)
    for e, full in zip(cut, [whole[0], whole[1], whole[3]], strict=True):
        assert e.tokens.tolist() == full.tokens[: len(e.tokens)].tolist()
        assert e.counts.tolist() == full.counts[: len(e.tokens)].tolist()


def test_records_that_fit_are_read_without_a_word(jsonl, recwarn):
    longest = max(len(example(record, ByteTokenizer()).tokens) for record in RECORDS.values())
    assert len(read(jsonl(*RECORDS.values()), ByteTokenizer(), max_length=longest)) == len(RECORDS)
    assert not recwarn.list


def test_no_record_is_left_without_a_token_that_counts(jsonl):
    path = jsonl(chat("a" * 90, "b"))
    with pytest.raises(
        ValueError, match=r"1 of 1 records cut .* 1 of them left out.*, so no record remains; give a larger max_length"
    ):
        read(path, ByteTokenizer(), max_length=60)
    with pytest.raises(ValueError, match="max_length = 1; expected at least 2"):
        read(path, ByteTokenizer(), max_length=1)


# ------------------------------------------------------------------------------------------------- the data set in the package


def test_a_shipped_data_set_goes_by_its_name(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(conversations, "ASSETS", tmp_path)
    (tmp_path / "harbour").mkdir()
    for split, record in (("train", chat("a", "b")), ("heldout", chat("c", "d"))):
        (tmp_path / "harbour" / f"{split}.jsonl").write_text(json.dumps(record))
    assert conversations.dataset_names() == ["harbour"]
    assert "b<|im_end|>" in tokenizer.decode(read("harbour", tokenizer)[0].tokens)
    assert "d<|im_end|>" in tokenizer.decode(read("harbour", tokenizer, split="heldout")[0].tokens)
    with pytest.raises(
        FileNotFoundError, match=r"no data set 'port': there is no such file, and the package contains \['harbour'\]"
    ):
        read("port", tokenizer)


def test_the_package_has_a_data_set_whose_splits_share_no_record():
    assert "lighthouse" in conversations.dataset_names()
    train, heldout = (
        {e.tokens.tobytes() for e in read("lighthouse", ByteTokenizer(), split=split)} for split in ("train", "heldout")
    )
    assert len(train) > len(heldout) > 0 and not train & heldout


# --------------------------------------------------------------------------------------------------------------- batches


def toy(*lengths, vocab=11):
    """Return examples of these lengths with different tokens. The second half of each example counts."""
    rng = np.random.default_rng(0)
    return [Example(rng.integers(0, vocab, n), np.arange(n) >= (n + 1) // 2) for n in lengths]


def test_a_batch_is_padded_on_the_right_and_counts_the_answers_alone():
    short, long = Example(np.array([5, 6, 7]), np.array([False, False, True])), toy(6)[0]
    tokens, targets = heldout_batches([long, short], batch_size=2)[0]
    assert tokens.tolist() == [[5, 6, 0, 0, 0], long.tokens[:5].tolist()]
    skip = ops.IGNORE_INDEX
    assert targets.tolist() == [[skip, 7, skip, skip, skip], [skip, skip, *long.tokens[3:].tolist()]]
    assert tokens.dtype == targets.dtype == np.int64


def test_padding_changes_neither_loss_nor_gradient(make_model):
    """Compare a batch with its rows one at a time, which need no padding, and with other padding tokens."""
    model, examples = make_model(np.float64), toy(5, 9, 3, 12)
    tokens, targets = heldout_batches(examples, batch_size=4)[0]

    def loss_and_gradient(*parts):
        model.zero_grad()
        total = sum(int((targets >= 0).sum()) for _, targets in parts)
        loss = 0.0
        for tokens, targets in parts:
            share = int((targets >= 0).sum()) / total
            value, cache = model.loss(tokens, targets)
            model.backward(cache, dloss=share)
            loss += share * float(value)
        return loss, {name: host(p.grad).copy() for name, p in model.named_parameters()}

    loss, gradient = loss_and_gradient((tokens, targets))
    alone, gradient_alone = loss_and_gradient(*heldout_batches(examples, batch_size=1))
    assert loss == pytest.approx(alone, rel=1e-12)
    for name, g in gradient.items():
        np.testing.assert_allclose(g, gradient_alone[name], rtol=1e-12, atol=1e-13, err_msg=name)
    padding = (
        np.arange(11) >= np.array([len(e.tokens) - 1 for e in sorted(examples, key=lambda e: len(e.tokens))])[:, None]
    )
    other_loss, other_gradient = loss_and_gradient((np.where(padding, 10, tokens), targets))
    assert padding.any() and other_loss == loss
    for name, g in gradient.items():
        np.testing.assert_array_equal(g, other_gradient[name], err_msg=name)


def rows(batches, n):
    """Return the first token of each row of the first n batches, which identifies the example."""
    return list(chain.from_iterable(batches[i][0][:, 0].tolist() for i in range(n)))


def numbered(n):
    return [Example(np.array([i, 0]), np.array([False, True])) for i in range(n)]


def test_each_epoch_holds_every_example_once_in_a_new_order():
    seen = rows(
        ConversationBatches(numbered(7), batch_size=3), n=7
    )  # three epochs; some batches contain parts of two epochs
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len(set(map(tuple, epochs))) == 3 and list(range(7)) not in epochs


def test_a_batch_larger_than_the_data_holds_several_epochs():
    assert sorted(rows(ConversationBatches(numbered(2), batch_size=5), n=2)) == [0] * 5 + [1] * 5


def test_a_batch_is_a_function_of_seed_and_step_alone():
    examples = toy(*range(4, 16))
    forwards, backwards = ConversationBatches(examples, 5, seed=3), ConversationBatches(examples, 5, seed=3)
    ahead = [forwards[i] for i in range(6)]
    for i in reversed(range(6)):
        for side, other in zip(backwards[i], ahead[i], strict=True):
            np.testing.assert_array_equal(side, other)
    assert rows(ConversationBatches(numbered(9), 3, seed=1), 3) != rows(ConversationBatches(numbered(9), 3, seed=2), 3)


def test_batches_of_like_length_hold_every_example_once_with_little_padding():
    lengths = np.random.default_rng(0).integers(3, 60, 64)
    examples = [Example(np.full(n, i), np.arange(n) > 0) for i, n in enumerate(lengths)]
    batches = ConversationBatches(examples, 4, seed=3, group_by_length=True)
    first, second = ([batches[i] for i in range(start, start + 16)] for start in (0, 16))  # 64 examples each: an epoch
    for epoch in (first, second):
        assert sorted(row for tokens, _ in epoch for row in tokens[:, 0].tolist()) == list(range(64))
        area = sum(tokens.size for tokens, _ in epoch)
        assert area <= 1.15 * sum(lengths - 1), "examples of similar length must share a batch"
        widths = [tokens.shape[1] for tokens, _ in epoch]
        assert widths != sorted(widths) and widths != sorted(widths, reverse=True), "the order of the batches is random"
    assert [tokens.shape for tokens, _ in first] != [tokens.shape for tokens, _ in second]
    again = ConversationBatches(examples, 4, seed=3, group_by_length=True)
    for i in reversed(range(16)):  # a batch is a function of the arguments and i
        np.testing.assert_array_equal(again[i][0], first[i][0])
        assert again[i][0][:, 0].tolist() == again.numbers(i)


def test_the_digest_is_the_datas_and_the_orders():
    examples = toy(4, 5, 6)
    same = ConversationBatches(toy(4, 5, 6), batch_size=2, seed=1).digest
    assert ConversationBatches(examples, batch_size=2, seed=1).digest == same
    fewer = [Example(e.tokens, e.counts & (np.arange(len(e.counts)) == len(e.counts) - 1)) for e in examples]
    others = {
        "seed": ConversationBatches(examples, batch_size=2, seed=2),
        "batch_size": ConversationBatches(examples, batch_size=3, seed=1),
        "group_by_length": ConversationBatches(examples, batch_size=2, seed=1, group_by_length=True),
        "order": ConversationBatches(examples[::-1], batch_size=2, seed=1),
        "tokens": ConversationBatches(toy(4, 5, 6, vocab=12), batch_size=2, seed=1),
        "what counts": ConversationBatches(fewer, batch_size=2, seed=1),
    }
    assert [name for name, batches in others.items() if batches.digest == same] == []


@pytest.mark.parametrize("grouped", [False, True])
def test_a_run_on_conversations_resumes_to_the_bit_and_on_no_others(grouped, make_model, tmp_path):
    examples, settings = toy(4, 9, 5, 7, 6), {"steps": 4, "accumulate": 2, "checkpoint_every": 1}

    class Stopping(ConversationBatches):
        def __getitem__(self, i):
            if i == 5:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    def run(batches, **more):
        model = ln.get_peft_model(make_model(np.float32), ln.LoraConfig(r=2, target_modules="all-linear"))
        history = ln.train(model, batches, ln.AdamW(0.05), **settings, **more)
        return history.column("loss"), {name: host(p.value).tobytes() for name, p in model.named_parameters()}

    expected = run(ConversationBatches(examples, 2, 1, grouped))
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(examples, 2, 1, grouped), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="belongs to another run: digest of the data was"):
        run(ConversationBatches(toy(4, 9, 5, 7, 7), 2, 1, grouped), checkpoint=tmp_path / "run", resume=True)
    assert run(ConversationBatches(examples, 2, 1, grouped), checkpoint=tmp_path / "run", resume=True) == expected


def test_held_out_batches_hold_each_example_once_with_little_padding():
    examples = toy(*np.random.default_rng(0).permutation(np.arange(3, 40)))
    batches = heldout_batches(examples, batch_size=5)
    assert sum(int((targets >= 0).sum()) for _, targets in batches) == sum(int(e.counts.sum()) for e in examples)
    assert [len(tokens) for tokens, _ in batches] == [5] * 7 + [2]
    area = sum(tokens.size for tokens, _ in batches)
    assert area <= 1.15 * sum(len(e.tokens) - 1 for e in examples), "examples of similar length must share a batch"


def test_batches_of_nothing_are_refused():
    for make in (ConversationBatches, heldout_batches):
        with pytest.raises(ValueError, match="no examples"):
            make([])
        with pytest.raises(ValueError, match="batch_size = 0"):
            make(toy(4), 0)
    with pytest.raises(IndexError, match="batch index -1; expected 0"):
        ConversationBatches(toy(4))[-1]
    with pytest.raises(TypeError, match="not iterable"):
        iter(ConversationBatches(toy(4)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": 5, "output": "x"}, "instruction is 5; expected a text"),
        ({"instruction": None, "output": "x"}, "instruction is None; expected a text"),
        ({"instruction": "a", "input": 7, "output": "x"}, "input is 7; expected a text"),
        ({"conversations": [{"from": ["human"], "value": "a"}, {"from": "gpt", "value": "b"}]}, r"\['human'\]"),
    ],
)
def test_a_record_whose_values_are_no_texts_is_refused_with_its_line(record, message, tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"data\.jsonl.*line 1.*{message}"):
        conversations.read(path, tokenizer)


def test_a_csv_file_can_have_neutral_columns_and_no_two_of_one_name(tmp_path, tokenizer):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,weight,,\nx,y,1,,\n")
    with pytest.warns(UserWarning, match="weight"):
        assert len(conversations.read(path, tokenizer)) == 1
    path.write_text("prompt,prompt,completion\na,b,c\n")
    with pytest.raises(ValueError, match=r"data\.csv: two columns have the name 'prompt'"):
        conversations.read(path, tokenizer)
