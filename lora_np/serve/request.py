"""A request to the engine, the error for a full queue, and errors that end only one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..nn import BASE
from ..transformer.generation import Sampling
from .logprobs import TokenLogprob, token_logprob


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
    peft_name : str
        Name of the adapter in the PeftModel, see `AdapterStore.peft_name`.
    logprobs, prompt_logprobs : int or None
        Number of most likely tokens per position of the answer and of the prompt, or None for no log probabilities.
    tokens : list of int
        Generated token ids.
    token_logprobs, prompt_token_logprobs : list of TokenLogprob
        The log probabilities of the generated tokens (including the stop token), and of the tokens of the prompt.
    finish_reason : {"stop", "length", "cancelled", "error"} or None
        Why the request is finished, or None if the request is not finished. "stop": after a stop token, or because
        `on_token` returned True. "cancelled": by `cancel`, or because `on_token` raised an error.
    error : BaseException or None
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
    peft_name: str = BASE
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    tokens: list[int] = field(default_factory=list)
    token_logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_token_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    error: BaseException | None = None

    def next_token(self, logits: np.ndarray) -> int:
        """Choose the next token from the logits (v,), and record its log probability if the request asks for it.

        Parameters
        ----------
        logits : ndarray, shape (v,)
            The logits of the next token.

        Returns
        -------
        int
            The id of the next token.
        """
        token = self.sampling.next_token(logits, self.rng, self.prompt, self.tokens)
        if self.logprobs is not None:
            self.token_logprobs.append(token_logprob(logits, token, self.logprobs))
        return token

    def read_prompt_logits(self, logits: np.ndarray) -> None:
        """Record the log probabilities of the next tokens of the prompt. The first token has no log probability.

        Parameters
        ----------
        logits : ndarray, shape (1, c, v)
            The logits after each of the next c tokens of the prompt.
        """
        found, k = self.prompt_token_logprobs, self.prompt_logprobs or 0
        if not found:
            found.append(TokenLogprob(int(self.prompt[0]), None))
        for z in logits[0][: self.prompt.size - len(found)]:
            found.append(token_logprob(z, int(self.prompt[len(found)]), k))


class RecordErrors:
    """Record an error of the `with` block as the error of a request, and do not raise the error.

    A BaseException is recorded too, because an extension written in Rust, such as the package tokenizers, raises a
    BaseException after a panic. KeyboardInterrupt and SystemExit are raised.
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            return False
        self.request.error = self.request.error or error
        return True
