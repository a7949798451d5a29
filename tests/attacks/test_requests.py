"""Requests that try to harm other requests: each one ends alone, with an error in words, and the others get their exact tokens."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time

import numpy as np
import pytest

import lora_np as ln
from lora_np import AdapterServer, LoraConfig, PeftModel, generate, get_peft_model
from lora_np.commands import serve as command
from lora_np.files import ByteTokenizer
from lora_np.nn import BASE
from lora_np.serve.adapters import MAX_NAME, check_adapter_name
from lora_np.serve.cache import BatchLayerCache
from lora_np.serve.completions import CompletionService
from lora_np.serve.engine_thread import EngineThread
from lora_np.serve.protocol import MAX_STOP_LENGTH, ProtocolError, parse
from lora_np.serve.stop_strings import StopString
from lora_np.serve.workers import Workers
from lora_np.transformer.generation import CHUNK, CHUNK_SCORES, chunk_size

SECONDS = float(os.environ.get("LORA_NP_ATTACK_SECONDS", 1))
CONTEXT = 3000


@pytest.fixture
def long_model(make_model):
    return lambda: make_model(max_position_embeddings=CONTEXT)


@pytest.fixture
def folders(make_model, tmp_path):
    """Three adapters on disk, "0", "1" and "2"."""
    for i in range(3):
        config = LoraConfig(r=1 + i, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(make_model(), config, seed=i).save_pretrained(tmp_path / str(i))
    return tmp_path


@pytest.fixture
def serve(make_model, folders):
    def make(**settings):
        server = AdapterServer(make_model(max_position_embeddings=CONTEXT), folders=[folders], **settings)
        for i in range(3):
            server.load_adapter(str(i), str(i))
        return server

    return make


@pytest.fixture
def alone(make_model, folders):
    """The tokens of `generate` for one prompt with one adapter."""

    def run(prompt, adapter, n):
        model = make_model(max_position_embeddings=CONTEXT)
        model = model if adapter == BASE else PeftModel.from_pretrained(model, folders / adapter)
        return generate(model, [prompt], n)[0]

    return run


def in_float8(folder):
    """Change the weights of an adapter to float8 in the file: a valid safetensors file that NumPy cannot read."""
    file = folder / "adapter_model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, end = json.loads(raw[8 : 8 + size]), 0
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = end, end + int(np.prod(entry["shape"]))
            entry |= {"dtype": "F8_E4M3", "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\x38" * end)


# ---------------------------------------------------------------------------------------------------- errors end one request


def test_an_adapter_that_cannot_be_read_again_fails_its_own_request_once(serve, folders, alone):
    server = serve(max_loras=1)
    expected = alone([1, 2], "1", 6)
    in_float8(folders / "0")
    bad, good = server.submit([1, 2], "0", 6), server.submit([1, 2], "1", 6)
    server.run()
    assert bad.finish_reason == "error" and bad.error is not None and bad.tokens == []
    assert good.tokens == expected


class Panic(BaseException):
    """Like the PanicException of extensions written in Rust: not a subclass of Exception."""


@pytest.mark.parametrize("error", [Panic, asyncio.CancelledError, GeneratorExit, StopIteration, MemoryError])
@pytest.mark.parametrize("where", ["on_token", "on_finish", "adapter"])
def test_any_error_of_one_request_ends_only_this_request(error, where, serve, alone, monkeypatch):
    def raises(*arguments):
        raise error("attack")

    server, settings = serve(), {}
    if where == "adapter":
        acquire = server.adapters.acquire
        monkeypatch.setattr(
            server.adapters, "acquire", lambda name, used: raises() if name == "0" else acquire(name, used)
        )
    else:
        settings = {where: raises}
    before = server.submit([3], "1", 5)
    bad = server.submit([1], "0", 5, **settings)
    after = server.submit([4], "2", 5)
    server.run()
    assert isinstance(bad.error, error) and bad.finish_reason is not None
    assert [before.tokens, after.tokens] == [alone([3], "1", 5), alone([4], "2", 5)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_is_not_an_error_of_a_request(error, serve):
    def raises(token):
        raise error

    server = serve()
    server.submit([1], on_token=raises)
    with pytest.raises(error):
        server.run()


def test_requests_can_be_cancelled_by_their_own_callback_and_by_the_callback_of_another_request(serve, alone):
    server, requests = serve(), []

    def cancel_others_after_two_tokens(token):
        if len(requests[3].tokens) == 2:
            for i in (0, 4, 3):
                server.cancel(requests[i])

    requests.append(server.submit([1], "0", 9))
    requests.append(server.submit([2], "1", 9, on_token=lambda token: server.cancel(requests[1])))
    requests.append(server.submit([3], "2", 9))
    requests.append(server.submit([4], "1", 9, on_token=cancel_others_after_two_tokens))
    requests.append(server.submit([5], "0", 9))
    server.run()
    reasons = [request.finish_reason for request in requests]
    assert reasons == ["cancelled", "cancelled", "length", "cancelled", "cancelled"]
    assert [len(request.tokens) for request in requests] == [1, 1, 9, 2, 2], "no token follows a cancellation"
    assert requests[2].tokens == alone([3], "2", 9)


def test_a_row_without_room_in_memory_leaves_the_other_rows_exact(serve, alone, monkeypatch):
    """Memory is full in the last layer, after the first layers have made room for the row."""
    server = serve()
    running = [server.submit([i], str(i), 8) for i in range(2)]
    server.step()
    reserve, last = BatchLayerCache.reserve, server._past.layers[-1]

    def full(self, k, v, before, after):
        if self is last and before:
            raise MemoryError("no room")
        return reserve(self, k, v, before, after)

    with monkeypatch.context() as patched:
        patched.setattr(BatchLayerCache, "reserve", full)
        bad = server.submit([1] * 100, "2", 8)
        server.step()
    assert bad.finish_reason == "error" and isinstance(bad.error, MemoryError)
    server.run()
    assert [request.tokens for request in running] == [alone([i], str(i), 8) for i in range(2)]


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_logits_that_are_not_finite_are_an_error_and_no_answer(serve, make_model, alone):
    server = serve()
    for p in server.adapters.model.adapter_parameters("0"):
        p.value[:] = 1e200  # finite numbers, and a product that overflows
    bad, good = server.submit([1], "0", 6), server.submit([1], "1", 6)
    server.run()
    assert bad.finish_reason == "error" and bad.tokens == [] and isinstance(bad.error, FloatingPointError)
    assert good.tokens == alone([1], "1", 6)
    model = make_model()
    model.model.norm.weight.value[:] = np.nan
    with pytest.raises(FloatingPointError, match="the largest logit of the next token is nan"):
        generate(model, [[1]], 3)


# ------------------------------------------------------------------------------------------------------------- the thread


def test_a_cancelled_call_and_a_call_with_any_error_leave_the_thread_alive(make_model):
    thread, entered, go_on = EngineThread(AdapterServer(make_model())), threading.Event(), threading.Event()
    thread.start()
    thread.call(lambda: (entered.set(), go_on.wait(20)))
    assert entered.wait(20)
    cancelled, panic = thread.call(lambda: None), thread.call(lambda: (_ for _ in ()).throw(Panic("attack")))
    assert cancelled.cancel()
    go_on.set()
    assert isinstance(panic.exception(20), Panic)
    assert thread.call(lambda: 3).result(20) == 3
    thread.close()


def test_a_step_that_fails_ends_the_running_requests_and_the_thread_goes_on(make_model):
    engine = AdapterServer(make_model(max_position_embeddings=CONTEXT))
    thread, read, finished = EngineThread(engine), engine.model.read, threading.Event()

    def fails(tokens, context, past):
        if tokens.shape[1] == 1:
            raise Panic("attack")
        return read(tokens, context, past)

    engine.model.read = fails
    bad = engine.submit([1, 2], on_finish=lambda request: finished.set())
    thread.start()
    assert finished.wait(20) and isinstance(bad.error, Panic)
    del engine.model.read
    again = threading.Event()
    good = thread.call(engine.submit, [1, 2], max_new_tokens=3, on_finish=lambda request: again.set()).result(20)
    assert again.wait(20) and len(good.tokens) == 3
    thread.close()


# ----------------------------------------------------------------------------------------------------------- long prompts


def test_a_long_prompt_is_read_between_the_steps_of_other_requests(serve, alone, monkeypatch):
    """Steps are counted, not seconds: each step gives a token to the running request, and reads at most two chunks."""
    server, rng, chunks = serve(), np.random.default_rng(0), []
    read = server.model.read
    monkeypatch.setattr(server.model, "read", lambda t, c, p: chunks.append(t.shape[1]) or read(t, c, p))
    prompts = [rng.integers(0, 11, 2500).tolist() for _ in range(2)]
    running = server.submit([1, 2], "0", 60)
    server.step()
    long = [server.submit(prompt, "1", 4) for prompt in prompts]
    for step in range(4):
        chunks.clear()
        server.step()
        assert len(running.tokens) == 3 + step, "the running request gets a token in each step"
        assert sum(n for n in chunks if n > 1) <= 2 * CHUNK
    late = server.submit([5], "2", 3)
    server.step()
    assert len(late.tokens) == 2 and not long[0].tokens, (
        "a short prompt overtakes, and has its first token after one step"
    )
    steps = 0
    while not long[1].tokens:
        server.step()
        steps += 1
        server.submit([5], "2", 1)  # short prompts in every step do not delay the long prompts for ever
    assert steps < 50
    server.run()
    for request, prompt in zip(long, prompts, strict=True):
        assert request.tokens == alone(prompt, "1", 4)
    assert running.tokens == alone([1, 2], "0", 60) and late.tokens == alone([5], "2", 3)


def test_chunks_after_a_long_text_are_shorter_and_change_no_logits(long_model):
    model, tokens = long_model(), np.random.default_rng(0).integers(0, 11, (1, 2900))
    past = ln.transformer.KeyValueCache(model.config)
    read = ln.transformer.generation.last_logits(model, tokens, None, past, None)
    whole, _ = model.forward(tokens)
    assert np.allclose(read[0], whole[0, -1], rtol=1e-9, atol=1e-10)
    assert chunk_size(0) == chunk_size(CHUNK_SCORES // CHUNK) == CHUNK > chunk_size(4000) > chunk_size(8000) > 0
    assert all(seen * chunk_size(seen) <= CHUNK_SCORES for seen in range(1, 10_000))


def test_a_long_prompt_can_be_cancelled_between_two_chunks(serve):
    server = serve()
    request = server.submit([1] * 2500, "1", 4)
    server.step()
    assert not server.idle and not request.tokens
    server.unload_adapter("1")
    assert "1" in server.adapters.loaded, "the prompt that is read still uses the adapter"
    server.cancel(request)
    assert server.idle and request.finish_reason == "cancelled" and "1" not in server.adapters.loaded


# ------------------------------------------------------------------------------------------------------- limits before work


class Counted(str):
    """A string that counts how often one of its characters is read."""

    reads = 0

    def __getitem__(self, key):
        Counted.reads += 1
        return str.__getitem__(self, key)


@pytest.mark.parametrize("stop", ["a" * 255 + "b", "ab" * 128, "a" * 127 + "b" + "a" * 128])
def test_looking_for_a_stop_string_is_linear_in_the_text(stop):
    text = stop[:-1] * 40
    expected = next((i for i in range(len(text)) if text.startswith(stop, i)), None)
    Counted.reads, found = 0, StopString(Counted(stop)).find(text)
    assert found == expected and Counted.reads <= 3 * (len(text) + len(stop))


@pytest.mark.parametrize("stop", ["a" * 300_000, ["a"] * 5, ["a" * (MAX_STOP_LENGTH + 1)], [""], [["a"]], {"a": 1}])
def test_a_stop_string_that_is_too_long_is_refused_by_name(stop):
    with pytest.raises(ProtocolError, match=f"up to 4 strings, each of 1 to {MAX_STOP_LENGTH} characters") as caught:
        parse({"model": "base", "prompt": "a", "stop": stop}, chat=False)
    assert caught.value.body["error"]["param"] == "stop" and len(str(caught.value)) < 300


LARGE = {"half a surrogate pair": "\ud800" * 1_000_000, "lists": [[]] * 300_000, "a number": 10**4000}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize(
    "field", ["model", "stop", "seed", "temperature", "stream_options", "n", "\ud800", "a long name"]
)
def test_an_error_names_the_field_in_few_characters_that_utf_8_has(field, what):
    key = "x" * 1_000_000 if field == "a long name" else field
    body = {"model": "base", "prompt": "a", key: LARGE[what]}
    try:
        parse(body, chat=False)
    except ProtocolError as error:
        assert len(json.dumps(error.body, ensure_ascii=False).encode()) < 1000
    else:
        assert (field, what) == ("model", "half a surrogate pair"), "a model is looked up later"


def test_an_unknown_model_with_a_long_name_is_a_short_error(make_model):
    async def attack(service):
        with pytest.raises(ProtocolError, match="there is no model") as caught:
            await ask(service, model="\ud800" * 1_000_000)
        assert len(json.dumps(caught.value.body, ensure_ascii=False).encode()) < 10_000

    with_service(make_model, ByteTokenizer(), attack)


class Slow(ByteTokenizer):
    """A tokenizer that encodes the text "slow" until it is released, and counts its calls."""

    def __init__(self):
        self.calls, self.release = 0, threading.Event()

    def encode(self, text, add_special_tokens=True):
        self.calls += 1
        if text == "slow":
            self.release.wait(20)
        return super().encode(text, add_special_tokens)


def with_service(make_model, tokenizer, attack, **changes):
    """Run `attack(service)` in an event loop beside the engine's thread."""
    engine = AdapterServer(make_model(vocab_size=256, max_position_embeddings=200, **changes))

    async def run():
        service = CompletionService(engine, tokenizer, "base")
        service.thread.start()
        try:
            return await asyncio.wait_for(attack(service), 20)
        finally:
            await asyncio.to_thread(service.thread.close)

    return asyncio.run(run())


