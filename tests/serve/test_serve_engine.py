"""The serving engine: each request gets the same tokens as from `generate` alone, and its row is freed afterwards."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from on_device import assert_allclose

import lora_np as ln
from lora_np import AdapterServer, LoraConfig, PeftModel, generate, get_peft_model
from lora_np.nn import BASE, Context
from lora_np.serve import QueueFull, UnknownAdapter
from lora_np.serve.cache import BatchCache
from lora_np.transformer.model import KeyValueCache

RANKS = (1, 2, 3, 5)


@pytest.fixture
def folders(make_model, tmp_path):
    """Six adapters on disk, "0" … "5", with different ranks and layers."""
    root = tmp_path / "adapters"
    for i in range(6):
        target = ["q_proj", "v_proj"] if i % 3 == 2 else "all-linear"
        config = LoraConfig(r=RANKS[i % 4], lora_alpha=3 + i, target_modules=target, init_lora_weights=False)
        get_peft_model(make_model(), config, seed=i).save_pretrained(root / str(i))
    return root


@pytest.fixture
def make_server(make_model, folders):
    def make(adapters=6, **settings):
        server = AdapterServer(make_model(), folders=[folders], **settings)
        for i in range(adapters):
            server.load_adapter(str(i), str(i))
        return server

    return make


@pytest.fixture
def alone(make_model, folders):
    """The tokens of `generate` for one prompt with one adapter."""

    def run(prompt, adapter, n, **settings):
        model = make_model() if adapter == BASE else PeftModel.from_pretrained(make_model(), folders / adapter)
        return generate(model, [prompt], n, **settings)[0]

    return run


def random_requests(n, seed=0, adapters=6):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        prompt = rng.integers(0, 11, rng.integers(1, 20)).tolist()
        name = str(rng.integers(adapters + 1))
        yield prompt, BASE if name == str(adapters) else name, int(rng.integers(1, 12))


# ------------------------------------------------------------------------------------------------------------- the cache


def test_rows_added_to_and_removed_from_the_cache_give_the_logits_of_each_row_alone(make_model):
    """After every change, compare with a forward pass over each row's whole text."""
    model, rng = make_model(), np.random.default_rng(0)
    past, texts = BatchCache(model.config, 5), []
    for _ in range(60):
        if texts and (len(texts) == 5 or rng.random() < 0.3):
            row = int(rng.integers(len(texts)))
            past.remove_row(row)
            texts[row] = texts[-1]
            texts.pop()
        else:
            texts.append(rng.integers(0, 11, rng.integers(1, 15)).tolist())
            read = KeyValueCache(model.config)
            model.forward(np.array([texts[-1]]), past_key_values=read)
            past.add_row(read, 0, len(texts[-1]))
        if not texts or max(map(len, texts)) == model.config.max_position_embeddings:
            continue
        new = rng.integers(0, 11, (len(texts), 1))
        places, mask = past.next_step()
        logits, _ = model.forward(new, past_key_values=past, context=Context(attention_mask=mask, position_ids=places))
        texts = [text + token for text, token in zip(texts, new.tolist(), strict=True)]
        for row, text in enumerate(texts):
            assert_allclose(logits[row, -1], model.forward(np.array([text]))[0][0, -1], rtol=1e-9, atol=1e-10)
        assert len(past) == max(map(len, texts)), "columns that are padding for all are left out"


def test_the_cache_grows_by_doubling_and_has_the_length_of_its_longest_row(make_model):
    model, sizes = make_model(max_position_embeddings=500), set()
    server = AdapterServer(model, max_batch=2)
    for _ in range(40):  # one after another: 400 tokens go through, never more than 20 at once
        server.submit([1] * 10, max_new_tokens=10)
    while not server.idle:
        server.step()
        sizes.update(layer.buffers[0].shape[2] for layer in server._past.layers if layer.buffers)
    assert max(sizes) <= 80


# ----------------------------------------------------------------------------------------------------------- the answers


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_every_request_gets_the_same_tokens_as_from_generate_alone(max_batch, make_server, alone):
    server, requests = make_server(max_batch=max_batch), list(random_requests(40))
    done = [server.submit(prompt, adapter, n) for prompt, adapter, n in requests]
    server.run()
    for request, (prompt, adapter, n) in zip(done, requests, strict=True):
        assert request.tokens == alone(prompt, adapter, n), f"{adapter} on {prompt}"
        assert request.finish_reason == "length"


