"""AdapterServer: continuous batching over one base and its key/value cache, each row with an adapter of its own.

    submit → waiting → (its prompt is read) → a row of the batch → a token a step → finished, and its row is free

Requests join and leave between two steps, rather than a batch waiting for its longest answer (Orca, Yu et al. 2022). It is
synchronous and owns no thread: what `step` does depends on what was submitted, and on nothing else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import to_host
from ..nn import BASE, Context
from ..ops.checks import check_ids
from ..peft import PeftModel
from ..peft.mixed import AdapterRows
from ..transformer import KeyValueCache, Transformer
from ..transformer.generation import Sampling, last_logits
from .adapters import AdapterStore
from .cache import RowsCache

PROMPT_TOKENS = 512  # read before a step at most, so that those who are being answered do not wait for all who arrive


class QueueFull(RuntimeError):
    """As many requests wait as may: try again later."""


@dataclass(eq=False)
class Request:
    """One prompt and what has come of it: the new `tokens` so far, and the `finish_reason` once there is one.

    finish_reason: "stop" (a stop token, or the listener had enough), "length", "cancelled", or "error", with `error`.
    """

    prompt: np.ndarray
    adapter: str
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: frozenset[int]
    rng: np.random.Generator
    on_token: Callable[[int], Any]
    on_finish: Callable[[Request], Any]
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: Exception | None = None


class AdapterServer:
    """Serves a PeftModel's base and many adapters. Nobody else may change the model meanwhile.

    max_batch: rows that are computed together. max_queue: requests that wait for one. max_loras: adapters in memory, beside
    those that the model came with. folders: where adapters may be loaded from.
    """

    def __init__(
        self,
        model: PeftModel | Transformer,
        *,
        max_batch: int = 32,
        max_queue: int = 256,
        max_loras: int = 64,
        folders: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        if max_batch < 1 or max_queue < 1:
            raise ValueError(f"max_batch = {max_batch}, max_queue = {max_queue}; expected at least 1 of each")
        peft_model = PeftModel(model.freeze()) if isinstance(model, Transformer) else model
        peft_model.adapter_rows((), 0)  # raises while merged or disabled
        self.model, self.config = peft_model.model, peft_model.config
        self.adapters = AdapterStore(peft_model, max_loras, folders)
        self.max_batch, self.max_queue = max_batch, max_queue
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # row by row
        self._past = RowsCache(self.config, max_batch)
        self._rows = AdapterRows(())

    # --------------------------------------------------------------------------------------------------------- requests

    def submit(
        self,
        prompt: Sequence[int] | np.ndarray,
        adapter: str = BASE,
        max_new_tokens: int = 40,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Collection[int] = (),
        seed: int = 0,
        on_token: Callable[[int], Any] = lambda token: None,
        on_finish: Callable[[Request], Any] = lambda request: None,
    ) -> Request:
        """Queue one request; the settings are `generate`'s, and so are the tokens, whoever else is served meanwhile.

        on_token is called with each new token as soon as it is known, and ends the answer by returning True; on_finish with
        the request when there is a finish_reason. One that raises loses its place. Raises QueueFull, UnknownAdapter, and
        ValueError or TypeError for a prompt that is empty, no tokens, or too long with what is asked for.
        """
        self.adapters.check(adapter)
        ids = np.asarray(prompt)
        if ids.ndim != 1 or not ids.size:
            raise ValueError("the prompt is empty, or no list of token ids")
        check_ids("prompt", ids, self.config.vocab_size)
        limit = self.config.max_position_embeddings
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
        if ids.size + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {ids.size} tokens and {max_new_tokens} new ones; this model takes {limit} in all"
            )
        sampling, rng = Sampling(temperature, top_k, top_p), np.random.default_rng([seed, 0])
        if len(self.waiting) >= self.max_queue:
            raise QueueFull(f"{self.max_queue} requests are waiting: try again later")
        stops = frozenset(stop_tokens)
        request = Request(ids, adapter, max_new_tokens, sampling, stops, rng, on_token, on_finish)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Free the request's place, in the queue or in the batch. One that has finished stays as it is."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self._leave(self.running.index(request))
        self._finish(request, "cancelled")

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def run(self) -> None:
        """Step until idle."""
        while not self.idle:
            self.step()

    # --------------------------------------------------------------------------------------------------------- adapters

    def load_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Serve the adapter in `folder` too. Raises as `AdapterStore.load`."""
        self.adapters.load(name, folder, self._in_use())

    def unload_adapter(self, name: str) -> None:
        """Accept no more requests for it; it leaves when the last one is answered. Raises UnknownAdapter."""
        self.adapters.unload(name, self._in_use())

    def _in_use(self, waiting: bool = True) -> set[str]:
        return {request.adapter for request in (*self.running, *(self.waiting if waiting else ()))}

    # ---------------------------------------------------------------------------------------------------------- a step

    def step(self) -> None:
        """Read the prompts of those who can join, then compute one token for every row. Nothing to do is no error."""
        self._admit()
        if not self.running:
            return
        places, mask = self._past.next_step()
        names = [request.adapter for request in self.running]
        if tuple(names) != self._rows.names:
            self._rows = self._rows.then(names)
        tokens = np.array([[request.tokens[-1]] for request in self.running])
        context = Context(adapter=self._rows, attention_mask=mask, position_ids=places)
        x, _ = self.model.hidden(tokens, context, self._past)
        logits = to_host(self.model.logits(x[:, -1], context))  # (b, v)
        for row in reversed(range(len(self.running))):  # whoever leaves is replaced by the last, who has had his turn
            request = self.running[row]
            if (reason := self._next_token(request, logits[row])) is not None:
                self._leave(row)
                self._finish(request, reason)

    def _admit(self) -> None:
        """First come, first served: one whose adapter finds no room holds up those behind him, and so is never starved."""
        read = 0
        while self.waiting and len(self.running) < self.max_batch and read < PROMPT_TOKENS:
            request = self.waiting[0]
            try:
                if not self.adapters.acquire(request.adapter, self._in_use(waiting=False)):
                    return
                self.waiting.popleft()
                read += request.prompt.size
                past, adapter = KeyValueCache(self.config), None if request.adapter == BASE else request.adapter
                logits = last_logits(self.model, request.prompt[None], None, past, adapter)
            except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
                if request in self.waiting:  # its folder has changed since it was accepted
                    self.waiting.popleft()
                request.error = error
                self._finish(request, "error")
                continue
            reason = self._next_token(request, logits[0])
            if reason is None:
                self.running.append(request)
                self._past.join(past)
            else:
                self._finish(request, reason)

    def _next_token(self, request: Request, logits: np.ndarray) -> str | None:
        """Choose it and pass it on; why the request is finished, if it now is."""
        reason = "error"
        try:
            token = request.sampling.choose(logits, request.rng)
            if token in request.stop_tokens:
                return "stop"
            request.tokens.append(token)
            reason = "cancelled"
            enough = request.on_token(token) is True
        except Exception as error:  # whatever is wrong with one request or its listener must not reach the others
            request.error = error
            return reason
        return "stop" if enough else "length" if len(request.tokens) == request.max_new_tokens else None

    def _leave(self, row: int) -> None:
        """The last row takes the place of `row`, here as in the cache."""
        self._past.leave(row)
        self.running[row] = self.running[-1]
        self.running.pop()

    def _finish(self, request: Request, reason: str) -> None:
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        self.adapters.sweep(self._in_use())
        try:
            request.on_finish(request)
        except Exception as error:  # as in _next_token
            request.error = request.error or error

    def abort(self, error: Exception) -> None:
        """After a step that failed: every request that was under way ends with `error`, and the rows are free."""
        failed, self.running = self.running, []
        self._past, self._rows = RowsCache(self.config, self.max_batch), AdapterRows(())
        for request in failed:
            request.error = error
            self._finish(request, "error")
