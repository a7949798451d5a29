"""The formats of record files: JSONL, a JSON array, or CSV, with records in one of four forms.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}    OpenAI, transformers, TRL
    {"prompt": "…", "completion": "…"}                                                         TRL
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}        ShareGPT
    {"instruction": "…", "input": "…", "output": "…"}                                          Alpaca

`standard` turns the last two forms into the first form. A key that changes what must be learned raises an error. All
other keys are ignored.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MESSAGES = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
PROMPT = '{"prompt": "…", "completion": "…"}'
SHAREGPT = '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}'
ALPACA = '{"instruction": "…", "input": "…", "output": "…"}'
FORMS = {  # the keys of a form → the note about a file of this form
    ("messages",): "",
    ("prompt", "completion"): "",
    ("conversations",): "ShareGPT records: 'human' is the user, 'gpt' is the assistant",
    ("instruction", "output"): "Alpaca records: instruction and input are the user's message, output is the answer",
}
OPTIONAL = {("conversations",): ("system",), ("instruction", "output"): ("input", "system")}
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Keys that change what must be learned, or that need a model with other inputs. Their neutral values are allowed.
REFUSED = ("weight", "tools", "functions", "tool_calls", "function_call", "history", "rejected", "label", "images")
NEUTRAL: tuple[Any, ...] = (None, "", [], {}, 1, "1")  # in CSV all values are texts


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the content of each record, for example ("line 3", {…}) for JSONL, ("row 3", {…}) for CSV,
    and ("record 3", {…}) for a JSON array.

    Blank lines of JSONL are skipped. Raises ValueError with the path and the position if the file is damaged.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # some editors begin a file with a byte-order mark
            if path.suffix.lower() == ".csv":
                yield from _rows(file, path)
            elif _first_character(file) == "[":
                yield from ((f"record {i}", record) for i, record in enumerate(_parsed(file.read(), f"{path}"), 1))
            else:
                for i, line in enumerate(file, 1):
                    if line.strip():
                        yield f"line {i}", _parsed(line.rstrip(), f"{path}, line {i}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def standard(record: Any) -> tuple[dict[str, Any], str, list[str]]:
    """Return a record in the form "messages" or "prompt"/"completion", a note about its form, and its ignored keys.

    The note is "" if the given record already has one of these two forms. Raises ValueError if the record has no known
    form, or if it has a key that changes what must be learned.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"got a {type(record).__name__}; expected {MESSAGES} or {PROMPT}")
    forms = [keys for keys in FORMS if record.keys() >= set(keys)]
    if len(forms) != 1:
        raise ValueError(
            f"the keys are {sorted(map(str, record))}; expected one of {MESSAGES}, {PROMPT}, {SHAREGPT}, {ALPACA}"
        )
    keys = forms[0]
    others = [key for key in record if key not in keys + OPTIONAL.get(keys, ())]
    _refuse(record, others, "the record")
    if keys == ("conversations",):
        messages, ignored = _messages(record["conversations"], "conversations", "from", "value")
        messages = [{**m, "role": SPEAKERS.get(str(m["role"]), m["role"])} for m in messages]
        found: dict[str, Any] = {"messages": _system(record) + messages}
    elif keys == ("instruction", "output"):
        for key in ("instruction", "input"):
            if not isinstance(record.get(key, ""), str) and (key == "instruction" or record[key] is not None):
                raise ValueError(f"{key} is {record[key]!r:.80}; expected a text, as in {ALPACA}")
        question = "\n\n".join(text for text in (record["instruction"], record.get("input")) if text)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
        found, ignored = {"messages": _system(record) + turns}, []
    elif keys == ("messages",):
        messages, ignored = _messages(record["messages"], "messages", "role", "content")
        found = {"messages": messages}
    else:
        found, ignored = {key: record[key] for key in keys}, []
    return found, FORMS[keys], others + ignored


def _messages(messages: Any, field: str, role: str, content: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return messages with the keys role, content and (if given) name. Also return the other keys, which are ignored."""
    if not isinstance(messages, list) or not messages:
        example = SHAREGPT if field == "conversations" else MESSAGES
        raise ValueError(f"{field} is {messages!r:.80}; expected a list, as in {example}")
    found: list[dict[str, Any]] = []
    ignored: list[str] = []
    user = "human" if role == "from" else "user"
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not message.keys() >= {role, content}:
            raise ValueError(f'{field}[{i}] is {message!r:.80}; expected {{"{role}": "{user}", "{content}": "…"}}')
        others = [key for key in message if key not in (role, content, "name")]
        _refuse(message, others, f"{field}[{i}]")
        ignored += [f"{field}[…].{key}" for key in others]
        name = {"name": message["name"]} if message.get("name") else {}
        found.append({"role": message[role], "content": message[content], **name})
    return found, ignored


def _system(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": record["system"]}] if record.get("system") else []


def _refuse(record: Mapping[str, Any], keys: list[str], what: str) -> None:
    for key in keys:
        if key in REFUSED and record[key] not in NEUTRAL:
            raise ValueError(
                f"{what} has the key {key!r} with the value {record[key]!r:.60}; this key changes what must be learned, and "
                "is not supported. Remove the key or the record"
            )


def _first_character(file: Any) -> str:
    """Return the first character that is not white space, and go back to the beginning of the file."""
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{where}: not JSON ({error.msg}, {line}column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: the JSON text is nested too deeply") from None
    except ValueError as error:  # a number with more than 4300 digits
        raise ValueError(f"{where}: not JSON ({error})") from None


def _rows(file: Any, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV file; the first row contains the names of the columns."""
    try:
        reader = csv.DictReader(file, strict=True)
        if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if name and count > 1]:
            raise ValueError(
                f"{path}: two columns have the name {twice[0]!r}; expected different names in the first row"
            )
        for i, row in enumerate(reader, 1):
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                given = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, ()))
                raise ValueError(
                    f"{path}, row {i}: {given} values; expected {columns}, one per column of the first row"
                )
            yield f"row {i}", row
    except csv.Error as error:
        raise ValueError(f"{path}: not CSV ({error})") from None