async def ask(service, prompt="abc", **body):
    chat = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
    field = "messages" if chat else "prompt"
    body = {"model": "base", field: prompt, "max_tokens": 3, "temperature": 0} | body
    pending = await service.submit(parse(body, chat), chat)
    return (await pending.whole())[0].text


@pytest.mark.parametrize(
    ("field", "prompt"),
    [
        ("prompt", "a" * 7_000_000),
        ("prompt", [1] * 1_000_000),
        ("messages", [{"role": "user", "content": "a" * 7_000_000}]),
        ("messages", [{"role": "user", "content": ""}] * 100_000),
        ("messages", [{"role": "a" * 7_000_000, "content": ""}]),
    ],
    ids=["7 MB", "a million tokens", "7 MB of content", "100,000 messages", "7 MB of role"],
)
def test_a_prompt_with_too_many_characters_is_refused_before_it_is_encoded(field, prompt, make_model):
    tokenizer = Slow()

    async def attack(service):
        with pytest.raises(ProtocolError, match=f"{field} has [0-9]+ .* at most 200 ") as caught:
            await ask(service, prompt)
        assert (caught.value.status, caught.value.body["error"]["param"]) == (400, field)

    with_service(make_model, tokenizer, attack)
    assert tokenizer.calls == 0


def test_a_chat_template_that_multiplies_a_text_is_refused(make_model):
    tokenizer = Slow()
    tokenizer.chat_template = "{% for i in range(50) %}{{ messages[0].content }}{% endfor %}"

    async def attack(service):
        with pytest.raises(ProtocolError, match="the chat template returned 5000 characters; at most 200"):
            await ask(service, [{"role": "user", "content": "a" * 100}])

    with_service(make_model, tokenizer, attack)
    assert tokenizer.calls == 0


