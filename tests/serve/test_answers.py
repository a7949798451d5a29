"""What requests ask for besides text: several answers, several prompts, log probabilities, the prompt itself, other stops."""

from __future__ import annotations

import json
import math
import threading
from operator import itemgetter

import numpy as np
import pytest

import lora_np as ln
from lora_np import AdapterServer, LoraConfig, generate, get_peft_model
from lora_np.files import ByteTokenizer
from lora_np.serve.logprobs import token_logprob

WHY = 'not installed: pip install -e ".[serve,dev]"'
testclient = pytest.importorskip("starlette.testclient", reason=f"Starlette is {WHY}")
openai = pytest.importorskip("openai", reason=f"openai is {WHY}")

from lora_np.serve.http import create_app  # noqa: E402

pytestmark = [pytest.mark.serve, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
PROMPT = "Sing, goddess"
CONFIG = ln.TransformerConfig(256, 12, 20, 2, 4, 2, 4, max_position_embeddings=600)


def base_model():
    model = ln.Transformer.random(CONFIG, 0, np.float64)
    for _, p in model.named_parameters():
        if p.value.ndim == 2:
            p.value *= 15
    return model.to("numpy")


@pytest.fixture(scope="module")
def model():
    return get_peft_model(base_model(), LoraConfig(r=2, init_lora_weights=False), "poet")


@pytest.fixture(scope="module")
def engine(model):
    return AdapterServer(model, max_queue=40)


@pytest.fixture(scope="module")
def web(engine):
    with testclient.TestClient(create_app(engine, ByteTokenizer(), "base"), "http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def client(web):
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=web)


def ids(text):
    return ByteTokenizer().encode(text).tolist()


def text(tokens):
    return ByteTokenizer().decode(tokens, skip_special_tokens=True)


def log_softmax(model, tokens, adapter="poet"):
    """Return the log probabilities (t, v) of the next token after each position."""
    z, _ = model.model.forward(np.array([tokens]), context=ln.nn.Context(adapter=adapter))
    z = z[0] - z[0].max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# ---------------------------------------------------------------------------------------------- several answers and prompts


def test_n_answers_are_the_rows_of_generate(client, model):
    settings = {"temperature": 1.2, "seed": 5, "top_p": 0.9}
    expected = generate(model, [ids(PROMPT)] * 4, 9, stop_tokens=(0,), adapter_names=["poet"] * 4, **settings)
    answer = client.completions.create(model="poet", prompt=PROMPT, max_tokens=9, n=4, **settings)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [text(tokens) for tokens in expected]
    assert len({choice.text for choice in answer.choices}) == 4, "else the test proves nothing"
    assert answer.usage.prompt_tokens == len(PROMPT) and answer.usage.completion_tokens == sum(map(len, expected))


@pytest.mark.parametrize("form", [str, ids])
def test_several_prompts_give_each_what_it_gets_alone(form, client):
    prompts, settings = ["Sing", "Rage of", "Muse"], {"model": "base", "max_tokens": 7, "temperature": 0.8, "seed": 1}
    both = client.completions.create(prompt=[form(prompt) for prompt in prompts], n=2, **settings)
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, n=2, **settings)
        assert [c.text for c in alone.choices] == [c.text for c in both.choices[2 * i : 2 * i + 2]]
    assert both.usage.prompt_tokens == sum(map(len, prompts))


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_a_stream_of_several_answers_is_the_whole_answer_in_pieces(chat, client):
    settings = {
        "model": "poet",
        "n": 3,
        "max_tokens": 12,
        "seed": 2,
        "logprobs": True if chat else 2,
        "temperature": 1.0,
    }
    if chat:
        create, settings["messages"] = client.chat.completions.create, [{"role": "user", "content": PROMPT}]
        settings["top_logprobs"] = 2
    else:
        create, settings["prompt"], settings["echo"] = client.completions.create, [PROMPT, "Muse"], True
    whole = create(**settings)
    found = {choice.index: ["", [], None] for choice in whole.choices}
    chunks = list(create(stream=True, stream_options={"include_usage": True}, **settings))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage and chunks[0].usage is None
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        own = found[choice.index]
        own[0] += (choice.delta.content or "") if chat else choice.text
        own[2] = choice.finish_reason or own[2]
        if choice.logprobs is not None:
            own[1].extend(choice.logprobs.content if chat else zip(*vars(choice.logprobs).values(), strict=True))
    for choice in whole.choices:
        logprobs = choice.logprobs.content if chat else list(zip(*vars(choice.logprobs).values(), strict=True))
        assert found[choice.index] == [choice.message.content if chat else choice.text, logprobs, choice.finish_reason]


def test_a_queue_without_room_for_all_answers_takes_none(web, engine):
    body = {"model": "base", "prompt": PROMPT, "n": 50, "max_tokens": 3}
    response = web.post("/v1/completions", json=body)
    assert response.status_code == 429 and engine.idle
    assert web.post("/v1/completions", json=body | {"n": 20}).status_code == 200


