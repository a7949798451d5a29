"""The server ends a completion at each stop token of the tokenizer, not only at its eos token."""

from __future__ import annotations

import asyncio

import pytest

from lora_np import AdapterServer, generate
from lora_np.files import ByteTokenizer
from lora_np.serve.completions import CompletionService
from lora_np.serve.protocol import parse


def completed(engine, tokenizer):
    async def run():
        service = CompletionService(engine, tokenizer, "base")
        service.thread.start()
        try:
            body = {"model": "base", "prompt": "abc", "max_tokens": 8, "temperature": 0}
            pending = await service.submit(parse(body, chat=False), chat=False)
            await pending.whole()
            request = pending.choices[0].request
            return request.tokens, request.finish_reason
        finally:
            await asyncio.to_thread(service.thread.close)

    return asyncio.run(run())


@pytest.mark.parametrize("at", [2, 5])
def test_any_stop_token_ends_a_completion(at, make_model):
    model, tokenizer = make_model(vocab_size=256, max_position_embeddings=200), ByteTokenizer()
    tokens = generate(model, [tokenizer.encode("abc")], 8)[0]
    tokenizer.more_stop_token_ids = (tokens[at],)
    found, reason = completed(AdapterServer(model), tokenizer)
    assert (found, reason) == (tokens[: tokens.index(tokens[at])], "stop")
