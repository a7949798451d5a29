"""The HTTP server: OpenAI's own client works unchanged, no request is lost, and every error has the protocol's form.

The server runs in this process, uvicorn and all, on a free port; the model is a random one of bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lora_np as ln
from lora_np import AdapterServer, LoraConfig, PeftModel, generate, get_peft_model
from lora_np.commands import serve as command
from lora_np.files import ByteTokenizer
from lora_np.serve.protocol import ProtocolError, parse, parse_json
from lora_np.serve.stop_strings import StopStringStream

WHY = 'not installed: pip install -e ".[serve,dev]"'
starlette = pytest.importorskip("starlette", reason=f"Starlette is {WHY}")
uvicorn = pytest.importorskip("uvicorn", reason=f"uvicorn is {WHY}")
httpx = pytest.importorskip("httpx", reason=f"httpx is {WHY}")
openai = pytest.importorskip("openai", reason=f"openai is {WHY}")

from lora_np.serve.access import Access  # noqa: E402
from lora_np.serve.http import MAX_BODY, create_app  # noqa: E402
from lora_np.serve.server import make_server  # noqa: E402

pytestmark = pytest.mark.serve

CONFIG = ln.TransformerConfig(256, 12, 20, 2, 4, 2, 4, max_position_embeddings=600)
PROMPT = "Sing, goddess"
JSON = {"Content-Type": "application/json"}
LONG = 550  # more tokens than a HeldServer writes before it is released


def base_model():
    model = ln.Transformer.random(CONFIG, 0, np.float64)
    for _, p in model.named_parameters():
        if p.value.ndim == 2:
            p.value *= 15
    return model.to("numpy")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sixteen adapters "a0" … "a15", and one, "later", that is not loaded at the start."""
    root = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate([*(f"a{k}" for k in range(16)), "later"]):
        config = LoraConfig(r=1 + i % 4, lora_alpha=9, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base_model(), config, seed=i).save_pretrained(root / name)
    return root


