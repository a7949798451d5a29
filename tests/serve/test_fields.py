"""Every field of OpenAI's API and of vLLM's server: its default changes nothing; another value is honoured or refused by name."""

from __future__ import annotations

import typing

import numpy as np
import pytest

import lora_np as ln
from lora_np import AdapterServer
from lora_np.files import ByteTokenizer
from lora_np.serve.fields import CHAT_FIELDS, COMPLETION_FIELDS

WHY = 'not installed: pip install -e ".[serve,dev]"'
testclient = pytest.importorskip("starlette.testclient", reason=f"Starlette is {WHY}")
openai = pytest.importorskip("openai", reason=f"openai is {WHY}")

from lora_np.serve.http import create_app  # noqa: E402

pytestmark = [pytest.mark.serve, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# One request per API that draws tokens at random, with a seed, so that a setting that is not neutral changes the answer
PLAIN = {
    False: {"model": "base", "prompt": "Sing, goddess", "seed": 3, "max_tokens": 16},
    True: {"model": "base", "messages": [{"role": "user", "content": "Sing"}], "seed": 3, "max_tokens": 16},
}
# For each field: a valid value that is not the default
OTHER = {
    "add_generation_prompt": False,
    "add_special_tokens": None,  # the default differs: see `other`
    "allowed_token_ids": [65],
    "audio": {"voice": "alloy", "format": "mp3"},
    "bad_words": ["a"],
    "best_of": 2,
    "cache_salt": "salt",
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "documents": [{"title": "t", "text": "x"}],
    "ec_transfer_params": {"a": 1},
    "echo": True,
    "frequency_penalty": 1.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "ignore_eos": True,
    "include_reasoning": False,
    "include_stop_str_in_output": True,
    "kv_transfer_params": {"a": 1},
    "length_penalty": 0.5,
    "logit_bias": {"65": 5},
    "logprob_token_ids": [65],
    "logprobs": None,  # a number or a boolean: see `other`
    "max_completion_tokens": 3,
    "max_tokens": 3,
    "media_io_kwargs": {"image": {}},
    "messages": [{"role": "user", "content": "Bonjour"}],
    "metadata": {"a": "b"},
    "min_p": 0.5,
    "min_tokens": 2,
    "mm_processor_kwargs": {"a": 1},
    "modalities": ["text", "audio"],
    "model": "poet",
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -1,
    "priority": 1,
    "prompt": "Bonjour",
    "prompt_cache_key": "key",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "prompt_embeds": "AAAA",
    "prompt_logprobs": 1,
    "reasoning_effort": "high",
    "repetition_detection": {"max_pattern_size": 3},
    "repetition_penalty": 1.5,
    "request_id": "mine",
    "response_format": {"type": "json_object"},
    "return_mm_kwargs": False,
    "return_prompt_text": True,
    "return_token_ids": True,
    "return_token_offsets": True,
    "return_tokens_as_token_ids": True,
    "routed_experts_prompt_start": 1,
    "safety_identifier": "me",
    "seed": 4,
    "service_tier": "priority",
    "session_id": "mine",
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stop": "never",  # a part of the plain answer: see the test
    "stop_token_ids": list(range(256)),
    "store": True,
    "stream": True,
    "stream_interval": 2,
    "stream_options": {"include_usage": True},
    "structured_outputs": {"choice": ["a"]},
    "suffix": "end",
    "temperature": 0.5,
    "thinking_token_budget": 10,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_k": 3,
    "top_logprobs": 2,
    "top_p": 0.5,
    "truncate_prompt_tokens": 3,
    "truncation_side": "left",
    "use_beam_search": True,
    "user": "me",
    "verbosity": "low",
    "vllm_xargs": {"a": 1},
    "watermarking": True,
    "web_search_options": {"search_context_size": "low"},
}
# Fields with values that change no answer: names of users and sessions, and tool calls that cannot occur
NEUTRAL = {
    *("user", "safety_identifier", "metadata", "prompt_cache_key", "session_id", "cache_salt", "parallel_tool_calls"),
    *("ignore_eos", "max_completion_tokens"),  # byte 0 has probability 0 below; max_tokens is the same limit
}
CASES = [(name, chat) for chat, fields in ((False, COMPLETION_FIELDS), (True, CHAT_FIELDS)) for name in sorted(fields)]
each_field = pytest.mark.parametrize(
    ("name", "chat"), CASES, ids=lambda value: value if isinstance(value, str) else str(value)
)


def fields(chat):
    return CHAT_FIELDS if chat else COMPLETION_FIELDS


def other(name, chat):
    return {"logprobs": True if chat else 2, "add_special_tokens": chat}.get(name, OTHER[name])


@pytest.fixture(scope="module")
def client():
    config = ln.TransformerConfig(256, 12, 20, 2, 4, 2, 4, max_position_embeddings=600)
    model = ln.Transformer.random(config, 0, np.float64)
    for _, p in model.named_parameters():
        if p.value.ndim == 2:
            p.value *= 15  # so that some tokens are much more likely than others
    model = model.to("numpy")
    model = ln.get_peft_model(model, ln.LoraConfig(r=2, init_lora_weights=False), "poet")
    with testclient.TestClient(create_app(AdapterServer(model), ByteTokenizer(), "base"), "http://127.0.0.1") as client:
        yield client


def post(client, chat, changes):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return client.post(path, json=PLAIN[chat] | changes)


def answer(response):
    """Return all that a response says about the answer, without its id and time."""
    assert response.status_code == 200, response.text
    return {key: value for key, value in response.json().items() if key not in ("id", "created")}


@each_field
def test_the_documented_default_and_null_give_the_answer_of_the_plain_request(name, chat, client):
    field = fields(chat)[name]
    required = name in ("model", "prompt", "messages")
    body = {key: value for key, value in PLAIN[chat].items() if required or key != name}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    limit = {"max_tokens": 16} if name == "max_tokens" and chat else {}  # the default is the whole context
    values = [] if required else [field.default, None, *field.also]
    if name == "seed":
        body |= {"temperature": 0}  # without a seed, the answer is random
    expected = answer(client.post(path, json=body | limit))
    for value in values:
        assert answer(client.post(path, json=body | {name: value} | limit)) == expected, value


@each_field
def test_any_other_value_is_honoured_or_refused_by_name(name, chat, client):
    value, changes = other(name, chat), {}
    if name == "stream_options":
        changes = {"stream": True}
    if name == "top_logprobs":
        changes = {"logprobs": True}
    if name == "stop":
        (choice,) = post(client, chat, {}).json()["choices"]
        value = (choice["message"]["content"] if chat else choice["text"])[1:3]
    response = post(client, chat, {name: value} | changes)
    if fields(chat)[name].honoured:
        assert response.status_code == 200, response.text
        if name in NEUTRAL:
            return
        assert response.text.partition('"choices"')[2] != post(client, chat, changes).text.partition('"choices"')[2]
    elif not fields(chat)[name].accepts(value):
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
        assert name in error["message"]
    else:
        assert name in NEUTRAL and answer(response) == answer(post(client, chat, {}))


def test_every_field_has_a_value_that_is_not_its_default():
    assert COMPLETION_FIELDS.keys() | CHAT_FIELDS.keys() == OTHER.keys()
    for name, chat in CASES:
        field = fields(chat)[name]
        assert other(name, chat) != field.default and other(name, chat) is not None


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_every_field_of_openais_client_is_judged(chat):
    """If a new version of the package adds a field, this test fails until `fields.py` says what the server does with it."""
    from openai.types import completion_create_params as completions
    from openai.types.chat import completion_create_params as chats

    union = chats.CompletionCreateParams if chat else completions.CompletionCreateParams
    theirs = set().union(*(kind.__annotations__ for kind in typing.get_args(union)))
    assert len(theirs) > 15 and "stream" in theirs
    assert theirs <= fields(chat).keys(), f"not judged: {theirs - fields(chat).keys()}"


def test_1_and_true_differ(client):
    for name, value in (("min_tokens", False), ("skip_special_tokens", 1), ("n", True), ("best_of", True)):
        response = post(client, False, {name: value})
        assert response.status_code == 400 and response.json()["error"]["param"] == name