def test_new_requests_do_not_change_the_tokens_of_running_ones(make_server, alone):
    server, rng, done = make_server(max_batch=4), np.random.default_rng(1), []
    for prompt, adapter, n in random_requests(30, seed=2):
        done.append((server.submit(prompt, adapter, n), prompt, adapter, n))
        for _ in range(rng.integers(0, 4)):
            server.step()
    server.run()
    assert all(request.tokens == alone(prompt, adapter, n) for request, prompt, adapter, n in done)


def test_dora_vera_and_pissa_are_served_beside_lora(make_model, folders, tmp_path):
    """Each request gets exactly the tokens of `generate` with its adapter alone; the adapters come from their folders."""
    lora = {"r": 2, "target_modules": "all-linear"}
    configs = {
        "dora": LoraConfig(use_dora=True, init_lora_weights=False, **lora),
        "vera": ln.VeraConfig(r=6, target_modules="all-linear", init_weights=False),
        "pissa": LoraConfig(init_lora_weights="pissa", **lora),
        "lora": LoraConfig(init_lora_weights=False, **lora),
    }
    models = {BASE: make_model()}
    for i, (name, config) in enumerate(configs.items()):
        models[name] = get_peft_model(make_model(), config, seed=i)
        if name == "pissa":  # as after training
            for layer in models[name].lora_layers():
                layer.adapters["default"].lora_A.value *= 1.5
        models[name].save_pretrained(folders / name)
    server = AdapterServer(make_model(), folders=[folders], max_loras=3)
    for name in configs:
        server.load_adapter(name, name)
    prompts = [[1, 2, 3], [4], [5, 6]]
    asked = [(name, prompt) for prompt in prompts for name in (*configs, BASE)]
    requests = [server.submit(prompt, name, 9) for name, prompt in asked]
    server.run()
    for request, (name, prompt) in zip(requests, asked, strict=True):
        assert request.tokens == generate(models[name], [prompt], 9)[0], name
    assert len({tuple(request.tokens) for request in requests[:5]}) == 5, "else the test proves nothing"


def test_a_pissa_model_itself_is_served_beside_its_base(make_model):
    model = get_peft_model(
        make_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights="pissa"), "pissa"
    )
    for layer in model.lora_layers():
        layer.adapters["pissa"].lora_A.value *= 1.5
    server = AdapterServer(model)
    requests = [server.submit([1, 2], name, 8) for name in ("pissa", BASE, "pissa")]
    server.run()
    assert requests[1].tokens == generate(make_model(), [[1, 2]], 8)[0]
    assert requests[0].tokens == requests[2].tokens == generate(model, [[1, 2]], 8)[0] != requests[1].tokens


def test_a_seed_samples_the_same_tokens_as_in_generate(make_server, alone):
    server, settings = make_server(), {"temperature": 1.3, "top_k": 7, "top_p": 0.9}
    done = [server.submit([1, 2], "3", 12, seed=seed, **settings) for seed in range(6)]
    server.run()
    for seed, request in enumerate(done):
        assert request.tokens == alone([1, 2], "3", 12, seed=seed, **settings)
    assert len({tuple(request.tokens) for request in done}) > 3


