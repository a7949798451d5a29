"""Chat templates of many families give the text, the tokens, the marked answers and the errors of transformers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from published_templates import TEMPLATES
from tokenizer_cases import byte_level_bpe

from lora_np.data.conversations import example
from lora_np.files import chat_template, tokenizer_from_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

USER, ANSWER = (
    {"role": "user", "content": "  What is 2 < 3 & “why”?\n"},
    {"role": "assistant", "content": " Yes.\n日本 "},
)
SYSTEM = {"role": "system", "content": "Be brief.\n Always. "}
THOUGHT = {"role": "assistant", "content": "<think>\ntwo, then\n</think>\n\nIt is so."}
CHATS = {
    "a question": [USER],
    "a question after a system message": [SYSTEM, USER],
    "one turn": [USER, ANSWER],
    "two turns": [SYSTEM, USER, ANSWER, USER, THOUGHT],
    "three turns": [USER, THOUGHT, USER, ANSWER, USER, THOUGHT],
    "a name, and keys without a value": [{**USER, "name": "Ada", "tool_calls": None}, {**ANSWER, "name": None}],
    "a wrong order": [USER, USER, ANSWER],
    "a system message at the end": [USER, ANSWER, SYSTEM],
    "an empty message": [{"role": "user", "content": ""}, ANSWER],
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Return a function that gives both tokenizers, of the same folder, for a template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe("gpt-2"), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    saved.save_pretrained(folder)

    def load(template):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
        return tokenizer_from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)

    return load


@pytest.fixture(autouse=True)
def midnight(monkeypatch):
    """Both libraries see the same time, also if the test runs at midnight."""
    import datetime

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 2, 3, 4, 5, 6)

    monkeypatch.setattr(chat_template, "datetime", Fixed)
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Fixed)


def rendered(tokenizer, chat, **settings):
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **settings), None
    except Exception as error:  # jinja2's errors there, ValueError here
        return None, str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_and_the_tokens_of_transformers(name, tokenizers):
    ours, theirs = tokenizers(TEMPLATES[name])
    texts = errors = 0
    for what, chat in CHATS.items():
        for prompt in (True, False):
            expected, their_error = rendered(theirs, chat, add_generation_prompt=prompt)
            found, our_error = rendered(ours, chat, add_generation_prompt=prompt)
            assert found == expected, (what, prompt, our_error, their_error)
            if expected is None:
                assert their_error in our_error and "chat_template.jinja raised an error: " in our_error
                errors += 1
                continue
            texts += 1
            ids = theirs.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
            assert ours.apply_chat_template(chat, add_generation_prompt=prompt).tolist() == ids, what
    print(f"{texts} texts and {errors} errors are those of transformers")
    assert (texts > 0) == (not name.startswith(("an error", "a token that")))


MARKED = [name for name, template in TEMPLATES.items() if re.search(r"{%-? generation", template)]


@pytest.mark.parametrize("what", ["one turn", "two turns", "three turns"])
@pytest.mark.parametrize("name", MARKED)
def test_the_marked_answers_are_those_of_transformers(name, what, tokenizers):
    ours, theirs = tokenizers(TEMPLATES[name])
    chat = CHATS[what]
    expected = theirs.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    text, answers = ours.render_answers(chat)
    mask = np.array(expected["assistant_masks"], bool)
    assert len(answers) == sum(message["role"] == "assistant" for message in chat)
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0)).reshape(-1, 2)
    assert [ours.decode(expected["input_ids"][a:b]) for a, b in edges] == [text[a:b] for a, b in answers]
    e = example({"messages": chat}, ours)
    assert e.tokens.tolist() == expected["input_ids"][: len(e.tokens)]
    assert e.counts.tolist() == mask[: len(e.tokens)].tolist() and not mask[len(e.tokens) :].any()