def test_a_text_that_is_encoded_slowly_delays_no_other_request_and_has_a_time_limit(make_model):
    tokenizer = Slow()

    async def attack(service):
        slow = asyncio.create_task(ask(service, "slow"))
        while not tokenizer.calls:
            await asyncio.sleep(0.001)
        await ask(service, "abc")
        assert not slow.done()
        tokenizer.release.set()
        await slow
        tokenizer.release.clear()
        service.encoders = Workers(1, 0.2)
        with pytest.raises(ProtocolError, match=r"could not be encoded within 0\.2 seconds") as caught:
            await ask(service, "slow")
        assert (caught.value.status, caught.value.body["error"]["param"]) == (503, "prompt")
        tokenizer.release.set()
        service.encoders.seconds = 20
        await ask(service, "abc")  # the thread is free again

    with_service(make_model, tokenizer, attack)


def test_a_thread_that_cannot_start_is_an_error_of_its_own_request(make_model, monkeypatch):
    """The system limits the number of threads."""
    from lora_np.serve import workers

    class NoThread(workers.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    async def attack(service):
        with monkeypatch.context() as patch:
            patch.setattr(workers, "Thread", NoThread)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start"):
                    await ask(service, "abc")
        await ask(service, "abc")

    with_service(make_model, ByteTokenizer(), attack)


def test_a_panic_of_the_tokenizer_is_an_error_of_its_own_request(make_model):
    class Panics(ByteTokenizer):
        def encode(self, text, add_special_tokens=True):
            if text == "panic":
                raise Panic("attack")
            return super().encode(text, add_special_tokens)

    async def attack(service):
        with pytest.raises(RuntimeError, match="Panic: attack"):
            await ask(service, "panic")
        await ask(service, "abc")

    with_service(make_model, Panics(), attack)


def test_a_token_that_cannot_be_decoded_is_an_error_and_no_endless_wait(make_model):
    """The model has more tokens than the tokenizer, as models with padded embeddings do."""
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = 2

    async def attack(service):
        with pytest.raises(ProtocolError, match="got token id") as caught:
            for start in range(2):
                await ask(service, [start], max_tokens=100)
        assert caught.value.status == 500

    with_service(make_model, tokenizer, attack)


def test_an_error_of_one_answer_ends_the_other_answers_of_the_request(make_model):
    """The text of the third answer cannot be decoded. The client gets an error, so the other answers help no one."""

    async def attack(service):
        submit, engine = service.thread.engine.submit, service.thread.engine

        def fails(ids, *rest, row, on_token, **settings):
            def raises(token):
                raise Panic("attack")

            return submit(ids, *rest, row=row, on_token=raises if row == 2 else on_token, **settings)

        engine.submit = fails
        with pytest.raises(ProtocolError, match="generation failed: attack") as caught:
            await ask(service, "abc", n=4, max_tokens=150)
        assert caught.value.status == 500
        await service.call(lambda: None)
        assert await service.call(lambda: engine.idle)

    with_service(make_model, ByteTokenizer(), attack)


@pytest.mark.parametrize(
    "body",
    [
        {"logprobs": 20, "n": 128, "max_tokens": 150},
        {"logprobs": 20, "prompt": [[1] * 190] * 128, "echo": True, "max_tokens": 0},
        {"n": 10**9},
        {"prompt": ["a"] * 100_000},
        {"prompt": [[[1]]]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [10**400]},
        {"stop_token_ids": [True]},
        {"repetition_penalty": 1e308},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("-inf")},
        {"min_p": float("nan")},
        {"logprobs": True},
        {"logprobs": -1},
        {"max_tokens": 0},
        {"stream": True, "stream_options": {"\ud800": True}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_hostile_values_of_the_fields_are_refused_by_name(body, make_model):
    async def attack(service):
        with pytest.raises(ProtocolError) as caught:
            await ask(service, **({"prompt": "abc"} | body))
        error = caught.value.body["error"]
        assert caught.value.status == 400 and error["param"] in body
        assert len(json.dumps(error, ensure_ascii=False).encode()) < 1000

    with_service(make_model, ByteTokenizer(), attack)


@pytest.mark.parametrize("answers", [{}, {"n": 3, "logprobs": 2, "echo": True}], ids=["one answer", "three answers"])
def test_a_client_that_leaves_at_any_moment_leaves_no_request_behind(answers, make_model):
    """The task of the client is cancelled after 0, 1, 2, … turns of the event loop, while the engine is busy."""

    async def attack(service):
        engine = service.thread.engine
        for turns in range(12):
            busy = threading.Event()
            blocked = service.thread.call(busy.wait, 20)
            task = asyncio.create_task(ask(service, "abc", max_tokens=150, **answers))
            for _ in range(turns):
                await asyncio.sleep(0.001 * (turns > 6))
            task.cancel()
            busy.set()
            await asyncio.gather(task, asyncio.wrap_future(blocked), return_exceptions=True)
            await service.call(lambda: None)
            for request in (*engine.running, *engine.waiting):
                assert len(request.tokens) < 150
            assert await service.call(lambda: engine.idle)

    with_service(make_model, ByteTokenizer(), attack)


# ------------------------------------------------------------------------------------------------------------------ names

NAMES = ["", "\ud800", "a\nb", "\x1b[2J", "a\u202eb", "a" * (MAX_NAME + 1), BASE]


@pytest.mark.parametrize("name", [*NAMES, "base"])
def test_names_that_harm_other_clients_are_refused_everywhere(name, serve, make_model, folders):
    with pytest.raises(ValueError, match=r"the adapter name is|the name of the base model"):
        check_adapter_name(name, "base")
    server = serve()
    server.adapters.reserve("base")
    with pytest.raises(ValueError, match=r"the adapter name is|the name of the base model"):
        server.load_adapter(name, "0")
    assert server.adapters.names() == ["0", "1", "2"]


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_the_command_refuses_such_names_before_it_loads_the_model(name, folders):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ValueError, match=r"--adapter .*(the adapter name is|the name of the base model)"):
        command._check(parser.parse_args(["--model", "base", "--adapter", f"{name}={folders / '0'}"]))


def test_an_adapter_of_the_model_itself_cannot_have_a_name_that_harms(make_model):
    for name in ("\ud800", "base"):
        model = get_peft_model(make_model(), LoraConfig(r=1), name)
        with pytest.raises(ValueError, match=r"the adapter name is|the name of the base model"):
            CompletionService(AdapterServer(model), ByteTokenizer(), "base")


# ---------------------------------------------------------------------------------------------------------------- all of it


def test_random_requests_cancels_and_errors_leave_the_other_requests_exact(serve, alone):
    def raises(token):
        raise Panic("attack")

    seed, until = 0, time.monotonic() + SECONDS
    while seed == 0 or time.monotonic() < until:
        server, rng, asked, seed = serve(max_batch=3, max_loras=2), np.random.default_rng(seed), [], seed + 1
        for _ in range(25):
            prompt = rng.integers(0, 11, int(rng.choice([1, 5, 130, 300]))).tolist()
            adapter, n = str(rng.choice(["0", "1", "2", BASE])), int(rng.integers(1, 6))
            harmed = rng.random() < 0.3
            request = server.submit(prompt, adapter, n, **({"on_token": raises} if harmed else {}))
            asked.append((request, prompt, adapter, n, harmed))
            for _ in range(rng.integers(0, 3)):
                server.step()
            if rng.random() < 0.2:
                server.cancel(asked[rng.integers(len(asked))][0])
        server.run()
        for request, prompt, adapter, n, harmed in asked:
            assert request.finish_reason in (("cancelled",) if harmed else ("length", "cancelled"))
            if request.finish_reason == "length":
                assert request.tokens == alone(prompt, adapter, n), (seed, adapter, len(prompt))