def test_a_stop_token_ends_only_its_own_request(make_server, alone):
    server, whole = make_server(), alone([1, 2, 3], "0", 10)
    stop = whole[4]
    first, second = server.submit([1, 2, 3], "0", 10, stop_tokens={stop}), server.submit([1, 2, 3], "0", 10)
    server.run()
    assert (first.tokens, first.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert (second.tokens, second.finish_reason) == (whole, "length")


def test_tokens_are_streamed_and_on_token_can_end_the_answer(make_server):
    server, seen, finished = make_server(), [], []
    request = server.submit(
        [1], "1", 10, on_token=lambda t: seen.append(t) or len(seen) == 3, on_finish=finished.append
    )
    server.step()
    assert seen == request.tokens and len(seen) == 2, "the prompt's step, and one of the batch"
    server.run()
    assert seen == request.tokens and len(seen) == 3
    assert finished == [request] and request.finish_reason == "stop"


def test_an_error_in_on_token_ends_only_its_own_request(make_server, alone):
    def raises(token):
        raise OSError("gone")

    server = make_server()
    bad, good = server.submit([1], "1", 10, on_token=raises), server.submit([2], "1", 10)
    server.run()
    assert bad.finish_reason == "cancelled" and "gone" in str(bad.error)
    assert good.tokens == alone([2], "1", 10)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_sampling_from_invalid_probabilities_fails_only_its_own_request(make_server, alone):
    server = make_server()
    bad, good = server.submit([1], "1", 10, temperature=1e-310), server.submit([2], "1", 10)
    server.run()
    assert bad.finish_reason == "error" and bad.error is not None
    assert good.tokens == alone([2], "1", 10)


def test_a_cancelled_request_frees_its_row(make_server, alone):
    server = make_server(max_batch=2)
    requests = [server.submit([i + 1], "0", 10) for i in range(4)]
    server.step()
    assert server.running == requests[:2]
    server.cancel(requests[0])
    server.cancel(requests[2])  # was waiting
    server.step()
    assert server.running == [requests[1], requests[3]]
    server.run()
    assert [request.finish_reason for request in requests] == ["cancelled", "length", "cancelled", "length"]
    assert requests[3].tokens == alone([4], "0", 10)
    server.cancel(requests[3])
    assert requests[3].finish_reason == "length", "what has finished stays finished"


def test_short_prompts_of_similar_length_are_read_together(make_server, alone, monkeypatch):
    server, shapes = make_server(), []
    read = server.model.read
    monkeypatch.setattr(server.model, "read", lambda tokens, *rest: shapes.append(tokens.shape) or read(tokens, *rest))
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 11, size).tolist() for size in (4, 20, 7, 8, 15, 9)]
    names = ["0", BASE, "2", "0", "4", "5"]
    requests = [server.submit(prompt, name, 6) for prompt, name in zip(prompts, names, strict=True)]
    recorded = server.submit(prompts[0], "0", 6, prompt_logprobs=1)
    server.step()
    assert shapes[:-1] == [(3, 8), (2, 20), (1, 9), (1, 4)], (
        "a prompt is at most twice as long as another one in its batch"
    )
    server.run()
    for request, prompt, name in zip(requests, prompts, names, strict=True):
        assert request.tokens == alone(prompt, name, 6)
    assert recorded.tokens == requests[0].tokens and len(recorded.prompt_token_logprobs) == 4


def test_prompts_that_cannot_be_read_together_are_read_alone(make_server, alone, monkeypatch):
    server = make_server()
    read = server.model.read

    def fails(tokens, *rest):
        if len(tokens) > 1 or 9 in tokens[0, :-1]:
            raise MemoryError("no room")
        return read(tokens, *rest)

    good, bad, other = (server.submit(prompt, "1", 1) for prompt in ([1, 2], [9, 3], [4, 5]))
    monkeypatch.setattr(server.model, "read", fails)
    server.run()
    assert bad.finish_reason == "error" and isinstance(bad.error, MemoryError)
    assert (good.tokens, other.tokens) == (alone([1, 2], "1", 1), alone([4, 5], "1", 1))


def test_a_callback_can_cancel_a_request_whose_prompt_was_read_with_its_own(make_server, alone):
    server = make_server()
    first = server.submit([1, 2], "0", 5, on_token=lambda token: server.cancel(second))
    second, third = server.submit([3, 4], "1", 5), server.submit([5, 6], "2", 5)
    server.run()
    assert (second.finish_reason, second.tokens) == ("cancelled", [])
    assert (first.tokens, third.tokens) == (alone([1, 2], "0", 5), alone([5, 6], "2", 5))