def test_the_queue_keeps_none_of_the_answers_that_found_no_room(engine, web):
    """The engine is busy, so that nothing leaves the queue in between."""
    busy, service = threading.Event(), web.app.state.service
    blocked = service.thread.call(busy.wait, 20)
    timer = threading.Timer(0.3, busy.set)
    timer.start()
    assert web.post("/v1/completions", json={"model": "base", "prompt": "a", "n": 41}).status_code == 429
    assert blocked.result(20) and engine.idle
    timer.join()


# ---------------------------------------------------------------------------------------------------------- log probabilities


def test_completion_logprobs_are_the_log_softmax_of_the_logits(client, model):
    answer = client.completions.create(
        model="poet", prompt=PROMPT, max_tokens=12, temperature=1.5, seed=8, logprobs=3, frequency_penalty=0.5
    )
    (choice,) = answer.choices
    settings = {"temperature": 1.5, "seed": 8, "frequency_penalty": 0.5, "stop_tokens": (0,)}
    tokens = generate(model, [ids(PROMPT)], 12, adapter_names=["poet"], **settings)[0]
    log_p = log_softmax(model, ids(PROMPT) + tokens)[len(PROMPT) - 1 :]
    expected = [log_p[i, token] for i, token in enumerate(tokens)]
    assert choice.text == text(tokens)
    np.testing.assert_allclose(choice.logprobs.token_logprobs[: len(tokens)], expected, rtol=1e-9)
    for i, top in enumerate(choice.logprobs.top_logprobs[: len(tokens)]):
        assert max(top.values()) == pytest.approx(log_p[i].max(), rel=1e-9)
        assert 1 <= len(top) <= 4 and choice.logprobs.tokens[i] in top
    lengths = np.cumsum([0, *map(len, choice.logprobs.tokens)])
    assert choice.logprobs.text_offset == lengths[:-1].tolist()


def test_chat_logprobs_have_openais_form(client):
    settings = {"model": "base", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 6, "seed": 1}
    answer = client.chat.completions.create(logprobs=True, top_logprobs=3, **settings)
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob >= entry.logprob
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob >= entry.top_logprobs[2].logprob
        assert (
            entry.bytes is None if entry.token.startswith("token_id:") else bytes(entry.bytes).decode() == entry.token
        )
    alone = client.chat.completions.create(logprobs=True, **settings)
    assert all(entry.top_logprobs == [] for entry in alone.choices[0].logprobs.content)
    assert client.chat.completions.create(**settings).choices[0].logprobs is None


def test_top_logprobs_without_logprobs_is_refused(web):
    body = {"model": "base", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    response = web.post("/v1/chat/completions", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "top_logprobs"


def test_a_token_logprob_that_is_not_finite_is_an_error():
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="expected a finite number"):
        token_logprob(np.array([1.0, np.nan]), 0, 1)
    entry = token_logprob(np.log([0.1, 0.6, 0.3]), 0, 9)
    assert [token for token, _ in entry.top] == [1, 2, 0] and entry.logprob == pytest.approx(math.log(0.1))


# ------------------------------------------------------------------------------------------------- lm-evaluation-harness


def harness_payload(prompts):
    """Return the request of lm-evaluation-harness's local-completions for log-likelihoods."""
    settings = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return {"model": "poet", "prompt": prompts, **settings}


def harness_reads(outputs, context_lengths):
    """Return (log-likelihood, is greedy) of each continuation, as lm-evaluation-harness computes them from a response."""
    found = []
    for choice, context in zip(sorted(outputs["choices"], key=itemgetter("index")), context_lengths, strict=True):
        values = choice["logprobs"]["token_logprobs"][context:-1]
        tops = choice["logprobs"]["top_logprobs"][context:-1]
        found.append((sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))))
    return found


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_lm_evaluation_harness_measures_the_log_likelihoods_of_the_model(max_tokens, web, model):
    """A small task: choose the likeliest of several continuations. Also a long context, which is read in chunks."""
    rng, pairs = np.random.default_rng(0), []
    for context in (ids("The capital of France is"), ids("2 + 2 ="), rng.integers(1, 256, 300).tolist()):
        greedy = generate(model, [context], 3, adapter_names=["poet"])[0]
        pairs += [(context, continuation) for continuation in (ids(" Paris"), ids("4"), greedy)]
    body = harness_payload([context + continuation for context, continuation in pairs]) | {"max_tokens": max_tokens}
    outputs = web.post("/v1/completions", json=body).json()
    if max_tokens == 0:  # the harness leaves out the last entry, which belongs to the generated token
        for choice in outputs["choices"]:
            for values in choice["logprobs"].values():
                values.append(None)
    measured = harness_reads(outputs, [len(context) for context, _ in pairs])
    for (context, continuation), (total, is_greedy) in zip(pairs, measured, strict=True):
        log_p = log_softmax(model, context + continuation)[len(context) - 1 : -1]
        expected = sum(log_p[i, token] for i, token in enumerate(continuation))
        assert total == pytest.approx(expected, rel=1e-9)
        assert is_greedy == (log_p.argmax(-1).tolist() == continuation)
    assert {is_greedy for _, is_greedy in measured} == {True, False}


