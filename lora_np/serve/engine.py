"""AdapterServer: continuous batching over one base model, with a different adapter for each row.

    submit → waiting → (the prompt is computed) → a row of the batch → one token per step → finished, the row is free

Requests join and leave the batch between two steps, so that no request waits for the longest answer of a batch (Orca, Yu et
al. 2022). The engine is synchronous and has no thread: the result of a step depends only on the submitted requests.

A long prompt is read in chunks, a few chunks per step, so that the running requests get their next tokens between two
chunks (chunked prefill: Agrawal et al. 2024, Sarathi-Serve, and vLLM). One long prompt is read at a time, and short prompts
overtake the long prompts, as in vLLM with `max_long_partial_prefills = 1`. Short prompts of similar length are read together.

An error of one request ends this request only. Before a request joins the batch, its prompt is computed with its
adapter. If this fails for several prompts together, each prompt is computed alone, and only the request with the error
ends. Therefore an adapter that cannot be computed does not reach the batch. If the step of the whole batch fails, for
example because memory is full, no single request is the cause, and all running requests end with the error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..backend import to_host
from ..nn import BASE, Context
from ..ops.checks import check_ids
from ..peft import PeftModel
from ..peft.mixed import AdapterRows
from ..transformer import KeyValueCache, Transformer
from ..transformer.generation import Sampling
from .adapters import AdapterStore
from .cache import BatchCache
from .prompts import (
    CHUNKS_PER_STEP,
    LONG_PROMPT,
    PROMPT_TOKENS,
    Reading,
    begin_reading,
    of_similar_length,
    read_together,
)
from .request import QueueFull, RecordErrors, Request


class AdapterServer:
    """An engine that generates tokens for many requests at once, with one base model and an adapter per request.

    Every request gets the same tokens as from a separate call of `generate`. Do not change the model while the server
    uses it.

    Parameters
    ----------
    model : PeftModel or Transformer
        The base model, with or without adapters. The parameters of a Transformer are frozen.
    max_batch : int, default 32
        Largest number of requests that are computed together.
    max_queue : int, default 256
        Largest number of waiting requests.
    max_loras : int, default 64
        Largest number of loaded adapters in memory. The adapters that `model` already contains are not counted.
    folders : iterable of str or PathLike, optional
        Adapters may be loaded from these folders and their subfolders. By default no adapter can be loaded.

    Raises
    ------
    ValueError
        If a limit is below 1, if an adapter of `model` cannot share a batch with other adapters, if an adapter of
        `model` is merged, or if the adapters of `model` are disabled.
    FileNotFoundError
        If a folder does not exist.

    References
    ----------
    Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI).

    Examples
    --------
    >>> import lora_np as ln
    >>> model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2, init_lora_weights=False), "poet")
    >>> server = ln.AdapterServer(model)
    >>> requests = [server.submit(ln.data.encode("def "), name, max_new_tokens=4) for name in ("poet", "__base__")]
    >>> server.run()
    >>> [len(request.tokens) for request in requests], server.idle
    ([4, 4], True)
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
        for name, limit in (("max_batch", max_batch), ("max_queue", max_queue)):
            if limit < 1:
                raise ValueError(f"{name} = {limit}; expected at least 1")
        peft_model = PeftModel(model.freeze()) if isinstance(model, Transformer) else model
        peft_model.adapter_rows((), 0)  # raises an error if the model is merged or its adapters are disabled
        self.model, self.config = peft_model.model, peft_model.config
        self.adapters = AdapterStore(peft_model, max_loras, folders)
        self.max_batch, self.max_queue = max_batch, max_queue
        self.waiting: deque[Request] = deque()
        self.reading: Reading | None = None  # the long prompt that is read in chunks
        self.joining: list[Request] = []  # the short prompts that this step reads
        self.running: list[Request] = []  # one request per row of the batch
        self._past = BatchCache(self.config, max_batch)
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
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        stop_tokens: Collection[int] = (),
        seed: int = 0,
        row: int = 0,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        on_token: Callable[[int], Any] = lambda token: None,
        on_finish: Callable[[Request], Any] = lambda request: None,
    ) -> Request:
        """Add one request to the queue. The settings have the same meaning as in `generate`, and give the same tokens
        as `generate`.

        Parameters
        ----------
        prompt : sequence of int or ndarray, shape (s,)
            Token ids.
        adapter : str, default "__base__"
            Name of the adapter. `"__base__"` generates without an adapter.
        max_new_tokens : int, default 40
            Largest number of tokens to generate. 0 is allowed only with `prompt_logprobs`.
        temperature : float, default 0
            0 takes the token with the highest logit; above 0 the token is sampled from softmax(logits / temperature).
        top_k : int, optional
            Sample only from the `top_k` tokens with the highest probabilities.
        top_p : float, optional
            Sample only from the smallest set of tokens whose probabilities add up to at least `top_p`.
        min_p, repetition_penalty, presence_penalty, frequency_penalty : float, optional
            As in `generate`.
        stop_tokens : collection of int, optional
            Token ids that end the answer.
        seed : int, default 0
            Seed of the sampling.
        row : int, default 0
            Use the random numbers of this row of `generate`, so that several answers to one prompt differ.
        logprobs : int, optional
            Record the log probability of each generated token, and of the `logprobs` most likely tokens at its
            position.
        prompt_logprobs : int, optional
            Record the log probability of each token of the prompt, and of the `prompt_logprobs` most likely tokens at
            its position.
        on_token : callable, optional
            Called with each new token. If `on_token` returns True, the answer ends. If `on_token` raises an error, only
            this request fails.
        on_finish : callable, optional
            Called with the request when the request is finished.

        Returns
        -------
        Request
            The request. `step` and `run` append the generated tokens to the list `tokens` of this request.

        Raises
        ------
        QueueFull
            If `max_queue` requests are waiting.
        UnknownAdapter
            If there is no such adapter.
        ValueError
            If the prompt is empty, contains an unknown token id or leaves no room for `max_new_tokens`, or if a setting
            is out of range.
        TypeError
            If the prompt does not consist of integers.
        """
        self.adapters.check(adapter)
        ids = np.asarray(prompt)
        if ids.ndim != 1:
            raise ValueError(f"the prompt has shape {ids.shape}; expected one list of token ids")
        if not ids.size:
            raise ValueError("the prompt is empty; expected at least one token")
        check_ids("prompt", ids, self.config.vocab_size)
        limit = self.config.max_position_embeddings
        if max_new_tokens < (1 if prompt_logprobs is None else 0):
            raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
        if ids.size + max_new_tokens > limit:
            raise ValueError(
                f"{ids.size} prompt tokens + {max_new_tokens} new tokens exceed this model's limit of {limit} tokens;"
                " shorten the prompt, or ask for fewer new tokens"
            )
        penalties = repetition_penalty, presence_penalty, frequency_penalty
        sampling, rng = Sampling(temperature, top_k, top_p, min_p, *penalties), np.random.default_rng([seed, row])
        if len(self.waiting) >= self.max_queue:
            raise QueueFull(f"the queue is full (max_queue = {self.max_queue}); try again later")
        stops = frozenset(stop_tokens)
        called = self.adapters.peft_name(adapter), logprobs, prompt_logprobs
        request = Request(ids, adapter, max_new_tokens, sampling, stops, rng, on_token, on_finish, *called)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Remove a request from the queue or from the batch. A finished request is not changed.

        Parameters
        ----------
        request : Request
            The request to end. The `finish_reason` of this request becomes "cancelled".
        """
        self._finish(request, "cancelled")

    @property
    def idle(self) -> bool:
        """True if no request is running or waiting."""
        return not self.running and not self.waiting and self.reading is None

    def run(self) -> None:
        """Call `step` until all requests are finished."""
        while not self.idle:
            self.step()

    # --------------------------------------------------------------------------------------------------------- adapters

    def load_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Load an adapter, so that requests can use it by name.

        Parameters
        ----------
        name : str
            The name by which requests ask for the adapter.
        folder : str or PathLike
            The adapter's folder, absolute or relative to one of the allowed folders.

        Raises
        ------
        ValueError
            If the name is invalid or already exists, or if the folder is outside the allowed folders. The error is also
            raised if the adapter does not fit the base model, or cannot share a batch with other adapters.
        FileNotFoundError
            If the folder or one of its files does not exist.
        """
        self.adapters.load(name, folder, self._in_use())

    def unload_adapter(self, name: str) -> None:
        """Accept no more requests for an adapter. The adapter is removed when its last request is finished.

        Parameters
        ----------
        name : str
            Name of a loaded adapter.

        Raises
        ------
        UnknownAdapter
            If no adapter was loaded under this name.
        """
        self.adapters.unload(name, self._in_use())

    def _in_use(self, waiting: bool = True) -> set[str]:
        reading = () if self.reading is None else (self.reading.request,)
        waiting_too = self.waiting if waiting else ()
        return {request.adapter for request in (*self.running, *self.joining, *reading, *waiting_too)}

    # ---------------------------------------------------------------------------------------------------------- a step

    def step(self) -> None:
        """Read a limited number of prompt tokens, then compute one token for every row of the batch.

        Without requests, the call does nothing. If the computation for the batch fails, the error is raised, and the
        next call must be `abort`.
        """
        self._read_prompts()
        if not self.running:
            return
        positions, mask = self._past.next_step()
        names = [request.peft_name for request in self.running]
        if tuple(names) != self._rows.names:
            self._rows = self._rows.next_call(names)
        tokens = np.array([[request.tokens[-1]] for request in self.running])
        context = Context(adapter=self._rows, attention_mask=mask, position_ids=positions)
        x = self.model.read(tokens, context, self._past)
        logits = to_host(self.model.logits(x[:, -1], context))  # (b, v)
        for request, z in reversed(list(zip(self.running, logits, strict=True))):
            if request.finish_reason is None:  # else a callback has cancelled the request in this step
                self._next_token(request, z)

    def _read_prompts(self) -> None:
        """Read about PROMPT_TOKENS tokens of prompts, and add requests whose prompt is complete to the batch.

        Prompts are read in the order of submission, but a long prompt waits while another long prompt is read. Each
        step reads a part of the long prompt, so that short prompts cannot delay the long prompt for ever. After a long
        text, a chunk has fewer tokens than CHUNK, so that every chunk takes about the same time.

        If memory is full of adapters in use, a request waits for its adapter, and all later requests wait too.
        Otherwise the later requests could delay this request for ever.
        """
        tokens = PROMPT_TOKENS - LONG_PROMPT * (self.reading is not None)
        for request in tuple(self.waiting):
            if tokens <= 0 or len(self.running) + len(self.joining) + (self.reading is not None) >= self.max_batch:
                break
            long = request.prompt.size > LONG_PROMPT
            if request.finish_reason is not None or (long and self.reading is not None):
                continue
            with self._errors_end(request):
                if not self.adapters.acquire(request.adapter, self._in_use(waiting=False)):
                    break
                self.waiting.remove(request)
                tokens -= min(request.prompt.size, LONG_PROMPT)
                if long:
                    self.reading = begin_reading(self.model, request)
                else:
                    self.joining.append(request)
        for group in of_similar_length(self.joining):
            self._read_together([request for request in group if request.finish_reason is None])
        self.joining = []
        if self.reading is not None:
            with self._errors_end(self.reading.request):
                self._read(self.reading)

    def _read_together(self, requests: list[Request]) -> None:
        """Read short prompts in one batch. If this fails, or if there is one prompt, read each prompt alone."""
        read = None
        if len(requests) > 1:
            with suppress(Exception):  # the prompt that causes the error is found when each prompt is read alone
                read = read_together(self.model, requests)
        for row, request in enumerate(requests):
            with self._errors_end(request):
                if read is None:
                    self._read(begin_reading(self.model, request))
                else:
                    self._join(request, read[1][row], read[0], row)

    def _read(self, reading: Reading) -> None:
        """Read the chunks of one step. After the last chunk, choose the first token and add the request to the batch."""
        try:
            for _ in range(CHUNKS_PER_STEP):
                next(reading.chunks)
        except StopIteration as finished:
            self.reading = None if self.reading is reading else self.reading
            if reading.request.max_new_tokens == 0:
                self._finish(reading.request, "length")
            else:
                self._join(reading.request, finished.value[0], reading.past, 0)

    def _join(self, request: Request, logits: np.ndarray, past: KeyValueCache, row: int) -> None:
        """Choose the first token, and add the request to the batch. Its prompt is in one row of the cache `past`."""
        if request.finish_reason is None:  # else a callback of another request has cancelled this request
            self._next_token(request, logits)
        if request.finish_reason is None:
            self._past.add_row(past, row, request.prompt.size)
            self.running.append(request)

    def _next_token(self, request: Request, logits: np.ndarray) -> None:
        """Choose the next token and pass it to `on_token`. Finish the request if this token is the last token."""
        reason: str | None = "error"
        with RecordErrors(request):
            token = request.next_token(logits)
            if token in request.stop_tokens:
                reason = "stop"
            else:
                request.tokens.append(token)
                reason = "cancelled"
                stopped = request.on_token(token) is True
                reason = "stop" if stopped else "length" if len(request.tokens) == request.max_new_tokens else None
        if reason is not None:
            self._finish(request, reason)

    @contextmanager
    def _errors_end(self, request: Request) -> Iterator[None]:
        """Finish `request` if the `with` block raises an error. The error is recorded and not raised."""
        with RecordErrors(request):
            yield
            return
        self._finish(request, "error")

    def _finish(self, request: Request, reason: str) -> None:
        """Remove a request from the queue or the batch, and call `on_finish`. A finished request is not changed."""
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        if request in self.joining:
            self.joining.remove(request)  # so that its adapter is no longer in use
        if request in self.waiting:
            self.waiting.remove(request)
        elif self.reading is not None and self.reading.request is request:
            self.reading = None
        elif request in self.running:  # the last row of the batch and of the cache replaces the row
            row = self.running.index(request)
            self._past.remove_row(row)
            self.running[row] = self.running[-1]
            self.running.pop()
        with RecordErrors(request):
            request.on_finish(request)
        self.adapters.remove_unused(self._in_use())

    def abort(self, error: BaseException) -> None:
        """End all running requests after a step that failed. Waiting requests are kept.

        Parameters
        ----------
        error : BaseException
            The error that `step` raised. This error becomes the `error` of each running request.
        """
        failed, self.running, self.joining = [*self.running, *self.joining], [], []
        self._past, self._rows = BatchCache(self.config, self.max_batch), AdapterRows(())
        for request in failed:
            request.error = error
            self._finish(request, "error")