def test_a_long_queue_of_prompts_does_not_delay_running_requests(make_server, monkeypatch):
    monkeypatch.setattr("lora_np.serve.engine.PROMPT_TOKENS", 20)
    server = make_server()
    first = server.submit([1], max_new_tokens=10)
    server.step()
    for _ in range(10):
        server.submit([1] * 15, max_new_tokens=5)
    server.step()
    assert len(server.running) == 3 and len(first.tokens) == 3


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ([], {}, ValueError, "empty"),
        ([99], {}, ValueError, "contains 99"),
        ([0.5], {}, TypeError, "expected integers"),
        ([1] * 30, {"max_new_tokens": 3}, ValueError, "limit of 32 tokens"),
        ([1], {"max_new_tokens": 0}, ValueError, "at least 1"),
        ([1], {"temperature": -1, "max_new_tokens": 5}, ValueError, "temperature"),
        ([1], {"adapter": "poet"}, UnknownAdapter, "there is no model 'poet'; this server has __base__, 0, 1"),
    ],
)
def test_bad_requests_are_refused_at_once(prompt, settings, error, message, make_server):
    server = make_server(2)
    with pytest.raises(error, match=message):
        server.submit(prompt, **settings)
    assert server.idle


def test_a_full_queue_refuses_new_requests_and_loses_none(make_server):
    server = make_server(max_batch=1, max_queue=2)
    kept = [server.submit([1], max_new_tokens=4) for _ in range(2)]
    with pytest.raises(QueueFull, match="max_queue = 2"):
        server.submit([1], max_new_tokens=4)
    server.step()
    kept.append(server.submit([1], max_new_tokens=4))
    server.run()
    assert [request.finish_reason for request in kept] == ["length"] * 3


def test_a_failed_step_ends_running_requests_and_serves_waiting_ones(make_server, alone, monkeypatch):
    server = make_server(max_batch=2)
    failed, waiting = [server.submit([1], "0", 5) for _ in range(2)], server.submit([2], "1", 5)
    server.step()
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(server.model, "read", lambda *arguments: (_ for _ in ()).throw(MemoryError("no room")))
        server.step()
    server.abort(MemoryError("no room"))
    assert [request.finish_reason for request in failed] == ["error"] * 2
    server.run()
    assert waiting.tokens == alone([2], "1", 5)


# ---------------------------------------------------------------------------------------------------------- the adapters


def loaded(server):
    return list(server.adapters.loaded)


def test_the_least_recently_used_adapter_is_removed_from_full_memory(make_server, alone):
    server = make_server(max_loras=2)
    assert loaded(server) == ["4", "5"]
    requests = [server.submit([1, 2], name, 4) for name in "450514"]
    server.run()
    assert len(loaded(server)) == 2 and set(server.adapters.model.peft_config) == set(loaded(server))
    for request in requests:
        assert request.tokens == alone([1, 2], request.adapter, 4), "those that were evicted came back from disk"


def test_an_adapter_in_use_stays_in_memory_and_other_requests_wait(make_server, alone):
    server = make_server(max_loras=1)
    first, second, base = server.submit([1], "0", 5), server.submit([2], "1", 5), server.submit([3], BASE, 5)
    server.step()
    assert server.running == [first] and loaded(server) == ["0"], "and none overtakes"
    server.run()
    assert [r.tokens for r in (first, second, base)] == [alone([1], "0", 5), alone([2], "1", 5), alone([3], BASE, 5)]


def test_an_unloaded_adapter_stays_for_accepted_requests(make_server, alone):
    server = make_server()
    running, waiting = server.submit([1], "0", 5), server.submit([2], "0", 5)
    server.step()
    server.unload_adapter("0")
    with pytest.raises(UnknownAdapter):
        server.submit([1], "0")
    with pytest.raises(ValueError, match="requests still use it"):
        server.load_adapter("0", "0")
    server.run()
    assert running.tokens == alone([1], "0", 5) and waiting.tokens == alone([2], "0", 5)
    assert "0" not in loaded(server) and "0" not in server.adapters.model.peft_config
    server.load_adapter("0", "3")  # the name is free again, and means the new one
    again = server.submit([1], "0", 5)
    server.run()
    assert again.tokens == alone([1], "3", 5)


def test_the_adapters_of_the_model_itself_stay_in_memory(make_model):
    model = get_peft_model(make_model(), LoraConfig(r=2, init_lora_weights=False), "own")
    server = AdapterServer(model, max_loras=1)
    request = server.submit([1], "own", 6)
    server.run()
    assert request.tokens == generate(model, [[1]], 6)[0]
    with pytest.raises(UnknownAdapter, match="no adapter 'own' was loaded"):
        server.unload_adapter("own")


