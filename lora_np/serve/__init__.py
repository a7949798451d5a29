"""Serve one base model and many adapters: an engine that batches requests, and an HTTP server.

Modules:

    cache          a key/value cache; rows can be added and removed between two steps
    adapters       AdapterStore: loads adapters from disk and removes the least recently used adapters
    request        Request: a prompt, and the tokens generated so far
    engine         AdapterServer: continuous batching, one token per request and step
    engine_thread  one thread that runs the engine
    workers        threads for work that can take long, with a time limit
    stop_strings   StopStringStream: ends an answer before the first stop string
    logprobs       log probabilities of tokens, and the two forms in which OpenAI's API returns them
    fields         every field of a request, with its default and what the server does
    protocol       requests of OpenAI's API, as data
    responses      responses of OpenAI's API
    completions    CompletionService: checks the length of a prompt, encodes it, and submits it to the engine
    access         API keys, and the checks of the headers Host and Origin
    http           the routes of the HTTP server (Starlette)
    limits         limits of connections, seconds for slow clients, and the grace period
    refusals       the log of refused requests
    connections    connections that keep these limits (uvicorn)
    server         starts and stops the server (uvicorn)
"""

from .adapters import AdapterStore, UnknownAdapter
from .engine import AdapterServer
from .request import QueueFull, Request

__all__ = ["AdapterServer", "AdapterStore", "QueueFull", "Request", "UnknownAdapter"]
