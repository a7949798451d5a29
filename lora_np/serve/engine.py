"""AdapterServer: continuous batching over one base model, with a different adapter for each row.

    submit → waiting → (the prompt is computed) → a row of the batch → one token per step → finished, the row is free

Requests join and leave the batch between two steps, so that no request waits for the longest answer of a batch (Orca, Yu et
al. 2022). The engine is synchronous and has no thread: the result of a step depends only on the submitted requests.
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
from .cache import BatchCache

PROMPT_TOKENS = 512  # after this many prompt tokens in one step, further prompts wait, so that running requests go on


class QueueFull(RuntimeError):
    """Raised if `max_queue` requests are waiting already. Submit the request again later.

    Examples
    --------
    >>> import lora_np as ln
    >>> server = ln.AdapterServer(ln.load_model("tiny"), max_queue=1)
    >>> _ = server.submit([65])
    >>> try:
    ...     server.submit([66])
    ... except ln.serve.QueueFull as error:
    ...     print(error)
    the queue is full (max_queue = 1); try again later
    """


@dataclass(eq=False)
class Request:
    """A submitted prompt and the tokens generated so far. `AdapterServer.submit` creates it.

    Parameters
    ----------
    prompt : ndarray, shape (s,), int
        Token ids of the prompt.
    adapter : str
        Name of the adapter, or `"__base__"`.
    max_new_tokens : int
        Largest number of tokens to generate.
    sampling : Sampling
        How the next token is chosen.
    stop_tokens : frozenset of int
        Token ids that end the answer. These ids are not part of `tokens`.
    rng : numpy.random.Generator
        Random numbers for sampling.
    on_token : callable
        Called with each new token. If `on_token` returns True, the answer ends.
    on_finish : callable
        Called with the request when the request is finished.
    tokens : list of int
        Generated token ids.
    finish_reason : {"stop", "length", "cancelled", "error"} or None
        Why the request is finished, or None if the request is not finished. "stop": after a stop token, or because
        `on_token` returned True. "cancelled": by `cancel`, or because `on_token` raised an error.
    error : Exception or None
        The error that ended the request, or that `on_finish` raised.

    Examples
    --------
    >>> import lora_np as ln
    >>> server = ln.AdapterServer(ln.load_model("tiny"))
    >>> request = server.submit(ln.data.encode("The "), max_new_tokens=3)
    >>> server.run()
    >>> len(request.tokens), request.finish_reason
    (3, 'length')
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
        stop_tokens: Collection[int] = (),
        seed: int = 0,
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
            Largest number of tokens to generate.
        temperature : float, default 0
            0 takes the token with the highest logit; above 0 the token is sampled from softmax(logits / temperature).
        top_k : int, optional
            Sample only from the `top_k` tokens with the highest probabilities.
        top_p : float, optional
            Sample only from the smallest set of tokens whose probabilities add up to at least `top_p`.
        stop_tokens : collection of int, optional
            Token ids that end the answer.
        seed : int, default 0
            Seed of the sampling.
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
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
        if ids.size + max_new_tokens > limit:
            raise ValueError(
                f"{ids.size} prompt tokens + {max_new_tokens} new tokens exceed this model's limit of {limit} tokens;"
                " shorten the prompt, or ask for fewer new tokens"
            )
        sampling, rng = Sampling(temperature, top_k, top_p), np.random.default_rng([seed, 0])
        if len(self.waiting) >= self.max_queue:
            raise QueueFull(f"the queue is full (max_queue = {self.max_queue}); try again later")
        stops = frozenset(stop_tokens)
        request = Request(ids, adapter, max_new_tokens, sampling, stops, rng, on_token, on_finish)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Remove a request from the queue or from the batch. A finished request is not changed.

        Parameters
        ----------
        request : Request
            The request to end. The `finish_reason` of this request becomes "cancelled".
        """
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self._remove_row(self.running.index(request))
        self._finish(request, "cancelled")

    @property
    def idle(self) -> bool:
        """True if no request is running or waiting."""
        return not self.running and not self.waiting

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
        return {request.adapter for request in (*self.running, *(self.waiting if waiting else ()))}

    # ---------------------------------------------------------------------------------------------------------- a step

    def step(self) -> None:
        """Add waiting requests to the batch if there is room, then compute one token for every row.

        Without requests, the call does nothing.
        """
        self._admit()
        if not self.running:
            return
        positions, mask = self._past.next_step()
        names = [request.adapter for request in self.running]
        if tuple(names) != self._rows.names:
            self._rows = self._rows.next_call(names)
        tokens = np.array([[request.tokens[-1]] for request in self.running])
        context = Context(adapter=self._rows, attention_mask=mask, position_ids=positions)
        x, _ = self.model.hidden(tokens, context, self._past)
        logits = to_host(self.model.logits(x[:, -1], context))  # (b, v)
        for row in reversed(range(len(self.running))):  # a removed row is replaced by the last, already done
            request = self.running[row]
            if (reason := self._next_token(request, logits[row])) is not None:
                self._remove_row(row)
                self._finish(request, reason)

    def _admit(self) -> None:
        """Add waiting requests to the batch in the order of submission.

        If memory is full of adapters in use, a request waits for its adapter, and all later requests wait too.
        Otherwise the later requests could delay this request for ever.
        """
        prompt_tokens = 0
        while self.waiting and len(self.running) < self.max_batch and prompt_tokens < PROMPT_TOKENS:
            request = self.waiting[0]
            try:
                if not self.adapters.acquire(request.adapter, self._in_use(waiting=False)):
                    return
                self.waiting.popleft()
                prompt_tokens += request.prompt.size
                past, adapter = KeyValueCache(self.config), None if request.adapter == BASE else request.adapter
                logits = last_logits(self.model, request.prompt[None], None, past, adapter)
            except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
                if request in self.waiting:  # the adapter's folder has changed since `submit`
                    self.waiting.popleft()
                request.error = error
                self._finish(request, "error")
                continue
            reason = self._next_token(request, logits[0])
            if reason is None:
                self.running.append(request)
                self._past.add_row(past)
            else:
                self._finish(request, reason)

    def _next_token(self, request: Request, logits: np.ndarray) -> str | None:
        """Choose the next token and pass it to `on_token`. Return the finish reason, or None if the request continues."""
        reason = "error"
        try:
            token = request.sampling.choose(logits, request.rng)
            if token in request.stop_tokens:
                return "stop"
            request.tokens.append(token)
            reason = "cancelled"
            stopped = request.on_token(token) is True
        except Exception as error:  # an error of one request or its callback must not end the other requests
            request.error = error
            return reason
        return "stop" if stopped else "length" if len(request.tokens) == request.max_new_tokens else None

    def _remove_row(self, row: int) -> None:
        """Remove `row` from the batch and from the cache; the last row replaces it."""
        self._past.remove_row(row)
        self.running[row] = self.running[-1]
        self.running.pop()

    def _finish(self, request: Request, reason: str) -> None:
        if request.finish_reason is not None:
            return
        request.finish_reason = reason
        self.adapters.remove_unused(self._in_use())
        try:
            request.on_finish(request)
        except Exception as error:  # as in `_next_token`
            request.error = request.error or error

    def abort(self, error: Exception) -> None:
        """End all running requests after a step that failed. Waiting requests are kept.

        Parameters
        ----------
        error : Exception
            The error that `step` raised. This error becomes the `error` of each running request.
        """
        failed, self.running = self.running, []
        self._past, self._rows = BatchCache(self.config, self.max_batch), AdapterRows(())
        for request in failed:
            request.error = error
            self._finish(request, "error")