def test_adapters_load_only_from_the_allowed_folders(make_server, folders, make_model, tmp_path):
    server = make_server(0)
    elsewhere = tmp_path / "elsewhere"
    get_peft_model(make_model(), LoraConfig(init_lora_weights=False)).save_pretrained(elsewhere)
    (folders / "link").symlink_to(elsewhere)
    (folders / "file").mkdir()
    (folders / "file" / "adapter_config.json").symlink_to(elsewhere / "adapter_config.json")
    (folders / "inner").symlink_to(folders / "0")
    for folder in ("../elsewhere", "0/../../elsewhere", str(elsewhere), "link", "/", str(folders / ".." / "elsewhere")):
        with pytest.raises(ValueError, match=r"outside the allowed folders|must not contain"):
            server.load_adapter("poet", folder)
    with pytest.raises(ValueError, match="a link to a file outside"):
        server.load_adapter("poet", "file")
    with pytest.raises(FileNotFoundError):
        server.load_adapter("poet", "missing")
    assert server.adapters.names() == [] and loaded(server) == []
    server.load_adapter("poet", str(folders / "0"))
    server.load_adapter("pirate", "inner")


def test_adapter_names_may_contain_slashes_and_dots(make_server, alone):
    """Names of published adapters have such characters. In the PeftModel they would split the parameters' names."""
    names = ["org/poet-v1.2", "org%2Fpoet-v1.2", "..", "/", "a%b"]
    server = make_server(0, max_loras=2)
    for i, name in enumerate(names):
        server.load_adapter(name, str(i))
    requests = [server.submit([1, 2], name, 6) for name in names]
    server.run()
    assert server.adapters.names() == names
    assert [request.tokens for request in requests] == [alone([1, 2], str(i), 6) for i in range(len(names))]
    for name in names:
        server.unload_adapter(name)
    assert server.adapters.names() == [] and not server.adapters.model.peft_config


def test_an_adapter_of_the_model_itself_keeps_a_name_with_a_percent_sign(make_model):
    model = get_peft_model(make_model(), LoraConfig(r=2, init_lora_weights=False), "50%")
    server = AdapterServer(model)
    request = server.submit([1], "50%", 4)
    server.run()
    assert request.tokens == generate(model, [[1]], 4)[0]


def test_an_adapter_that_does_not_fit_is_refused_when_it_is_loaded(make_server, folders):
    server = make_server(1)
    (folders / "1" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="adapter_model"):
        server.load_adapter("1", "1")
    with pytest.raises(ValueError, match="already exists"):
        server.load_adapter("0", "2")
    with pytest.raises(ValueError, match="invalid adapter name"):
        server.load_adapter("lora_A", "2")
    assert server.adapters.names() == ["0"]


def test_a_damaged_adapter_fails_only_its_own_requests(make_server, folders, alone):
    server, expected = make_server(max_loras=1), alone([1], "1", 4)
    (folders / "0" / "adapter_model.safetensors").write_bytes(b"no tensors")
    bad, good = server.submit([1], "0", 4), server.submit([1], "1", 4)
    server.run()
    assert bad.finish_reason == "error" and "adapter_model" in str(bad.error)
    assert good.tokens == expected


@pytest.mark.slow
def test_a_thousand_adapters_in_memory_add_only_their_own_bytes():
    """With r = 8 on "tiny": the bytes of the factors, and less than a tenth of that for other objects."""
    peft_model, config = PeftModel(ln.load_model("tiny")), LoraConfig(r=8, target_modules=["gate_proj", "down_proj"])
    tracemalloc.start()
    for i in range(1000):
        peft_model.add_adapter(str(i), config, seed=i)
    server = AdapterServer(peft_model, max_batch=4)
    for i in range(4):
        server.submit([1, 2, 3], str(250 * i), 2)
    server.run()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    own = sum(p.value.nbytes for name, p in peft_model.named_parameters() if "lora_" in name)
    assert own == 1000 * 5 * 2 * 8 * (128 + 384) * 4
    assert held < 1.1 * own, f"{held / own:.2f}× of the factors' own {own / 1e6:.0f} MB"
