"""The serving engine: whoever else is served meanwhile, a request gets what `generate` gives it alone, and its place is freed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from on_device import assert_allclose

import lora_np as ln
from lora_np import AdapterServer, LoraConfig, PeftModel, generate, get_peft_model
from lora_np.nn import BASE, Context
from lora_np.serve import QueueFull, UnknownAdapter
from lora_np.serve.cache import RowsCache
from lora_np.transformer.model import KeyValueCache

RANKS = (1, 2, 3, 5)


@pytest.fixture
def folders(make_model, tmp_path):
    """Six adapters on disk, "0" … "5", of mixed ranks and layers."""
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
    """What `generate` says to one prompt with one adapter, and nobody else."""

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


def test_rows_that_join_and_leave_read_what_they_read_alone(make_model):
    """Against each row's whole text read anew, after every change."""
    model, rng = make_model(), np.random.default_rng(0)
    past, texts = RowsCache(model.config, 5), []
    for _ in range(60):
        if texts and (len(texts) == 5 or rng.random() < 0.3):
            row = int(rng.integers(len(texts)))
            past.leave(row)
            texts[row] = texts[-1]
            texts.pop()
        else:
            texts.append(rng.integers(0, 11, rng.integers(1, 15)).tolist())
            read = KeyValueCache(model.config)
            model.forward(np.array([texts[-1]]), past_key_values=read)
            past.join(read)
        if not texts or max(map(len, texts)) == model.config.max_position_embeddings:
            continue
        new = rng.integers(0, 11, (len(texts), 1))
        places, mask = past.next_step()
        logits, _ = model.forward(new, past_key_values=past, context=Context(attention_mask=mask, position_ids=places))
        texts = [text + token for text, token in zip(texts, new.tolist(), strict=True)]
        for row, text in enumerate(texts):
            assert_allclose(logits[row, -1], model.forward(np.array([text]))[0][0, -1], rtol=1e-9, atol=1e-10)
        assert len(past) == max(map(len, texts)), "columns that are padding for all are left out"


def test_the_cache_grows_by_doubling_and_stays_as_long_as_its_longest_row(make_model):
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
def test_every_request_gets_what_generate_gives_it_alone(max_batch, make_server, alone):
    server, requests = make_server(max_batch=max_batch), list(random_requests(40))
    done = [server.submit(prompt, adapter, n) for prompt, adapter, n in requests]
    server.run()
    for request, (prompt, adapter, n) in zip(done, requests, strict=True):
        assert request.tokens == alone(prompt, adapter, n), f"{adapter} on {prompt}"
        assert request.finish_reason == "length"


def test_requests_that_come_while_others_run_change_nothing(make_server, alone):
    server, rng, done = make_server(max_batch=4), np.random.default_rng(1), []
    for prompt, adapter, n in random_requests(30, seed=2):
        done.append((server.submit(prompt, adapter, n), prompt, adapter, n))
        for _ in range(rng.integers(0, 4)):
            server.step()
    server.run()
    assert all(request.tokens == alone(prompt, adapter, n) for request, prompt, adapter, n in done)


def test_a_seed_draws_what_it_draws_in_generate(make_server, alone):
    server, settings = make_server(), {"temperature": 1.3, "top_k": 7, "top_p": 0.9}
    done = [server.submit([1, 2], "3", 12, seed=seed, **settings) for seed in range(6)]
    server.run()
    for seed, request in enumerate(done):
        assert request.tokens == alone([1, 2], "3", 12, seed=seed, **settings)
    assert len({tuple(request.tokens) for request in done}) > 3


def test_a_stop_token_ends_its_request_alone(make_server, alone):
    server, whole = make_server(), alone([1, 2, 3], "0", 10)
    stop = whole[4]
    first, second = server.submit([1, 2, 3], "0", 10, stop_tokens={stop}), server.submit([1, 2, 3], "0", 10)
    server.run()
    assert (first.tokens, first.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert (second.tokens, second.finish_reason) == (whole, "length")


def test_tokens_stream_and_a_listener_may_have_enough(make_server):
    server, seen, finished = make_server(), [], []
    request = server.submit(
        [1], "1", 10, on_token=lambda t: seen.append(t) or len(seen) == 3, on_finish=finished.append
    )
    server.step()
    assert seen == request.tokens and len(seen) == 2, "the prompt's step, and one of the batch"
    server.run()
    assert seen == request.tokens and len(seen) == 3
    assert finished == [request] and request.finish_reason == "stop"


def test_a_listener_who_raises_loses_his_place_and_nobody_elses(make_server, alone):
    def raises(token):
        raise OSError("gone")

    server = make_server()
    bad, good = server.submit([1], "1", 10, on_token=raises), server.submit([2], "1", 10)
    server.run()
    assert bad.finish_reason == "cancelled" and "gone" in str(bad.error)
    assert good.tokens == alone([2], "1", 10)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_who_draws_from_what_are_no_probabilities_fails_alone(make_server, alone):
    server = make_server()
    bad, good = server.submit([1], "1", 10, temperature=1e-310), server.submit([2], "1", 10)
    server.run()
    assert bad.finish_reason == "error" and bad.error is not None
    assert good.tokens == alone([2], "1", 10)


def test_who_cancels_frees_his_place(make_server, alone):
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


def test_a_long_queue_of_prompts_does_not_hold_up_those_who_are_answered(make_server, monkeypatch):
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
        ([99], {}, ValueError, "holds 99"),
        ([0.5], {}, TypeError, "expected integers"),
        ([1] * 30, {"max_new_tokens": 3}, ValueError, "takes 32 in all"),
        ([1], {"max_new_tokens": 0}, ValueError, "at least 1"),
        ([1], {"temperature": -1, "max_new_tokens": 5}, ValueError, "temperature"),
        ([1], {"adapter": "poet"}, UnknownAdapter, "no adapter 'poet'"),
    ],
)
def test_bad_requests_are_refused_at_once(prompt, settings, error, message, make_server):
    server = make_server(2)
    with pytest.raises(error, match=message):
        server.submit(prompt, **settings)
    assert server.idle


