"""Tests of generation: the cache does not change results, rows are independent, and samples follow their probabilities."""

from __future__ import annotations

import importlib
import tracemalloc

import numpy as np
import pytest
from on_device import assert_allclose, host

from lora_np import LoraConfig, generate, get_peft_model
from lora_np.transformer.generation import Sampling
from lora_np.transformer.model import KeyValueCache

module = importlib.import_module(
    "lora_np.transformer.generation"
)  # import_module, because tests replace CHUNK in the module

PROMPTS = [[1, 2, 3, 4], [5], [6, 7]]


def greedy_without_cache(model, prompt, n):
    """A slow reference: read the whole text again for each new token."""
    tokens = list(prompt)
    for _ in range(n):
        logits, _ = model.forward(np.array([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_the_cache_gives_the_logits_of_reading_everything_again(make_model, random_batch):
    model = make_model()
    tokens, _ = random_batch(rows=2, length=9)
    whole, _ = model.forward(tokens)
    past = KeyValueCache(model.config)
    pieces = [model.forward(tokens[:, a:b], past_key_values=past)[0] for a, b in ((0, 4), (4, 5), (5, 6), (6, 9))]
    np.testing.assert_allclose(np.concatenate(host(pieces), axis=1), host(whole), rtol=1e-11, atol=1e-12)
    assert len(past) == 9


def test_the_cache_doubles_its_room_rather_than_copying_it_for_each_token(make_model):
    model, buffers = make_model(), []
    past = KeyValueCache(model.config)
    for token in [[1]] * 32:
        model.forward(np.array([token]), past_key_values=past)
        buffers.append(past.layers[0].buffers)
    assert len(set(map(id, buffers))) == 6, "expected buffers of 1, 2, 4, … 32 tokens"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_generation_equals_the_slow_way(make_model, prompt):
    model = make_model()
    assert generate(model, [prompt], 12) == [greedy_without_cache(model, prompt, 12)]


def test_a_batch_of_different_lengths_gives_each_prompt_what_it_gets_alone(make_model):
    model = make_model()
    assert generate(model, PROMPTS, 10) == [generate(model, [prompt], 10)[0] for prompt in PROMPTS]


def test_a_prompt_that_is_read_in_pieces_goes_on_as_if_read_at_once(make_model, monkeypatch):
    model, lengths = make_model(), []
    read, at_once = model.read, generate(model, [*PROMPTS, [8] * 11], 10)
    model.read = lambda tokens, *rest: lengths.append(tokens.shape[1]) or read(tokens, *rest)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert generate(model, [*PROMPTS, [8] * 11], 10) == at_once
    assert lengths[:4] == [4, 4, 3, 1]


def test_a_long_prompt_takes_the_memory_of_a_piece(make_model, monkeypatch):
    """The caches of the layers, above all the attention scores, are freed after each chunk of the prompt."""
    model, peaks = make_model(max_position_embeddings=600), {}
    for size in (512, 32):
        monkeypatch.setattr(module, "CHUNK", size)
        tracemalloc.start()
        generate(model, [[1] * 512], 1)
        peaks[size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[32] < peaks[512] / 5, f"measured {peaks} bytes"


def test_padding_changes_no_logit(make_model):
    model = make_model()
    alone, _ = model.forward(np.array([[5, 6]]))
    mask = np.array([[False, False, False, True, True]])
    padded, _ = model.forward(np.array([[0, 9, 3, 5, 6]]), attention_mask=mask)
    assert_allclose(padded[:, -2:], alone, rtol=1e-9, atol=1e-11)


def test_what_a_row_samples_does_not_depend_on_its_neighbours(make_model):
    model = make_model()
    settings = {"temperature": 1.0, "seed": 3}
    assert generate(model, PROMPTS, 8, **settings)[0] == generate(model, PROMPTS[:1], 8, **settings)[0]


def test_a_seed_repeats_and_another_one_differs(make_model):
    model = make_model()
    first, again, other = (generate(model, [[1]], 20, temperature=1.5, seed=s)[0] for s in (1, 1, 2))
    assert first == again != other


def test_an_adapter_speaks_and_disabled_the_base_does(make_model):
    base = generate(make_model(), [[1, 2]], 10)
    model = get_peft_model(make_model(), LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False), seed=2)
    assert generate(model, [[1, 2]], 10) == [greedy_without_cache(model, [1, 2], 10)] != base
    with model.disable_adapter():
        assert generate(model, [[1, 2]], 10) == base


def test_a_stop_token_ends_its_row_alone_and_is_not_part_of_it(make_model):
    model = make_model()
    free = generate(model, PROMPTS, 10)
    stop = free[0][3]
    stopped = generate(model, PROMPTS, 10, stop_tokens={stop})
    for row, tokens in zip(free, stopped, strict=True):
        assert tokens == (row[: row.index(stop)] if stop in row else row)


def test_tokens_stream_as_they_are_made(make_model):
    seen = []
    result = generate(make_model(), PROMPTS, 5, on_token=lambda row, token: seen.append((row, token)))
    assert [token for row, token in seen if row == 1] == result[1]
    assert [row for row, _ in seen[:3]] == [0, 1, 2], "the first token of every row comes before any second token"


def test_temperature_is_a_division_of_the_logits():
    z = np.array([1.0, 2.0, 4.0])
    p = Sampling(temperature=2.0).probabilities(z)
    np.testing.assert_allclose(p, np.exp(z / 2) / np.exp(z / 2).sum(), rtol=1e-12)


def test_top_k_keeps_the_k_likeliest_and_top_p_the_fewest_that_reach_p():
    z = np.log([0.1, 0.5, 0.15, 0.25])
    np.testing.assert_allclose(Sampling(1.0, top_k=2).probabilities(z), [0, 2 / 3, 0, 1 / 3], atol=1e-12)
    np.testing.assert_allclose(Sampling(1.0, top_p=0.5).probabilities(z), [0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(Sampling(1.0, top_p=0.6).probabilities(z), [0, 2 / 3, 0, 1 / 3], atol=1e-12)
    np.testing.assert_allclose(Sampling(1.0, top_p=1.0).probabilities(z), [0.1, 0.5, 0.15, 0.25], atol=1e-12)


def test_what_is_as_likely_as_the_last_that_stays_stays_too():
    """The set of tokens that can be drawn must not depend on the order of equally likely tokens."""
    z = np.log([0.2, 0.4, 0.2, 0.2])
    for cut in ({"top_k": 2}, {"top_p": 0.5}):
        np.testing.assert_allclose(Sampling(1.0, **cut).probabilities(z), [0.2, 0.4, 0.2, 0.2], atol=1e-12)


def test_min_p_keeps_what_is_likely_enough_compared_with_the_likeliest():
    z = np.log([0.1, 0.5, 0.15, 0.25])
    np.testing.assert_allclose(Sampling(1.0, min_p=0.4).probabilities(z), [0, 2 / 3, 0, 1 / 3], atol=1e-12)
    np.testing.assert_allclose(Sampling(1.0, min_p=0).probabilities(z), [0.1, 0.5, 0.15, 0.25], atol=1e-12)


def test_the_penalties_count_the_tokens_of_the_answer_and_one_counts_the_prompt_too():
    z = np.array([1.0, -2.0, 3.0, 4.0])
    np.testing.assert_allclose(Sampling(repetition_penalty=2).penalised(z, [1], [2, 2]), [1, -4, 1.5, 4])
    np.testing.assert_allclose(Sampling(presence_penalty=0.5).penalised(z, [1], [2, 2, 0]), [0.5, -2, 2.5, 4])
    np.testing.assert_allclose(Sampling(frequency_penalty=0.5).penalised(z, [1], [2, 2, 0]), [0.5, -2, 2, 4])
    assert Sampling(repetition_penalty=2).next_token(z, np.random.default_rng(0), [3], [2]) == 3
    assert Sampling(frequency_penalty=2).next_token(z, np.random.default_rng(0), [3], [3, 3]) == 2


def test_a_penalty_changes_what_generate_writes_and_neutral_values_compute_nothing(make_model, monkeypatch):
    plain = generate(make_model(), PROMPTS, 10)
    for name, value in (("repetition_penalty", 3.0), ("presence_penalty", 9.0), ("frequency_penalty", 9.0)):
        penalised = generate(make_model(), PROMPTS, 10, **{name: value})
        assert penalised != plain
        assert max(map(len, map(set, penalised))) > max(map(len, map(set, plain))), "more different tokens"
    monkeypatch.setattr(Sampling, "penalised", None)
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
    assert generate(make_model(), PROMPTS, 10, **neutral) == plain


def test_samples_follow_the_probabilities():
    rng, sampling, z = np.random.default_rng(0), Sampling(1.0), np.log([0.1, 0.6, 0.3])
    counts = np.bincount([sampling.next_token(z, rng) for _ in range(4000)]) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.6, 0.3], atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "expected a list"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0; expected a finite number above 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty"),
        ({"prompts": ["text"]}, "Encode text with a tokenizer"),
        ({"prompts": [1, 2, 3]}, r"prompts is \[1, 2, 3\]; .*write \[prompt\] for a single prompt"),
        ({"prompts": np.arange(3)}, r"write \[prompt\]"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[99]]}, "contains 99"),
        ({"prompts": [[1] * 30]}, "accepts 32 in total"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1}, "temperature = -1"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0}, "top_p = 0"),
    ],
)
def test_bad_input_is_a_clear_error(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(make_model(), **{"prompts": [[1]], "max_new_tokens": 5} | arguments)