def test_a_stop_token_has_a_log_probability_so_that_the_harness_can_leave_it_out(web, model):
    """If the one generated token is a stop token, the text has no token of the answer, but the log probabilities have."""
    stop = generate(model, [ids(PROMPT)], 1, adapter_names=["poet"])[0][0]
    body = harness_payload([ids(PROMPT)])
    plain = web.post("/v1/completions", json=body).json()["choices"][0]
    stopped = web.post("/v1/completions", json=body | {"stop_token_ids": [stop]}).json()["choices"][0]
    assert stopped["logprobs"] == plain["logprobs"] and len(plain["logprobs"]["tokens"]) == len(PROMPT) + 1
    assert (stopped["text"], stopped["finish_reason"]) == (PROMPT, "stop")


def test_echo_repeats_the_prompt(client):
    settings = {"model": "base", "temperature": 0}
    plain = client.completions.create(prompt=PROMPT, max_tokens=5, **settings).choices[0].text
    for prompt in (PROMPT, ids(PROMPT)):
        assert (
            client.completions.create(prompt=prompt, max_tokens=5, echo=True, **settings).choices[0].text
            == PROMPT + plain
        )
        alone = client.completions.create(prompt=prompt, max_tokens=0, echo=True, **settings)
        assert (alone.choices[0].text, alone.choices[0].finish_reason) == (PROMPT, "length")
        assert alone.choices[0].logprobs is None and alone.usage.completion_tokens == 0


# ---------------------------------------------------------------------------------------------------------- sampling, stops


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 0.2, "temperature": 1.4},
        {"top_k": 4, "temperature": 1.4},
        {"repetition_penalty": 1.5, "temperature": 0},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5, "temperature": 0.7},
        {"presence_penalty": -2, "temperature": 0.7},
    ],
    ids=str,
)
def test_sampling_options_give_the_tokens_of_generate(settings, client, model):
    expected = generate(model, [ids(PROMPT)], 20, adapter_names=["poet"], stop_tokens=(0,), seed=9, **settings)[0]
    body = dict(settings)
    extra = {name: body.pop(name) for name in ("min_p", "top_k", "repetition_penalty") if name in body}
    answer = client.completions.create(model="poet", prompt=PROMPT, max_tokens=20, seed=9, extra_body=extra, **body)
    assert answer.choices[0].text == text(expected)


def test_stop_token_ids_end_the_answer_and_ignore_eos_goes_on(web, model):
    class Eos(ByteTokenizer):
        eos_token_id = None

    free = generate(model, [ids(PROMPT)], 12, adapter_names=["poet"])[0]
    body = {"model": "poet", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    first = free.index(free[5])
    stopped = web.post("/v1/completions", json=body | {"stop_token_ids": [free[5]]}).json()
    assert stopped["choices"][0]["finish_reason"] == "stop" and stopped["usage"]["completion_tokens"] == first
    Eos.eos_token_id = free[5]
    with testclient.TestClient(create_app(AdapterServer(model), Eos(), "base"), "http://127.0.0.1") as client:
        for settings, expected in (({}, first), ({"ignore_eos": True}, 12)):
            answer = client.post("/v1/completions", json=body | settings).json()
            assert answer["usage"]["completion_tokens"] == expected


def test_all_answers_to_a_request_share_one_set_of_stop_tokens(web, engine, monkeypatch):
    """A set with every token of a large vocabulary takes megabytes, and a request may ask for 128 answers."""
    sets, submit = [], engine.submit

    def noted(*arguments, **settings):
        request = submit(*arguments, **settings)
        sets.append(request.stop_tokens)
        return request

    monkeypatch.setattr(engine, "submit", noted)
    body = {"model": "poet", "prompt": PROMPT, "max_tokens": 1, "n": 5, "stop_token_ids": list(range(256))}
    assert web.post("/v1/completions", json=body).status_code == 200
    assert len(sets) == 5 and all(each is sets[0] for each in sets)


def test_a_request_without_log_probabilities_computes_none(web, monkeypatch):
    monkeypatch.setattr("lora_np.serve.request.token_logprob", None)
    body = {"model": "poet", "prompt": PROMPT, "max_tokens": 3}
    assert web.post("/v1/completions", json=body).status_code == 200
    failed = web.post("/v1/completions", json=body | {"logprobs": 0})
    assert failed.status_code == 500 and "generation failed" in json.dumps(failed.json())