def test_a_full_queue_refuses_and_loses_nobody(make_server):
    server = make_server(max_batch=1, max_queue=2)
    kept = [server.submit([1], max_new_tokens=4) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        server.submit([1], max_new_tokens=4)
    server.step()
    kept.append(server.submit([1], max_new_tokens=4))
    server.run()
    assert [request.finish_reason for request in kept] == ["length"] * 3


def test_a_step_that_failed_ends_those_who_ran_and_the_next_ones_are_served(make_server, alone, monkeypatch):
    server = make_server(max_batch=2)
    failed, waiting = [server.submit([1], "0", 5) for _ in range(2)], server.submit([2], "1", 5)
    server.step()
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(server.model, "hidden", lambda *arguments: (_ for _ in ()).throw(MemoryError("no room")))
        server.step()
    server.abort(MemoryError("no room"))
    assert [request.finish_reason for request in failed] == ["error"] * 2
    server.run()
    assert waiting.tokens == alone([2], "1", 5)


# ---------------------------------------------------------------------------------------------------------- the adapters


def loaded(server):
    return list(server.adapters.loaded)


def test_adapters_are_bounded_in_memory_and_the_least_recently_used_goes(make_server, alone):
    server = make_server(max_loras=2)
    assert loaded(server) == ["4", "5"]
    requests = [server.submit([1, 2], name, 4) for name in "450514"]
    server.run()
    assert len(loaded(server)) == 2 and set(server.adapters.model.peft_config) == set(loaded(server))
    for request in requests:
        assert request.tokens == alone([1, 2], request.adapter, 4), "those that were evicted came back from disk"


def test_an_adapter_in_use_does_not_go_and_whoever_needs_its_room_waits(make_server, alone):
    server = make_server(max_loras=1)
    first, second, base = server.submit([1], "0", 5), server.submit([2], "1", 5), server.submit([3], BASE, 5)
    server.step()
    assert server.running == [first] and loaded(server) == ["0"], "and none overtakes"
    server.run()
    assert [r.tokens for r in (first, second, base)] == [alone([1], "0", 5), alone([2], "1", 5), alone([3], BASE, 5)]


def test_an_adapter_that_is_unloaded_stays_for_those_who_were_accepted(make_server, alone):
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


def test_the_adapters_of_the_model_itself_are_always_there(make_model):
    model = get_peft_model(make_model(), LoraConfig(r=2, init_lora_weights=False), "own")
    server = AdapterServer(model, max_loras=1)
    request = server.submit([1], "own", 6)
    server.run()
    assert request.tokens == generate(model, [[1]], 6)[0]
    with pytest.raises(UnknownAdapter, match="no adapter 'own' was loaded"):
        server.unload_adapter("own")


def test_adapters_come_from_the_folders_given_and_from_nowhere_else(make_server, folders, make_model, tmp_path):
    server = make_server(0)
    elsewhere = tmp_path / "elsewhere"
    get_peft_model(make_model(), LoraConfig(init_lora_weights=False)).save_pretrained(elsewhere)
    (folders / "link").symlink_to(elsewhere)
    (folders / "file").mkdir()
    (folders / "file" / "adapter_config.json").symlink_to(elsewhere / "adapter_config.json")
    (folders / "inner").symlink_to(folders / "0")
    for folder in ("../elsewhere", "0/../../elsewhere", str(elsewhere), "link", "/", str(folders / ".." / "elsewhere")):
        with pytest.raises(ValueError, match=r"outside the folders|with \.\."):
            server.load_adapter("poet", folder)
    with pytest.raises(ValueError, match="link out"):
        server.load_adapter("poet", "file")
    with pytest.raises(FileNotFoundError):
        server.load_adapter("poet", "missing")
    assert server.adapters.names() == [] and loaded(server) == []
    server.load_adapter("poet", str(folders / "0"))
    server.load_adapter("pirate", "inner")


def test_an_adapter_that_does_not_fit_is_refused_when_it_is_loaded(make_server, folders):
    server = make_server(1)
    (folders / "1" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="adapter_model"):
        server.load_adapter("1", "1")
    with pytest.raises(ValueError, match="already"):
        server.load_adapter("0", "2")
    with pytest.raises(ValueError, match="cannot name an adapter"):
        server.load_adapter("a.b", "2")
    assert server.adapters.names() == ["0"]


def test_one_whose_folder_was_damaged_meanwhile_fails_alone(make_server, folders, alone):
    server, expected = make_server(max_loras=1), alone([1], "1", 4)
    (folders / "0" / "adapter_model.safetensors").write_bytes(b"no tensors")
    bad, good = server.submit([1], "0", 4), server.submit([1], "1", 4)
    server.run()
    assert bad.finish_reason == "error" and "adapter_model" in str(bad.error)
    assert good.tokens == expected


@pytest.mark.slow
def test_a_thousand_resident_adapters_add_their_own_bytes_alone():
    """r = 8, on "tiny": the factors, and less than a tenth of that for the objects around them."""
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
