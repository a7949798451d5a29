"""One record of a conversation file as tokens, with a mask of the tokens that count in the loss.

A record has one of two forms (formats.py turns ShareGPT's and Alpaca's records into the first form):

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
    {"prompt": "…", "completion": "…"}

The first form is a conversation, which the model's chat template turns into text. The turns of the assistant and the
token that ends each of these turns count in the loss, so the model learns to stop. A turn ends with one of
`tokenizer.stop_token_ids`. An exception is the model "tiny": its tokenizer has no token that ends a turn. If the
template marks the answers ({% generation %}), exactly the marked text counts, as in transformers. The turns of the
system and of the user do not count. The second form is plain text without a template, as in TRL. The completion and the
end-of-text token after the completion count in the loss. The end-of-text token is `tokenizer.eos_token_id`, if the
tokenizer has this token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files import Tokenizer
from .formats import MESSAGES, PROMPT, standard

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens, with a mask of the tokens that count in the loss.

    The tokens end with the last token that counts, because later tokens do not affect the loss.

    Parameters
    ----------
    tokens : ndarray, shape (n,), int64
        Token ids.
    counts : ndarray, shape (n,), bool
        True for the tokens that count in the loss.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data.conversations import Example
    >>> e = Example(np.array([5, 6, 7]), np.array([False, True, True]))
    >>> e.tokens[e.counts].tolist()
    [6, 7]
    """

    tokens: np.ndarray
    counts: np.ndarray


def example(record: Any, tokenizer: Tokenizer) -> Example:
    """Turn one record into tokens, and mark the tokens of its answers.

    Parameters
    ----------
    record : dict
        {"messages": [{"role": …, "content": …}, …]}, {"prompt": …, "completion": …}, or a record of ShareGPT or Alpaca.
        A key that changes what must be learned, such as "tools", raises ValueError. All other keys are ignored.
    tokenizer : Tokenizer
        The tokenizer of the model.

    Returns
    -------
    Example
        Tokens, and a mask of the tokens that count in the loss.

    Raises
    ------
    ValueError
        If the record is invalid. The message says what is wrong.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.data import conversations
    >>> tokenizer = ln.load_tokenizer("tiny")
    >>> e = conversations.example({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer)
    >>> tokenizer.decode(e.tokens[e.counts])
    ' 4\\x00'
    """
    record, _, _ = standard(record)
    if "messages" in record:
        found = _chat(record["messages"], tokenizer)
    else:
        found = _plain(record["prompt"], record["completion"], tokenizer)
    if not found.counts[1:].any():
        raise ValueError("the answer has no tokens, because the tokenizer or the chat template removes its text")
    return found


def _chat(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> Example:
    """Turn a conversation into tokens. Tokens between the start and the end of an answer count in the loss.

    If the template marks the answers with {% generation %}, the tokens of the marked text count. Otherwise an answer
    ends with a stop token of the tokenizer. Text that the template writes after this token, such as a newline, is not
    counted.
    """
    _check_messages(messages)
    ids: list[int] = []
    counts: list[bool] = []
    text = ""
    whole, marks = tokenizer.render_answers(messages)
    parts = [(whole[:first], whole[:last]) for first, last in marks] or _answers(messages, tokenizer)
    for asked, answered in parts:
        question = _continued(tokenizer, ids, text, asked, special=False)
        answer = _continued(tokenizer, ids + question, asked, answered, special=False)
        n = len(answer) if marks else _end_of_turn(answer, tokenizer.stop_token_ids)
        ids += question + answer
        counts += [False] * len(question) + [True] * n + [False] * (len(answer) - n)
        text = answered
    return to_last_counted(ids, counts)


def _answers(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """For each answer, yield the text before the answer, and the text up to the end of the answer's turn."""
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tokenize=False)
        answered = tokenizer.apply_chat_template(messages[: i + 1], add_generation_prompt=False, tokenize=False)
        _check_grows(i, text, asked)
        _check_grows(i, asked, answered)
        yield asked, answered
        text = answered


def _end_of_turn(answer: list[int], stops: Sequence[int]) -> int:
    """Return the number of tokens up to the last stop token, or the number of all tokens if there is no stop token."""
    return max((i for i, token in enumerate(answer, 1) if token in stops), default=len(answer))


def _check_grows(i: int, before: str, after: str) -> None:
    if not after.startswith(before):
        parts = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
        seen = max(0, parts - 20)
        raise ValueError(
            f"messages[{i}]: the chat template changes the text before this answer, so the tokens of the answer cannot be "
            f"found: …{before[seen : seen + 60]!r} becomes …{after[seen : seen + 60]!r}"
        )


def _check_messages(messages: list[dict[str, Any]]) -> None:
    for i, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{i}]: the role is {message['role']!r:.80}; expected {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"messages[{i}]: the content is {message['content']!r:.80}; expected a string")
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"messages[{i}]: the answer is empty; expected some text to learn")
    if messages[0]["role"] == "assistant":
        raise ValueError("messages[0] has the role 'assistant'; expected a message of the user first")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message has the role {messages[-1]['role']!r}; expected an answer of the assistant")


def _plain(prompt: Any, completion: Any, tokenizer: Tokenizer) -> Example:
    """Encode a prompt and its completion. Add the tokens that begin and end a text, if the tokenizer has such tokens."""
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str):
            raise ValueError(
                f"the {name} is {value!r:.80}; expected a string, as in {PROMPT}. A chat has the form {MESSAGES}"
            )
        if not value.strip():
            raise ValueError(f"the {name} is empty; expected {PROMPT}")
    ids = tokenizer.encode(prompt).tolist()
    answer = _continued(tokenizer, ids, prompt, prompt + completion, special=True)
    eos = tokenizer.eos_token_id
    if eos is not None and (not answer or answer[-1] not in tokenizer.stop_token_ids):
        answer.append(eos)
    return to_last_counted(ids + answer, [False] * len(ids) + [True] * len(answer))


def _continued(tokenizer: Tokenizer, ids: list[int], before: str, after: str, special: bool) -> list[int]:
    """Return the tokens that must follow `ids`, so that all tokens together give the text `after`.

    `ids` are the tokens of the text `before`, and `after` begins with `before`. If the tokens of `after` begin with `ids`,
    return the other tokens of `after`. Otherwise, encode the added text separately, as when a model continues a prompt.
    """
    whole = tokenizer.encode(after, add_special_tokens=special).tolist()
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    return tokenizer.encode(after[len(before) :], add_special_tokens=False).tolist()


def to_last_counted(tokens: Sequence[int] | np.ndarray, counts: Sequence[bool] | np.ndarray) -> Example:
    """Return an Example that ends with the last counted token, or an empty Example if no token counts."""
    n = np.flatnonzero(counts).max(initial=-1) + 1
    return Example(np.asarray(tokens, np.int64)[:n], np.asarray(counts, bool)[:n])