@contextlib.contextmanager
def serving(engine, runtime_lora_updating=True, **access):
    """Run a server in a thread of this process; yield its address."""
    app = create_app(engine, ByteTokenizer(), "base", Access(**access), runtime_lora_updating)
    listening, urls = threading.Event(), []
    server = make_server(app, port=0, on_start=lambda url: urls.append(url) or listening.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    assert listening.wait(20)
    try:
        yield urls[0]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


class HeldServer(AdapterServer):
    """Makes one step when a request arrives and no other runs, and no further step until `released` is set."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.released = threading.Event()

    def step(self):
        if not self.running or self.released.wait(0.001):
            super().step()


@pytest.fixture(scope="module")
def engine(folders):
    engine = AdapterServer(base_model(), max_loras=8, folders=[folders])
    for i in range(16):
        engine.load_adapter(f"a{i}", f"a{i}")
    return engine


@pytest.fixture(scope="module")
def url(engine):
    with serving(engine) as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(folders):
    """The tokens of `generate` for one prompt with one adapter."""
    models = {}

    def run(prompt, adapter, n, **settings):
        if adapter not in models:
            model = base_model()
            models[adapter] = model if adapter == "base" else PeftModel.from_pretrained(model, folders / adapter)
        ids = ByteTokenizer().encode(prompt).tolist()
        return generate(models[adapter], [ids], n, stop_tokens=(0,), **settings)[0]

    return run


def text(tokens):
    """Decode tokens. For bytes this equals StopStringStream, which decodes them after a prompt."""
    return ByteTokenizer().decode(tokens, skip_special_tokens=True)


def eventually(condition):
    """Wait at most 20 seconds until the condition is true; another thread makes it true."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------------ OpenAI's client


def test_the_openai_client_completes(client, alone):
    for model in ("base", "a0", "a3"):
        answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
        tokens = alone(PROMPT, model, 12)
        assert answer.choices[0].text == text(tokens) and answer.model == model
        assert answer.choices[0].finish_reason == ("length" if len(tokens) == 12 else "stop")
        assert answer.usage.prompt_tokens == len(PROMPT) and answer.usage.completion_tokens == len(tokens)


def test_the_openai_client_streams(client, alone):
    options = {"include_usage": True}
    stream = client.completions.create(
        model="a1", prompt=PROMPT, max_tokens=20, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    tokens = alone(PROMPT, "a1", 20)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text(tokens)
    assert len(chunks) > 5 and chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens == len(tokens) and chunks[-1].choices == []


def test_the_openai_client_chats(client, alone):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    prompt = ByteTokenizer().apply_chat_template(messages, tokenize=False)
    expected = text(alone(prompt, "a2", 15))
    settings = {"model": "a2", "messages": messages, "max_tokens": 15, "temperature": 0}
    answer = client.chat.completions.create(**settings)
    assert answer.choices[0].message.content == expected and answer.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(**settings, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_a_seed_gives_the_same_text_as_generate(client, alone):
    settings = {"model": "a4", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 11, "top_p": 0.9}
    answers = {client.completions.create(**settings).choices[0].text for _ in range(3)}
    assert answers == {text(alone(PROMPT, "a4", 12, temperature=1.5, seed=11, top_p=0.9))}


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, alone):
    whole = text(alone(PROMPT, "base", 40))
    stop = whole[7:10]
    answer = client.completions.create(model="base", prompt=PROMPT, max_tokens=40, temperature=0, stop=["¬", stop])
    assert answer.choices[0].text == whole[: whole.index(stop)] and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40


def test_a_prompt_can_be_token_ids(client, alone):
    ids = ByteTokenizer().encode(PROMPT).tolist()
    answer = client.completions.create(model="a0", prompt=ids, max_tokens=5, temperature=0)
    assert answer.choices[0].text == text(alone(PROMPT, "a0", 5))


def test_adapters_are_loaded_and_unloaded_while_the_server_runs(client, url, alone, engine):
    def post(path, **body):
        return httpx.post(f"{url}/v1/{path}", json=body)

    assert [m.id for m in client.models.list().data] == ["base", *(f"a{i}" for i in range(16))]
    assert post("load_lora_adapter", lora_name="later", lora_path="later").status_code == 200
    assert "later" in [m.id for m in client.models.list().data]
    answer = client.completions.create(model="later", prompt=PROMPT, max_tokens=5, temperature=0)
    assert answer.choices[0].text == text(alone(PROMPT, "later", 5))
    assert post("load_lora_adapter", lora_name="later", lora_path="later").status_code == 400
    assert post("unload_lora_adapter", lora_name="later").status_code == 200
    assert post("unload_lora_adapter", lora_name="later").status_code == 404
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="later", prompt=PROMPT)
    for path in ("../later", "/etc", "missing", ""):
        answer = post("load_lora_adapter", lora_name="x", lora_path=path)
        assert answer.status_code == 400 and answer.json()["error"]["message"], path


def test_one_model_is_described_and_a_wrong_name_gets_the_names_that_there_are(client, url, engine):
    for name, parent in (("base", None), ("a3", "base")):
        card = client.models.retrieve(name)
        assert (card.id, card.object, card.parent) == (name, "model", parent)
        assert card in client.models.list().data
    for ask in (
        lambda: client.models.retrieve("org/poet-v1.2"),
        lambda: client.completions.create(model="org/poet-v1.2", prompt=PROMPT),
    ):
        with pytest.raises(
            openai.NotFoundError, match=r"no model 'org/poet-v1\.2'; this server has base, a0, a1, "
        ) as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_names_with_slashes_and_dots_are_models_like_others(client, url, alone):
    name = "org/poet-v1.2"
    loaded = httpx.post(f"{url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "later"})
    assert loaded.status_code == 200 and client.models.retrieve(name).id == name
    answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=5, temperature=0)
    assert answer.choices[0].text == text(alone(PROMPT, "later", 5)) and answer.model == name
    assert httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200


def test_200_concurrent_requests_over_16_adapters_get_the_right_answers(client, folders, engine):
    """Compare with an engine that runs one request after another; half of the requests stream."""
    rng = np.random.default_rng(0)
    asked = [(f"a{rng.integers(16)}", "".join(map(chr, rng.integers(97, 123, 5))), 12) for _ in range(200)]
    other = AdapterServer(base_model(), max_batch=1, folders=[folders])
    for i in range(16):
        other.load_adapter(f"a{i}", f"a{i}")

    def expected(name, prompt, n):
        request = other.submit(ByteTokenizer().encode(prompt), name, n, stop_tokens=(0,))
        other.run()
        return text(request.tokens)

    def ask(i):
        name, prompt, n = asked[i]
        settings = {"model": name, "prompt": prompt, "max_tokens": n, "temperature": 0}
        if i % 2:
            return "".join(c.choices[0].text for c in client.completions.create(**settings, stream=True))
        return client.completions.create(**settings).choices[0].text

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    wrong = [i for i, answer in enumerate(answers) if answer != expected(*asked[i])]
    assert not wrong, f"{len(wrong)} of 200, first {asked[wrong[0]]}"
    assert engine.idle


# --------------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_disconnected_client_frees_its_row(stream):
    body = {"model": "base", "prompt": "abc", "max_tokens": LONG, "temperature": 0, "stream": stream, "seed": 1}
    engine, seen = HeldServer(base_model()), []
    with serving(engine) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/v1/completions", json.dumps(body), JSON)
        if stream:
            connection.getresponse().readline()
        try:
            eventually(lambda: seen.extend(engine.running) or seen)
            connection.close()
            eventually(lambda: engine.idle)
        finally:
            engine.released.set()
    assert seen[0].finish_reason == "cancelled"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_finishes_running_requests_and_refuses_new_ones(tmp_path):
    get_peft_model(ln.load_model("tiny"), LoraConfig(r=2)).save_pretrained(tmp_path / "poet")
    arguments = ["serve", "--model", "tiny", "--adapter", f"poet={tmp_path / 'poet'}", "--port", "0"]
    server = subprocess.Popen([sys.executable, "-m", "lora_np", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "open to this machine alone, unless told otherwise"
        body = {"model": "poet", "prompt": "def ", "max_tokens": 500, "temperature": 1.0, "seed": 3, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: httpx.get(f"{url}/models").status_code == 503)
            refused = httpx.post(f"{url}/completions", json=body)
            assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]" and '"finish_reason": "' in events[-2]
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.stdout.close()


# ---------------------------------------------------------------------------------------------------------------- errors

BAD = {
    "an unknown model": ({"model": "poet"}, 404, "model"),
    "no model": ({"model": None}, 400, "model"),
    "a prompt that is a number": ({"prompt": 3}, 400, "prompt"),
    "an empty prompt": ({"prompt": ""}, 400, None),
    "a text and token ids": ({"prompt": ["a", [1]]}, 400, "prompt"),
    "no prompts": ({"prompt": []}, 400, "prompt"),
    "too many prompts": ({"prompt": ["a"] * 129}, 400, "prompt"),
    "an unknown token id": ({"prompt": [300]}, 400, "prompt"),
    "half a surrogate pair": ({"prompt": "\ud800"}, 400, "prompt"),
    "a prompt too long": ({"prompt": "a" * 600}, 400, "prompt"),
    "more tokens than the model's limit": ({"max_tokens": 600}, 400, "prompt"),
    "max_tokens of 0": ({"max_tokens": 0}, 400, "max_tokens"),
    "a fraction as max_tokens": ({"max_tokens": 1.5}, 400, "max_tokens"),
    "a boolean as max_tokens": ({"max_tokens": True}, 400, "max_tokens"),
    "a temperature above 2": ({"temperature": 3}, 400, "temperature"),
    "NaN as temperature": ({"temperature": float("nan")}, 400, "temperature"),
    "top_p of 0": ({"top_p": 0}, 400, "top_p"),
    "a seed below 0": ({"seed": -1}, 400, "seed"),
    "too many answers": ({"n": 65, "prompt": ["a", "b"]}, 400, "n"),
    "a large penalty": ({"presence_penalty": 2.5}, 400, "presence_penalty"),
    "a repetition penalty of 0": ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    "a repetition penalty that overflows": ({"repetition_penalty": 1e-310}, 400, "repetition_penalty"),
    "min_p of 2": ({"min_p": 2}, 400, "min_p"),
    "top_k of -2": ({"top_k": -2}, 400, "top_k"),
    "too many probabilities": ({"logprobs": 21}, 400, "logprobs"),
    "more probabilities than memory": ({"logprobs": 20, "n": 128, "max_tokens": 500}, 400, "logprobs"),
    "an unknown stop token": ({"stop_token_ids": [256]}, 400, "stop_token_ids"),
    "a stop token that is a text": ({"stop_token_ids": ["a"]}, 400, "stop_token_ids"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, 400, "stream_options"),
    "an unknown field": ({"temprature": 1}, 400, "temprature"),
    "an empty stop": ({"stop": [""]}, 400, "stop"),
    "five stops": ({"stop": list("abcde")}, 400, "stop"),
    "a stream that is not a boolean": ({"stream": "yes"}, 400, "stream"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_request_gets_an_error_of_the_protocol(what, url):
    changes, status, param = BAD[what]
    body = {"model": "base", "prompt": PROMPT, "max_tokens": 3} | changes
    answer = httpx.post(f"{url}/v1/completions", content=json.dumps(body), headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"] and error["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_malformed_body_is_a_400(body, url):
    for path in ("completions", "chat/completions", "load_lora_adapter"):
        answer = httpx.post(f"{url}/v1/{path}", content=body, headers=JSON)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [
        *([], "hi", [{"role": "user"}], [{"content": "hi"}], [3]),
        [{"role": "user", "content": [{"image": 1}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
        [{"role": "assistant", "content": "", "audio": {"id": "1"}}],
    ],
)
def test_malformed_messages_are_a_400(messages, url):
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "base", "messages": messages})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"


def test_an_unknown_path_or_method_is_a_404_or_405_of_the_protocol(url):
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{url}/v1/completions").status_code == 405


def test_content_types_that_a_page_of_another_site_can_send_are_refused(url):
    """Without permission, such a page can send text and forms to this server too."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body, headers = json.dumps({"lora_name": "a0"}), {"Content-Type": kind}
        answer = httpx.post(f"{url}/v1/unload_lora_adapter", content=body, headers=headers)
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]


def test_an_endless_body_is_a_413(url):
    chunks = (b" " * 2**20 for _ in range(20))
    with contextlib.suppress(httpx.WriteError):  # the server may hang up before all has been sent
        assert httpx.post(f"{url}/v1/completions", content=chunks, headers=JSON).status_code == 413
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_body_that_announces_too_many_bytes_is_a_413_before_it_is_read(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/v1/completions")
    for name, value in {**JSON, "Content-Length": str(MAX_BODY + 1)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    with contextlib.closing(connection):
        assert connection.getresponse().status == 413


def test_loading_and_unloading_adapters_is_refused_unless_it_was_asked_for(folders):
    engine = AdapterServer(base_model(), folders=[folders])
    engine.load_adapter("a0", "a0")
    with serving(engine, runtime_lora_updating=False) as url:
        for path, body in (("load", {"lora_name": "a1", "lora_path": "a1"}), ("unload", {"lora_name": "a0"})):
            answer = httpx.post(f"{url}/v1/{path}_lora_adapter", json=body)
            assert answer.status_code == 403 and "--adapters FOLDER" in answer.json()["error"]["message"]
    assert engine.adapters.names() == ["a0"]


def test_the_openai_client_sends_its_key(folders):
    with serving(AdapterServer(base_model()), api_keys=("secret",)) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            assert [m.id for m in client.models.list().data] == ["base"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as error:
                client.completions.create(model="base", prompt=PROMPT)
            assert error.value.code == "invalid_api_key"


def test_the_url_of_an_ipv6_address_has_brackets():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this computer has no IPv6")
    with serving(AdapterServer(base_model()), host="::1") as url:
        assert url.startswith("http://[::1]:") and httpx.get(f"{url}/health").status_code == 200


def test_a_tiny_temperature_counts_as_0(client, alone):
    answer = client.completions.create(model="a1", prompt=PROMPT, max_tokens=8, temperature=1e-310)
    assert answer.choices[0].text == text(alone(PROMPT, "a1", 8))


def test_a_full_queue_is_a_429():
    engine = HeldServer(base_model(), max_batch=1, max_queue=1)
    with serving(engine) as url, httpx.Client(base_url=url) as client:
        body = {"model": "base", "prompt": "a", "max_tokens": LONG, "temperature": 0, "stream": True}
        with (
            client.stream("POST", "/v1/completions", json=body) as first,
            client.stream("POST", "/v1/completions", json=body) as second,
        ):
            try:
                third = client.post("/v1/completions", json=body)
            finally:
                engine.released.set()
            assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
            assert third.json()["error"]["type"] == "rate_limit_error"
        assert client.get("/health").status_code == 200


# -------------------------------------------------------------------------------------------------------------- the parts


def test_unsupported_fields_with_neutral_values_are_accepted():
    body = {
        "model": "m",
        "prompt": "p",
        "n": 1,
        "logprobs": None,
        "presence_penalty": 0,
        "user": "me",
        "echo": False,
        "top_k": -1,
    }
    assert parse(body, chat=False).max_tokens == 16
    message = {"role": "user", "content": [{"type": "text", "text": "a"}] * 2, "tool_calls": [], "refusal": None}
    body = {"model": "m", "messages": [message], "tools": []}
    order = parse(body, chat=True)
    assert order.max_tokens is None and order.prompts == [[{"role": "user", "content": "aa"}]]


def test_a_body_must_be_a_json_object():
    with pytest.raises(ProtocolError, match="expected an object"):
        parse_json(b"3")


@pytest.mark.parametrize("stop", [("lo wo",), ("wo", "lo w"), ("d!",), ("xx",), ("hello",), ("!!", "!")])
def test_a_stop_string_is_found_across_token_boundaries(stop):
    whole = "hello world!!"
    cut = min((whole.index(s) for s in stop if s in whole), default=len(whole))
    stream, said = StopStringStream(ByteTokenizer(), [], stop), ""
    for byte in whole.encode():
        said += stream.add(byte)
        assert whole.startswith(said) and len(said) <= cut, "nothing of a stop string is ever shown"
        if stream.stopped:
            break
    assert said + stream.end() == whole[:cut] and stream.stopped == (cut < len(whole))


def test_the_command_refuses_an_adapter_with_the_base_models_name(tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    get_peft_model(ln.load_model("tiny"), LoraConfig(r=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the name of the base model"):
        command.run(parser.parse_args(["--model", "tiny", "--adapter", f"tiny={tmp_path}"]))
    with pytest.raises(SystemExit):
        parser.parse_args(["--adapter", "poet"])
